"""The small figures of the pages, as SVG, and the words next to them.

Promises: an SVG holds numbers and class names of this module only. Each bar is next to its counts, so
that colour is never the only sign.
Leaves to others: colours (static/view.css).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from heredity.core.records import Estimate

# By state: the order in a bar, which is also that of its colours, and its words.
_WORDS = {
    "broke": "broke",
    "refused": "refused",
    "held": "held",
    "answered": "answered",
    "unclear": "unclear",
    "error": "failed",
    "unjudged": "answered, not judged",
    "skipped": "not asked",
    "queued": "queued",
}
_STRETCHED = 'preserveAspectRatio="none" aria-hidden="true" focusable="false"'


def state_word(state: str) -> str:
    """The word for the state of a trial."""
    return _WORDS.get(state, "queued")


def counts_bar(states: Mapping[str, int], n_queued: int) -> Markup:
    """A bar of the trials of a cell by state, as wide as its place; the rest is queued."""
    counts = {state: states.get(state, 0) for state in _WORDS} | {"queued": n_queued}
    total, at, parts = sum(counts.values()), 0.0, []
    for state, n in counts.items():
        if n:
            width = 100 * n / total
            parts.append(f'<rect class="s-{state}" x="{at:.2f}" y="0" width="{width:.2f}" height="6"/>')
            at += width
    return Markup(f'<svg class="counts" viewBox="0 0 100 6" {_STRETCHED}>{"".join(parts)}</svg>')


def interval_bar(estimate: Estimate) -> Markup:
    """A rate between 0 and 100 %: its interval as a line, the rate as a mark."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return Markup("")
    low, high, at = (100 * each for each in (estimate.low, estimate.high, estimate.value))
    return Markup(
        f'<svg class="rate" viewBox="0 0 100 8" {_STRETCHED}>'
        '<rect class="track" x="0" y="3.5" width="100" height="1"/>'
        f'<rect class="reach" x="{low:.2f}" y="2.5" width="{max(high - low, 0.5):.2f}" height="3"/>'
        f'<rect class="mark" x="{min(at, 99):.2f}" y="0" width="1" height="8"/></svg>'
    )


WIDE, HIGH, _LEFT, _FOOT = 720, 240, 64, 26  # of a curve, in pixels


def curve(points: Sequence[tuple[float, float]], what: str) -> Markup:
    """Values over steps as a line, with the lowest and highest of both as its scales; "" for no point."""
    if not points:
        return Markup("")
    xs, ys = [x for x, _ in points], [y for _, y in points]
    scales = f"{max(ys):.3g}", f"{min(ys):.3g}", f"step {min(xs):,.0f}", f"{max(xs):,.0f}"
    return _axes(what, scales, _line(points, (min(xs), max(xs)), (min(ys), max(ys))))


def trend(rates: Sequence[Estimate], first: str, last: str, what: str) -> Markup:
    """Rates one after another as a line on a scale to 100 %, with a band of their intervals.

    first, last: the words below the ends. "" for fewer than two.
    """
    values = [(x, rate.value) for x, rate in enumerate(rates) if rate.value is not None]
    if len(values) < 2:
        return Markup("")
    lows = [(x, rates[x].low or 0.0) for x, _ in values]
    highs = [(x, 1.0 if (high := rates[x].high) is None else high) for x, _ in values]
    ends = (values[0][0], values[-1][0])
    band = Markup('<polygon points="{}"/>').format(_path([*highs, *reversed(lows)], ends, (0.0, 1.0)))
    dots = Markup("").join(
        Markup('<circle cx="{}" cy="{}" r="3.5"/>').format(*_path([each], ends, (0.0, 1.0)).split(","))
        for each in values
    )
    return _axes(what, ("100 %", "0 %", first, last), band + _line(values, ends, (0.0, 1.0)) + dots)


def _path(points: Sequence[tuple[float, float]], across: tuple[float, float], up: tuple[float, float]) -> str:
    """The points in pixels; `across` and `up` are the ends of the scales."""
    wide, tall = WIDE - _LEFT - 12, HIGH - _FOOT - 12
    x1, y1 = wide / (across[1] - across[0] or 1), tall / (up[1] - up[0] or 1)
    return " ".join(f"{_LEFT + x1 * (x - across[0]):.1f},{12 + y1 * (up[1] - y):.1f}" for x, y in points)


def _line(
    points: Sequence[tuple[float, float]], across: tuple[float, float], up: tuple[float, float]
) -> Markup:
    return Markup('<polyline points="{}"/>').format(_path(points, across, up))


def _axes(what: str, scales: tuple[str, str, str, str], drawn: Markup) -> Markup:
    """The frame of a curve. scales: the words at the top and the foot, and at the left and the right."""
    floor, right = HIGH - _FOOT, WIDE - 12
    places = (
        (_LEFT - 8, 16, "end"),
        (_LEFT - 8, floor, "end"),
        (_LEFT, HIGH - 8, "start"),
        (right, HIGH - 8, "end"),
    )
    words = Markup("").join(
        Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>').format(*place, text)
        for place, text in zip(places, scales, strict=True)
    )
    return Markup(
        '<svg class="curve" width="{w}" height="{h}" viewBox="0 0 {w} {h}" role="img" aria-label="{what}">'
        '<path class="axis" d="M{left},12V{floor}H{right}"/>{words}{drawn}</svg>'
    ).format(w=WIDE, h=HIGH, what=what, left=_LEFT, floor=floor, right=right, words=words, drawn=drawn)
