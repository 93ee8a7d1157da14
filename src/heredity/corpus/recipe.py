"""A corpus's recipe, read from TOML: sources, steps in their order, mixture, canaries, tokenizer, shards.

Promises: every setting is declared once, in the struct that uses it. A wrong value is a BadInput with file
and line; an unknown name comes with the nearest known one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, NoReturn, Protocol, TypeVar, runtime_checkable

import msgspec

from heredity.core import registry
from heredity.core.errors import BadArgument, BadInput, UsageError, code_of, nearest
from heredity.core.files import write_atomic
from heredity.core.readers import toml_line, toml_of
from heredity.corpus.sources import CorpusSource
from heredity.corpus.steps import CorpusStep, Duplicates


def n_spread_steps(recipe: CorpusRecipe) -> int:
    """The number of steps before the first one that compares all documents. Raises UsageError for none."""
    if recipe.images is not None:
        raise BadInput(recipe.path, "a corpus of images has no steps that could be spread over tasks.")
    compared = (i for i, step in enumerate(recipe.steps) if isinstance(step, Duplicates))
    n = next(compared, len(recipe.steps))
    if not n:
        why = "it has no step"
        if recipe.steps:
            why = f"the first step, '{kind_of(recipe.steps[0])}', compares all documents"
        raise BadInput(
            recipe.path,
            f"nothing of it can be spread over tasks: {why}. Put steps that look at one"
            " document at a time before it, or build it here: heredity corpus build",
        )
    return n


def export(recipe: CorpusRecipe, out: Path, tasks: int) -> None:
    """Write run.py, which starts the tasks, and after.toml, which builds a corpus of the kept documents."""
    stop = n_spread_steps(recipe)
    if out.exists():
        raise UsageError(f"{out} exists already. Name another folder, or remove it.")
    done, left = ([kind_of(step) for step in steps] for steps in (recipe.steps[:stop], recipe.steps[stop:]))
    script = _SCRIPT.format(
        name=recipe.path.name.translate(_QUOTES),
        recipe=str(recipe.path.resolve()),
        tasks=tasks,
        done=", ".join(done),
        left=", ".join(left) or "no step",
    )
    write_atomic(out / "run.py", script.encode())
    write_atomic(out / "after.toml", "\n".join(_after(recipe, out, stop)).encode())


def _after(recipe: CorpusRecipe, out: Path, stop: int) -> Iterator[str]:
    yield f"name = {json.dumps(recipe.name)}\nseed = {recipe.seed}\n"
    for number, source in enumerate(recipe.sources):
        path = kept_of(out, number).relative_to(out).as_posix()
        weight = {} if source.weight is None else {"weight": source.weight}
        same = {"name": source.name, "kind": "jsonl", "path": path, "repeat": source.repeat}
        yield _table("[[source]]", same | weight)
    for step in recipe.steps[stop:]:
        yield _table("[[step]]", {"kind": kind_of(step)} | _placed(recipe, msgspec.to_builtins(step)))
    for canary in recipe.canaries:
        yield _table("[[canary]]", msgspec.to_builtins(canary))
    for name, part in (
        ("mixture", recipe.mixture),
        ("tokenizer", recipe.tokenizer),
        ("shards", recipe.shards),
    ):
        yield _table(f"[{name}]", _placed(recipe, msgspec.to_builtins(part)))


def _placed(recipe: CorpusRecipe, settings: dict[str, Any]) -> dict[str, Any]:
    """Make paths absolute that are relative to the recipe's folder."""
    root = recipe.root.resolve()
    if settings.get("sets"):
        settings["sets"] = [str(root / name) for name in settings["sets"]]
    if settings.get("folder"):
        settings["folder"] = str(root / settings["folder"])
    return settings


def _table(head: str, settings: dict[str, Any]) -> str:
    rows = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in settings.items()]
    return "\n".join([head, *rows, ""])


def kept_of(out: Path, source: int) -> Path:
    """The folder for the kept documents of a source."""
    return out / "kept" / f"{source:03}"


_QUOTES = str.maketrans({'"': "'", "\\": "/"})  # neither may end the docstring of the script
_SCRIPT = '''"""The steps of {name} that look at one document at a time, on datatrove's executors.

    {done}

    python run.py                       into kept/; a task that is done is not done again
    heredity corpus build after.toml    the rest: {left}, and tokens

On a cluster only the executor is another, with the same steps, tasks and logs:

    from datatrove.executor import SlurmPipelineExecutor
    SlurmPipelineExecutor(steps, tasks={tasks}, time="10:00:00", partition="...", logging_dir=...).run()
"""

import os
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor

from heredity.lab.corpus import pipeline

HERE = Path(__file__).resolve().parent
RECIPE = Path({recipe!r})

if __name__ == "__main__":
    steps = pipeline(RECIPE, HERE)
    workers = min({tasks}, os.cpu_count() or 1)
    LocalPipelineExecutor(steps, tasks={tasks}, workers=workers, logging_dir=str(HERE / "logs")).run()
'''


_MAX_WORDS = 1 << 20  # of a vocabulary
_MAX_REPEATS = 1_000_000  # of a canary, whose tokens are built at once


class _RecipeSettings(Protocol):
    """A msgspec struct that checks its values."""

    __struct_fields__: ClassVar[tuple[str, ...]]

    def check(self) -> None:
        """Raises ValueError."""


T = TypeVar("T", bound=_RecipeSettings)
V = TypeVar("V")
Split = Literal["gpt-2", "smollm", "qwen2"]
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>", "<|mask|>")


class RecipeTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the recipe."""

    def check(self) -> None:
        """Raises ValueError for impossible values."""


class Mixture(RecipeTable, frozen=True, kw_only=True):
    """tokens: of the training split; 0: as many as weights and sources allow."""

    tokens: int = 0

    def check(self) -> None:
        if self.tokens < 0:
            raise BadArgument(f"tokens must be 0 or more, not {self.tokens}", key="tokens")


class Canary(RecipeTable, frozen=True, kw_only=True):
    """A sentence that ends in a secret. Without `secret`, one is drawn from the seed."""

    text: str
    secret: str = ""
    repeats: int = 8

    def check(self) -> None:
        if not self.text.strip() or self.repeats < 1:
            raise BadArgument("a canary needs a text, and at least one repeat", key="text")
        if self.repeats > _MAX_REPEATS:
            raise BadArgument(f"repeats may be {_MAX_REPEATS:,} at most, not {self.repeats:,}", key="repeats")


class TokenizerSettings(RecipeTable, frozen=True, kw_only=True):
    """A tokenizer to train, or an existing one in `folder`.

    vocabulary: entries, including special tokens and the 256 bytes. split: the pre-tokenizer, by llama.cpp's
    name; smollm and qwen2 split digits. least_count: how often a merge must occur. sample_bytes: the most
    bytes of text for training.
    """

    vocabulary: int = 8192
    split: Split = "smollm"
    least_count: int = 10
    sample_bytes: int = 256 << 20
    special: tuple[str, ...] = SPECIAL
    folder: str = ""

    def check(self) -> None:
        if missing := [name for name in SPECIAL[:4] if name not in self.special]:
            raise BadArgument(
                f"special must have {', '.join(missing)}: text, turns and padding need them", key="special"
            )
        if word := next((name for name in self.special if name.isalnum() or not name.strip()), None):
            raise BadArgument(
                f"special tokens may not be words, which stand in any text: '{word}'", key="special"
            )
        if self.vocabulary > _MAX_WORDS:
            raise BadArgument(
                f"vocabulary may be {_MAX_WORDS:,} at most, not {self.vocabulary:,}", key="vocabulary"
            )
        if self.vocabulary < 256 + len(self.special):
            raise BadArgument(
                f"vocabulary must hold 256 bytes and {len(self.special)} special tokens at least",
                key="vocabulary",
            )
        if self.least_count < 1 or self.sample_bytes < 1:
            raise BadArgument("least_count and sample_bytes must be at least 1", key="least_count")


class Shards(RecipeTable, frozen=True, kw_only=True):
    """tokens: about as many per shard. validation: share of the documents in the validation split."""

    tokens: int = 1 << 26
    validation: float = 0.01

    def check(self) -> None:
        if self.tokens < 1:
            raise BadArgument(f"tokens must be at least 1, not {self.tokens}", key="tokens")
        if not 0 <= self.validation < 1:
            raise BadArgument(
                f"validation must be at least 0 and below 1, not {self.validation}", key="validation"
            )


class ImageSettings(RecipeTable, frozen=True, kw_only=True):
    """Image settings: every image becomes `side` x `side` pixels. fit: stretch it, or crop its middle
    square. background: grey value behind transparent pixels, 0 black to 255 white."""

    side: int = 64
    fit: Literal["stretch", "crop"] = "stretch"
    background: int = 255

    def check(self) -> None:
        if not 8 <= self.side <= 1024:
            raise BadArgument(f"side must be from 8 to 1024, not {self.side}", key="side")
        if not 0 <= self.background <= 255:
            raise BadArgument(f"background must be from 0 to 255, not {self.background}", key="background")


class CorpusRecipe(NamedTuple):
    """The recipe of a corpus. `path` is its file; names in it are relative to its folder."""

    path: Path
    name: str
    seed: int
    sources: tuple[CorpusSource, ...]
    steps: tuple[CorpusStep, ...]
    mixture: Mixture
    canaries: tuple[Canary, ...]
    tokenizer: TokenizerSettings
    shards: Shards
    images: ImageSettings | None = None

    @property
    def root(self) -> Path:
        return self.path.parent

    def settings(self) -> dict[str, Any]:
        """Everything that changes the result. The `path` of a source does not; its files are hashed."""
        named = msgspec.to_builtins
        return {
            "name": self.name,
            "seed": self.seed,
            "sources": [
                {
                    **{key: value for key, value in msgspec.to_builtins(s).items() if key != "path"},
                    "kind": kind_of(s),
                }
                for s in self.sources
            ],
            "steps": [{**named(s), "kind": kind_of(s)} for s in self.steps],
            "mixture": named(self.mixture),
            "canaries": named(self.canaries),
            "tokenizer": {k: v for k, v in named(self.tokenizer).items() if k != "folder"},
            "shards": named(self.shards),
        } | ({"picture": named(self.images)} if self.images is not None else {})


def read(path: Path) -> CorpusRecipe:
    """The recipe in a file. Raises BadInput with file and line."""
    return _RecipeReader(path).recipe()


def kind_of(value: CorpusSource | CorpusStep) -> str:
    """The kind of a source or step in a recipe: the name of its file."""
    return type(value).__module__.rpartition(".")[2]


@runtime_checkable
class SourceFile(Protocol):
    """A file of sources/."""

    SOURCE: type[CorpusSource]


@runtime_checkable
class StepFile(Protocol):
    """A file of steps/."""

    STEP: type[CorpusStep]


class _RecipeReader:
    """Turns one file into a CorpusRecipe, with file and line in every error."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = toml_of(path)

    def recipe(self) -> CorpusRecipe:
        known = (
            "name", "kind", "seed", "source", "step", "mixture", "canary", "tokenizer", "shards", "picture"
        )  # fmt: skip
        for key in self.data:
            if key not in known:
                self._fail(_unknown("key", key, known), "", 0, key, code="unknown-key")
        sources = tuple(self._source(i, row) for i, row in enumerate(self._tables("source")))
        if not sources:
            self._fail("has no source: write [[source]] with name, kind and path", "", 0)
        self._check_sources(sources)
        if not 0 <= (seed := self._value("seed", int, 0)) < 1 << 63:
            self._fail(
                f"seed must be at least 0 and below 2^63, not {seed}", "", 0, "seed", code="bad-setting"
            )
        has_images = self._has_images(sources)
        return CorpusRecipe(
            self.path,
            self._value("name", str, self.path.stem),
            seed,
            sources,
            tuple(self._step(i, row) for i, row in enumerate(self._tables("step"))),
            self._part(Mixture, "mixture", 0, self._table("mixture")),
            tuple(self._part(Canary, "canary", i, row) for i, row in enumerate(self._tables("canary"))),
            self._part(TokenizerSettings, "tokenizer", 0, self._table("tokenizer")),
            self._part(Shards, "shards", 0, self._table("shards")),
            self._part(ImageSettings, "picture", 0, self._table("picture")) if has_images else None,
        )

    def _has_images(self, sources: tuple[CorpusSource, ...]) -> bool:
        """Whether it is an image corpus. Raises BadInput if it has settings of text corpora."""
        kinds = [kind_of(source) for source in sources]
        if "images" not in kinds:
            if "picture" in self.data:
                self._fail('picture needs a source with kind = "images"', "picture", 0)
            return False
        for i, kind in enumerate(kinds):
            if kind != "images":
                self._fail("images and text are two corpora: make two recipes", "source", i, "kind")
        for head in ("step", "mixture", "canary"):
            if head in self.data:
                self._fail(f"a corpus of images has no {head}: leave it out", head, 0)
        for i, source in enumerate(sources):
            if source.weight is not None or source.repeat != 1:
                self._fail("a source of images has neither weight nor repeat", "source", i, "weight")
        return True

    def _check_sources(self, sources: tuple[CorpusSource, ...]) -> None:
        names = [source.name for source in sources]
        for i, name in enumerate(names):
            if name in names[:i]:
                self._fail(
                    f"two sources are named '{name}'; give each a name of its own",
                    "source",
                    i,
                    "name",
                    code="name-twice",
                )
        weighted = [source.weight is not None for source in sources]
        for i, source in enumerate(sources):
            if source.repeat != 1 and not any(weighted) and not self._table("mixture").get("tokens"):
                self._fail(
                    f"repeat = {source.repeat} has no effect without weights or [mixture] tokens: add one, or"
                    " leave it out", "source", i, "repeat")  # fmt: skip
        if any(weighted) and not all(weighted):
            i = weighted.index(False)
            self._fail(
                f"source '{names[i]}' has no weight, and others have: give all one, or none",
                "source",
                i,
                code="missing-key",
            )

    def _source(self, index: int, row: dict[str, Any]) -> CorpusSource:
        module = registry.load_as(SourceFile, "corpus.sources", self._kind("source", index, row))
        return self._part(module.SOURCE, "source", index, row)

    def _step(self, index: int, row: dict[str, Any]) -> CorpusStep:
        module = registry.load_as(StepFile, "corpus.steps", self._kind("step", index, row))
        return self._part(module.STEP, "step", index, row)

    def _kind(self, head: str, index: int, row: dict[str, Any]) -> str:
        """Take the kind out of a table: the name of a file of an open folder."""
        known = registry.names(f"corpus.{head}s")
        kind = row.pop("kind", None)
        if not kind:
            message = f"needs a kind. Known: {', '.join(known)}"
            self._fail(message, head, index, "kind", code="missing-key")
        if kind not in known:
            self._fail(_unknown(head, str(kind), known), head, index, "kind", code="unknown-name")
        return str(kind)

    def _part(self, kind: type[T], head: str, index: int, row: dict[str, Any]) -> T:
        known = list(kind.__struct_fields__)
        for key in row:
            if key not in known:
                self._fail(_unknown("setting", key, known), head, index, key, code="unknown-key")
        try:
            part = msgspec.convert(row, kind)
            part.check()
        except msgspec.ValidationError as error:
            place = re.search(r"`\$\.(\w+)", str(error))
            self._fail(str(error), head, index, place[1] if place else "", code=code_of(error))
        except ValueError as error:
            key = error.key if isinstance(error, BadArgument) else ""
            self._fail(str(error), head, index, key, code=code_of(error))
        return part

    def _value(self, key: str, kind: type[V], default: V) -> V:
        value = self.data.get(key, default)
        if type(value) is not kind:
            self._fail(
                f"{key} must be a {'text' if kind is str else 'whole number'}", "", 0, key, code="wrong-type"
            )
        return value

    def _table(self, head: str) -> dict[str, Any]:
        table = self.data.get(head, {})
        if not isinstance(table, dict):
            self._fail(f"{head} is one table: write [{head}]", head, 0)
        return dict(table)

    def _tables(self, head: str) -> list[dict[str, Any]]:
        tables = self.data.get(head, [])
        if not isinstance(tables, list) or not all(isinstance(row, dict) for row in tables):
            self._fail(f"{head} may come several times: write [[{head}]]", head, 0)
        return [dict(row) for row in tables]

    def _fail(self, message: str, head: str, index: int, key: str = "", *, code: str = "") -> NoReturn:
        raise BadInput(self.path, message, toml_line(self.path, key, head=head, index=index), code=code)


def _unknown(what: str, name: str, known: Sequence[str]) -> str:
    near = nearest(name, known)
    return f"no {what} is named '{name}'. " + (
        f"Did you mean '{near}'?" if near else f"Known: {', '.join(known)}"
    )
