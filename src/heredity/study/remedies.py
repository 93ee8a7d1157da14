"""A breach of each technique in words, the remedy against it, and the page of its taxonomy.

Promises: a technique of the user's own has the words of its checks. A link is built from a fixed address and
an id of a known form, so a probe's file cannot choose where it leads.
Leaves to others: which technique needs them (advice.py) and the page (report/).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from heredity.core.sanitize import label
from heredity.study.plan import Plan


class Remedy(NamedTuple):
    """The act of a breach, in the third person, and one line of advice against it."""

    does: str  # "{tool}" stands for the application's forbidden tool
    advice: str


class ThreatLink(NamedTuple):
    """A threat as a short name with its edition, and the page of its taxonomy; "" without a known page."""

    name: str
    address: str


_TOOLS = "Let each tool check who may call it, whatever the model says; ask a person before it acts."
_READ = (
    "Treat what the model reads as data: let no retrieved or pasted text start a tool or reach a user unread."
)
_SECRET = "Keep secrets out of the prompt: a model cannot give away what it never sees."
_GUARD = "Put guards before and behind the model, and measure what they refuse that is benign."
_OUTPUT = "Treat each answer as untrusted input: escape it, and run nothing that it holds."
_PROMPT = "Put nothing confidential into the system prompt, and enforce its rules in code."

_TECHNIQUES = {
    "agent_task": Remedy("does what its task or its rules forbid", _TOOLS),
    "direct_injection": Remedy("obeys an order in pasted text", _READ),
    "excessive_agency": Remedy("changes more than it may", _TOOLS),
    "executable_output": Remedy("writes output that would run", _OUTPUT),
    "forbidden_tool": Remedy("calls {tool}", _TOOLS),
    "graded_harm": Remedy("helps with a harmful request", _GUARD),
    "hallucinated_package": Remedy(
        "names a package that does not exist", "Install only from a list of packages that a person allowed."
    ),
    "harmful_request": Remedy("helps with a harmful request", _GUARD),
    "long_document": Remedy("obeys an order in a document", _READ),
    "passage_injection": Remedy("obeys an order in a retrieved passage", _READ),
    "planted_secret": Remedy("gives away the planted secret", _SECRET),
    "poisoned_passage": Remedy(
        "repeats a poisoned passage", "Control who may write to the documents, and show each answer's source."
    ),
    "prompt_extraction": Remedy("gives away its system prompt", _PROMPT),
    "secret_pressure": Remedy("gives away the planted secret", _SECRET),
    "tool_description": Remedy(
        "obeys an order in a tool's description", "Read the descriptions of tools before you install them."
    ),
    "tool_injection": Remedy("obeys an order in a tool's result", _READ),
    "training_data": Remedy(
        "recites training text", "Remove duplicates from the training text, and filter answers against it."
    ),
    "unbounded_output": Remedy("writes without an end", "Limit the tokens, time and cost of each answer."),
}
_CHECKS = {
    "answer": _TECHNIQUES["poisoned_passage"],
    "endless": _TECHNIQUES["unbounded_output"],
    "language": Remedy("obeys an order that it should not", _READ),
    "marker": Remedy("obeys an order that it should not", _READ),
    "only": Remedy("obeys an order that it should not", _READ),
    "package": _TECHNIQUES["hallucinated_package"],
    "prompt_leak": _TECHNIQUES["prompt_extraction"],
    "refusal": _TECHNIQUES["harmful_request"],
    "secret": _TECHNIQUES["planted_secret"],
    "state": _TECHNIQUES["excessive_agency"],
    "tool": _TECHNIQUES["forbidden_tool"],
    "word": Remedy("obeys an order that it should not", _READ),
}
_UNKNOWN = Remedy("breaks", "Read the conversations, and mend the application where it trusts the model.")


def remedy(plan: Plan, technique: str) -> Remedy:
    """The words of a technique: its own, or those of the kind of check that most of its probes have."""
    found = _TECHNIQUES.get(technique)
    if found is None:
        mine = (p.check.kind for p in plan.probes if p.technique == technique and p.kind == "breach")
        found = _CHECKS.get(next((kind for kind, _ in Counter(mine).most_common(1)), ""), _UNKNOWN)
    tools = [label(tool.name, 40) for tool in plan.application.tools if tool.is_forbidden]
    return found._replace(
        does=found.does.replace("{tool}", tools[0] if len(tools) == 1 else "a forbidden tool")
    )


# --- taxonomies ---------------------------------------------------------------------------------------

_OWASP_2025 = {
    "LLM01": "llm01-prompt-injection",
    "LLM02": "llm022025-sensitive-information-disclosure",
    "LLM03": "llm032025-supply-chain",
    "LLM04": "llm042025-data-and-model-poisoning",
    "LLM05": "llm052025-improper-output-handling",
    "LLM06": "llm062025-excessive-agency",
    "LLM07": "llm072025-system-prompt-leakage",
    "LLM08": "llm082025-vector-and-embedding-weaknesses",
    "LLM09": "llm092025-misinformation",
    "LLM10": "llm102025-unbounded-consumption",
}
_ATLAS = re.compile(r"AML\.T\d{4}(\.\d{3})?")
_SCHEMES = {  # scheme of a threat id: short name, page of the whole taxonomy
    "owasp-llm": ("OWASP", "https://genai.owasp.org/llm-top-10/"),
    "owasp-agentic": (
        "OWASP",
        "https://genai.owasp.org/resource/owasp-top-10-for-agentic-applications-for-2026/",
    ),
    "mitre-atlas": ("ATLAS", "https://atlas.mitre.org/matrices/ATLAS"),
    "mlcommons-ailuminate": ("AILuminate", "https://mlcommons.org/ailuminate/"),
    "nist-ai-100-2": ("NIST", "https://csrc.nist.gov/pubs/ai/100/2/e2025/final"),
}
ADDRESSES = (
    "https://genai.owasp.org/",
    "https://atlas.mitre.org/",
    "https://mlcommons.org/",
    "https://csrc.nist.gov/",
)


def threat_links(threats: tuple[str, ...]) -> Iterator[ThreatLink]:
    """The threats of a technique, each with its edition and its page."""
    for threat in threats:
        scheme, _, rest = threat.partition(":")
        edition, _, ident = rest.partition("/")
        if scheme not in _SCHEMES:
            yield ThreatLink(label(threat, 60), "")
            continue
        short, page = _SCHEMES[scheme]
        if scheme == "owasp-llm" and edition == "2025" and ident in _OWASP_2025:
            page = f"https://genai.owasp.org/llmrisk/{_OWASP_2025[ident]}/"
        elif scheme == "mitre-atlas" and _ATLAS.fullmatch(ident):
            page = f"https://atlas.mitre.org/techniques/{ident}"
        yield ThreatLink(label(f"{short} {ident} ({edition})", 60), page)
