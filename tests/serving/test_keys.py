"""Keys in a file: what of them is kept, who is known by them, and when a change is heeded."""

from __future__ import annotations

from pathlib import Path

import pytest

from curation.errors import UserError
from serving import keys
from serving.keys import KeyRing, KeysConfig


@pytest.fixture
def file(tmp_path: Path) -> str:
    return str(tmp_path / "keys" / "studio.json")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_key_is_known_by_its_secret_which_is_nowhere(file: str) -> None:
    key, secret = keys.create(file, "studio", ["generate", "read"], row_steps_per_day=100)
    ring = KeyRing(KeysConfig(file=file))
    assert ring.find(secret) == key
    assert key.may("generate")
    assert not key.may("verify")
    text = Path(file).read_text()
    assert secret not in text
    assert secret.rpartition("_")[2] not in text
    assert len(secret.removeprefix(f"cp_{key.id}_")) == 43  # 256 bits in base64


def test_an_admins_key_may_everything(file: str) -> None:
    key, _ = keys.create(file, "owner", ["admin"])
    assert all(key.may(scope) for scope in ("generate", "read", "verify", "admin"))


def test_a_wrong_secret_is_nobodys(file: str) -> None:
    first, secret = keys.create(file, "a", ["read"])
    second, other = keys.create(file, "b", ["read"])
    ring = KeyRing(KeysConfig(file=file))
    mixed = f"cp_{first.id}_{other.removeprefix(f'cp_{second.id}_')}"
    for wrong in ("", "cp_", secret[:-1], secret + "x", secret.upper(), mixed, "cp_00000000_" + "A" * 43, "ü" * 100):
        assert ring.find(wrong) is None


def test_a_revoked_key_is_none_once_the_file_was_read_again(file: str) -> None:
    clock = Clock()
    keys.create(file, "a", ["read"])
    key, secret = keys.create(file, "b", ["read"])
    ring = KeyRing(KeysConfig(file=file, reload_s=5), clock)
    assert keys.revoke(file, "b").id == key.id
    assert ring.find(secret) is not None
    assert not ring.stale
    clock.now += 5
    assert ring.stale
    ring.reload()
    assert ring.find(secret) is None
    assert not ring.stale
    assert [known.revoked is None for known in keys.read(file)] == [True, False]


def test_a_file_that_cannot_be_read_locks_nobody_out(file: str) -> None:
    key, secret = keys.create(file, "a", ["read"])
    ring = KeyRing(KeysConfig(file=file))
    Path(file).write_text("{")
    ring.reload()
    assert ring.find(secret) == key
    with pytest.raises(UserError, match="cannot be read as keys"):
        KeyRing(KeysConfig(file=file))


def test_revoking_wants_one_key(file: str) -> None:
    keys.create(file, "a", ["read"])
    key, _ = keys.create(file, "a", ["read"])
    for name, said in (("a", "several keys"), ("b", "no key")):
        with pytest.raises(UserError, match=said):
            keys.revoke(file, name)
    keys.revoke(file, key.id)
    keys.revoke(file, "a")
    with pytest.raises(UserError, match="no key"):
        keys.revoke(file, "a")


def test_no_file_is_said(file: str) -> None:
    with pytest.raises(UserError, match="there is no") as caught:
        KeyRing(KeysConfig(file=file))
    assert caught.value.field == "keys.file"
