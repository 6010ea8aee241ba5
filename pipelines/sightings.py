"""Where the pictures that a query is about stand: manifests, each opened and searched once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from curation.errors import UserError

if TYPE_CHECKING:
    from curation.lineage import Found, Query
    from curation.manifest import Manifest
    from training.roster import Roster


class Sightings:
    """Manifests, each opened and searched for a query once."""

    def __init__(self, query: Query) -> None:
        self.query = query
        self._found: dict[str, tuple[Manifest, list[Found]] | UserError] = {}

    def of(self, uri: str) -> tuple[Manifest, list[Found]]:
        """A manifest and its rows that the query is about.

        Raises:
            UserError: it cannot be read.
        """
        from pyarrow import ArrowException

        from curation.lineage import find
        from curation.manifest import Manifest

        if uri not in self._found:
            try:
                manifest = Manifest.open(uri)
                self._found[uri] = (manifest, find(manifest, self.query))
            except UserError as error:
                self._found[uri] = error
            except (OSError, ArrowException) as error:
                self._found[uri] = UserError(f"{uri} cannot be read: {error}", field="manifest")
        found = self._found[uri]
        if isinstance(found, UserError):
            raise found
        return found

    @property
    def ids(self) -> set[str]:
        """Of all rows that were found in any manifest so far, and of all files that the query names."""
        named = {s.sha256 for entry in self.query.entries for s in entry.selectors if s.sha256 is not None}
        rows = (found[1] for found in self._found.values() if not isinstance(found, UserError))
        return named | {row.id for found in rows for row in found}

    def asked_of(self, roster: Roster) -> tuple[set[str], str | None]:
        """The ids that a training on this roster is asked for, and why they may not be all."""
        named = {s.sha256 for entry in self.query.entries for s in entry.selectors if s.sha256 is not None}
        try:
            manifest, found = self.of(roster.info.manifest_uri)
        except UserError as error:
            return self.ids, f"its manifest cannot be read, so that there may be more: {error.message}"
        if manifest.id != roster.info.manifest_id:
            return self.ids, f"{manifest.uri} is not the manifest that it was trained on, so that there may be more"
        return named | {row.id for row in found}, None
