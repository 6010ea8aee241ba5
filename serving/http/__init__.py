"""The HTTP face, room by room; `serving.gateway.create_app` puts them together.

May import what `serving` may, and FastAPI; never Ray.

- `generations`: pictures for a request, whole or as a stream; `events`: what a stream says; `desk`: who checks and
  draws for all of them.
- `pictures`: records of pictures, drawing them again, and pictures at URLs.
- `jobs`: pictures that are fetched later; `job_runner` has them drawn, `serving.jobs` keeps them, `serving.webhooks`
  tells of them.
- `asker`: who asks, as far as this side knows; `authentication`: whether they may (`serving.keys`, `serving.quotas`).
- `errors`: every refusal in OpenAI's shape. `body_limit`, `request_id`: what every request goes through.
- `verify`: whether a file is from here.
- `models`: what is served, and whether it answers.
- `page`: the page for people, whose files are in `serving/page`, and the guide to what may be asked for.

To add an endpoint: a module with a function that returns its `APIRouter`, and its line in `gateway.create_app`.
"""
