"""A made-up manual of 100 pages, with questions whose answers are checkable.

    manual = support_manual()
    manual.pages["models/A142.md"]          # Markdown
    manual.train(), manual.test()           # rows with question, answer and fact

Promises: the same seed gives the same pages and questions. A part number, a code and a model have one page,
so that a question has one answer. No test question is a training question. A fact is seen if a training row
names it. The test asks seen facts in another wording, and as many other facts.
Leaves to others: the words (support_manual.toml), and what is made of them (task.py).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypedDict

import msgspec

from heredity.core.errors import UsageError
from heredity.core.files import write_atomic
from heredity.core.readers import toml_of

N_MODELS, N_GROUPS, N_CODES = 10, 4, 6  # models and groups of codes of a series, codes of a group
N_SEEN = 80  # facts that training rows are about
Range = tuple[int, int]


class _Value(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The value of a fact: a part number, a whole number or one of `over` parts of it, or a word."""

    part: str = ""
    number: Range | None = None
    over: int = 1
    word: str = ""


class _FactWords(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    text: str
    value: _Value
    asked: tuple[str, ...]
    reply: str
    heading: str = ""
    values: dict[str, Range] = {}


class _PageWords(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    file: str
    title: str
    text: str
    fact: tuple[_FactWords, ...]
    values: dict[str, tuple[int | str, ...]] = {}


class _Words(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    company: str
    page: tuple[_PageWords, ...]
    words: dict[str, tuple[str, ...]]


class QuestionRow(TypedDict):
    """A row of questions: `fact` is the id of what it is about."""

    question: str
    answer: str
    fact: str


class Fact(NamedTuple):
    """A fact of one page. `asked`: wordings of its question, the last one for tests. `value`: the answer."""

    id: str
    page: str
    value: str
    asked: tuple[str, ...]
    reply: str


class Manual(NamedTuple):
    """The pages by their paths, and every fact in an order without meaning, those that are seen first."""

    pages: dict[str, str]
    facts: tuple[Fact, ...]

    def train(self, n_seen: int = N_SEEN) -> list[QuestionRow]:
        """Rows about the first `n_seen` facts, one for each wording that is not for tests; whole answers."""
        self._refuse(n_seen)
        n_wordings = len(self.facts[0].asked) - 1
        seen = self.facts[:n_seen]
        return [
            QuestionRow(question=f.asked[i], answer=f.reply, fact=f.id)
            for i in range(n_wordings)
            for f in seen
        ]

    def test(self, n_seen: int = N_SEEN) -> list[QuestionRow]:
        """A row about each seen fact and about as many others, in turn; the answers are values only."""
        self._refuse(n_seen)
        pairs = zip(self.facts[:n_seen], self.facts[n_seen : 2 * n_seen], strict=True)
        return [QuestionRow(question=f.asked[-1], answer=f.value, fact=f.id) for pair in pairs for f in pair]

    def write(self, folder: Path) -> None:
        """Write the pages below a folder."""
        for name, text in self.pages.items():
            write_atomic(folder / name, text.encode())

    def _refuse(self, n_seen: int) -> None:
        if not 1 <= n_seen <= len(self.facts) // 2:
            raise UsageError(
                f"The manual has {len(self.facts)} facts. Training rows can be about 1 to "
                f"{len(self.facts) // 2} of them, not {n_seen}.",
                code="bad-setting",
            )


def support_manual(seed: int = 0) -> Manual:
    """The manual of a seed: pages on models, on groups of codes, and on countries."""
    return _Writer(seed).manual()


class _Writer:
    """Draws the values of one manual. Each part number is drawn once."""

    def __init__(self, seed: int) -> None:
        path = Path(__file__).with_suffix(".toml")
        self._words = msgspec.convert(toml_of(path), _Words)
        self._random, self._drawn = random.Random(seed), set[str]()

    def manual(self) -> Manual:
        pages: dict[str, str] = {}
        facts: list[Fact] = []
        by_name = {page.name: page for page in self._words.page}
        for name, places in self._places():
            words = by_name[name]
            file, text, found = self._page(words, places)
            pages[file] = text
            facts += found
        self._random.shuffle(facts)
        return Manual(pages, tuple(facts))

    def _places(self) -> Iterator[tuple[str, list[dict[str, str]]]]:
        """The pages in order: the name of their words, and what each round of facts on them is about."""
        known = self._words.words
        series = [
            {"company": self._words.company, "series": name, "kind": kind}
            for name, kind in zip(known["series"], known["kinds"], strict=True)
        ]
        for each in series:
            numbers = self._random.sample(range(101, 990), N_MODELS)
            for number in sorted(numbers):
                yield "model", [{**each, "model": f"{each['series'][0]}{number}"}]
        for each in series:
            numbers = self._random.sample(range(11, 99), N_GROUPS * N_CODES)
            for group in range(N_GROUPS):
                mine = numbers[group * N_CODES : (group + 1) * N_CODES]
                codes = [{"code": f"{each['series'][0]}-{number}"} for number in sorted(mine)]
                yield "codes", [{**each, "group": str(group + 1), **code} for code in codes]
        for country in known["countries"]:
            yield "rules", [{"company": self._words.company, "country": country}]

    def _page(self, words: _PageWords, rounds: list[dict[str, str]]) -> tuple[str, str, list[Fact]]:
        values = {name: self._one_of(choices) for name, choices in words.values.items()}
        file = words.file.format(**rounds[0])
        lines = [f"# {words.title.format(**rounds[0])}", "", words.text.strip().format(**rounds[0], **values)]
        facts: list[Fact] = []
        for place in rounds:
            for each in words.fact:
                filled = {**place, **{n: self._one_of(r) for n, r in each.values.items()}}
                filled["value"] = value = self._value(each.value)
                if each.heading:
                    lines += ["", f"## {each.heading.format(**filled)}"]
                lines += ["", each.text.format(**filled)]
                asked = tuple(wording.format(**filled) for wording in each.asked)
                of = place.get("model") or place.get("code") or place["country"]
                facts.append(
                    Fact(f"{of}-{each.name}".lower(), file, value, asked, each.reply.format(**filled))
                )
        return file, "\n".join(lines) + "\n", facts

    def _one_of(self, choices: tuple[int | str, ...]) -> str:
        """A word, or a number from the first to the last of two."""
        if isinstance(choices[0], int):
            low, high = (int(choice) for choice in choices)
            return str(self._random.randint(low, high))
        return str(self._random.choice(choices))

    def _value(self, value: _Value) -> str:
        if value.part:
            while (found := f"{value.part}-{self._random.randint(1000, 9999)}") in self._drawn:
                pass
            self._drawn.add(found)
            return found
        if value.word:
            return self._random.choice(self._words.words[value.word])
        assert value.number is not None
        number = self._random.randint(*value.number)
        return str(number) if value.over == 1 else f"{number / value.over:.1f}"
