"""What is done about a prompt: blocked, flagged, or refused because nobody could judge it."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import pytest

from curation.clip import ClipConfig
from curation.errors import UserError
from serving.api import RequestError
from serving.prompts.guard import PromptGuard, PromptsConfig, build
from serving.prompts.rules import Match, Rules


class Broken(Rules):
    """Rules that fail while they are asked."""

    def __init__(self) -> None:
        super().__init__({})

    def matches(self, prompt: str) -> list[Match]:
        raise RuntimeError(f"cannot read {prompt}")


def test_a_prompt_that_nobody_can_judge_is_not_drawn(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), pytest.raises(RequestError) as caught:
        PromptGuard(Broken()).check("a secret garden")
    assert (caught.value.status, caught.value.code) == (503, "moderation_unavailable")
    assert "secret" not in caplog.text + caught.value.message


def test_neither_the_log_nor_the_answer_repeats_the_prompt(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), pytest.raises(RequestError) as caught:
        build(PromptsConfig(), ClipConfig()).check("a beheading in a secret garden")
    assert "default:violence/graphic:" in caplog.text
    assert "secret" not in caplog.text + caught.value.message
    assert "behead" not in caplog.text + caught.value.message


def test_a_refusal_crosses_processes_whole() -> None:
    with pytest.raises(RequestError) as caught:
        build(PromptsConfig(), ClipConfig()).check("gore")
    again = pickle.loads(pickle.dumps(caught.value))
    assert again.body() == caught.value.body()


def test_clip_sees_every_part_of_a_long_prompt(tiny_clip: ClipConfig) -> None:
    """Its text tower reads sixteen tokens: what comes after them counts all the same, and so does its threshold."""
    clip = tiny_clip.build()
    score = float(clip.embed_texts(["a pistol"])[0] @ clip.concept("weapon"))
    long = " ".join(["very"] * 16 + ["a", "pistol"])

    def judged(threshold: float, prompt: str) -> list[float | None]:
        config = PromptsConfig(lists=(), concepts={"weapon": threshold})
        return [entry.score for entry in build(config, tiny_clip).check(prompt)]

    assert judged(score - 1e-3, "a pistol") == [pytest.approx(score, abs=1e-4)]
    assert judged(score + 1e-3, "a pistol") == []
    apart = max(float(clip.embed_texts([part])[0] @ clip.concept("weapon")) for part in _windows(long))
    assert judged(apart - 1e-3, long) == [pytest.approx(apart, abs=1e-4)]
    assert judged(apart + 1e-3, long) == []


def _windows(prompt: str) -> list[str]:
    words = prompt.split()
    return [" ".join(words[:16]), " ".join(words[8:24])]


def test_clip_blocks_where_it_is_told_to(tiny_clip: ClipConfig) -> None:
    with pytest.raises(RequestError, match=r"safety_violations=\[weapon\]"):
        build(PromptsConfig(concepts={"weapon": -0.99}, concepts_action="block"), tiny_clip).check("a red apple")


def test_actions_of_the_operator_count(tmp_path: Path) -> None:
    quiet = build(PromptsConfig(actions={"violence/graphic": "ignore", "nudity": "block"}), ClipConfig())
    assert quiet.check("gore") == ()
    with pytest.raises(RequestError, match="nudity"):
        quiet.check("a nude")


def test_mistakes_are_found_before_anything_starts(tmp_path: Path) -> None:
    for told, field in (({"lists": ["./none.yaml"]}, "prompts.lists"), ({"actions": {"x": "flag"}}, "prompts.actions")):
        with pytest.raises(UserError) as caught:
            PromptsConfig.model_validate(told).check(ClipConfig())
        assert caught.value.field == field
    with pytest.raises(UserError, match="same name"):
        PromptsConfig(lists=("default", "default")).check(ClipConfig())
    with pytest.raises(UserError, match="no CLIP"):
        PromptsConfig(concepts={"weapon": 0.5}).check(ClipConfig(model="nosuch"))


def test_paths_are_made_absolute() -> None:
    rooted = PromptsConfig(lists=("default", "house.yaml")).rooted()
    assert rooted.lists == ("default", str(Path.cwd() / "house.yaml"))
