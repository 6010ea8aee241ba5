"""Structured logs: one JSON object a line, without what nobody should read in a log.

Secrets never stand in a line: values of the environment's variables that are named like secrets, private keys, bearer
tokens, keys of this server, and passwords or signatures in URLs are hidden. What the client of the request at hand
wrote (`context.hide`) is hidden too, in whole and in part, unless the job's `log_prompts` says otherwise.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from typing import Any

from curation.secrets import HIDDEN, Hider
from serving.context import current
from serving.generator import Generation
from serving.metrics import findings
from serving.observability import ObservabilityConfig

LOGGERS = ("pipelines", "serving", "training", "curation")
ACCESS = "serving.access"
_GRAM = 5
_LONGEST = 2_000


class JsonLines(logging.Formatter):
    """Makes a line of a record; `extra={"facts": {...}}` says more.

    Args:
        log_prompts: whether the clients' own words may stand in it.
        process: which process of the server writes.
        environment: whose secrets are hidden.
    """

    def __init__(self, *, log_prompts: bool, process: str, environment: Mapping[str, str] = os.environ) -> None:
        super().__init__()
        self._log_prompts = log_prompts
        self._process = process
        self._hide = Hider(environment)

    def format(self, record: logging.LogRecord) -> str:
        tracked = current()
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": self._process,
            "message": self.clean(record.getMessage()),
        }
        if tracked is not None:
            line["request_id"] = tracked.origin.request_id
        for name, value in getattr(record, "facts", {}).items():
            line[name] = self.clean(value) if isinstance(value, str) else value
        if record.exc_info and record.exc_info[1] is not None:
            line["error"], line["where"] = self._error(record.exc_info[1])
        return json.dumps(line, ensure_ascii=False, default=lambda value: self.clean(str(value)))

    def clean(self, text: str) -> str:
        """A text with what no log may say hidden."""
        text = self._hide(text[: 2 * _LONGEST])[:_LONGEST]  # a secret that was cut is not known for one
        tracked = current()
        if tracked is not None and not self._log_prompts:
            for private in tracked.private:
                text = _without(text, private)
        return text

    def _error(self, error: BaseException) -> tuple[str, list[str]]:
        """Its type and words, and where it came from. Not Python's own rendering, which shows more than that."""
        frames = traceback.extract_tb(error.__traceback__)
        where = [f"{os.path.relpath(frame.filename)}:{frame.lineno} {frame.name}" for frame in frames]
        return self.clean(f"{type(error).__name__}: {error}"), where


class Redacting(logging.Filter):
    """Cleans the records of a logger that formats them by itself."""

    def __init__(self, lines: JsonLines) -> None:
        super().__init__()
        self._lines = lines

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = self._lines.clean(record.getMessage()), None
        if record.exc_info:
            record.exc_text = self._lines.clean("".join(traceback.format_exception(*record.exc_info)))
        return True


def configure(config: ObservabilityConfig, process: str) -> None:
    """Has this process of the server log what `config` says, and Ray Serve's own logger hide what ours do."""
    lines = JsonLines(log_prompts=config.log_prompts, process=process)
    handler = logging.StreamHandler(sys.stderr) if config.log_file is None else WatchedFileHandler(config.log_file)
    handler.setFormatter(lines)
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(config.log_level.upper())
    serve = logging.getLogger("ray.serve")
    serve.filters = [each for each in serve.filters if not isinstance(each, Redacting)]
    serve.addFilter(Redacting(lines))


def facts(generation: Generation) -> dict[str, Any]:
    """What a line in the log says of a request's pictures."""
    plan, card = generation.plan, generation.card
    reasons = [picture.finish_reason for picture in generation.pictures]
    return {
        "model": card.name,
        "model_version": card.version,
        "steps": plan.steps,
        "sampler": plan.sampler,
        "row_steps": plan.row_steps,
        "pictures": len(reasons),
        "withheld": len(reasons) - reasons.count("stop"),
        "moderation": sorted({":".join(finding) for finding in findings(generation)}),
        "timings": generation.timings.model_dump(exclude_none=True),
    }


def _without(text: str, private: str) -> str:
    """A text without what it shares with a private one: every run of five characters and more, also in a repr.

    A private text of three or four is hidden where it stands as a word, a shorter one says nothing.
    """
    low, folded = private.casefold(), text.casefold()
    if len(low) < _GRAM:
        word = rf"(?<!\w){re.escape(low)}(?!\w)"
        return re.sub(word, HIDDEN, text, flags=re.I) if len(low) > 2 else text
    grams = {low[k : k + _GRAM] for k in range(len(low) - _GRAM + 1)}
    grams |= {ascii(gram)[1:-1] for gram in grams}
    if len(folded) != len(text):  # a few letters fold into two
        return HIDDEN if any(gram in folded for gram in grams) else text
    shared = bytearray(len(text))
    for size in {len(gram) for gram in grams}:
        for k in range(len(folded) - size + 1):
            if folded[k : k + size] in grams:
                shared[k : k + size] = b"\1" * size
    runs = itertools.groupby(zip(text, shared, strict=True), key=lambda pair: pair[1])
    return "".join(HIDDEN if hit else "".join(letter for letter, _ in run) for hit, run in runs)
