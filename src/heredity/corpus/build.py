"""A corpus from its recipe: read, steps, tokenizer, mixture, shards; corpus.json last.

Promises: the same recipe over the same files gives the same bytes, for any number of processes and after
any number of kills. A folder is complete or does not exist.
Leaves to others: documents and steps
(pipeline.py), resuming a killed build (workspace.py), and reading the result (reader.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from heredity.core.files import hash_file, sync_folder, write_atomic
from heredity.core.readers import naming
from heredity.core.records import digest, encode
from heredity.corpus import integrity, tokenizer, workspace
from heredity.corpus.canaries import plant
from heredity.corpus.card import SCHEMA, Card, SourceRow, StepRow, TokenizerFacts, fingerprint
from heredity.corpus.jobs import JobResult, added, calling, done_before, draws_of, finish, held_out, is_whole
from heredity.corpus.pack import Packed, TokenizedJob, pack
from heredity.corpus.pipeline import DocumentStage
from heredity.corpus.recipe import CorpusRecipe
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
    """Build the corpus into the folder `out`, which must not be there. unseen: texts that no model may learn.

    A build that was stopped or killed resumes from a hidden folder next to `out`. Raises BadInput and
    UsageError with file and line, and then leaves nothing behind. Raises Busy.
    """
    work = workspace.place_of(out)
    workspace.refuse_other(out, work.exists())
    tokenizer.library()  # what is missing is said before hours of reading
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
        facts = self._tokenizer()
        packed = self._pack(facts["dtype"])
        return self._write(facts, packed)

    # --- tokens ---------------------------------------------------------------------------------

    def _tokenizer(self) -> dict[str, Any]:
        gate, folder = self.documents.gate(self.documents.last), self.between / "tokenizer"
        if not is_whole(gate):
            workspace.emptied(folder)
            finish(gate, sorted(folder.iterdir()), JobResult(n_bytes=self._learn_words(folder)))
        tokenizer.copy(folder, self.made)
        n = tokenizer.load(folder).get_vocab_size()
        dtype = "uint16" if n <= 1 << 16 else "uint32"
        return {
            "dtype": dtype, "end": tokenizer.end_of(folder), "n": n, "sample_bytes": done_before(gate).n_bytes
        }  # fmt: skip

    def _learn_words(self, folder: Path) -> int:
        """Put a tokenizer into the folder, and say how many bytes of text it is trained on."""
        settings, sampled = self.recipe.tokenizer, [0]
        if settings.folder:
            tokenizer.copy(self.recipe.root / settings.folder, folder)
        else:
            total = sum(int(task.place.get("lengths").sum()) for task in self.documents.tasks)
            texts = self._sample(min(1.0, settings.sample_bytes / max(1, total)), sampled)
            tokenizer.write(tokenizer.train(texts, settings, self.recipe.path), settings, folder)
        return sampled[0]

    def _sample(self, share: float, sampled: list[int]) -> Iterator[str]:
        """Text of the training split, documents drawn by their own hash."""
        for number, task in enumerate(self.documents.tasks, 1):
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
            self.watch.at("learning words", number, len(self.documents.tasks))

    def _pack(self, dtype: str) -> Packed:
        self.documents.arrange_tokens()
        tasks = self.documents.tasks
        rows = [(task, self.made, dtype, self.recipe.shards.validation) for task in tasks]
        for _ in self.documents.through("encode", rows, "cutting into tokens"):
            pass
        planted = plant(self.recipe.canaries, self.recipe.seed, self.made)
        return pack(
            self.recipe, [TokenizedJob(task.source, task.place) for task in tasks], planted, dtype, self.made
        )

    # --- what is written down -------------------------------------------------------------------

    def _write(self, facts: dict[str, Any], packed: Packed) -> Card:
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
            tokenizer=self._tokenizer_facts(facts, packed),
            dtype=facts["dtype"],
            splits=packed.splits,
            canaries=packed.canaries,
            shards=packed.shards,
            versions=_versions(),
        )
        card = integrity.sealed(msgspec.structs.replace(card, fingerprint=fingerprint(card)))
        write_atomic(self.made / "inputs.jsonl", b"".join(self._input_lines()))
        write_atomic(self.made / integrity.NAME, msgspec.json.format(encode(card), indent=2) + b"\n")
        return card

    def _input_lines(self) -> Iterator[bytes]:
        for source, inputs in zip(self.recipe.sources, self.documents.inputs, strict=True):
            for each in inputs:
                yield encode({"source": source.name, **each._asdict()}) + b"\n"

    def _source_row(self, number: int) -> SourceRow:
        documents = self.documents
        source, inputs, count = self.recipe.sources[number], documents.inputs[number], documents.read[number]
        kind = type(source).__module__.rpartition(".")[2]
        size = sum(each.bytes for each in inputs)
        hashed = digest([tuple(each) for each in inputs])
        skipped = added([source.left_out(self.recipe.root), count.dropped])
        return SourceRow(
            source.name, kind, len(inputs), size, hashed, count.documents_out, count.bytes_out, skipped
        )

    def _step_rows(self) -> Iterator[StepRow]:
        for step, row in zip(self.recipe.steps, self.documents.counts, strict=True):
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


def _versions() -> dict[str, str]:
    found = {}
    for name in _VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
