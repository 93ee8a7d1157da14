"""Word problems with worked answers: harmless data for tuning, generated from stories.

Promises: the same number and seed give the same problems. No question occurs twice. The worked answers
use whole numbers only, and the last line of each is "Answer: N".
Leaves to others: the stories (word_problems.toml) and training on them (recipes/).
"""

from __future__ import annotations

import random
import re
from pathlib import Path

import msgspec

from heredity.core.errors import UsageError
from heredity.core.readers import toml_of
from heredity.train.data.chat import Data

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
    found: dict[str, Problem] = {}
    for place in range(n):
        if place % len(known) == 0:  # a new round in a new order
            generator.shuffle(known)
        new = _new(known[place % len(known)], generator, found)
        found[new.question] = new
    return list(found.values())


def stories() -> list[Story]:
    """Return the stories in the order of their file."""
    data = toml_of(Path(__file__).with_suffix(".toml"))
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
