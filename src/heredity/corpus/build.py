"""Build a text corpus from its recipe: sources, steps, tokenizer, mixture, shards; corpus.json last.

Promises: the same recipe over the same files gives the same bytes, for any number of processes and after
any number of kills. A folder is complete or does not exist.
Leaves to others: documents and steps (pipeline.py), resuming a killed build (workspace.py), and reading the
result (reader.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from heredity.core.files import sync_folder
from heredity.core.readers import naming
from heredity.core.records import digest
from heredity.corpus import integrity, tokenizer, workspace
from heredity.corpus.canaries import plant
from heredity.corpus.card import SCHEMA, Card, Dtype, SourceRow, StepRow, fingerprint
from heredity.corpus.jobs import JobResult, added, calling, done_before, draws_of, finish, held_out, is_whole
from heredity.corpus.pack import Packed, TokenizedJob, pack
from heredity.corpus.pipeline import DocumentStage
from heredity.corpus.recipe import CorpusRecipe, kind_of
from heredity.corpus.shards import dtype_of
from heredity.corpus.sources import Input
from heredity.corpus.steps import Context
from heredity.corpus.workspace import Nobody, Watch

_VERSIONS = ("tokenizers", "trafilatura")


def build(
    recipe: CorpusRecipe,
    out: Path,
    unseen: tuple[str, ...] = (),
    workers: int = 1,
    watch: Watch | None = None,
) -> Card:
    """Build the corpus into the new folder `out`. unseen: texts to keep out of it.

    A build that was stopped or killed resumes from a hidden folder next to `out`. Raises BadInput and
    UsageError with file and line, and then leaves nothing behind. Raises Busy.
    """
    work = workspace.place_of(out)
    workspace.refuse_other(out, work.exists())
    tokenizer.library()  # a missing package is an error now, not after hours of reading
    with workspace.held(work), naming(recipe.path):
        context = Context(recipe.root, unseen, recipe.seed)
        with calling(recipe, context, workers) as calls:
            reads = _reads(recipe, context)
            documents = DocumentStage(recipe, calls, watch or Nobody())
            plan = workspace.plan(recipe, documents.inputs) | {
                "what is to be kept out": digest([unseen, reads])
            }
            if out.exists():
                workspace.refuse_other(out, workspace.planned(work) == plan)
                return integrity.decoded(out / integrity.NAME, Card)
            between = workspace.go_on(work, plan, documents.watch)
            made = workspace.emptied(work / "corpus")
            card = _TextBuild(documents, reads, made, between).run()
        made.rename(out)
        sync_folder(out.parent)
        return card


def _reads(recipe: CorpusRecipe, context: Context) -> dict[str, str]:
    found: dict[str, str] = {}
    for step in recipe.steps:
        found |= step.reads(context)
    return found


@dataclass
class _TextBuild:
    documents: DocumentStage
    reads: dict[str, str]
    made: Path
    between: Path

    def __post_init__(self) -> None:
        self.recipe, self.watch = self.documents.recipe, self.documents.watch

    def run(self) -> Card:
        self.documents.go_on(self.between)
        self.documents.run()
        sample_bytes = self._tokenizer()
        packed = self._pack(dtype_of(tokenizer.load(self.made).get_vocab_size()))
        return self._write(sample_bytes, packed)

    # --- tokens ---------------------------------------------------------------------------------

    def _tokenizer(self) -> int:
        """Write the tokenizer. Returns the bytes of text that it was trained on."""
        gate, folder = self.documents.gate(self.documents.last), self.between / "tokenizer"
        if not is_whole(gate):
            workspace.emptied(folder)
            finish(gate, sorted(folder.iterdir()), JobResult(n_bytes=self._train_tokenizer(folder)))
        tokenizer.copy(folder, self.made)
        return done_before(gate).n_bytes

    def _train_tokenizer(self, folder: Path) -> int:
        """Train or copy a tokenizer into the folder. Returns the bytes of text that it was trained on."""
        settings, sampled = self.recipe.tokenizer, [0]
        if settings.folder:
            tokenizer.copy(self.recipe.root / settings.folder, folder)
        else:
            total = sum(int(task.place.get("lengths").sum()) for task in self.documents.tasks)
            texts = self._sample(min(1.0, settings.sample_bytes / max(1, total)), sampled)
            tokenizer.write(tokenizer.train(texts, settings, self.recipe.path), settings, folder)
        return sampled[0]

    def _sample(self, share: float, sampled: list[int]) -> Iterator[str]:
        """Text of the training split, from documents drawn by their hash."""
        for number, task in enumerate(self.documents.tasks, 1):
            for batch in task.place.batches():
                draws = draws_of(batch)
                # Other bits of the hash than those that decide on the split.
                drawn = (
                    held_out(draws << np.uint64(32), share) if share < 1 else np.ones(len(batch), np.bool_)
                )
                for i in np.flatnonzero(drawn & ~held_out(draws, self.recipe.shards.validation)):
                    document = batch[int(i)]
                    sampled[0] += len(document)
                    yield document.decode()
            self.watch.at("training the tokenizer", number, len(self.documents.tasks))

    def _pack(self, dtype: Dtype) -> Packed:
        self.documents.arrange_tokens()
        tasks = self.documents.tasks
        rows = [(task, self.made, dtype, self.recipe.shards.validation) for task in tasks]
        for _ in self.documents.through("encode", rows, "tokenizing"):
            pass
        planted = plant(self.recipe.canaries, self.recipe.seed, self.made)
        return pack(
            self.recipe, [TokenizedJob(task.source, task.place) for task in tasks], planted, dtype, self.made
        )

    # --- the card -------------------------------------------------------------------------------

    def _write(self, sample_bytes: int, packed: Packed) -> Card:
        card = Card(
            schema=SCHEMA,
            name=self.recipe.name,
            kind="text",
            fingerprint="",
            recipe=self.recipe.settings(),
            reads=self.reads,
            sources=tuple(self._source_row(i) for i in range(len(self.recipe.sources))),
            steps=tuple(self._step_rows()),
            mixture=packed.mixture,
            tokenizer=tokenizer.facts(
                self.made,
                sample_bytes,
                packed.bytes_per_token("validation"),
                packed.bytes_per_token("train") or 0.0,
                int(np.count_nonzero(packed.seen)),
            ),
            dtype=packed.dtype,
            splits=packed.splits,
            canaries=packed.canaries,
            shards=packed.shards,
            versions=_versions(),
        )
        return integrity.write(self.made, card, fingerprint(card), self._inputs())

    def _inputs(self) -> Iterator[tuple[str, Input]]:
        for source, inputs in zip(self.recipe.sources, self.documents.inputs, strict=True):
            yield from ((source.name, each) for each in inputs)

    def _source_row(self, number: int) -> SourceRow:
        stage = self.documents
        source, inputs, count = self.recipe.sources[number], stage.inputs[number], stage.read[number]
        size = sum(each.bytes for each in inputs)
        hashed = digest([tuple(each) for each in inputs])
        skipped = added([source.left_out(self.recipe.root), count.dropped])
        return SourceRow(
            source.name,
            kind_of(source),
            len(inputs),
            size,
            hashed,
            count.documents_out,
            count.bytes_out,
            skipped,
        )

    def _step_rows(self) -> Iterator[StepRow]:
        for step, row in zip(self.recipe.steps, self.documents.counts, strict=True):
            for source, c in zip(self.recipe.sources, row, strict=True):
                sizes = (c.documents_in, c.bytes_in, c.documents_out, c.bytes_out, c.n_changed)
                yield StepRow(kind_of(step), source.name, *sizes, added([c.dropped]), added([c.noted]))


def _versions() -> dict[str, str]:
    found = {}
    for name in _VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
