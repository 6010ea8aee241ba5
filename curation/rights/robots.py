"""robots.txt (RFC 9309): whether a site lets us fetch a URL, and what it says to the crawlers of AI companies.

A permission to crawl is none to train. What is said to other agents advises: see `config.RightsConfig.advisory`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple

from curation.manifest import Verdict
from curation.rights.evidence import SiteFile
from curation.rights.robots_txt import SHOWN, Block, Groups, Line, Pattern, Target, best, shown, target
from curation.rights.verdict import Observation

# Agents that gather for AI, from ai.robots.txt as of 2026-08-22 (github.com/ai-robots-txt/ai.robots.txt, MIT).
AI_AGENTS = tuple(
    """
    AI2Bot|AI2Bot-DeepResearchEval|Ai2Bot-Dolma|aiHitBot|AIWebIndex|amazon-kendra|amazon-QBusiness|Amazonbot|
    AmazonBuyForMe|Amzn-SearchBot|Amzn-User|Andibot|Anomura|anthropic-ai|ApifyBot|ApifyWebsiteContentCrawler|Applebot|
    Applebot-Extended|Aranet-SearchBot|atlassian-bot|Awario|AzureAI-SearchBot|bedrockbot|bigsur.ai|Bravebot|Brightbot|
    Brightbot 1.0|BuddyBot|Bytespider|CCBot|Channel3Bot|ChatGLM-Spider|ChatGPT Agent|ChatGPT-User|Claude-Code|
    Claude-SearchBot|Claude-User|Claude-Web|ClaudeBot|Cloudflare-AutoRAG|CloudVertexBot|cohere-ai|
    cohere-training-data-crawler|Cotoyogi|CragCrawler|Crawl4AI|Crawlspace|Cursor|Datenbank Crawler|DeepSeekBot|Devin|
    Diffbot|DuckAssistBot|Echobot Bot|EchoboxBot|ExaBot|ExaSearchBot|FacebookBot|facebookexternalhit|
    Factset_spyderbot|FirecrawlAgent|FriendlyCrawler|Gemini-Deep-Research|Google-Agent|Google-CloudVertexBot|
    Google-Extended|Google-Firebase|Google-Gemini-CLI|Google-NotebookLM|GoogleAgent-Mariner|GoogleAgent-URLContext|
    GoogleOther|GoogleOther-Image|GoogleOther-Video|GPTBot|HenkBot|iAskBot|iaskspider|iaskspider/2.0|ICC-Crawler|
    ImagesiftBot|imageSpider|img2dataset|ISSCyberRiskCrawler|kagi-fetcher|Kangaroo Bot|Kimi-User|KlaviyoAIBot|
    KunatoCrawler|laion-huggingface-processor|LAIONDownloader|LCC|LinerBot|Linguee Bot|LinkupBot|Manus-User|
    meta-externalagent|meta-externalfetcher|meta-webindexer|MistralAI-User|MistralAI-User/1.0|MyCentralAIScraperBot|
    netEstate Imprint Crawler|newsai|NotebookLM|NovaAct|OAI-SearchBot|omgili|omgilibot|OpenAI|PanguBot|Panscient|
    panscient.com|Perplexity-User|PerplexityBot|PetalBot|PhindBot|Poggio-Citations|Poseidon Research Crawler|
    QualifiedBot|Querit-SearchBot|QueritBot|QuillBot|quillbot.com|Reflectionbot|SBIntuitionsBot|SemrushBot-OCOB|
    SemrushBot-SWA|ShapBot|Sidetrade indexer bot|TavilyBot|Terra Cotta|TerraCotta|Thinkbot|TikTokSpider|Timpibot|
    TongyiBot|TwinAgent|UseAI|VelenPublicWebCrawler|WARDBot|Webzio-Extended|wpbot|WRTNBot|YaK|YandexAdditional|
    YandexAdditionalBot|YiyanBot|YouBot|ZanistaBot
    """.strip()
    .replace("\n", "")
    .replace("    ", "")
    .split("|")
)

# Lines that other specifications put into groups: `aipref`, `content_signals`.
_IN_GROUPS = frozenset({"content-usage", "content-signal"})


class Statement(NamedTuple):
    """A line of `_IN_GROUPS` without its path, whose length is `length`. One above all groups is not `grouped`."""

    line: Line
    text: str
    length: int
    grouped: bool


def longest(statements: Sequence[Statement]) -> list[Statement]:
    """The most specific statements: those with the longest path, several where they are as long."""
    most = max((s.length for s in statements), default=0)
    return [s for s in statements if s.length == most]


class Robots:
    """A site's robots.txt, parsed once.

    Args:
        file: what the site answered with.
        product: our product token, without a version.

    Attributes:
        unreachable: why nothing is known, after an answer that is neither the file nor its absence (section 2.3.1.4).
    """

    def __init__(self, file: SiteFile, product: str) -> None:
        self.file = file
        known = file.status in (200, 204)
        self.unreachable = None if known or file.is_absent else _reason(file)
        self._groups = Groups(file.body if known else b"", file.truncated, _IN_GROUPS)
        self._product = product
        self._crawl = self._groups.crawl(product)
        self._others = _alike(self._groups)

    def observe(self, url: str) -> list[Observation]:
        """Whether we may fetch a URL of this site, and which AI agents may not."""
        at = target(url)
        return [self._ours(at), *self._advice(at)]

    def allows(self, url: str) -> bool:
        """Whether we may fetch a URL of this site."""
        return self._ours(target(url)).verdict == Verdict.ALLOW

    def licences(self) -> list[tuple[int, str]]:
        """Line and URL of every `License:` line (RSL 1.0); they are for everybody, wherever they stand."""
        return [
            (line.number, shown(line.value)) for line in self._groups.whole if line.field == "license" and line.value
        ]

    def stated(self, field: str, url: str) -> list[Statement]:
        """All statements in `field` (`content-usage`, `content-signal`) whose path matches a URL.

        Of our own group, else of `*`; and those above all groups, which by the letter are for nobody: a refusal there
        is meant for all, a permission there is none.
        """
        at = target(url)
        return [s for pattern, s in self._statements[field] if pattern is None or pattern.matches(at)]

    def heard(
        self, signal: str, statements: Sequence[Statement], read: Callable[[str], Verdict], url: str
    ) -> list[Observation]:
        """Statements as observations, the first of each verdict: a file may repeat itself thousands of times.

        A permission is none for a URL that must not be fetched, nor above all groups.
        """
        found: dict[Verdict, Observation] = {}
        allowed = self.allows(url)
        for statement in statements:
            verdict = read(statement.text)
            if verdict == Verdict.ALLOW and not (statement.grouped and allowed):
                verdict = Verdict.UNKNOWN
            if verdict not in found:
                where = self.where(statement.line)
                found[verdict] = self._observation(signal, shown(statement.line.text), where, verdict)
        return list(found.values())

    def where(self, line: Line) -> str:
        """A line's place, as evidence names it."""
        return f"{self.file.url}:{line.number}"

    def _ours(self, at: Target) -> Observation:
        if at == ("/robots.txt",):
            return self._observation("robots", "always allowed (RFC 9309, 2.2.2)", self.file.url, Verdict.ALLOW)
        if self.unreachable is not None:
            return self._observation("robots", self.unreachable, self.file.url, Verdict.DENY)
        if self.file.is_absent:
            return self._observation("robots", f"absent ({self.file.status})", self.file.url, Verdict.ALLOW)
        rule = best(self._crawl, at)
        if rule is None:
            return self._observation("robots", "no rule applies", self.file.url, Verdict.ALLOW)
        verdict = Verdict.ALLOW if rule.allow else Verdict.DENY
        return self._observation("robots", shown(rule.line.text), self.where(rule.line), verdict)

    def _advice(self, at: Target) -> list[Observation]:
        refused: list[tuple[list[str], Line]] = []
        for names, blocks in self._others:
            rule = best(blocks, at)
            if rule is not None and not rule.allow:
                refused.append((names, rule.line))
        if not refused:
            return []
        value = f"{', '.join(name for names, _ in refused for name in names)[: SHOWN - 20]} disallowed"
        return [self._observation("robots_ai_agents", value, self.where(refused[0][1]), Verdict.UNKNOWN)]

    def _observation(self, signal: str, value: str, where: str, verdict: Verdict) -> Observation:
        return Observation(signal, value, where, verdict, self.file.observed_at)

    @cached_property
    def _statements(self) -> dict[str, list[tuple[Pattern | None, Statement]]]:
        fields: dict[str, list[tuple[Pattern | None, Statement]]] = {field: [] for field in _IN_GROUPS}
        lines = [(line, True) for line in self._groups.own(self._product)]
        for line, grouped in lines + [(line, False) for line in self._groups.outside]:
            if line.field in fields:
                # A path begins with a slash and ends before the first space (draft-ietf-aipref-attach-05, section 3.2).
                path, *rest = line.value.split(None, 1) if line.value.startswith("/") else ("", line.value)
                pattern = Pattern(path) if path else None
                length = pattern.length if pattern is not None else 0
                fields[line.field].append((pattern, Statement(line, "".join(rest), length, grouped)))
        return fields


def _alike(groups: Groups) -> list[tuple[list[str], list[Block]]]:
    """The AI agents that a file names, put together where the same is said to them: it is matched once."""
    found: dict[tuple[object, ...], tuple[list[str], list[Block]]] = {}
    for name in AI_AGENTS:
        if groups.names(name):
            blocks = groups.crawl(name)
            found.setdefault(tuple(block.said for block in blocks), ([], blocks))[0].append(name)
    return list(found.values())


def _reason(file: SiteFile) -> str:
    return f"unreachable: {file.status if file.status is not None else file.detail or 'no answer'}"[:SHOWN]
