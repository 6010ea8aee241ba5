"""plus:DataMining in real files: the vocabulary, the forms of XMP it is written in, the containers it travels in."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from curation.manifest import Verdict
from curation.metadata import scan
from curation.rights import embedded
from curation.rights.verdict import Observation, combine

ALLOW, DENY, UNKNOWN, ERROR = Verdict.ALLOW, Verdict.DENY, Verdict.UNKNOWN, Verdict.ERROR
VOCABULARY = "http://ns.useplus.org/ldf/vocab/"
PROHIBITED = VOCABULARY + "DMI-PROHIBITED"
SEE = VOCABULARY + "DMI-PROHIBITED-SEECONSTRAINT"


def packet(body: str = "", attributes: str = "", plus: str = "http://ns.useplus.org/ldf/xmp/1.0/") -> bytes:
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about="" xmlns:plus="{plus}" {attributes}>{body}</rdf:Description></rdf:RDF>'
        '</x:xmpmeta><?xpacket end="w"?>'
    ).encode()


def element(value: str) -> bytes:
    return packet(f"<plus:DataMining>{value}</plus:DataMining>")


def picture(kind: str, xmp: bytes) -> bytes:
    """A file of this kind with the packet where its format keeps it."""
    buffer, image = io.BytesIO(), Image.new("RGB", (16, 16), (9, 99, 199))
    if kind == "TIFF":
        image.save(buffer, kind, tiffinfo={700: xmp})
    elif kind == "GIF":
        image.convert("P").save(buffer, kind, xmp=xmp)
    elif kind.startswith("PNG"):
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp.decode(), zip=kind == "PNG, deflated")
        image.save(buffer, "PNG", pnginfo=info)
    else:
        image.save(buffer, kind, xmp=xmp)
    return buffer.getvalue()


def observed(xmp: bytes, kind: str = "JPEG") -> list[Observation]:
    return embedded.observe(scan(picture(kind, xmp)).fields)


# Every term of http://ns.useplus.org/LDF/ldf-XMPSpecification#DataMining.
@pytest.mark.parametrize("form", [VOCABULARY + "{}", "{}"])
@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize(
    ("term", "verdict"),
    [
        ("DMI-UNSPECIFIED", UNKNOWN),
        ("DMI-ALLOWED", ALLOW),
        ("DMI-PROHIBITED", DENY),
        ("DMI-PROHIBITED-AIMLTRAINING", DENY),
        ("DMI-PROHIBITED-GENAIMLTRAINING", DENY),
        ("DMI-PROHIBITED-EXCEPTSEARCHENGINEINDEXING", DENY),
        ("DMI-PROHIBITED-SEECONSTRAINT", DENY),
        ("DMI-PROHIBITED-SEEEMBEDDEDRIGHTSEXPR", DENY),
        ("DMI-PROHIBITED-SEELINKEDRIGHTSEXPR", DENY),
    ],
)
def test_the_vocabulary(form: str, lower: bool, term: str, verdict: Verdict) -> None:
    value = form.format(term.lower() if lower else term)
    assert observed(element(value)) == [Observation("plus_data_mining", value, "file", verdict)]


@pytest.mark.parametrize(
    ("value", "verdict"),
    [
        ("DMI-PROHIBITED-NEWTERM", DENY),
        ("https://ns.useplus.org/ldf/vocab/DMI-PROHIBITED-NEWTERM/", DENY),
        ("https://example.com/vocab/DMI-PROHIBITED", DENY),
        ("Prohibited for Generative AI/ML training", DENY),
        ("see DMI-PROHIBITED", DENY),
        ("DMI-ALLOWED-WITHATTRIBUTION", ERROR),
        ("DMI-ALLOWED.", ERROR),
        ("https://example.com/vocab/DMI-ALLOWED", ERROR),
        ("anything but/DMI-ALLOWED", ERROR),
        ("not DMI-ALLOWED", ERROR),
        ("DM\u0131-ALLOWED", ERROR),
        ("Allowed", ERROR),
        ("0", ERROR),
    ],
)
def test_what_is_not_in_the_vocabulary_never_permits(value: str, verdict: Verdict) -> None:
    assert [o.verdict for o in observed(element(value))] == [verdict]


@pytest.mark.parametrize(
    "xmp",
    [
        packet(f"<plus:DataMining>{PROHIBITED}</plus:DataMining>"),
        packet(f"<plus:DataMining>\n   {PROHIBITED}\n</plus:DataMining>"),
        packet(attributes=f'plus:DataMining="{PROHIBITED}"'),
        packet(f'<plus:DataMining rdf:resource="{PROHIBITED}"/>'),
        packet(f"<plus:DataMining><rdf:Bag><rdf:li>{PROHIBITED}</rdf:li></rdf:Bag></plus:DataMining>"),
        packet(f"<p:DataMining xmlns:p='http://ns.useplus.org/ldf/xmp/1.0/'>{PROHIBITED}</p:DataMining>"),
        packet(f"<plus:DataMining><![CDATA[{PROHIBITED}]]></plus:DataMining>"),
        packet("<plus:DataMining>http://ns.useplus.org/ldf/vocab/&#68;MI-PROHIBITED</plus:DataMining>"),
    ],
)
def test_forms_of_the_property(xmp: bytes) -> None:
    assert observed(xmp) == [Observation("plus_data_mining", PROHIBITED, "file", DENY)]


@pytest.mark.parametrize(
    "xmp",
    [
        packet(),
        packet("<plus:DataMining/>"),
        packet("<plus:DataMining> </plus:DataMining>"),
        packet(f"<plus:DataMining>{PROHIBITED}</plus:DataMining>", plus="http://example.com/plus/"),
        packet(f"<plus:ImageSupplierName>{PROHIBITED}</plus:ImageSupplierName>"),
    ],
)
def test_what_is_no_statement(xmp: bytes) -> None:
    assert observed(xmp) == []


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "PNG, deflated", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize(("value", "verdict"), [(PROHIBITED, DENY), (VOCABULARY + "DMI-ALLOWED", ALLOW)])
def test_containers(kind: str, value: str, verdict: Verdict) -> None:
    assert observed(element(value), kind) == [Observation("plus_data_mining", value, "file", verdict)]


def test_of_several_values_each_is_an_observation() -> None:
    both = packet(
        f"<plus:DataMining>{PROHIBITED}</plus:DataMining>", attributes=f'plus:DataMining="{VOCABULARY}DMI-ALLOWED"'
    )
    found = observed(both)
    assert {o.verdict for o in found} == {ALLOW, DENY}
    assert combine(o.verdict for o in found) == DENY


def test_terms_stand_beside_the_prohibition_that_names_them() -> None:
    terms = "<plus:OtherConstraints>Ask <![CDATA[me & my agent]]>.</plus:OtherConstraints>"
    (found,) = observed(packet(f"<plus:DataMining>{SEE}</plus:DataMining>{terms}"))
    assert (found.value, found.verdict) == (f"{SEE} (Ask me & my agent.)", DENY)
    (found,) = observed(packet(f"<plus:DataMining>{PROHIBITED}</plus:DataMining>{terms}"))
    assert found.value == PROHIBITED


def test_terms_alone_are_reported_and_decide_nothing() -> None:
    (found,) = observed(packet("<plus:OtherConstraints>Not on Sundays</plus:OtherConstraints>"))
    assert found == Observation("plus_other_constraints", "Not on Sundays", "file", UNKNOWN)


def test_a_packet_that_breaks_off_is_an_error_and_what_stood_before_counts() -> None:
    torn = element(VOCABULARY + "DMI-ALLOWED")[:-70]
    assert combine(o.verdict for o in observed(torn)) == ERROR
    assert combine(o.verdict for o in observed(element(PROHIBITED)[:-70])) == DENY


def test_long_values_are_cut() -> None:
    long = packet(
        f"<plus:DataMining>{SEE}</plus:DataMining><plus:OtherConstraints>{'x' * 1500}</plus:OtherConstraints>"
    )
    assert [len(o.value or "") for o in observed(long)] == [500]
    (found,) = observed(element("y" * 1500))
    assert (len(found.value or ""), found.verdict) == (500, ERROR)


@given(st.text(alphabet="DMIALOWEPRHBT-/.:hns\u0131\u017f ", max_size=40) | st.text(max_size=40))
def test_only_the_term_permits(text: str) -> None:
    for value in (text, text + "DMI-ALLOWED", "DMI-ALLOWED" + text, f"{text}/DMI-ALLOWED"):
        bare = value.strip().removesuffix("/").lower()
        expected = bare in ("dmi-allowed", "http://ns.useplus.org/ldf/vocab/dmi-allowed")
        assert (embedded.mining(value) == ALLOW) == expected
