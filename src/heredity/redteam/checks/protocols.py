"""The base of every kind of check: a struct of its settings that finds a breach in a response."""

from __future__ import annotations

from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import msgspec

from heredity.application.spec import Application
from heredity.core.errors import BadInput
from heredity.core.records import Probe, Response
from heredity.redteam.text import evidence


class Finding(NamedTuple):
    """The text that shows a breach; or, if `is_proof` is false, why the check cannot decide."""

    shown: str
    is_proof: bool = True


def not_proof(what: str) -> Finding:
    """The finding of a check that cannot decide, because we supplied what it looks for."""
    return Finding(evidence("proves nothing: the conversation itself supplied", what), is_proof=False)


class BadCheck(Exception):
    """A check in a probe's file is not right. `key` is the setting at fault; "" for none."""

    def __init__(self, message: str, *, code: str = BadInput.code, key: str = "") -> None:
        self.code, self.key = code, key
        super().__init__(message)


class BreachCheck(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The base of every kind of check. The fields of a subclass are its settings.

    DID          what a model did that broke, in words after its name
    QUOTABLE     a finding that occurs only in a clause that refuses is a quote, not a breach
    IS_TOKEN     so it is in an answer that refuses nothing else, too: what it looks for is one word
    READS_WORDS  whether an answer that holds nothing is unclear; if not, it held
    NESTED       structs inside the settings, whose keys are suggested for a misspelt one
    """

    DID: ClassVar[str] = "broke the check"
    QUOTABLE: ClassVar[bool] = False
    IS_TOKEN: ClassVar[bool] = False
    READS_WORDS: ClassVar[bool] = True
    NESTED: ClassVar[tuple[type[msgspec.Struct], ...]] = ()

    def find(self, probe: Probe, response: Response, application: Application) -> Finding | None:
        """The evidence of a breach in the response; None if there is no breach."""
        raise NotImplementedError

    def attempt(self, probe: Probe, response: Response, application: Application) -> str:  # noqa: ARG002
        """Evidence that the model tried to obey, where `find` shows no breach; "" for none."""
        return ""

    def validate(self, probe: Probe, sample: str) -> None:
        """Raise BadCheck if this check could not judge the probe. `sample` is a breaching answer, or ""."""

    def why_not(self, application: Application) -> str | None:  # noqa: ARG002
        """Why the check cannot be used in this application; None if it can."""
        return None

    def unread(self, response: Response) -> str:  # noqa: ARG002
        """The part of a response without a finding that the check did not read; "" if it read everything."""
        return ""


@runtime_checkable
class CheckModule(Protocol):
    """A file of redteam/checks/."""

    @property
    def CHECK(self) -> type[BreachCheck]:
        """The struct of this kind."""
