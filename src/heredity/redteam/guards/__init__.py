"""Guard models: what each is shown, and how its reply is read. Each file here is one kind of guard.

To add a guard, add `NAME.py` with the members of `GuardForm`, a strict reader of its reply among
them. Put the template of its model card, word for word, into `NAME.txt`, without the token that its tokenizer
puts first. The judge `guard:NAME[:MODEL]` (judges/guard.py) finds both by the name.

    qwen3guard          Qwen3Guard-Gen 0.6B, 4B and 8B: three lines with safety, categories and refusal
    llama_guard_3       Llama Guard 3, 1B and 8B: safe, or unsafe with codes from S1 to S14
    llama_guard_4       Llama Guard 4, 12B: as Llama Guard 3, in the template of Llama 4
    granite_guardian    Granite Guardian 3.3: yes or no between <score> and </score>, also after <think>
    granite_guardian_3  Granite Guardian 3.0 to 3.2: Yes or No, of 3.2 with a confidence
    shieldgemma         ShieldGemma 2B, 9B and 27B: Yes or No, asked once for each of four policies
    wildguard           WildGuard 7B: harmful request, refusal, harmful response
    harmbench_llama     HarmBench's classifier on Llama 2 13B: yes or no
    harmbench_mistral   HarmBench's validation classifier on Mistral 7B: yes or no
    strongreject        StrongREJECT's fine-tuned evaluator on Gemma 2B: a grade from 1 to 5

Most guards judge whether an answer is *safe*, by a policy of their own. That is not the question of a study:
whether the answer does the harm that was asked. Each guard's `question` states its own.

Promises: a reply that is not exactly of the documented form is None, never a guess. Marks of turns in the
judged texts are taken out before they are put into a template.
"""

import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

# Special tokens and section marks of the guards' templates. A judged text that holds them would be read as
# structure, because the guards are asked in plain text.
_MARKS = re.compile(
    r"<\|[^|<>\n]{1,40}\|>|</?s>|<bos>|<eos>|\[/?INST\]|<<?/?SYS>>?|<(?:start|end)_of_[a-z_]{1,30}>"
    r"|</?(?:think|score|confidence)>|<(?:BEGIN|END) [A-Z ]{1,40}>",
    re.IGNORECASE,
)
_REQUEST, _ANSWER = (1500, 500), (3000, 1500)  # characters from the beginning and from the end
LONGEST_REQUEST, LONGEST_ANSWER = sum(_REQUEST), sum(_ANSWER)  # characters of a text that is shown whole


class GuardReading(NamedTuple):
    """The contents of a guard's reply. Probabilities are 0 or 1 where the guard only says yes or no.

    harmful: None if the guard does not decide. refuses: None if it does not tell. category: its own words.
    """

    harmful: float | None
    refuses: float | None = None
    category: str = ""


class Choices(NamedTuple):
    """The replies whose probabilities make a guard's score, and the score of each, from 0 to 1.

    begun: the text between the prompt and the choice.
    """

    scores: Mapping[str, float]
    begun: str = ""


@runtime_checkable
class GuardForm(Protocol):
    """A file of redteam/guards/."""

    @property
    def name(self) -> str:
        """The guard's name, as in `guard:NAME`."""

    @property
    def hub(self) -> str:
        """The model that is used if none is named, as `heredity pull` takes it."""

    @property
    def licence(self) -> str:
        """The licence of that model, by its card."""

    @property
    def question(self) -> str:
        """The meaning of a yes of this guard."""

    @property
    def reports_refusal(self) -> bool:
        """Whether a reply says if the answer refused."""

    @property
    def n_tokens(self) -> int:
        """The longest reply, in tokens."""

    @property
    def choices(self) -> Choices | None:
        """How to get a probability from an engine that scores texts; None if the card gives no way."""

    def prompts(self, request: str, answer: str) -> tuple[str, ...]:
        """The whole prompt; one for each policy that the model is asked about."""

    def read(self, reply: str) -> GuardReading | None:
        """Read one reply; None if it is not of the documented form."""


@runtime_checkable
class QuestionForm(Protocol):
    """A file of redteam/guards/ whose card has a template for a question by itself."""

    def question_prompts(self, request: str) -> tuple[str, ...]:
        """The whole prompt about a question; one for each policy that the model is asked about."""

    def read_question(self, reply: str) -> GuardReading | None:
        """Read one reply about a question; None if it is not of the documented form."""


def by_template(module: str) -> Callable[[str, str], tuple[str, ...]]:
    """The `prompts` of a guard that is asked once, by the template next to its module."""
    return lambda request, answer: (filled(module, request, answer),)


def by_question_template(module: str) -> Callable[[str], tuple[str, ...]]:
    """The `question_prompts` of a guard, by NAME_question.txt next to its module."""
    path = Path(module)
    return lambda request: (filled(str(path.with_name(f"{path.stem}_question.txt")), request, ""),)


def filled(module: str, request: str, answer: str, **more: str) -> str:
    """The template next to a guard's module, with {REQUEST}, {ANSWER} and the names in `more` replaced.

    The template is split first, so that a text that holds such a name stays as it is.
    """
    template = _template(Path(module).with_suffix(".txt"))
    texts = {"REQUEST": shortened(request, *_REQUEST), "ANSWER": shortened(answer, *_ANSWER), **more}
    parts = re.split(f"{{({'|'.join(texts)})}}", template)
    return "".join(texts[part] if i % 2 else part for i, part in enumerate(parts))


@cache
def _template(path: Path) -> str:
    return path.read_bytes().decode()  # every space and line end counts


def shortened(text: str, n_first: int, n_last: int) -> str:
    """Its beginning and its end, without the marks of a template."""
    text = _MARKS.sub(" ", text).strip()
    if len(text) <= n_first + n_last:
        return text
    return f"{text[:n_first]}\n[...]\n{text[-n_last:]}"


def yes_or_no(reply: str) -> GuardReading | None:
    """A reply that is one word, yes or no, in any case, with or without a full stop."""
    word = reply.strip().removesuffix(".").lower()
    return GuardReading(float(word == "yes")) if word in ("yes", "no") else None
