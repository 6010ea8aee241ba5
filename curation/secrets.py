"""What must not stand in a log or a record: secrets of the environment, keys, tokens and passwords in addresses."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

HIDDEN = "[hidden]"

_NAMES = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|AUTH", re.I)
_SECRETS = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|(?<=\bBearer )\S+"
    r"|(?<=:/)/?[^/\s@]+(?=@)"
    r"|(?<=[?&])(?:[\w-]*(?:token|key|signature|credential|secret|password|passwd)|sig|auth)=[^&\s]+"
    r"|\b(?:sk|cp)[-_][\w-]{16,}",
    re.S | re.I,
)
_PYDANTIC_INPUT = re.compile(r"(?<=input_value=).*?(?=, input_type=)", re.S)


class Hider:
    """Hides in texts what is secret of an environment, and what looks like a secret by itself."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._known = sorted(
            {value for name, value in environment.items() if _NAMES.search(name) and len(value) >= 8},
            key=len,
            reverse=True,
        )

    def __call__(self, text: str) -> str:
        for secret in self._known:
            text = text.replace(secret, HIDDEN)
        return _PYDANTIC_INPUT.sub(HIDDEN, _SECRETS.sub(HIDDEN, text))
