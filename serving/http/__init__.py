"""The HTTP face, room by room; `serving.gateway.create_app` puts them together.

May import what `serving` may, and FastAPI; never Ray.

- `generations`: pictures for a request, whole or as a stream; `events`: what a stream says; `desk`: who checks and
  draws for all of them.
- `errors`: every refusal in OpenAI's shape. `body_limit`, `request_id`: what every request goes through.

To add an endpoint: a module with a function that returns its `APIRouter`, and its line in `gateway.create_app`.
"""
