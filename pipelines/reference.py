"""docs/jobs.md: every field of every job file, out of the models. `python -m pipelines.reference` writes it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pipelines.config import KINDS, model_of

FILE = Path(__file__).parents[1] / "docs" / "jobs.md"


def page() -> str:
    """The page as Markdown: a section for every kind of job, a table for every group of fields in it."""
    lines = [
        "# Job files",
        "",
        "Every field of every kind of job, out of the models that check them (`python -m pipelines.reference`).",
        "A field without a default is required. `cleanplate VERB job.yaml --dry-run` prints a job with all filled in.",
    ]
    for kind in KINDS:
        lines += ["", f"## `kind: {kind}`", "", *_section(model_of(kind))]
    return "\n".join(lines) + "\n"


def _section(model: type[BaseModel]) -> list[str]:
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    lines = [_first_sentence(model.__doc__ or ""), "", *_table(schema, definitions)]
    named = list(_named(schema, definitions))
    for name in named:
        told = definitions[name]
        lines += ["", f"**`{name}`** {_first_sentence(told.get('description', ''))}", "", *_table(told, definitions)]
    return lines


def _named(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, None]:
    """The groups of fields below a schema, in the order in which they are met."""
    met: dict[str, None] = {}
    queue = [{key: value for key, value in schema.items() if key != "$defs"}]
    while queue:
        for name in re.findall(r'"#/\$defs/([^"]+)"', json.dumps(queue.pop(0))):
            if name not in met and "properties" in definitions[name]:
                met[name] = None
                queue.append(definitions[name])
    return met


def _table(schema: dict[str, Any], definitions: dict[str, Any]) -> list[str]:
    required = schema.get("required", [])
    rows = ["| field | type | default | what it is |", "|---|---|---|---|"]
    for name, field in schema.get("properties", {}).items():
        default = "" if name in required or "default" not in field else f"`{_value(field['default'])}`"
        told = field.get("description") or definitions.get(_reference(field), {}).get("description", "")
        cells = (f"`{name}`", _type(field, definitions), default, " ".join(told.split()))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return rows


def _type(field: dict[str, Any], definitions: dict[str, Any]) -> str:
    if name := _reference(field):
        told = definitions[name]
        return f"`{name}`" if "properties" in told else _type(told, definitions)
    for union in ("anyOf", "oneOf"):
        if union in field:
            return " or ".join(dict.fromkeys(_type(option, definitions) for option in field[union]))
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if field.get("type") == "array":
        if "prefixItems" in field:
            return f"list of {len(field['prefixItems'])}"
        return f"list of {_type(field.get('items', {}), definitions)}"
    if field.get("type") == "object":
        values = field.get("additionalProperties")
        return f"mapping to {_type(values, definitions)}" if isinstance(values, dict) else "mapping"
    return f"{field.get('type', 'any')}{_range(field)}"


def _range(field: dict[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    told = [f"{sign} {field[key]:g}" for key, sign in signs.items() if key in field]
    return f" {', '.join(told)}" if told else ""


def _reference(field: dict[str, Any]) -> str:
    return str(field.get("$ref", "")).rpartition("/")[2]


def _value(default: Any) -> str:
    return json.dumps(default, ensure_ascii=False) if not isinstance(default, dict) else "{…}" if default else "{}"


def _first_sentence(text: str) -> str:
    return re.split(r"\n\s*\n", text.strip())[0].replace("\n", " ")


if __name__ == "__main__":
    FILE.write_text(page(), encoding="utf-8")
