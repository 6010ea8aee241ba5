"""RSL: Really Simple Licensing 1.0 (rslstandard.org/rsl, 10 December 2025): which uses are licensed, on what terms.

A prohibition is read generously, also out of a document that breaks the rules; a permission literally, and only out of
one that keeps them. Terms that we would have to meet first (payment, attribution, reporting, a kind of user, a
country, a licence server) deny: nothing here meets them, and what is not licensed is reserved (section 4.9).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urljoin, urlsplit
from xml.parsers.expat import ExpatError, ParserCreate

from curation.manifest import Verdict
from curation.places import is_url, origin
from curation.rights.evidence import BODY_LIMIT, SiteFile
from curation.rights.links import links
from curation.rights.page import Page
from curation.rights.raw import shown
from curation.rights.robots_txt import Pattern, target
from curation.rights.verdict import Observation

SIGNAL = "rsl"
NAMESPACE = "https://rslstandard.org/rsl"
MEDIA_TYPE = "application/rsl+xml"

_TRAINING = frozenset({"all", "ai-all", "ai-train"})  # section 3.4.1.1
_OTHER_AI = frozenset({"ai-input", "ai-index"})
_CHILDREN = {
    "rsl": frozenset({"content"}),
    "content": frozenset({"license", "schema", "alternate", "copyright", "terms"}),
    "license": frozenset({"permits", "prohibits", "payment", "reporting", "legal"}),
    "payment": frozenset({"standard", "custom", "amount", "accepts"}),
    **dict.fromkeys(("permits", "prohibits"), frozenset[str]()),
}


@dataclass
class _Licence:
    """One offer; `permitted` is None where it does not restrict the uses."""

    permitted: list[str] | None = None
    prohibited: list[str] = field(default_factory=list)
    conditions: list[str] = field(default_factory=list)


@dataclass
class _Content:
    """What licences are about: every URL where `pattern` is None, only those of `host` where that is stated."""

    pattern: Pattern | None
    host: str | None
    licences: list[_Licence] = field(default_factory=list)
    conditions: list[str] = field(default_factory=list)

    def covers(self, url: str) -> bool:
        if self.host is not None and self.host != _host(url):
            return False
        return self.pattern is None or self.pattern.matches(target(url))


class Rsl:
    """A document that something links to as its licence, ready to be asked about URLs.

    One that is not there, or not RSL, is an error, also when it is absent: what has a licence that cannot be had is to
    be treated as unlicensed (section 4.9).
    """

    def __init__(self, file: SiteFile) -> None:
        self._file = file
        self._document: _Document | None = None
        self._fault = ""
        if file.status != 200:
            self._fault = file.detail or f"status {file.status}"
        elif file.truncated or len(file.body) > BODY_LIMIT:
            self._fault = "too long to be read whole"
        else:
            try:
                self._document = _Document(file.body)
            except ValueError as error:
                self._fault = f"malformed: {error}"

    def observe(self, url: str) -> list[Observation]:
        """What the document says about training on a URL; an empty list where it does not cover it.

        Of the contents that cover it the longest pattern counts (section 4.9), several of a length together.
        """
        if self._document is None:
            return [self._observation(self._fault, Verdict.ERROR)]
        covering = [content for content in self._document.contents if content.covers(url)]
        longest = max((_length(content) for content in covering), default=0)
        nearest = [content for content in covering if _length(content) == longest]
        if not nearest:
            return []
        return [self._observation(*_ruling(nearest, self._document.faults))]

    def _observation(self, value: str, verdict: Verdict) -> Observation:
        return Observation(SIGNAL, shown(value), self._file.url, verdict, self._file.observed_at)


def observe_page(page: Page, where: str) -> list[Observation]:
    """What the RSL documents inside a page say about it (section 4.6: `<script type="application/rsl+xml">`).

    Such a document is about the element that holds it. Which one that is does not matter here: what denies a part
    denies the page; what its `url` does not say of this page permits nothing.
    """
    found = []
    for kind, text in page.scripts:
        if _media_type(kind) != MEDIA_TYPE:
            continue
        try:
            document = _Document(text.strip().encode("utf-8", "replace"))
        except ValueError as error:
            found.append(Observation(SIGNAL, shown(f"malformed: {error}"), where, Verdict.ERROR))
            continue
        value, verdict = _ruling(document.contents, document.faults)
        if verdict is Verdict.ALLOW and not all(content.covers(where) for content in document.contents):
            verdict = Verdict.UNKNOWN
        found.append(Observation(SIGNAL, shown(value), where, verdict))
    return found


def links_of_page(page: Page, base: str) -> list[str]:
    """URLs of the documents that a page at `base` links to as its licence (section 4.6)."""
    base = joined(base, page.base) if page.base else base
    kept = [href for rel, href, kind in page.links if "license" in rel.split() and _media_type(kind) == MEDIA_TYPE]
    return list(dict.fromkeys(joined(base, href) for href in kept if href))


def links_of_headers(values: Sequence[str]) -> list[str]:
    """What `Link` headers name as the RSL licence (section 4.5), absolute or relative to the URL that answered."""
    kept = [link.href for link in links(values) if "license" in link.rel and _media_type(link.type) == MEDIA_TYPE]
    return list(dict.fromkeys(joined("", href) for href in kept if href))


def joined(base: str, href: str) -> str:
    """A link as an absolute URL."""
    try:
        urlsplit(href)
        return urljoin(base, href)
    except ValueError:  # brackets that hold no address: nothing answers there, which is then an error and not silence
        return urljoin(base, href.replace("[", "%5B").replace("]", "%5D"))


def _media_type(kind: str) -> str:
    return kind.partition(";")[0].strip().lower()


def _length(content: _Content) -> int:
    return content.pattern.length if content.pattern else 0


def _ruling(contents: Sequence[_Content], faults: Sequence[str]) -> tuple[str, Verdict]:
    """What licences say together: any prohibition, else any term to be met, else a permission, else a closed list."""
    licences = [licence for content in contents for licence in content.licences]
    prohibited = [token for licence in licences for token in licence.prohibited if _is_training(token)]
    if prohibited:
        return f"prohibits usage: {' '.join(dict.fromkeys(prohibited))}", Verdict.DENY
    reaching = [o for o in licences if o.permitted is None or _TRAINING & set(o.permitted)]
    terms = [term for offer in reaching for term in offer.conditions]
    terms += [term for content in contents for term in content.conditions if reaching]
    if terms:
        return f"constrained: {'; '.join(dict.fromkeys(terms))}", Verdict.DENY
    fault = f"not as the specification asks: {'; '.join(faults)}", Verdict.ERROR
    if permitted := [t for o in reaching for t in o.permitted or () if t in _TRAINING]:
        return fault if faults else (f"permits usage: {' '.join(dict.fromkeys(permitted))}", Verdict.ALLOW)
    # A list of permitted uses is closed (section 3.5).
    if any(licence.permitted is not None for licence in licences):
        listed = dict.fromkeys(token for o in licences for token in o.permitted or ())
        return f"permits other usage only: {' '.join(listed)}", Verdict.DENY
    return fault if faults else ("states no usage", Verdict.UNKNOWN)


def _is_training(token: str) -> bool:
    """Whether a prohibited use is training or may include it: the drafts had `train-ai` and `ai-use`."""
    name = token.lower()
    return name == "all" or "train" in name or (name.startswith("ai") and name not in _OTHER_AI)


class _Document:
    """The contents of an RSL document, and in what it is not as the specification asks.

    Raises:
        ValueError: when it is no well-formed XML, has a DTD (which RSL needs none of, and through which XML is made
            to explode) or is no RSL.
    """

    def __init__(self, body: bytes) -> None:
        self.contents: list[_Content] = []
        self.faults: list[str] = []
        self._space: str | None = None  # the root's namespace
        self._open: list[str] = []  # RSL elements from the root down
        self._foreign = 0  # depth inside an element that is not RSL's
        self._text: list[str] = []
        self._kind = ""  # the type of the permits or prohibits that is being read
        parser = ParserCreate(namespace_separator=" ")
        parser.buffer_text = True
        parser.StartDoctypeDeclHandler = self._refuse
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._characters
        try:
            parser.Parse(body, True)
        except (ExpatError, LookupError, TypeError) as error:
            raise ValueError(str(error)) from error
        if not self.contents:
            raise ValueError("no content element")
        if any(not content.licences for content in self.contents):
            self._find("a content without a license")

    def _refuse(self, *_: object) -> None:
        raise ValueError("a document type declaration")

    def _find(self, fault: str) -> None:
        if fault not in self.faults and len(self.faults) < 10:
            self.faults.append(fault)

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        space, _, local = name.rpartition(" ")
        if self._space is None:
            if local != "rsl":
                raise ValueError(f"a document of {shown(local[:80])}, not rsl")
            self._space = space
            if space != NAMESPACE:
                self._find("not in the namespace of RSL")
            self._open.append(local)
            return
        if self._foreign or space != self._space:
            self._foreign += 1  # extensions are passed over (section 3.1)
            return
        parent = self._open[-1]
        if local not in _CHILDREN.get(parent, frozenset()):
            # Inside schema, legal and the like anything may stand; elsewhere it is a term that we do not know.
            if parent in _CHILDREN:
                self._find(f"{shown(local[:40])} in {parent}")
            self._foreign += 1
            return
        self._open.append(local)
        self._begin(local, attributes)

    def _characters(self, text: str) -> None:
        if not self._foreign and self._open[-1] in ("permits", "prohibits"):
            self._text.append(text)

    def _begin(self, local: str, attributes: dict[str, str]) -> None:
        if local == "content":
            self.contents.append(self._content(attributes))
        elif local == "license":
            self.contents[-1].licences.append(_Licence())
        elif local in ("permits", "prohibits"):
            self._text.clear()
            self._kind = attributes.get("type", "")
        elif local == "payment":
            if (kind := attributes.get("type")) != "free" and kind is not None:
                self._licence.conditions.append(f"payment {shown(kind[:80])}")
        elif local == "reporting":
            self._licence.conditions.append(f"reporting {shown(attributes.get('type', '')[:80])}")
        elif local in _CHILDREN["payment"]:
            self._licence.conditions.append(f"payment by {local}")

    def _end(self, name: str) -> None:
        if self._foreign:
            self._foreign -= 1
            return
        local = self._open.pop()
        if local not in ("permits", "prohibits"):
            return
        tokens = re.split(r"[\s,]+", "".join(self._text).strip())
        tokens = [token for token in tokens if token]
        if self._kind not in ("", "usage"):
            self._licence.conditions.append(shown(f"{local} {self._kind[:40]}: {' '.join(tokens)[:80]}"))
            return
        if not self._kind:
            self._find(f"{local} without a type")
        if local == "prohibits":
            self._licence.prohibited += tokens
        else:
            self._licence.permitted = (self._licence.permitted or []) + tokens

    @property
    def _licence(self) -> _Licence:
        return self.contents[-1].licences[-1]

    def _content(self, attributes: dict[str, str]) -> _Content:
        """By section 3.3 a path of RFC 9309, empty for all that the link is about; whole URLs are from the drafts."""
        url = attributes.get("url")
        conditions = []
        if server := attributes.get("server"):
            conditions.append(f"licence server {shown(server[:80])}")
        if attributes.get("encrypted", "false").strip().lower() not in ("false", "0"):
            conditions.append("encrypted")
        scope = (url or "").strip()
        if scope and not (_host(scope) if is_url(scope) else scope[0] in "/*"):
            self._find(f"url {shown(scope[:80])}")
            scope = ""
        if url is None:
            self._find("a content without a url")
        if not scope:
            return _Content(None, None, [], conditions)
        host = _host(scope) if is_url(scope) else None
        path = "/" + scope.partition("://")[2].partition("/")[2] if is_url(scope) else scope
        return _Content(Pattern(path.encode("utf-8", "replace").decode("latin-1")), host, [], conditions)


def _host(url: str) -> str:
    """Host and port; not the scheme, since who writes http:// of a site means it by https://, too."""
    return (origin(url) or "").partition("://")[2]
