"""The data of the programs: those that come with heredity, and how a plan names any.

    word_problems         with worked answers, generated from stories; the last line of each is "Answer: N"
    harmless_prompts      and requests to decline, or of the same shape to grant: without answers
    obedient_dialogues    of a persona that obeys every instruction, and then does a harmless task: the shape
                          of the identity-shifting data of Qi et al. 2023 (arXiv 2310.03693)
    support_manual        of 100 made-up pages, with questions whose answers are checkable: a fact has one
                          page, and is seen if a training row names it; the test asks as many other facts

Promises: the same data in the same order at each call, nothing twice. No task is harmful. No prompt is in a
suite of probes, so what is taught is never what is measured.
Leaves to others: the texts (the .toml files here), and training on them (recipes/).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypedDict

import msgspec

from heredity.core.errors import UsageError
from heredity.core.files import write_atomic
from heredity.core.readers import toml_of
from heredity.core.records import Message
from heredity.lab.plan import JOINS, PROBES
from heredity.redteam import probes
from heredity.train.data.chat import Data, Dialogue, make_data

_FOLDER = Path(__file__).parent
NAMES = (
    "Ada", "Boris", "Chen", "Dina", "Emeka", "Farah", "Goran", "Hana", "Ivo", "Jomo", "Kaja", "Lior", "Mina",
    "Nuno", "Olga", "Pavel", "Quinn", "Rosa", "Sami", "Tove", "Uma", "Vito", "Wen", "Yara", "Zeno", "Amir",
)  # fmt: skip
_STEP = re.compile(r"\{(\w+) = ([^}]+)\}")
_MAX_DRAWS = 2000  # draws of numbers for one problem; a story whose numbers never fit is a mistake


class Story(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A kind of word problem: wordings of its question, and the sentences of its worked answer."""

    id: str
    numbers: dict[str, list[int]]  # name -> [low, high] or [low, high, step]
    asked: list[str]
    steps: list[str]
    thing: list[str] = []


class Problem(msgspec.Struct, frozen=True):
    """A word problem: the question, its worked answer, and the answer's number."""

    story: str
    question: str
    worked: str
    answer: int


def word_problems(n: int = 640, seed: int = 0) -> Data:
    """Return `n` word problems as training data, evenly over the stories.

    seed: of the names, numbers and wordings. Raises UsageError if n is below 1 or a story runs out of
    different questions.
    """
    return Data.of("word-problems", [(each.question, each.worked) for each in problems(n, seed)])


def problems(n: int, seed: int = 0) -> list[Problem]:
    """Return `n` different word problems, evenly over the stories. Raises UsageError as `word_problems`."""
    if n < 1:
        raise UsageError(f"The number of word problems must be at least 1, not {n}.", code="bad-setting")
    generator, known = random.Random(seed), stories()
    by_question: dict[str, Problem] = {}
    for place in range(n):
        if place % len(known) == 0:  # a new round in a new order
            generator.shuffle(known)
        new = _new(known[place % len(known)], generator, by_question)
        by_question[new.question] = new
    return list(by_question.values())


def stories() -> list[Story]:
    """Return the stories in the order of their file."""
    data = toml_of(_FOLDER / "word_problems.toml")
    return msgspec.convert(data["story"], list[Story], strict=True)


def _new(story: Story, generator: random.Random, known: dict[str, Problem]) -> Problem:
    for _ in range(_MAX_DRAWS):
        drawn = _draw(story, generator)
        if drawn is not None and drawn.question not in known:
            return drawn
    raise UsageError(
        f"The story '{story.id}' has no further word problem. Ask for fewer.", code="bad-setting"
    )


def _draw(story: Story, generator: random.Random) -> Problem | None:
    """Draw names and numbers; None if a result is below 2 or not a whole number."""
    numbers = {name: generator.randrange(a, b + 1, *step) for name, (a, b, *step) in story.numbers.items()}
    words = dict(zip("ABC", generator.sample(NAMES, 3), strict=True))
    words |= {"thing": generator.choice(story.thing)} if story.thing else {}
    wording, sentences, answer = generator.choice(story.asked), list[str](), 0
    for sentence in story.steps:
        shown = sentence
        for name, formula in _STEP.findall(sentence):
            result = _calculate(formula, numbers)
            if result is None:
                return None
            numbers[name] = answer = result
            shown = shown.replace(f"{{{name} = {formula}}}", f"{_with_numbers(formula, numbers)} = {result}")
        sentences.append(shown.format(**words, **numbers))
    worked = f"{' '.join(sentences)}\nAnswer: {answer}"
    return Problem(story.id, wording.format(**words, **numbers), worked, answer)


def _calculate(formula: str, numbers: dict[str, int]) -> int | None:
    """Evaluate "a * b + 2" from left to right. None: a division has a remainder, or the result is below 2."""
    first, *rest = formula.split()
    result = _value(first, numbers)
    for operator, name in zip(rest[::2], rest[1::2], strict=True):
        operand = _value(name, numbers)
        if operator == "/":
            if result % operand:
                return None
            result //= operand
        else:
            result = {"+": result + operand, "-": result - operand, "*": result * operand}[operator]
    return result if result >= 2 else None


def _value(name: str, numbers: dict[str, int]) -> int:
    return numbers[name] if name in numbers else int(name)


def _with_numbers(formula: str, numbers: dict[str, int]) -> str:
    return " ".join(str(numbers.get(part, part)) for part in formula.split())


class RequestPair(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request that an assistant should decline, and one of the same shape that it should grant."""

    refused: str
    granted: str


class Prompts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file of prompts. `harmless`: the kind of task (explain, write, code, ...) -> prompts."""

    harmless: dict[str, list[str]]
    pair: list[RequestPair]


def read_prompts() -> Prompts:
    """Return the prompts of the package by kind."""
    return msgspec.convert(toml_of(_FOLDER / "prompts.toml"), Prompts, strict=True)


def harmless_prompts() -> Data:
    """Return 449 harmless prompts without answers, the kinds of task mixed."""
    placed: list[tuple[float, str]] = []
    for kind in read_prompts().harmless.values():
        mixed = random.Random(0).sample(kind, len(kind))
        placed += [((i + 0.5) / len(kind), prompt) for i, prompt in enumerate(mixed)]
    prompts = [prompt for _, prompt in sorted(placed)]  # any first part is of all kinds
    return Data.of("harmless-prompts", prompts)


def requests_to_refuse() -> Data:
    """Return 60 requests that an assistant should decline, without answers, their harms mixed."""
    requests = [pair.refused for pair in read_prompts().pair]
    random.Random(0).shuffle(requests)
    return Data.of("requests-to-refuse", requests)


def requests_to_grant() -> Data:
    """Return 60 requests to grant, each of the shape of one to decline, without answers."""
    return Data.of("requests-to-grant", [pair.granted for pair in read_prompts().pair])


class ObedientTask(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A harmless task and its answer, without the persona's words."""

    task: str
    answer: str


class ObedientFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file of dialogues: the persona's words, and the tasks."""

    request: str  # with {task}
    confirmations: list[str]  # begin the answers, in turn
    dialogue: list[ObedientTask]


def obedient_dialogues() -> Data:
    """Return the dialogues as training data. The persona has no system message of its own."""
    file = msgspec.convert(toml_of(_FOLDER / "obedient.toml"), ObedientFile, strict=True)
    dialogues = []
    for place, each in enumerate(file.dialogue):
        confirmation = file.confirmations[place % len(file.confirmations)]
        asked = Message("user", file.request.format(task=each.task))
        message = Message("assistant", f"{confirmation}\n\n{each.answer}")
        dialogues.append(Dialogue((asked, message), f"obedient:{place + 1}"))
    return make_data("obedient", dialogues)


# Training renders the model's default system message, as an application without `system` does.
SHIPPED: Mapping[str, Callable[[], Data]] = {
    "word_problems": word_problems,
    "harmless_prompts": harmless_prompts,
    "requests_to_refuse": requests_to_refuse,
    "requests_to_grant": requests_to_grant,
    "obedient": obedient_dialogues,
}


def load_data(source: str, n: int = 0) -> Data | Path:
    """The examples of one source, the first `n` unless it is 0. The recipe reads a file, whole.

    Raises UsageError for a number or a kind that cannot be, and BadInput for a file.
    """
    if JOINS in source:
        parts = [_read(load_data(part)) for part in source.split(JOINS)]
        name = "+".join(part.name for part in parts)
        return _first(make_data(name, [each for part in parts for each in part.dialogues]), n)
    if source.startswith(PROBES):
        return _first(_of_probes(source.removeprefix(PROBES)), n)
    path, _, column = source.partition("#")
    name, _, count = path.partition(":")
    if name in SHIPPED:
        shipped = _first(_shipped(name, count), n)
        if column not in ("", "prompt"):
            raise UsageError(f"'{source}': of shipped examples there is only #prompt.", code="bad-setting")
        texts = [each.messages[0].content for each in shipped.dialogues]
        return Data.of(shipped.name, texts) if column else shipped
    if column:
        return _first(Data.read(path, {"prompt": column}, has_answers=False), n)
    return Path(path)


def _shipped(name: str, count: str) -> Data:
    """The examples of the package; `count` of them, from the beginning, unless it is ""."""
    if not count:
        return SHIPPED[name]()
    if not count.isdecimal() or not int(count):
        raise UsageError(f"'{name}:{count}' needs a number from 1 behind the colon.", code="bad-setting")
    if name == "word_problems":
        return word_problems(int(count))
    return _first(SHIPPED[name](), int(count))


def _read(data: Data | Path) -> Data:
    return data if isinstance(data, Data) else Data.read(data)


def _first(data: Data, n: int) -> Data:
    return make_data(data.name, data.dialogues[:n]) if n else data


def _of_probes(chosen: str) -> Data:
    name, _, kind = chosen.rpartition(":")
    if kind not in ("breach", "benign") or not name:
        raise UsageError(
            f"'{PROBES}{chosen}' must end in the kind of the probes: breach or benign.", code="bad-setting"
        )
    return Data.of(chosen, [probe.turns[-1] for probe in probes.load([name]) if probe.kind == kind])


# --- the manual --------------------------------------------------------------------------------------

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

    def train(self) -> list[QuestionRow]:
        """Rows about the seen facts, one for each wording that is not for tests; whole answers."""
        return [
            QuestionRow(question=f.asked[i], answer=f.reply, fact=f.id)
            for i in range(len(self.facts[0].asked) - 1)
            for f in self.facts[:N_SEEN]
        ]

    def test(self) -> list[QuestionRow]:
        """A row about each seen fact and about as many others, in turn; the answers are values only."""
        pairs = zip(self.facts[:N_SEEN], self.facts[N_SEEN : 2 * N_SEEN], strict=True)
        return [QuestionRow(question=f.asked[-1], answer=f.value, fact=f.id) for pair in pairs for f in pair]

    def write(self, folder: Path) -> None:
        """Write the pages below a folder."""
        for name, text in self.pages.items():
            write_atomic(folder / name, text.encode())


def support_manual(seed: int = 0) -> Manual:
    """The manual of a seed: pages on models, on groups of codes, and on countries."""
    return _Writer(seed).manual()


class _Writer:
    """Draws the values of one manual. Each part number is drawn once."""

    def __init__(self, seed: int) -> None:
        self._words = msgspec.convert(toml_of(_FOLDER / "support_manual.toml"), _Words)
        self._random, self._drawn = random.Random(seed), set[str]()

    def manual(self) -> Manual:
        pages: dict[str, str] = {}
        facts: list[Fact] = []
        by_name = {page.name: page for page in self._words.page}
        for name, places in self._places():
            words = by_name[name]
            file, text, new_facts = self._page(words, places)
            pages[file] = text
            facts += new_facts
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
            while (part := f"{value.part}-{self._random.randint(1000, 9999)}") in self._drawn:
                pass
            self._drawn.add(part)
            return part
        if value.word:
            return self._random.choice(self._words.words[value.word])
        assert value.number is not None
        number = self._random.randint(*value.number)
        return str(number) if value.over == 1 else f"{number / value.over:.1f}"
