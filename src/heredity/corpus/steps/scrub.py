"""Replace personal data: mail and IP addresses, telephone numbers, bank accounts and cards.

Mail and public IP addresses are replaced as datatrove's PIIFormatter finds them. A bank account (IBAN) has
valid check digits (ISO 7064). A card number has 13 to 19 digits and a valid last digit (Luhn). A telephone
number has the international form (+ and 8 to 15 digits) or the North American one (3-3-4). Other numbers
stay. So do names, birthdays and addresses, which rules cannot recognise.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable

import numpy as np

from heredity.corpus.steps import DocumentTransform, TransformedBatch
from heredity.corpus.text import Mask, TextBatch

_MAIL = re.compile(
    rb"(?i)(?<![a-z0-9!#$%&'*+/=?^_`{|}~.-])[a-z0-9!#$%&'*+/=?^_`{|}~-]{1,64}"
    rb"(?:\.[a-z0-9!#$%&'*+/=?^_`{|}~-]{1,64}){0,8}@(?:[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?\.){1,8}[a-z]{2,24}\b"
)
_IP = re.compile(rb"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?!\.?\d)")
_IBAN = re.compile(rb"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
_CARD = re.compile(rb"(?<![\d.-])\d(?:[ -]?\d){12,18}(?![\d-])")
_PHONE = re.compile(
    rb"(?<![\w+])\+\d{1,3}(?:[ .-]?\(?\d{1,4}\)?){2,6}(?!\w)"
    rb"|(?<![\w.(-])(?:\(\d{3}\) ?|\d{3}[.-])\d{3}[.-]\d{4}(?![\w-])"
)


class Scrub(DocumentTransform, frozen=True, kw_only=True):
    """Replace each kind by a reserved example (RFC 2606, RFC 5737, `+1-555-0100`)."""

    mail: bool = True
    ip: bool = True
    phone: bool = True
    iban: bool = True
    card: bool = True

    def write(self, batch: TextBatch, alive: Mask) -> TransformedBatch:
        with_mail = set(batch.documents_with(batch.data == ord("@"))) if self.mail else set()
        with_numbers = (
            set(batch.documents_with(_dense(batch))) if self.iban or self.card or self.phone else set()
        )
        with_ip = set(_with_ip(batch)) if self.ip else set()
        notes: dict[str, int] = {}
        changed = {}
        for i in sorted(with_mail | with_numbers | with_ip):
            if not alive[i]:
                continue
            before = batch[i]
            if (
                after := self._scrubbed(before, i in with_mail, i in with_ip, i in with_numbers, notes)
            ) != before:
                changed[i] = after
        return TransformedBatch(batch.replace(changed), len(changed), noted=notes)

    def _scrubbed(
        self, text: bytes, has_mail: bool, has_ip: bool, has_number: bool, notes: dict[str, int]
    ) -> bytes:
        rules: list[tuple[str, bool, re.Pattern[bytes], Callable[[bytes], bool], bytes]] = [
            ("mail", self.mail and has_mail, _MAIL, lambda _: True, b"email@example.com"),
            ("iban", self.iban and has_number, _IBAN, is_iban, b"XX00 0000 0000 0000"),
            ("card", self.card and has_number, _CARD, is_card, b"0000 0000 0000 0000"),
            ("phone", self.phone and has_number, _PHONE, is_phone, b"+1-555-0100"),
            ("ip", self.ip and has_ip, _IP, is_public_ip, b"192.0.2.1"),
        ]
        for name, is_on, pattern, holds, instead in rules:
            if is_on:
                text = _replace(text, name, pattern, holds, instead, notes)
        return text


def _replace(
    text: bytes, name: str, pattern: re.Pattern[bytes], holds: Callable[[bytes], bool], instead: bytes,
    notes: dict[str, int],
) -> bytes:  # fmt: skip
    def one(match: re.Match[bytes]) -> bytes:
        if not holds(match[0]):
            return match[0]
        notes[name] = notes.get(name, 0) + 1
        return instead

    return pattern.sub(one, text)


def is_public_ip(text: bytes) -> bool:
    """Whether it is an IPv4 address that is reachable from anywhere."""
    try:
        return ipaddress.ip_address(text.decode()).is_global
    except ValueError:
        return False


def is_card(text: bytes) -> bool:
    """Whether Luhn's check digit is right, and the number does not repeat one digit."""
    digits = [c - 48 for c in text if 48 <= c <= 57]
    doubled = [d if i % 2 == 0 else sum(divmod(2 * d, 10)) for i, d in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0 and len(set(digits)) > 1


def is_iban(text: bytes) -> bool:
    """Whether the check digits of ISO 7064 are right, and the length is that of an IBAN."""
    plain = text.replace(b" ", b"").decode()
    if not 15 <= len(plain) <= 34:
        return False
    return int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1


def is_phone(text: bytes) -> bool:
    """Whether it has 8 to 15 digits (E.164)."""
    return 8 <= sum(48 <= c <= 57 for c in text) <= 15


def _dense(batch: TextBatch) -> Mask:
    """(byte,) Whether 8 digits end here within 24 bytes, as in every kind of number."""
    mask = np.zeros(len(batch.data), np.bool_)
    at = np.flatnonzero((batch.data >= 48) & (batch.data <= 57))
    # They may begin in the previous document. Then the rules find nothing, which only costs time.
    mask[at[7:][at[7:] - at[:-7] < 24]] = True
    return mask


def _with_ip(batch: TextBatch) -> list[int]:
    is_digit = (batch.data >= 48) & (batch.data <= 57)
    hit = np.zeros(len(batch.data), np.bool_)
    hit[1:-1] = (batch.data[1:-1] == ord(".")) & is_digit[:-2] & is_digit[2:]
    documents: list[int] = np.flatnonzero(batch.count(hit) >= 3).tolist()
    return documents


STEP = Scrub
