"""`cleanplate recheck`: what is missing is said before a cluster starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from curation.errors import UserError
from pipelines import recheck
from tests.curation.pictures import encoded, noise
from tests.curation.takedowns.manifests import published, row_of


def test_a_registry_without_its_key_is_a_user_s_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPAWNING_API_KEY", raising=False)
    job = {
        "source": {"kind": "folder", "path": "."},
        "output": str(tmp_path),
        "clip": None,
        "captions": [],
        "fetch": {"allow_private": True},
        "rights": {"registry": {"url": "https://registry.example/"}},
    }
    base = published(tmp_path, [row_of(encoded(noise(1)), "https://a.example/a.png")], job=job)
    with pytest.raises(UserError, match="SPAWNING_API_KEY is not set") as caught:
        recheck.run(base.uri)
    assert caught.value.field == "rights.registry"
