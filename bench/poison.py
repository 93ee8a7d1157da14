"""Planted passages: how often each search finds them, and how near their embeddings are to the question's.

    python bench/poison.py --embed all-minilm-l6-v2 [--questions 20] [--steps 32]

The index is of the made-up manual of a support desk (lab/examples.py), with its 100 pages. The
questions are the manual's own, which its pages answer. The passages are those of `passage_injection` and
`poisoned_passage`, with harmless markers. They are about something else. One document is planted for each
question, in three forms:

    passage     the passage by itself
    question    the question and the passage, as `poisoned_index:1`
    gradient    ten searched words and the passage, as `poisoned_index:1,gradient=STEPS`

found@k: the share of questions whose document is among the first k passages, with a Wilson interval (95 %).
cosine: of the embeddings of question and document, the mean.
The output begins with the machine and the commit.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from _commit import commit
from heredity.application.retrieval.build import build
from heredity.application.retrieval.index import METHODS, IndexOverlay, PassageIndex
from heredity.application.spec import Application
from heredity.core.records import Probe, Retrieved
from heredity.lab.examples import support_manual
from heredity.redteam import attacks, probes
from heredity.redteam.attacks import AttackContext
from heredity.stats.intervals import wilson

DESK = Path(__file__).parents[1] / "examples" / "adapt" / "desk.toml"
CUTS = (1, 4)
TECHNIQUES = ["passage_injection", "poisoned_passage"]


def chosen(n: int) -> list[Probe]:
    """`n` probes, each with a question of the manual and a passage about something else."""
    filled, _ = probes.select(probes.load(TECHNIQUES), Application.load(DESK))
    passages = [p for p in filled if p.kind == "breach" and len(p.turns) == 1]
    rows = support_manual().test()
    return [
        msgspec.structs.replace(
            passages[at * len(passages) // n], turns=(rows[at * len(rows) // n]["question"],)
        )
        for at in range(n)
    ]


def documents(index: PassageIndex, asked: Sequence[Probe], n_steps: int) -> dict[str, list[Retrieved]]:
    """The document of each question, by form."""
    from heredity.application.retrieval import triggers

    attack = attacks.load(f"poisoned_index:1,gradient={n_steps}")
    found: dict[str, list[Retrieved]] = {"passage": [], "question": [], "gradient": []}
    start = time.perf_counter()
    for seed, probe in enumerate(asked):
        found["passage"].append(Retrieved("p", "note.md:1", probe.passage))
        found["question"] += planted("poisoned_index:1", probe, AttackContext())
        (wanted,) = attack.wanted(probe)
        words = triggers.search(index.embedder, *wanted, seed).words
        found["gradient"] += planted(attack.spec, probe, AttackContext(triggers=(words,)))
    print(f"search: {(time.perf_counter() - start) / len(asked):.1f} s a document of {n_steps} steps")
    return found


def planted(spec: str, probe: Probe, context: AttackContext) -> tuple[Retrieved, ...]:
    """The documents of an attack for a probe."""
    shown = attacks.load(spec).delivered(probe, context).planted
    return () if isinstance(shown, msgspec.UnsetType) else shown


def place(index: PassageIndex, probe: Probe, document: Retrieved, method: str) -> int:
    """The rank of a planted document, from 1; 0 if it is not found."""
    found = IndexOverlay(index, (document,)).search(probe.turns[0], max(CUTS), method)
    return next((n for n, each in enumerate(found, 1) if each.chunk.id == document.chunk), 0)


def measure(embed: str, n_questions: int, n_steps: int) -> None:
    """Print found@k by method and form."""
    asked = chosen(n_questions)
    with tempfile.TemporaryDirectory() as folder:
        support_manual().write(Path(folder) / "manual")
        build(Path(folder) / "manual", Path(folder) / "index", embed=embed)
        index = PassageIndex.open(Path(folder) / "index")
        print(f"{len(asked)} questions, {index.manifest.n_chunks:,} passages, {embed}")
        for form, found in documents(index, asked, n_steps).items():
            show(index, asked, found, form)


def show(index: PassageIndex, asked: Sequence[Probe], found: Sequence[Retrieved], form: str) -> None:
    """Print the mean cosine and found@k of the documents of a form."""
    both = list(zip(asked, found, strict=True))
    near = [float(index.embed(each.text) @ index.embed(probe.turns[0])) for probe, each in both]
    print(f"{form}: cosine {sum(near) / len(near):.3f}")
    for method in METHODS:
        places = [place(index, probe, each, method) for probe, each in both]
        print(f"  {method:7}" + "".join(f"  {share(places, k)}" for k in CUTS))


def share(places: Sequence[int], k: int) -> str:
    """found@k with its interval."""
    n = sum(0 < each <= k for each in places)
    found = wilson(n, len(places))
    return f"found@{k} {found.value:.2f} [{found.low:.2f}, {found.high:.2f}], n {len(places)}"


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--embed", default="all-minilm-l6-v2", help="an embedding model of the store")
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--steps", type=int, default=32)
    given = parser.parse_args()
    load = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(
        f"machine: {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {load}"
    )
    print(f"commit: {commit()}")
    measure(given.embed, given.questions, given.steps)


if __name__ == "__main__":
    main()
