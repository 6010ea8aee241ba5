"""Charts as inline SVG: no script, the page's classes for style, and a text for whoever cannot see them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from markupsafe import Markup

from curation.report.representation import GroupSet, Removal
from curation.report.scores import KEPT, NOT_KEPT, Series, Threshold
from curation.report.tallies import Histogram

_EMPTY = Markup("")


def number(value: float) -> str:
    """A number as a person writes it: at most three significant digits, or all of a whole one."""
    if value == math.inf:
        return "∞"
    if value == round(value) and abs(value) < 1e7:
        return f"{int(value):,}".replace("-", "−")
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    text = f"{value:,.{digits}f}" if digits < 7 else f"{value:.2e}"
    if "." in text and "e" not in text:
        text = text.rstrip("0").rstrip(".")
    return text.replace("-", "−")


def stacked_bar(parts: Sequence[tuple[str, int]], whole: int) -> Markup:
    """A horizontal bar: (class, count) parts of a whole, side by side. As wide as its place; it carries no text."""
    out, x = [], 0.0
    for kind, count in parts:
        if count > 0 and whole > 0:
            # What is there is to be seen: a sliver where the share is less than that.
            width = max(100 * count / whole, 0.4)
            out.append(Markup('<rect class="{}" x="{:.3f}" y="0" width="{:.3f}" height="10"/>').format(kind, x, width))
            x += width
    return Markup(
        '<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" x="0" y="0" width="100" height="10"/>{}</svg>'
    ).format(_EMPTY.join(out))


_W, _H, _LEFT, _RIGHT, _TOP, _BOTTOM = 330, 168, 4, 4, 36, 22


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """At most about `most` round numbers in [low, high]."""
    if not (math.isfinite(low) and math.isfinite(high) and high > low):
        return [low]
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def histogram(series: Series, lines: Sequence[Threshold], label: str) -> Markup:
    """A measure's histogram: kept rows below, the others stacked on them, thresholds as labelled lines."""
    edges, counts = series.table()
    return _histogram(edges, counts, [KEPT, NOT_KEPT], lines, label, logarithmic=series.logarithmic)


def lengths(found: Histogram, label: str) -> Markup:
    """A histogram of whole numbers, one series."""
    edges, counts = found.table()
    if found.exponent == 0:
        edges = edges - 0.5  # a bin is one number, which stands below its middle
    return _histogram(edges, counts, [0], (), label, logarithmic=False)


def _histogram(
    edges: np.ndarray,
    counts: np.ndarray,
    order: Sequence[int],
    lines: Sequence[Threshold],
    label: str,
    *,
    logarithmic: bool,
) -> Markup:
    low, high = float(edges[0]), float(edges[-1])
    reach = 0.6 * (high - low) if len(counts) > 1 else 0.0
    at = [line.value if not logarithmic else math.log2(line.value) if line.value > 0 else -math.inf for line in lines]
    # A threshold far from all numbers is named at the edge: drawn to scale it would leave no room for them.
    near = [(a, line) for a, line in zip(at, lines, strict=True) if low - reach <= a <= high + reach]
    far = [(a, line) for a, line in zip(at, lines, strict=True) if not low - reach <= a <= high + reach]
    low, high = min([low, *(a for a, _ in near)]), max([high, *(a for a, _ in near)])
    if (low, high) != (float(edges[0]), float(edges[-1])):
        low, high = low - 0.03 * (high - low), high + 0.03 * (high - low)
    span = high - low or 1.0
    plot_w, plot_h = _W - _LEFT - _RIGHT, _H - _TOP - _BOTTOM

    def x(value: float) -> float:
        return _LEFT + (value - low) / span * plot_w

    out: list[Markup] = []
    for a, line in near:
        start, end = (_LEFT, x(a)) if line.side == "below" else (x(a), _W - _RIGHT)
        out.append(
            Markup('<rect class="acted" x="{:.1f}" y="{}" width="{:.1f}" height="{}"/>').format(
                start, _TOP, max(0.0, end - start), plot_h
            )
        )
    most = max(1, int(counts.sum(axis=1).max()) if len(counts) else 1)
    for i, row in enumerate(counts):
        base = float(_TOP + plot_h)
        width = max(x(float(edges[i + 1])) - x(float(edges[i])) - 0.6, 1.6)
        for which in order:
            if row[which]:
                height = max(float(row[which]) / most * plot_h, 1.2)
                base -= height
                out.append(
                    Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
                        "kept" if which == KEPT else "lost", x(float(edges[i])), base, width, height
                    )
                )
    out.append(_axis(x, low, high, logarithmic))
    out += _threshold_lines([(x(a), line) for a, line in near])
    out += [_beyond(line, right=a > high) for a, line in far]
    out.append(Markup('<text class="peak" x="{}" y="{}">{} in the fullest bin</text>').format(_LEFT, 10, f"{most:,}"))
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        _W, _H, label, _EMPTY.join(out)
    )


_SIGNS = {"below": "<", "over": ">", "from": "≥"}


def _named(line: Threshold) -> str:
    return f"{_SIGNS[line.side]} {number(line.value)}: {line.action[:12]}"


def _beyond(line: Threshold, *, right: bool) -> Markup:
    """A threshold that lies outside of what is drawn, with an arrow to where."""
    words, place, anchor = (f"{_named(line)} →", _W - _RIGHT, "end") if right else (f"← {_named(line)}", _LEFT, "start")
    return Markup('<text class="limit" x="{}" y="{}" text-anchor="{}">{}</text>').format(place, _TOP - 4, anchor, words)


def _threshold_lines(lines: Sequence[tuple[float, Threshold]]) -> list[Markup]:
    out = []
    for at, line in lines:
        words = _named(line)
        anchor = "start" if at < _W / 2 else "end"
        shift = 4 if anchor == "start" else -4
        out.append(
            Markup(
                '<line class="threshold" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/>'
                '<text class="limit" x="{3:.1f}" y="{4}" text-anchor="{5}">{6}</text>'
            ).format(at, _TOP - 10, _H - _BOTTOM, at + shift, _TOP - 4, anchor, words)
        )
    return out


def _axis(x: Callable[[float], float], low: float, high: float, logarithmic: bool) -> Markup:
    bottom = _H - _BOTTOM
    out = [
        Markup('<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(_LEFT, _W - _RIGHT, bottom, bottom),
    ]
    if logarithmic:
        places = [(math.log2(10.0**p), number(10.0**p)) for p in range(-12, 13) if low <= math.log2(10.0**p) <= high]
        if len(places) < 3:
            places = [(float(p), number(2.0**p)) for p in range(math.ceil(low), math.floor(high) + 1)]
    else:
        places = [(t, number(t)) for t in ticks(low, high)]
    for place, text in places:
        at = x(place)
        anchor = "start" if at < _LEFT + 12 else "end" if at > _W - _RIGHT - 12 else "middle"
        out.append(
            Markup(
                '<line class="axis" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/>'
                '<text x="{0:.1f}" y="{3}" text-anchor="{4}">{5}</text>'
            ).format(at, bottom, bottom + 4, bottom + 17, anchor, text)
        )
    return _EMPTY.join(out)


def share_row(found: GroupSet, index: int) -> Markup:
    """The shares of one group before (hollow) and after (full) with their intervals."""
    share = found.shares[index]
    top = max(max(s.interval_before.high, s.interval_after.high if found.after else 0.0) for s in found.shares)
    rows = [(share.share_before, share.interval_before, "before", 6)]
    if found.after:
        rows.append((share.share_after, share.interval_after, "after", 15))
    out = []
    for value, interval, kind, y in rows:
        out.append(
            Markup(
                '<line class="whisker {0}" x1="{1:.2f}%" x2="{2:.2f}%" y1="{4}" y2="{4}"/>'
                '<circle class="{0}" cx="{3:.2f}%" cy="{4}" r="3.6"/>'
            ).format(kind, _percent(interval.low, top), _percent(interval.high, top), _percent(value, top), y)
        )
    return Markup('<svg class="shares" height="21" width="100%" aria-hidden="true">{}</svg>').format(_EMPTY.join(out))


def _percent(value: float, top: float) -> float:
    return 2 + 96 * value / top if top else 2.0


_FOREST = 4.0  # the forest plot's scale runs from 1/16 to 16, in powers of two


def forest_row(removal: Removal) -> Markup:
    """A risk ratio with its interval on a scale of powers of two; the lines are at 1 and at 2."""
    ratio = removal.ratio
    if ratio is None:
        return _EMPTY

    def x(value: float) -> float:
        place = _FOREST if value == math.inf else -_FOREST if value <= 0 else math.log2(value)
        return 3 + 94 * (min(max(place, -_FOREST), _FOREST) + _FOREST) / (2 * _FOREST)

    return Markup(
        '<svg class="forest" height="18" width="100%" aria-hidden="true">'
        '<line class="one" x1="{one:.2f}%" x2="{one:.2f}%" y1="0" y2="18"/>'
        '<line class="two" x1="{two:.2f}%" x2="{two:.2f}%" y1="0" y2="18"/>'
        '<line class="whisker {kind}" x1="{low:.2f}%" x2="{high:.2f}%" y1="9" y2="9"/>'
        '<circle class="{kind}" cx="{at:.2f}%" cy="9" r="3.8"/></svg>'
    ).format(
        one=x(1), two=x(2), low=x(ratio.low), high=x(ratio.high), at=x(ratio.ratio), kind=removal.flag or "unflagged"
    )


def legend(parts: Mapping[str, str]) -> Markup:
    """Class and meaning of the colours."""
    return _EMPTY.join(
        Markup(
            '<span class="key"><svg class="swatch" viewBox="0 0 10 10" aria-hidden="true">'
            '<rect class="{}" width="10" height="10"/></svg>{}</span>'
        ).format(kind, words)
        for kind, words in parts.items()
    )
