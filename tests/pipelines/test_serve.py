"""How serving is asked to end."""

from __future__ import annotations

import signal

import pytest

from pipelines.serve import Ending


def test_signals_of_one_second_are_one_and_a_later_one_does_not_wait() -> None:
    now = 10.0
    ending = Ending(lambda: now)
    assert not ending.asked.is_set()
    ending(signal.SIGTERM, None)
    now = 10.9
    ending(signal.SIGINT, None)
    assert ending.asked.is_set()
    assert ending.number == signal.SIGTERM
    now = 11.1
    with pytest.raises(SystemExit) as ended:
        ending(signal.SIGINT, None)
    assert ended.value.code == 128 + signal.SIGINT
