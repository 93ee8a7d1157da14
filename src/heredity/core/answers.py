"""The forms in which answers are compared with a reference: one line, or the last number.

Promises: no text raises. Both read a bounded part of the answer.
"""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal

LONGEST = 4000  # characters of an answer that are read
_AROUND = "`'\"“”‘’ "
_NUMBER = re.compile(r"(?<![\w.,])[-−]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?(?![\w])")


def plain_answer(text: str) -> str:
    """The first non-empty line that is not the fence of a code block, in NFKC and without what surrounds it.

    Runs of spaces become one. Surrounding quotes, backticks and one final full stop are removed. Case stays.
    """
    lines = (line.strip() for line in text[:LONGEST].splitlines())
    first = next((line for line in lines if line and not line.startswith("```")), "")
    plain = " ".join(unicodedata.normalize("NFKC", first).split())
    return plain.strip(_AROUND).removesuffix(".").strip(_AROUND)


def last_number(text: str) -> Decimal | None:
    """The last number of a text, so that `1,200` equals `1200`; None without one.

    A comma between three digits groups them. A minus counts unless it is between two numbers. The last, since
    a model that shows its work states the result at the end.
    """
    matches = _NUMBER.findall(text[-LONGEST:])
    return Decimal(matches[-1].replace(",", "").replace("−", "-")) if matches else None
