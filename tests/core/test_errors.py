"""The codes of errors: one meaning each, listed in docs/errors.md, kept when an error becomes another."""

import ast
import inspect
import pickle
import re
from functools import cache
from pathlib import Path

import msgspec
import pytest

pytest.importorskip("torch")

import heredity
from heredity.core import errors
from heredity.core.errors import BadArgument, BadInput, HeredityError, UnknownName, UsageError, code_of
from heredity.train.loop import Diverged

SOURCE = Path(heredity.__file__).parent
PAGE = Path(__file__).parents[2] / "docs" / "errors.md"
KEBAB = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
OWN = [each for each in vars(errors).values() if inspect.isclass(each) and hasattr(each, "code")]
CLASSES = {each.__name__: each for each in [*OWN, Diverged]}


def literals(node: ast.expr) -> list[str]:
    found = [each.value for each in ast.walk(node) if isinstance(each, ast.Constant)]
    return [each for each in found if isinstance(each, str) and each]


def names_of(node: ast.Assign) -> set[str]:
    return {each.id for target in node.targets for each in ast.walk(target) if isinstance(each, ast.Name)}


@cache
def codes() -> dict[str, set[str]]:
    """Every code in the source, and the classes that carry it; helpers that raise have no class here."""
    found: dict[str, set[str]] = {each.code: {name} for name, each in CLASSES.items()}
    for code in errors.OF_MSGSPEC.values():
        found.setdefault(code, set())
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Assign) and "code" in names_of(node):
                for code in (each for each in literals(node.value) if "-" in each and KEBAB.fullmatch(each)):
                    found.setdefault(code, set())
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func).split(".")[-1]
                if name not in CLASSES and name != "BadCheck" and not name.strip("_")[:1].islower():
                    continue  # a record with a field of that name; the code of a BadCheck is raised again
                for keyword in node.keywords:
                    for code in literals(keyword.value) if keyword.arg == "code" else ():
                        found.setdefault(code, set()).update({name} & set(CLASSES))
    return found


def test_every_code_is_in_kebab_case() -> None:
    assert len(codes()) > 30
    assert not [code for code in codes() if not KEBAB.fullmatch(code)]


def test_every_class_has_a_code_of_its_own() -> None:
    assert len({each.code for each in CLASSES.values()}) == len(CLASSES)


def test_a_code_has_one_meaning_in_all_places() -> None:
    for code, names in codes().items():
        raised = names - {"BadArgument"} or names  # which becomes BadInput or UsageError with its code
        kinds = sorted((CLASSES[name] for name in raised), key=lambda kind: len(kind.__mro__))
        assert all(issubclass(each, kinds[0]) for each in kinds), f"{code}: {names}"


def test_the_page_of_errors_lists_each_code_once() -> None:
    listed = re.findall(r"`([a-z0-9-]+)`", PAGE.read_text("utf-8"))
    assert len(listed) == len(set(listed))
    missing = [f"{' '.join(codes()[code])}: `{code}`" for code in sorted(set(codes()) - set(listed))]
    assert not missing, "add to docs/errors.md:\n" + "\n".join(missing)
    stale = set(listed) - set(codes())
    assert not stale, f"remove from docs/errors.md: {sorted(stale)}"


def test_a_place_may_give_its_own_code_and_the_message_stays() -> None:
    assert UsageError("words").code == "bad-usage"
    error = UsageError("words", code="bad-setting")
    assert (error.code, str(error), error.args) == ("bad-setting", "words", ("words",))
    assert UsageError("others").code == "bad-usage"
    assert BadInput("a.toml", "words", 3, code="unknown-key").code == "unknown-key"
    assert UnknownName("model", "a", ["ab"]).code == "unknown-name"


def test_the_code_goes_with_an_error_to_another_process() -> None:
    sent = pickle.loads(pickle.dumps(UsageError("words", code="bad-setting")))  # noqa: S301 (our own bytes)
    assert (sent.code, str(sent)) == ("bad-setting", "words")


class Size(msgspec.Struct):
    n: int

    def __post_init__(self) -> None:
        if self.n < 1:
            raise BadArgument("too small", code="bad-setting")


@pytest.mark.parametrize(
    ("given", "code"),
    [({"n": 0}, "bad-setting"), ({"n": "a"}, "wrong-type"), ({}, "missing-key")],
)
def test_an_error_that_becomes_another_keeps_its_code(given: dict, code: str) -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert(given, Size)
    assert code_of(caught.value) == code
    assert code_of(ValueError("words")) == "bad-setting"
    assert issubclass(BadArgument, ValueError) and not issubclass(BadArgument, HeredityError)
