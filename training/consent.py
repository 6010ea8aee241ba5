"""Before training: how old a manifest's rights evidence is, and which of its rows were revoked since.

The takedown ledger is asked when a job starts, whatever the manifest says: its entries take effect for every reader at
once. Whatever cannot be asked stops the job.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from curation import storage
from curation.errors import UserError
from curation.manifest import Manifest
from curation.takedowns import Ledger, LedgerState, of_place
from curation.takedowns.ledger import VARIABLE
from curation.takedowns.revocation import Revocations, Revoked
from training.roster import NO_LEDGER, Roster


@dataclass(frozen=True)
class Consent:
    """What the ledgers say about a manifest's rows.

    Attributes:
        ledger_uri, ledger_version: as in `roster.RosterInfo`.
        revoked: of the rows that the manifest keeps, those that may no longer be used, by id, and why.
    """

    ledger_uri: str
    ledger_version: str
    revoked: dict[str, Revoked]

    def roster(self, manifest: Manifest, *, held_out_share: float = 0.0, seed: int = 0) -> Roster:
        """What of the manifest may be trained on, without the share of it that is held out.

        Raises:
            UserError: nothing.
        """
        return Roster.of_manifest(
            manifest,
            self.revoked,
            ledger_uri=self.ledger_uri,
            ledger_version=self.ledger_version,
            held_out_share=held_out_share,
            seed=seed,
        )

    @property
    def by_entry(self) -> dict[str, int]:
        """How many rows each entry takes out; an entry is named by the first twelve digits of its id."""
        counts = Counter(revoked.entry[:12] for revoked in self.revoked.values())
        return dict(sorted(counts.items()))


def ask(manifest: Manifest, ledger: str | None) -> Consent:
    """Reads the ledgers that concern a manifest: the job's, $CLEANPLATE_LEDGER's, and the one that the manifest names.

    Where nothing names one it is that which lies beside the manifest, if there is one.

    Raises:
        UserError: when one cannot be read, or the manifest heeded entries that are no longer there.
    """
    named = [of_place(place) for place in (ledger, os.environ.get(VARIABLE)) if place]
    if manifest.info.ledger is not None:
        named.append(manifest.info.ledger.uri)
    if not named:
        place = of_place(manifest.uri)  # where `cleanplate takedown` writes about a manifest that names none
        if storage.exists(place):
            named.append(place)
    uris = list(dict.fromkeys(named))
    revoked: dict[str, Revoked] = {}
    versions = []
    for uri in uris:
        state = Ledger.open(uri).read()
        _refuse_vanished(manifest, uri, state)
        versions.append(state.version)
        for row, reason in Revocations(state.in_force).of_manifest(manifest).items():
            revoked.setdefault(row, reason)
    return Consent(", ".join(uris) or NO_LEDGER, ", ".join(versions) or NO_LEDGER, revoked)


def _refuse_vanished(manifest: Manifest, uri: str, state: LedgerState) -> None:
    """An absent ledger reads as an empty one; where entries are known to have been, it was lost or moved."""
    known = manifest.info.ledger
    if known is not None and known.uri == uri and not state.entries and known.version != LedgerState.of(()).version:
        raise UserError(
            f"the manifest heeded a takedown ledger at {uri}, which is not there any more",
            field="ledger",
            remedy="restore it: nothing is trained without asking it",
        )


def check_age(manifest: Manifest, max_age_days: float | None, *, at: datetime | None = None) -> None:
    """Refuses rights evidence that is older than a job takes it.

    Args:
        max_age_days: None takes any.
        at: the time to reckon from; now by default.

    Raises:
        UserError: it is older.
    """
    seen = manifest.info.evidence_from or manifest.info.created_at
    age = (at or datetime.now(UTC)) - seen
    if max_age_days is not None and age > timedelta(days=max_age_days):
        raise UserError(
            f"the rights evidence of {manifest.uri} is {age / timedelta(days=1):.1f} days old "
            f"(of {seen:%Y-%m-%d}), the job takes it up to {max_age_days:g}",
            field="consent_max_age_days",
            remedy=f"ask again: cleanplate recheck {manifest.uri}, and train on the manifest that it writes",
        )
