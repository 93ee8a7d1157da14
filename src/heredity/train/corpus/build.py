"""A corpus from its recipe: read, steps, tokenizer, mixture, shards; corpus.json last.

Promises: the same recipe over the same files gives the same bytes, whatever the number of processes; a folder
is there whole or not at all; every document is counted, in and out of every step, and so is what is empty.
Leaves to others: each step (steps/), each kind of source (sources/), and reading what came out (reader.py).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from heredity.errors import UsageError
from heredity.records import digest, encode
from heredity.store import hash_file, sync_folder, write_atomic
from heredity.train.corpus import tokenizer
from heredity.train.corpus._jobs import Calls, Done, Task, added, calling, draws_of, held_out
from heredity.train.corpus._packed import Kept, Packed, pack
from heredity.train.corpus._spill import Place
from heredity.train.corpus.canaries import plant
from heredity.train.corpus.card import SCHEMA, Card, SourceRow, StepRow, TokenizerFacts, fingerprint
from heredity.train.corpus.checked import NAME
from heredity.train.corpus.recipe import Recipe
from heredity.train.corpus.sources import Input
from heredity.train.corpus.steps import Context, Duplicates
from heredity.train.corpus.work import Count

Watch = Callable[[str, int, int], None]  # what is done, of how many jobs, out of
_VERSIONS = ("tokenizers", "trafilatura")


def build(
    recipe: Recipe, out: Path, unseen: tuple[str, ...] = (), workers: int = 1, watch: Watch | None = None
) -> Card:
    """Build the corpus into the folder `out`, which must not be there. unseen: texts that no model may learn.

    Raises BadInput and UsageError, with file and line where there is one; nothing is left behind then.
    """
    if out.exists():
        raise UsageError(f"{out} is there already. Name another folder, or remove it.")
    out.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        made, spilled = making / "corpus", making / "between"
        made.mkdir()
        spilled.mkdir()
        context = Context(recipe.root, unseen, recipe.seed)
        with calling(recipe, context, workers) as calls:
            card = _Build(recipe, context, calls, watch or _quiet, made, spilled).run()
        made.rename(out)
        sync_folder(out.parent)
        return card
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _quiet(_what: str, _done: int, _total: int) -> None:
    """Nobody watches."""


@dataclass
class _Build:
    recipe: Recipe
    context: Context
    calls: Calls
    watch: Watch
    made: Path
    spilled: Path
    tasks: list[Task] = field(default_factory=list)
    inputs: list[list[Input]] = field(default_factory=list)
    read: list[Count] = field(default_factory=list)
    counts: list[list[Count]] = field(default_factory=list)  # (step, source)

    def run(self) -> Card:
        self._list()
        self._steps()
        facts = self._tokenizer()
        packed = self._pack(facts["dtype"])
        return self._write(facts, packed)

    # --- documents ------------------------------------------------------------------------------

    def _list(self) -> None:
        for number, source in enumerate(self.recipe.sources):
            for job in source.jobs(self.recipe.root):
                place = Place(self.spilled, len(self.tasks))
                self.tasks.append(Task(place, number, job, range(0), None, True))
            self.inputs.append([])
            self.read.append(Count())
        self.counts = [[Count() for _ in self.recipe.sources] for _ in self.recipe.steps]

    def _steps(self) -> None:
        """Between two steps that look at all documents each job goes its own way."""
        start, is_first = 0, True
        barriers = [i for i, step in enumerate(self.recipe.steps) if isinstance(step, Duplicates)]
        for stop in [*barriers, None]:
            steps = range(start, len(self.recipe.steps) if stop is None else stop)
            tasks = [t._replace(steps=steps, keys=stop, is_first=is_first) for t in self.tasks]
            what = "reading" if is_first else "going on"
            for task, done in zip(tasks, self._called("run", tasks, what), strict=True):
                self._count(task, done)
            self._refuse_empty(steps)
            if stop is not None:
                self._without_duplicates(stop)
                self._refuse_empty(range(stop, stop + 1))
                start = stop + 1
            is_first = False

    def _called(self, name: str, tasks: list[Task], what: str) -> Iterator[Done]:
        for number, done in enumerate(self.calls(name, [(task,) for task in tasks]), 1):
            self.watch(what, number, len(tasks))
            yield done

    def _count(self, task: Task, done: Done) -> None:
        if task.is_first:
            self.read[task.source].add(done.read)
            self.inputs[task.source] += done.inputs
        for step, count in zip(task.steps, done.counts, strict=True):
            self.counts[step][task.source].add(count)

    def _without_duplicates(self, number: int) -> None:
        step = self.recipe.steps[number]
        assert isinstance(step, Duplicates)
        keys = [task.place.get("keys") for task in self.tasks]
        kept = step.kept(np.concatenate(keys))
        at = 0
        for task, own in zip(self.tasks, keys, strict=True):
            here = kept[at : at + len(own)]
            at += len(own)
            task.place.put("kept", here)
            lengths = task.place.get("lengths")
            count = self.counts[number][task.source]
            count.documents_in += len(own)
            count.bytes_in += int(lengths.sum())
            count.documents_out += int(here.sum())
            count.bytes_out += int(lengths[here].sum())
            if n := int((~here).sum()):
                count.dropped["duplicate"] += n
            self.watch("comparing", at, len(kept))

    def _refuse_empty(self, steps: range) -> None:
        """Say which step left nothing."""
        if not sum(count.documents_out for count in self.read):
            why = added(count.dropped for count in self.read)
            said = f" Left out: {_listed(why)}." if why else ""
            raise UsageError(f"{self.recipe.path}: the sources hold no document.{said} Name others.")
        for number in steps:
            row = self.counts[number]
            if not sum(count.documents_out for count in row):
                kind = type(self.recipe.steps[number]).__module__.rpartition(".")[2]
                n = sum(count.documents_in for count in row)
                reasons = _listed(added(count.dropped for count in row))
                raise UsageError(
                    f"{self.recipe.path}: the corpus is empty: the step '{kind}' dropped all {n:,} documents"
                    f" ({reasons}). Loosen its settings or leave it out."
                )

    # --- tokens ---------------------------------------------------------------------------------

    def _tokenizer(self) -> dict[str, Any]:
        settings, folder = self.recipe.tokenizer, self.made
        total = sum(int(task.place.get("lengths").sum()) for task in self.tasks)
        sampled = [0]
        if settings.folder:
            tokenizer.copy(self.recipe.root / settings.folder, folder)
        else:
            texts = self._sample(min(1.0, settings.sample_bytes / max(1, total)), sampled)
            tokenizer.write(tokenizer.train(texts, settings, self.recipe.path), settings, folder)
        n = tokenizer.load(folder).get_vocab_size()
        dtype = "uint16" if n <= 1 << 16 else "uint32"
        return {"dtype": dtype, "end": tokenizer.end_of(folder), "n": n, "sample_bytes": sampled[0]}

    def _sample(self, share: float, sampled: list[int]) -> Iterator[str]:
        """Text of the training split, documents drawn by their own hash."""
        for number, task in enumerate(self.tasks, 1):
            for batch in task.place.batches():
                draws = draws_of(batch)
                # Other bits than those that decide on the split.
                drawn = (
                    held_out(draws << np.uint64(32), share) if share < 1 else np.ones(len(batch), np.bool_)
                )
                for i in np.flatnonzero(drawn & ~held_out(draws, self.recipe.shards.validation)):
                    document = batch[int(i)]
                    sampled[0] += len(document)
                    yield document.decode()
            self.watch("learning words", number, len(self.tasks))

    def _pack(self, dtype: str) -> Packed:
        rows = [(task.place, self.made, dtype, self.recipe.shards.validation) for task in self.tasks]
        for number, _ in enumerate(self.calls("encode", rows), 1):
            self.watch("cutting into tokens", number, len(rows))
        planted = plant(self.recipe.canaries, self.recipe.seed, self.made)
        kept = [Kept(task.source, task.place) for task in self.tasks]
        return pack(self.recipe, kept, planted, dtype, self.made)

    # --- what is written down -------------------------------------------------------------------

    def _write(self, facts: dict[str, Any], packed: Packed) -> Card:
        card = Card(
            schema=SCHEMA,
            name=self.recipe.name,
            kind="text",
            fingerprint="",
            recipe=self.recipe.settings(),
            reads=self._reads(),
            sources=tuple(self._source_row(i) for i in range(len(self.recipe.sources))),
            steps=tuple(self._step_rows()),
            mixture=packed.mixture,
            tokenizer=self._tokenizer_facts(facts, packed),
            dtype=facts["dtype"],
            splits=packed.splits,
            canaries=packed.canaries,
            shards=packed.shards,
            versions=_versions(),
        )
        card = msgspec.structs.replace(card, fingerprint=fingerprint(card))
        write_atomic(self.made / "inputs.jsonl", b"".join(self._input_lines()))
        write_atomic(self.made / NAME, msgspec.json.format(encode(card), indent=2) + b"\n")
        return card

    def _reads(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for step in self.recipe.steps:
            found |= step.reads(self.context)
        return found

    def _input_lines(self) -> Iterator[bytes]:
        for source, inputs in zip(self.recipe.sources, self.inputs, strict=True):
            for each in inputs:
                yield encode({"source": source.name, **each._asdict()}) + b"\n"

    def _source_row(self, number: int) -> SourceRow:
        source, inputs, count = self.recipe.sources[number], self.inputs[number], self.read[number]
        kind = type(source).__module__.rpartition(".")[2]
        size = sum(each.bytes for each in inputs)
        hashed = digest([tuple(each) for each in inputs])
        skipped = added([count.dropped])
        return SourceRow(
            source.name, kind, len(inputs), size, hashed, count.documents_out, count.bytes_out, skipped
        )

    def _step_rows(self) -> Iterator[StepRow]:
        for step, row in zip(self.recipe.steps, self.counts, strict=True):
            kind = type(step).__module__.rpartition(".")[2]
            for source, c in zip(self.recipe.sources, row, strict=True):
                sizes = (c.documents_in, c.bytes_in, c.documents_out, c.bytes_out, c.n_changed)
                yield StepRow(kind, source.name, *sizes, added([c.dropped]), added([c.noted]))

    def _tokenizer_facts(self, facts: dict[str, Any], packed: Packed) -> TokenizerFacts:
        folder = self.made
        return TokenizerFacts(
            sha256=hash_file(folder / "tokenizer.json"),
            config_sha256=hash_file(folder / "tokenizer_config.json"),
            vocabulary=facts["n"],
            split=tokenizer.split_of(folder),
            special=tokenizer.special_of(folder),
            end=facts["end"],
            sample_bytes=facts["sample_bytes"],
            bytes_per_token=packed.bytes_per_token("validation"),
            train_bytes_per_token=packed.bytes_per_token("train") or 0.0,
            unused=facts["n"] - int(np.count_nonzero(packed.seen)),
        )


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {n:,}" for name, n in counts.items()) or "empty"


def _versions() -> dict[str, str]:
    found = {}
    for name in _VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
