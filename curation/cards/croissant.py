"""Croissant 1.1 metadata of a manifest with the Croissant RAI 1.0 extension, for search engines and loaders.

https://docs.mlcommons.org/croissant/docs/croissant-spec-1.1.html and croissant-rai-spec.html. Every part file stands
there with its sha256, every column with its type.
"""

from __future__ import annotations

import os
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from curation import storage
from curation.cards import practice
from curation.cards.disclosed import Disclosed, clean, limits, protocols, rights_said
from curation.rights.licences import normalise

CONFORMS_TO = ["http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/RAI/1.0"]
# The reference library reads a set of files only from where the description itself lies, single files from anywhere.
# So few parts are a record set each; many are one together, which is read with the description beside the parts.
FEW = 24
_PARQUET = "application/x-parquet"
_NO_LICENCE = "not in the data: no kept row states a licence; give it in --provider (dataset.licence)"
_CONTEXT: dict[str, Any] = {
    "@language": "en", "@vocab": "https://schema.org/", "arrayShape": "cr:arrayShape", "citeAs": "cr:citeAs",
    "column": "cr:column", "conformsTo": "dct:conformsTo", "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/", "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"}, "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/", "description": {"@container": "@language"},
    "equivalentProperty": "cr:equivalentProperty", "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract", "field": "cr:field", "fileProperty": "cr:fileProperty", "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet", "format": "cr:format", "includes": "cr:includes", "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset", "jsonPath": "cr:jsonPath", "key": "cr:key", "md5": "cr:md5",
    "name": {"@container": "@language"}, "parentField": "cr:parentField", "path": "cr:path",
    "recordSet": "cr:recordSet", "references": "cr:references", "regex": "cr:regex", "repeated": "cr:repeated",
    "replace": "cr:replace", "samplingRate": "cr:samplingRate", "sc": "https://schema.org/",
    "separator": "cr:separator", "source": "cr:source", "subField": "cr:subField", "transform": "cr:transform",
}  # fmt: skip
_TYPES = {
    pa.string(): "sc:Text", pa.binary(): "sc:Text", pa.int32(): "cr:Int32", pa.int64(): "cr:Int64",
    pa.uint64(): "cr:UInt64", pa.float16(): "cr:Float16", pa.float32(): "cr:Float32", pa.float64(): "cr:Float64",
    pa.bool_(): "sc:Boolean",
}  # fmt: skip


def metadata(of: Disclosed, folder: str) -> dict[str, Any]:
    """The description as JSON-LD.

    Args:
        folder: where it will lie; local parts are named by their path from there.
    """
    info, said = of.manifest.info, of.provider.dataset
    described = (
        f"{of.facts.kept.rows:,} pictures kept of {of.facts.rows:,} inputs; every input has a row that says what was "
        "decided about it and why."
    )
    found: dict[str, Any] = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS_TO,
        "name": clean(said.name or info.name),
        "description": said.description or described,
        "identifier": info.id,
        "version": said.version or "1.0.0",
        "dateCreated": info.created_at.isoformat(),
        "datePublished": (said.published or info.created_at.date()).isoformat(),
        "license": [said.licence] if said.licence else _licences(of) or [_NO_LICENCE],
        "citeAs": said.citation
        or f"{clean(info.name)}, manifest {info.id}, made by cleanplate {clean(info.code_version)}",
        **({"url": said.url} if said.url else {}),
        **_party(of),
        "inLanguage": sorted(name for name, n in of.facts.languages.items() if n and name != "unknown"),
        **_responsible(of),
        "distribution": _distribution(of, folder),
        "recordSet": _record_sets(of),
    }
    return {key: value for key, value in found.items() if value != []}


def _party(of: Disclosed) -> dict[str, Any]:
    name = of.provider.provider.name
    party = {"@type": "sc:Organization", "name": name}
    return {"creator": party, "publisher": party} if name else {}


def _licences(of: Disclosed) -> list[str]:
    """The licences that kept rows state, as URLs where they are known: several, since each row has its own."""
    known = sorted(of.facts.licences, key=lambda name: (-of.facts.licences[name].rows, name))
    named = [normalise(name) for name in known if name != "unstated"]
    spdx = {name: f"https://spdx.org/licenses/{name}" for name in named if name.startswith(("CC-BY", "CC0-"))}
    return list(dict.fromkeys(spdx.get(name, clean(name)) for name in named))[:50]


def _responsible(of: Disclosed) -> dict[str, Any]:
    """The RAI properties: what is known from the manifest and what its provider states; nothing else."""
    info, said, place = of.manifest.info, of.provider.statements, of.collected()
    files = of.facts.kept.rows - place.amount.rows
    collection = [f"{place.amount.rows:,} kept pictures were fetched from the web, {files:,} came from files."]
    collection += practice.behaviour(info) if place.amount.rows else []
    captioners = sorted(name for name, n in of.facts.captioners.items() if n and name not in ("no caption", "metadata"))
    asked = "Opt-out protocols: " + "; ".join(protocols(of).text)
    unknown = "not in the data; give it in --provider"
    found: dict[str, Any] = {
        "rai:dataCollection": " ".join(collection),
        "rai:dataCollectionType": (["Web Scraping"] if place.amount.rows else []) + (["Others"] if files else []),
        "rai:dataCollectionMissingData": (
            "What a source does not state is null. An input whose bytes or pixels never came has a row that says why."
        ),
        "rai:dataCollectionRawData": "The bytes as received are not kept; each row has their sha256 as its id.",
        "rai:dataCollectionTimeFrame": [at.isoformat() for at in (place.first, place.last) if at],
        "rai:dataPreprocessingProtocol": [
            *practice.cleaning(info),
            *practice.safety(info),
            asked,
            *rights_said(of),
        ],
        "rai:machineAnnotationTools": [clean(name) for name in captioners],
        "rai:dataLimitations": limits(of),
        "rai:dataBiases": [said.biases or f"Biases: {unknown} (statements.biases)."],
        "rai:dataUseCases": [of.provider.model.purpose] if of.provider.model.purpose else [],
        "rai:personalSensitiveInformation": [
            said.personal_information
            or "Whether people can be recognised is not in the data. Creators' names and captions may be personal "
            "data. It can be given in --provider (statements.personal_information)."
        ],
        "rai:dataReleaseMaintenancePlan": said.maintenance
        or f"A manifest never changes; a new one names its parent. {practice.ledger(info)}",
    }
    return {key: value for key, value in found.items() if value != []}


def _distribution(of: Disclosed, folder: str) -> list[dict[str, Any]]:
    files: list[dict[str, Any]] = []
    for part in of.manifest.info.files:
        uri = storage.join(of.manifest.uri, part.name)
        files.append(
            {
                "@type": "cr:FileObject",
                "@id": part.name,
                "name": part.name,
                "contentUrl": _from(folder, uri),
                "contentSize": f"{storage.info(uri).size} B",
                "sha256": part.sha256,
                "encodingFormat": _PARQUET,
            }
        )
    if len(files) > FEW:
        every = {"@type": "cr:FileSet", "@id": "parts", "name": "parts", "encodingFormat": _PARQUET}
        files.append(every | {"includes": "part-*.parquet"})
    return files


def _from(folder: str, uri: str) -> str:
    """The path from a folder to a local file, or the address of a remote one."""
    if storage.is_remote(folder) or storage.is_remote(uri):
        return uri
    return PurePosixPath(os.path.relpath(storage.absolute(uri), storage.absolute(folder))).as_posix()


def _record_sets(of: Disclosed) -> list[dict[str, Any]]:
    files, columns = of.manifest.info.files, of.manifest.schema
    if len(files) > FEW:
        return [_record_set("rows", columns, {"fileSet": {"@id": "parts"}})]
    if len(files) == 1:
        return [_record_set("rows", columns, {"fileObject": {"@id": files[0].name}})]
    return [_record_set(f"rows-{i:05d}", columns, {"fileObject": {"@id": part.name}}) for i, part in enumerate(files)]


def _record_set(name: str, columns: pa.Schema, source: dict[str, Any]) -> dict[str, Any]:
    fields = [_field(f"{name}/{column.name}", column.name, column.type, source, column.name) for column in columns]
    return {"@type": "cr:RecordSet", "@id": name, "name": name, "key": {"@id": f"{name}/id"}, "field": fields}


def _field(
    key: str, name: str, kind: pa.DataType, source: dict[str, Any], column: str, path: str | None = None
) -> dict[str, Any]:
    """A column, or a field of a struct in it, which `path` leads to."""
    found: dict[str, Any] = {"@type": "cr:Field", "@id": key, "name": name}
    inner = kind
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        found |= {"isArray": True, "arrayShape": str(kind.list_size) if pa.types.is_fixed_size_list(kind) else "-1"}
        inner = kind.value_type
    extract: dict[str, Any] = {**source, "extract": {"column": column}}
    if name == "image" and pa.types.is_struct(kind):
        # As `datasets` stores pictures: the encoded bytes beside a path.
        return found | {"dataType": "sc:ImageObject", "source": extract | {"transform": {"jsonPath": "bytes"}}}
    if pa.types.is_struct(inner):
        parts = [_field(f"{key}/{part.name}", part.name, part.type, source, column, part.name) for part in inner]
        return found | {"subField": parts}
    # In brackets (RFC 9535), since a field may be called `where`, which some parsers take for a word of theirs.
    transform = {"transform": {"jsonPath": f"$['{path}']"}} if path else {}
    kind_name = "sc:DateTime" if pa.types.is_timestamp(inner) else _TYPES.get(inner, "sc:Text")
    return found | {"dataType": kind_name, "source": extract | transform}
