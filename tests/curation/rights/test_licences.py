"""Licences: all the ways they are written in, what stays as it was written, and what a job's list covers."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from packaging.licenses import canonicalize_license_expression
from pydantic import ValidationError

from curation.manifest import Verdict
from curation.rights.licences import Licences, LicencesConfig, normalise


@pytest.mark.parametrize(
    ("stated", "identifier"),
    [
        # Creative Commons by URL: https://creativecommons.org/licenses/list.en
        ("https://creativecommons.org/licenses/by-sa/4.0/", "CC-BY-SA-4.0"),
        ("http://creativecommons.org/licenses/by/2.0/deed.de", "CC-BY-2.0"),
        ("https://www.creativecommons.org/licenses/by-nc-nd/4.0", "CC-BY-NC-ND-4.0"),
        ("HTTPS://CreativeCommons.org/licenses/BY/4.0/", "CC-BY-4.0"),
        ("//creativecommons.org/licenses/by/3.0/", "CC-BY-3.0"),
        ("creativecommons.org/licenses/by/2.5/", "CC-BY-2.5"),
        ("<https://creativecommons.org/licenses/by/4.0/>", "CC-BY-4.0"),
        ("https://creativecommons.org/licenses/by/4.0/legalcode", "CC-BY-4.0"),
        ("https://creativecommons.org/licenses/by/4.0/legalcode.txt", "CC-BY-4.0"),
        ("https://creativecommons.org/licenses/by/4.0/legalcode.fr#s1", "CC-BY-4.0"),
        ("https://creativecommons.org/licenses/by/4.0/deed.zh-hans", "CC-BY-4.0"),
        ("https://creativecommons.org/licenses/by/4.0/?ref=chooser-v1", "CC-BY-4.0"),
        ("https://creativecommons.org/licenses/by/4.0/.", "CC-BY-4.0"),
        ("  https://creativecommons.org/licenses/by/4.0/\n", "CC-BY-4.0"),
        ("https://creativecommons.org/licenses/by-nd-nc/1.0/", "CC-BY-NC-ND-1.0"),
        ("https://creativecommons.org/licenses/sa/1.0/", "CC-SA-1.0"),
        ("https://creativecommons.org/licenses/by/3.0/de/", "CC-BY-3.0-DE"),
        ("https://creativecommons.org/licenses/by/3.0/de/deed.en", "CC-BY-3.0-DE"),
        ("https://creativecommons.org/licenses/by-sa/2.1/jp/", "CC-BY-SA-2.1-JP"),
        ("https://creativecommons.org/licenses/by-nc-sa/3.0/igo/legalcode", "CC-BY-NC-SA-3.0-IGO"),
        ("https://creativecommons.org/licenses/by/2.5/scotland/", "CC-BY-2.5-SCOTLAND"),
        ("https://creativecommons.org/publicdomain/zero/1.0/", "CC0-1.0"),
        ("http://creativecommons.org/publicdomain/zero/1.0/legalcode", "CC0-1.0"),
        ("https://creativecommons.org/publicdomain/mark/1.0/deed.en", "CC-PDM-1.0"),
        ("http://creativecommons.org/licenses/publicdomain/", "CC-PDDC"),
        # and by name
        ("CC BY-SA 4.0", "CC-BY-SA-4.0"),
        ("CC BY-SA 4.0 International", "CC-BY-SA-4.0"),
        ("CC BY\u2011SA\u00a04.0", "CC-BY-SA-4.0"),
        ("CC BY NC SA 4.0", "CC-BY-NC-SA-4.0"),
        ("CC BY-NC-ND 3.0 Unported", "CC-BY-NC-ND-3.0"),
        ("cc-by-sa-4.0", "CC-BY-SA-4.0"),
        ("CC BY 3.0 DE", "CC-BY-3.0-DE"),
        ("cc-by-3.0-igo", "CC-BY-3.0-IGO"),
        ("Attribution-ShareAlike 4.0", "CC-BY-SA-4.0"),
        ("Attribution-NonCommercial-NoDerivs 2.0 Generic", "CC-BY-NC-ND-2.0"),
        ("Attribution - NonCommercial - NoDerivatives 4.0 International", "CC-BY-NC-ND-4.0"),
        ("Creative Commons Attribution 4.0 International License", "CC-BY-4.0"),
        ("Creative Commons Attribution-ShareAlike 4.0 International (CC BY-SA 4.0)", "CC-BY-SA-4.0"),
        ("CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/)", "CC-BY-4.0"),
        ("CC0", "CC0-1.0"),
        ("CC0 1.0 Universal", "CC0-1.0"),
        ("Creative Commons Zero v1.0 Universal", "CC0-1.0"),
        ("Public Domain Mark 1.0", "CC-PDM-1.0"),
        ("PDM-1.0", "CC-PDM-1.0"),
        # rightsstatements.org
        ("http://rightsstatements.org/vocab/InC/1.0/", "InC"),
        ("https://rightsstatements.org/page/InC-OW-EU/1.0/?language=en", "InC-OW-EU"),
        ("http://rightsstatements.org/vocab/NoC-US/1.0/", "NoC-US"),
        ("https://rightsstatements.org/vocab/nkc/1.0/", "NKC"),
        # GNU FDL
        ("GFDL", "GFDL"),
        ("GNU Free Documentation License", "GFDL"),
        ("GNU Free Documentation License, Version 1.2 or later", "GFDL-1.2-or-later"),
        ("GFDL 1.3", "GFDL-1.3"),
        ("gfdl-1.1-only", "GFDL-1.1-only"),
        ("https://www.gnu.org/licenses/old-licenses/fdl-1.2.html", "GFDL-1.2"),
        ("http://www.gnu.org/copyleft/fdl.html", "GFDL"),
        # SPDX
        ("mit", "MIT"),
        ("apache-2.0", "Apache-2.0"),
        ("gfdl-1.3-no-invariants-or-later", "GFDL-1.3-no-invariants-or-later"),
        ("https://spdx.org/licenses/CC-BY-4.0.html", "CC-BY-4.0"),
        ("https://spdx.org/licenses/OFL-1.1", "OFL-1.1"),
    ],
)
def test_licences_are_normalised(stated: str, identifier: str) -> None:
    assert normalise(stated) == identifier
    assert normalise(identifier) == identifier
    assert normalise(identifier.lower()) == identifier


@pytest.mark.parametrize(
    "stated",
    [
        "All rights reserved",
        "Public domain",
        "Unsplash License",
        "https://unsplash.com/license",
        "Pexels License",
        "CC BY",
        "CC-BY-4.0-ND",
        "CC BY 4.0 or later",
        "CC BY-SA-NC 4.0",
        "CC BY 9.0",
        "not CC BY 4.0, see https://creativecommons.org/licenses/by/4.0/ for comparison",
        "https://creativecommons.org/licenses/by/4.0/ for the text, the pictures are mine",
        "https://creativecommons.org/licenses/by/4.0/ https://creativecommons.org/licenses/by-nc/4.0/",
        "https://example.com/?from=https://creativecommons.org/licenses/by/4.0/",
        "https://creativecommons.org.example.com/licenses/by/4.0/",
        "https://creativecommons.org@example.com/licenses/by/4.0/",
        "https://notcreativecommons.org/licenses/by/4.0/",
        "https://creativecommons.org/licenses/by/4.0/nc/",
        "https://creativecommons.org/licenses/sampling+/1.0/",
        "Attribution 4.0 International (CC BY-NC 4.0)",
        "CC BY 4.0 (no training of models)",
        "CC BY-\u017fA 4.0",
        "CC BY 4.\u0660",
        "MIT.html",
        "MIT AND CC-BY-NC-4.0",
        "",
    ],
)
def test_what_is_more_or_less_than_a_licence_stays_as_it_was_written(stated: str) -> None:
    assert normalise(stated) == stated


ALLOWED = ("CC-BY-4.0", "CC-BY-SA-4.0", "CC-BY-3.0", "CC0-1.0", "CC-PDM-1.0", "GFDL", "MIT", "Unsplash License")
LOOKALIKES = "CcBbYySsAaNnDd04.3-()/: \u017f\u212a\u2011\u0660\u00a0PDM"


@given(st.text(max_size=60) | st.text(alphabet=LOOKALIKES, max_size=24))
@example("\x1fCC0\x1f ")
@example("a\u2011 b")
def test_to_normalise_twice_changes_nothing(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


@given(
    st.sampled_from(["CC BY 4.0", "https://creativecommons.org/licenses/by/4.0/", "CC0", "MIT", "GFDL"]),
    st.text(alphabet="abxyz,&!", min_size=1, max_size=12),
    st.booleans(),
)
def test_words_around_a_licence_are_no_permission(licence: str, words: str, before: bool) -> None:
    row = {"licence": f"{words} {licence}" if before else f"{licence} {words} and so on", "licence_url": None}
    assert Licences(LicencesConfig(allow=ALLOWED)).observe(row).verdict == Verdict.DENY


@given(st.text(alphabet="\u017f\u212a\u0131\u0660abc", min_size=1, max_size=6))
def test_what_is_not_ascii_is_no_identifier(text: str) -> None:
    for name in (f"CC-BY-4.{text}", f"CC-BY-{text}A-4.0", f"{text}MIT"):
        assert Licences(LicencesConfig(allow=ALLOWED)).observe({"licence": name, "licence_url": None}).verdict == (
            Verdict.DENY
        )


@pytest.mark.parametrize("name", ["CC-BY-NC-SA-3.0-DE", "OGL-UK-3.0", "etalab-2.0", "0BSD", "OFL-1.1", "CC-PDDC"])
def test_identifiers_are_those_of_spdx(name: str) -> None:
    assert normalise(name.swapcase()) == canonicalize_license_expression(name) == name


@pytest.mark.parametrize(
    ("licence", "url", "inside", "verdict"),
    [
        ("CC BY-SA 4.0", None, None, Verdict.ALLOW),
        (None, "https://creativecommons.org/licenses/by-sa/4.0/", None, Verdict.ALLOW),
        ("CC-BY-SA-4.0", "https://creativecommons.org/licenses/by-nc/4.0/", None, Verdict.DENY),
        ("CC-BY-SA-4.0", None, "https://creativecommons.org/licenses/by-nc/4.0/", Verdict.DENY),
        ("CC-BY-SA-4.0", None, "https://creativecommons.org/licenses/by-sa/4.0/", Verdict.ALLOW),
        ("CC-BY-NC-4.0", None, None, Verdict.DENY),
        ("unsplash license", None, None, Verdict.ALLOW),
        ("http://rightsstatements.org/vocab/InC/1.0/", None, None, Verdict.DENY),
        (None, None, None, Verdict.UNKNOWN),
        ("", "", None, Verdict.UNKNOWN),
    ],
)
def test_every_statement_must_be_allowed(
    licence: str | None, url: str | None, inside: str | None, verdict: Verdict
) -> None:
    embedded = [{"name": "licence", "value": inside}] if inside else None
    row = {"licence": licence, "licence_url": url, "embedded": embedded}
    assert Licences(LicencesConfig(allow=ALLOWED)).observe(row).verdict == verdict


@pytest.mark.parametrize(
    ("allow", "stated", "permits"),
    [
        ("CC-BY-3.0", "CC-BY-3.0-DE", False),
        ("CC-BY-3.0", "https://creativecommons.org/licenses/by/3.0/igo/", False),
        ("CC-BY-3.0-*", "https://creativecommons.org/licenses/by/3.0/igo/", True),
        ("CC-BY-3.0-*", "CC BY 3.0 DE", True),
        ("cc-by-3.0-*", "CC-BY-3.0-DE", True),
        ("CC-BY-3.0-*", "CC-BY-3.0", False),
        ("CC-BY-3.0-*", "CC-BY-SA-3.0-DE", False),
        ("CC-BY-3.0-*", "CC-BY-3.0-NC", False),
        ("CC-BY-3.0-*", "CC-BY-3.0-whatever", False),
        ("CC-BY-3.0-DE", "CC-BY-3.0-AT", False),
        ("CC-BY-3.0-DE", "https://creativecommons.org/licenses/by/3.0/de/", True),
    ],
)
def test_a_port_is_a_licence_of_its_own(allow: str, stated: str, permits: bool) -> None:
    licences = Licences(LicencesConfig(allow=("MIT", allow)))
    found = licences.observe({"licence": stated, "licence_url": None})
    assert found.verdict == (Verdict.ALLOW if permits else Verdict.DENY)
    assert licences.rank(stated) == (1 if permits else 2)


@pytest.mark.parametrize("name", ["InC", "http://rightsstatements.org/vocab/InC-EDU/1.0/", "CC-*", "*", "GPL-3.0-*"])
def test_a_list_must_name_what_permits(name: str) -> None:
    with pytest.raises(ValidationError, match=r"permits nothing|asterisk"):
        LicencesConfig(allow=("CC0-1.0", name))


def test_without_an_allow_list_no_licence_is_a_permission() -> None:
    row = {"licence": "All rights reserved", "licence_url": None}
    assert Licences(LicencesConfig()).observe(row).verdict == Verdict.UNKNOWN


def test_long_statements_are_cut() -> None:
    row = {"licence": "CC BY 4.0 " * 500, "licence_url": None}
    assert len(Licences(LicencesConfig(allow=ALLOWED)).observe(row).value or "") == 500
