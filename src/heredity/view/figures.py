"""The small figures of the pages, as SVG, and the words next to them.

Promises: an SVG holds numbers and class names of this module only. Each bar is next to its counts, so
that colour is never the only sign.
Leaves to others: colours (static/view.css).
"""

from __future__ import annotations

from collections.abc import Mapping

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
    "unjudged": "not judged yet",
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


def duration(seconds: float | None) -> str:
    """A time in the largest two units; "" if it is not known."""
    if seconds is None:
        return ""
    whole = round(seconds)
    if whole < 90:
        return f"{whole} s"
    minutes = round(whole / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
