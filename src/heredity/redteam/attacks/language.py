"""The probe in another language, together with the words of every part applied to it.

Source: Deng et al. 2023 (arXiv 2310.06474), Yong et al. 2023 (arXiv 2310.02446).
The project wrote the translations, in words/<language>/<technique>.toml, for the probes of techniques that
need no judge. A probe without one is skipped with its twin, and the reason is reported.
The last turn also asks for the answer in English, because the rules judge was measured on English. A passage
and a tool's result stay as they are. Adds no query.
"""

from __future__ import annotations

import msgspec

from heredity.core.records import Probe
from heredity.redteam.attacks._words import languages, table, translations
from heredity.redteam.attacks.protocols import AttackContext, ProbeTransform


class Translation:
    """The probe in the language that the variant names."""

    cost = "adds none"
    variants = languages()

    def skips(self, probe: Probe, context: AttackContext) -> str:
        """Why this probe cannot be asked in this language; "" if it can."""
        if probe.language == context.variant or translated(probe, context.variant) is not None:
            return ""
        return f"there is no translation of this probe into '{context.variant}'"

    def recast(self, probe: Probe, context: AttackContext) -> Probe:
        """The probe with its turns translated and filled with the application's words."""
        turns = None if probe.language == context.variant else translated(probe, context.variant)
        if turns is None:
            return probe
        texts = [_filled(text, context) for text in turns]
        texts[-1] = f"{texts[-1]} {table(context.variant)['language']['answer_in_english']}"
        return msgspec.structs.replace(probe, turns=tuple(texts), language=context.variant)


def translated(probe: Probe, language: str) -> tuple[str, ...] | None:
    """The turns in words/<language>/<technique>.toml, slots unfilled; None if it has none.

    An entry is [turns, turns of the twin]. It is [turns] if the twin is asked the same or there is no twin. A
    string may replace a list with one turn.
    """
    name, _, twin = probe.id.partition("~")
    technique, _, item = name.partition("/")
    entry = translations(language).get(technique, {}).get(item)
    if entry is None:
        return None
    turns = entry[-1] if twin else entry[0]
    turns = (turns,) if isinstance(turns, str) else tuple(turns)
    return turns if len(turns) == len(probe.turns) else None


def _filled(text: str, context: AttackContext) -> str:
    for slot, word in context.words.items():
        text = text.replace(f"{{{slot}}}", word)
    return text


ATTACK: ProbeTransform = Translation()
