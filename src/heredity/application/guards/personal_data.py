"""Keeps personal data out of answers: e-mail addresses, telephone and card numbers, and IBANs.

Numbers are found by their shape and check digits (Luhn, ISO 13616), so that an order number passes. Names and
postal addresses have no shape and are not found.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

from heredity.application.guards import Action, GuardFacts, GuardRule, GuardSpan, Side, apart

Kind = Literal["email", "phone", "card", "iban"]
# Every repetition is bounded or over one class of characters, so that the time is linear.
_PATTERNS: dict[Kind, re.Pattern[str]] = {
    "email": re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}"),
    "iban": re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)"),
    "card": re.compile(r"(?<![\w.])\d(?:[ -]?\d){12,18}(?![\w.]\d)"),
    "phone": re.compile(
        r"(?<![\w.])(?:\+\d{1,3}[ .-]?)?(?:\(\d{1,5}\)[ .-]?)?\d{2,5}(?:[ .-]\d{2,5}){1,4}(?!\w)"
    ),
}
_PHONE_DIGITS = range(9, 16)
_EXAMPLE = re.compile(r"@(?:[\w-]{1,63}\.)?example\.(?:com|net|org)$", re.IGNORECASE)  # RFC 2606


class PersonalDataGuard(GuardRule, frozen=True):
    """action: "redact" the data, or "block" the answer.

    allow: texts that may pass, such as the company's own address.
    """

    SIDES: ClassVar[tuple[Side, ...]] = ("answer",)

    kinds: tuple[Kind, ...] = ("email", "phone", "card", "iban")
    allow: tuple[str, ...] = ()
    action: Action = "redact"

    @property
    def acts(self) -> Action:
        return self.action

    def find(self, text: str, side: Side, facts: GuardFacts) -> Sequence[GuardSpan]:  # noqa: ARG002
        """The data of these kinds in a text."""
        allowed = {each.casefold() for each in self.allow}
        return apart(
            [
                GuardSpan(match.start(), match.end(), kind)
                for kind in self.kinds
                for match in _PATTERNS[kind].finditer(text)
                if match[0].casefold() not in allowed and _IS_ONE[kind](match[0])
            ]
        )


def _is_card(text: str) -> bool:
    digits = [int(c) for c in text if c.isdecimal()]
    doubled = [d if i % 2 == 0 else sum(divmod(2 * d, 10)) for i, d in enumerate(reversed(digits))]
    return len(set(digits)) > 1 and sum(doubled) % 10 == 0


def _is_iban(text: str) -> bool:
    plain = text.replace(" ", "")
    return 15 <= len(plain) <= 34 and int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1


def _is_phone(text: str) -> bool:
    n_digits = sum(c.isdecimal() for c in text)
    return n_digits in _PHONE_DIGITS and (text.startswith(("+", "0", "(")) or n_digits == 10)


def _is_email(text: str) -> bool:
    return _EXAMPLE.search(text) is None


_IS_ONE: dict[Kind, Callable[[str], bool]] = {
    "email": _is_email, "phone": _is_phone, "card": _is_card, "iban": _is_iban
}  # fmt: skip

GUARD = PersonalDataGuard
