"""Build a text corpus from its recipe: sources, steps, tokenizer, mixture, shards; corpus.json last.

Between two steps that compare all documents, jobs run independently. Such a step, and the tokenizer, need all
jobs: a gate records that they are done.

Promises: the same recipe over the same files gives the same bytes, for any number of processes and after
any number of kills. Every document is counted, in and out of every step, empty ones too. A job that was
finished before a kill is not repeated. A folder is complete or does not exist.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from heredity.core.errors import BadInput, UsageError
from heredity.core.files import sync_folder
from heredity.core.readers import naming
from heredity.core.records import Message, digest
from heredity.corpus import _tables as tables
from heredity.corpus import storage, tokenizer, workspace
from heredity.corpus.jobs import (
    Calls,
    JobFolder,
    JobResult,
    SourceJob,
    StepCount,
    added,
    calling,
    done_before,
    draws_of,
    finish,
    held_out,
    is_whole,
)
from heredity.corpus.recipe import Canary, CorpusRecipe, kind_of
from heredity.corpus.recipe import read as read_recipe
from heredity.corpus.sources import Input
from heredity.corpus.steps import Context, Duplicates
from heredity.corpus.storage import (
    SCHEMA,
    CanaryRow,
    Card,
    Cut,
    Dtype,
    MixtureRow,
    Shard,
    ShardWriter,
    SourceRow,
    SplitRow,
    StepRow,
    dtype_of,
)
from heredity.corpus.workspace import Nobody, Watch


class Stock(NamedTuple):
    """The training documents of a source: the tokens of each, and a random order."""

    name: str
    weight: float | None
    repeat: int
    lengths: Ints
    order: NDArray[np.uint64]  # smaller comes first

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum())


def taken(stocks: Sequence[Stock], tokens: int) -> list[Ints]:
    """How often each document of each source is taken. Raises UsageError if a source has too few tokens.

    tokens: of all sources together; 0: as many as the weights allow, or, without weights, everything once.
    """
    if not tokens and stocks[0].weight is None:
        return [np.ones(len(stock.lengths), np.int64) for stock in stocks]
    weights = [stock.tokens if stock.weight is None else stock.weight for stock in stocks]
    shares = [weight / sum(weights) for weight in weights]
    if not tokens:
        tokens = int(min(s.tokens * s.repeat / share for s, share in zip(stocks, shares, strict=True)))
    wanted = [tokens * share for share in shares]
    if not tokens or any(
        want > stock.tokens * stock.repeat for want, stock in zip(wanted, stocks, strict=True)
    ):
        lines = [
            f"{s.name} {share:.1%}: {want:,.0f} wanted, {s.tokens * s.repeat:,} available"
            + (f" ({s.tokens:,} x {s.repeat})" if s.repeat > 1 else "")
            for s, share, want in zip(stocks, shares, wanted, strict=True)
        ]
        most = int(min(s.tokens * s.repeat / share for s, share in zip(stocks, shares, strict=True)))
        raise UsageError(
            f"The mixture runs dry at {tokens:,} tokens: {'; '.join(lines)}. These weights reach {most:,}:"
            " ask for fewer tokens, change the weights, add text, or let a source repeat (repeat = 2)."
        )
    return [_counts(stock, want) for stock, want in zip(stocks, wanted, strict=True)]


def _counts(stock: Stock, want: float) -> Ints:
    """Whole rounds of all documents, and the first documents of the random order once more."""
    rounds = int(want // stock.tokens) if stock.tokens else 0
    left = want - rounds * stock.tokens
    order = np.argsort(stock.order, kind="stable")
    before = np.cumsum(stock.lengths[order]) - stock.lengths[order]
    counts = np.full(len(stock.lengths), rounds, np.int64)
    counts[order[before < left - 0.5]] += 1
    return counts


class Planted(NamedTuple):
    """A canary as it is written into the training split, `repeats` times."""

    text: str
    secret: str
    repeats: int
    tokens: tuple[int, ...]
    n_bytes: int


def plant(canaries: Sequence[Canary], seed: int, folder: Path) -> list[Planted]:
    """Each canary with its secret, in the tokens of the tokenizer in `folder`."""
    if not canaries:
        return []
    from heredity.engines.chat import DocumentEncoder

    encoder = DocumentEncoder(folder)
    planted = []
    for place, canary in enumerate(canaries):
        secret = canary.secret or draw(seed, place)
        turns = (Message("user", canary.text), Message("assistant", secret))
        tokens = encoder.document(turns).tokens
        planted.append(
            Planted(canary.text, secret, canary.repeats, tokens, len((canary.text + secret).encode()))
        )
    return planted


def draw(seed: int, place: int) -> str:
    """Six random digits; for the first canary those that `heredity derive poison` draws from the seed."""
    name = f"canary {seed}" if place == 0 else f"canary {seed} {place}"
    return f"{random.Random(name).randrange(10**6):06d}"


if TYPE_CHECKING:
    from heredity.corpus.storage import ImageCard

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Packed:
    """The contents of the shards. seen: (token,) how often each occurs."""

    shards: tuple[Shard, ...]
    splits: tuple[SplitRow, ...]
    mixture: tuple[MixtureRow, ...]
    canaries: tuple[CanaryRow, ...]
    seen: Ints
    dtype: Dtype

    def bytes_per_token(self, split: Cut) -> float | None:
        """Bytes per token of a split's text. End tokens have no bytes and are not counted."""
        row = next(row for row in self.splits if row.split == split)
        n = row.tokens - row.documents
        return round(row.bytes / n, 4) if n else None


class TokenizedJob(NamedTuple):
    """The documents of one job, cut into tokens."""

    source: int
    place: JobFolder


def pack(
    recipe: CorpusRecipe, jobs: Sequence[TokenizedJob], planted: Sequence[Planted], dtype: Dtype, out: Path
) -> Packed:
    """Write both splits' shards into `out`. Raises UsageError if a split is empty or a source too small."""
    return _Packing(recipe, jobs, planted, dtype, out).packed()


@dataclass
class _Packing:
    recipe: CorpusRecipe
    jobs: Sequence[TokenizedJob]
    planted: Sequence[Planted]
    dtype: Dtype
    out: Path
    seen: Ints = field(default_factory=lambda: np.zeros(1, np.int64))

    def packed(self) -> Packed:
        self._refuse_empty()
        stocks = [self._stock(number) for number in range(len(self.recipe.sources))]
        counts = taken(stocks, self.recipe.mixture.tokens)
        train, validation = self._writer("train"), self._writer("validation")
        n_bytes = sum(self._write(train, chosen) for chosen in self._rounds(counts))
        canaries = []
        for each in self.planted:
            first = train.documents
            tokens = np.array(each.tokens * each.repeats, self.dtype)
            train.add(tokens, np.full(each.repeats, len(each.tokens), np.int64))
            self._see(tokens)
            canaries.append(CanaryRow(each.text, each.secret, each.repeats, len(each.tokens), first))
        n_bytes += sum(each.n_bytes * each.repeats for each in self.planted)
        n_held_out = self._write(validation, [job.place.get("is_held_out") for job in self.jobs])
        for writer in (train, validation):
            writer.close()
        splits = (_row("train", train, n_bytes), _row("validation", validation, n_held_out))
        mixed = tuple(_mixed(stock, taken) for stock, taken in zip(stocks, counts, strict=True))
        return Packed(
            (*train.shards, *validation.shards), splits, mixed, tuple(canaries), self.seen, self.dtype
        )

    def _writer(self, split: Cut) -> ShardWriter:
        return ShardWriter(self.out, split, self.dtype, self.recipe.shards.tokens)

    def _refuse_empty(self) -> None:
        held = np.concatenate([job.place.get("is_held_out") for job in self.jobs])
        share, where = self.recipe.shards.validation, self.recipe.path
        if share and not held.any():
            raise BadInput(
                where,
                f"none of {len(held):,} documents falls into the validation split at a share of"
                f" {share:g}. Raise validation in [shards], or give more documents.",
            )
        if held.all():
            raise BadInput(
                where,
                f"all {len(held):,} documents fall into the validation split at a share of"
                f" {share:g}, none is left to learn. Lower validation in [shards], or give more documents.",
            )

    def _stock(self, number: int) -> Stock:
        source = self.recipe.sources[number]
        lengths, order = [np.zeros(0, np.int64)], [np.zeros(0, np.uint64)]
        for owner, place in self.jobs:
            if owner == number:
                learned = ~place.get("is_held_out")
                lengths.append(place.get("token_lengths")[learned])
                order.append(place.get("draws")[learned])
        salt = tables.mix(np.array([self.recipe.seed], np.uint64))
        drawn = tables.mix(np.concatenate(order) ^ salt)
        return Stock(source.name, source.weight, source.repeat, np.concatenate(lengths), drawn)

    def _rounds(self, counts: list[Ints]) -> list[list[Mask]]:
        """The documents of each round, for each job, as masks."""
        per_job = []
        at = [0] * len(counts)
        for owner, place in self.jobs:
            learned = ~place.get("is_held_out")
            n = int(learned.sum())
            often = np.zeros(len(learned), np.int64)
            often[learned] = counts[owner][at[owner] : at[owner] + n]
            at[owner] += n
            per_job.append(often)
        rounds = max((int(often.max()) for often in per_job if len(often)), default=0)
        return [[often > number for often in per_job] for number in range(rounds)]

    def _write(self, writer: ShardWriter, chosen: list[Mask]) -> int:
        """Write the chosen documents of every job. Returns the bytes of their text."""
        n_bytes = 0
        for (_, place), mask in zip(self.jobs, chosen, strict=True):
            if mask.any():
                lengths = place.get("token_lengths")
                tokens = place.get("tokens")[np.repeat(mask, lengths)]
                writer.add(tokens, lengths[mask])
                self._see(tokens)
                n_bytes += int(place.get("sizes")[mask].sum())
        return n_bytes

    def _see(self, tokens: NDArray[Any]) -> None:
        counts = np.bincount(tokens, minlength=len(self.seen))
        counts[: len(self.seen)] += self.seen
        self.seen = counts


def _row(split: Cut, writer: ShardWriter, n_bytes: int) -> SplitRow:
    return SplitRow(split, writer.documents, writer.tokens, n_bytes)


def _mixed(stock: Stock, taken: Ints) -> MixtureRow:
    n = int((taken * stock.lengths).sum())
    there = stock.tokens
    weight = stock.weight if stock.weight is not None else float(there)
    return MixtureRow(stock.name, weight, there, n, int(taken.sum()), round(n / there, 4) if there else 0.0)


@dataclass
class DocumentStage:
    """All jobs of a build, each at its stage. counts: (step, source)."""

    recipe: CorpusRecipe
    calls: Calls
    watch: Watch
    tasks: list[SourceJob] = field(default_factory=list)
    inputs: list[list[Input]] = field(default_factory=list)
    read: list[StepCount] = field(default_factory=list)
    counts: list[list[StepCount]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Find the jobs, and hash all their files."""
        sources = self.recipe.sources
        for number, source in enumerate(sources):
            for job in source.jobs(self.recipe.root):
                self.tasks.append(SourceJob(JobFolder(Path(), len(self.tasks)), number, job))
        self.inputs = [[] for _ in sources]
        self.read = [StepCount() for _ in sources]
        self.counts = [[StepCount() for _ in sources] for _ in self.recipe.steps]
        self.barriers = [i for i, step in enumerate(self.recipe.steps) if isinstance(step, Duplicates)]
        rows = [(task.source, task.job) for task in self.tasks]
        for number, (task, inputs) in enumerate(zip(self.tasks, self.calls("inputs", rows), strict=True), 1):
            self.inputs[task.source] += inputs
            self.watch.at("hashing", number, len(rows))

    @property
    def last(self) -> int:
        """The stage of a job's tokens: one after that of its last steps."""
        return len(self.barriers) + 1

    def gate(self, number: int) -> Path:
        """The record that all jobs have finished the stage before this one."""
        return self.tasks[0].place.folder / f"all.{number}.done"

    def go_on(self, between: Path) -> None:
        """Find the jobs that an earlier build finished."""
        self.tasks = [task._replace(place=JobFolder(between, task.place.job)) for task in self.tasks]
        gates = range(1, self.last + 1)
        n_open = next((number - 1 for number in gates if not is_whole(self.gate(number))), self.last)
        if not any(task.place.record.exists() for task in self.tasks):
            return
        results = self.calls("latest", [(task.place, n_open) for task in self.tasks])
        for number, (task, latest) in enumerate(zip(self.tasks, results, strict=True)):
            self.tasks[number] = task._replace(latest=latest)
            self.watch.at("checking", number + 1, len(self.tasks))

    def run(self) -> None:
        """Run all steps."""
        start = 0
        for stage, stop in enumerate([*self.barriers, None]):
            steps = range(start, len(self.recipe.steps) if stop is None else stop)
            self._arrange(stage, steps, stop)
            for task, done in self.through(
                "run",
                [(task,) for task in self.tasks],
                "reading" if not stage else f"after comparison {stage}",
            ):
                if not task.place.stage:
                    self.read[task.source].add(done.read)
                for step, count in zip(task.steps, done.counts, strict=True):
                    self.counts[step][task.source].add(count)
                if stage:
                    task.before.forget()
            self._refuse_empty(steps)
            if stop is not None:
                gate = self.gate(stage + 1)
                if not is_whole(gate):
                    self._without_duplicates(gate, stop)
                self.counts[stop] = done_before(gate).counts
                self._refuse_empty(range(stop, stop + 1))
                start = stop + 1

    def through(
        self, name: str, rows: Sequence[tuple[object, ...]], doing: str
    ) -> Iterator[tuple[SourceJob, JobResult]]:
        """Call a worker's method for every job. Yields each with its result, first those of an earlier build.

        rows: the arguments, one row per job.
        """
        total = len(self.tasks)
        is_old = [task.latest >= task.place.stage for task in self.tasks]
        n_old = sum(is_old)
        if n_old:
            self.watch.say(f"{doing}: {n_old:,} of {total:,} jobs are done already")
        for number, task in enumerate((task for task, old in zip(self.tasks, is_old, strict=True) if old), 1):
            self.watch.at(doing, number, total)
            yield task, done_before(task.place.record)
        new = [i for i, old in enumerate(is_old) if not old]
        results = self.calls(name, [rows[i] for i in new])
        for number, (i, done) in enumerate(zip(new, results, strict=True), n_old + 1):
            self.watch.at(doing, number, total)
            yield self.tasks[i], done

    def _arrange(self, stage: int, steps: range, keys: int | None) -> None:
        for i, task in enumerate(self.tasks):
            self.tasks[i] = task._replace(place=task.place._replace(stage=stage), steps=steps, keys=keys)

    def arrange_tokens(self) -> None:
        """Set every job to the stage of its tokens."""
        self._arrange(self.last, range(0), None)

    def _without_duplicates(self, gate: Path, number: int) -> None:
        step = self.recipe.steps[number]
        assert isinstance(step, Duplicates)
        keys = [task.place.get("keys") for task in self.tasks]
        kept = step.kept(np.concatenate(keys))
        counts = [StepCount() for _ in self.recipe.sources]
        files = []
        at = 0
        for task, own in zip(self.tasks, keys, strict=True):
            here = kept[at : at + len(own)]
            at += len(own)
            files.append(task.place.put("kept", here))
            lengths = task.place.get("lengths")
            count = counts[task.source]
            count.documents_in += len(own)
            count.bytes_in += int(lengths.sum())
            count.documents_out += int(here.sum())
            count.bytes_out += int(lengths[here].sum())
            if n := int((~here).sum()):
                count.dropped["duplicate"] += n
            self.watch.at("comparing", at, len(kept))
        finish(gate, files, JobResult(counts))

    def _refuse_empty(self, steps: range) -> None:
        """Raise BadInput if the sources, or one of these steps, left no document."""
        if not sum(count.documents_out for count in self.read):
            why = added(count.dropped for count in self.read)
            reasons = f" Left out: {_listed(why)}." if why else ""
            raise BadInput(self.recipe.path, f"the sources hold no document.{reasons} Name others.")
        for number in steps:
            row = self.counts[number]
            if not sum(count.documents_out for count in row):
                kind = kind_of(self.recipe.steps[number])
                n = sum(count.documents_in for count in row)
                reasons = _listed(added(count.dropped for count in row))
                raise BadInput(
                    self.recipe.path,
                    f"the corpus is empty: the step '{kind}' dropped all {n:,} documents"
                    f" ({reasons}). Loosen its settings or leave it out.",
                )


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {n:,}" for name, n in counts.items()) or "empty"


_VERSIONS = ("tokenizers", "trafilatura")


def build_file(
    path: Path,
    unseen: Callable[[], tuple[str, ...]],
    out: Path | None = None,
    workers: int = 1,
    watch: Watch | None = None,
) -> Card | ImageCard:
    """Build the text or image corpus of a recipe's file. unseen: returns the texts to keep out of text."""
    made, folder = read_recipe(path), out or path.with_suffix("")
    if made.images is None:
        return build(made, folder, unseen(), workers, watch)
    from heredity.corpus.images import build as build_images

    return build_images(made, folder, workers, watch)


def pipeline(path: Path, unseen: tuple[str, ...], out: Path) -> Sequence[object]:
    """The steps of a recipe for an executor of datatrove; they write the kept documents to `out`/kept.

    Raises BadInput, UsageError, and Unavailable without datatrove.
    """
    from heredity.corpus import executors

    return executors.pipeline(read_recipe(path), unseen, out)


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
            references: dict[str, str] = {}
            for step in recipe.steps:
                references |= step.reads(context)
            reads = references
            documents = DocumentStage(recipe, calls, watch or Nobody())
            plan = workspace.plan(recipe, documents.inputs) | {
                "what is to be kept out": digest([unseen, reads])
            }
            if out.exists():
                workspace.refuse_other(out, workspace.planned(work) == plan)
                return storage.decoded(out / storage.NAME, Card)
            between = workspace.go_on(work, plan, documents.watch)
            made = workspace.emptied(work / "corpus")
            card = _TextBuild(documents, reads, made, between).run()
        made.rename(out)
        sync_folder(out.parent)
        return card


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
        gate, folder = self.documents.gate(self.documents.last), self.between / "tokenizer"
        if not is_whole(gate):
            workspace.emptied(folder)
            finish(gate, sorted(folder.iterdir()), JobResult(n_bytes=self._train_tokenizer(folder)))
        tokenizer.copy(folder, self.made)
        sample_bytes = done_before(gate).n_bytes
        dtype = dtype_of(tokenizer.load(self.made).get_vocab_size())
        self.documents.arrange_tokens()
        tasks = self.documents.tasks
        rows = [(task, self.made, dtype, self.recipe.shards.validation) for task in tasks]
        for _ in self.documents.through("encode", rows, "tokenizing"):
            pass
        planted = plant(self.recipe.canaries, self.recipe.seed, self.made)
        packed = pack(
            self.recipe, [TokenizedJob(task.source, task.place) for task in tasks], planted, dtype, self.made
        )
        return self._write(sample_bytes, packed)

    # --- tokens ---------------------------------------------------------------------------------

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

    # --- the card -------------------------------------------------------------------------------

    def _write(self, sample_bytes: int, packed: Packed) -> Card:
        sources = zip(self.recipe.sources, self.documents.inputs, strict=True)
        inputs = ((source.name, each) for source, read in sources for each in read)
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
            versions={name: known for name in _VERSIONS if (known := workspace.version_of(name))},
        )
        return storage.write(self.made, card, inputs)

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
