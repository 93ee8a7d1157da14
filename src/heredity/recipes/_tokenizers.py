"""Whether two models read the same tokens: the same id means the same text to both."""

from __future__ import annotations

from heredity.core.errors import Damaged, UsageError
from heredity.lineage.types import Grown


def refuse_other_tokens(one: Grown, other: Grown) -> None:
    """Raises UsageError if two models' tokenizers differ, and names the first differing token."""
    from tokenizers import Tokenizer

    vocabularies = []
    for grown in (one, other):
        path = grown.folder / "tokenizer.json"
        if not path.is_file():
            raise Damaged(f"'{grown.record.name}' has no tokenizer.json.")
        vocabularies.append(Tokenizer.from_file(str(path)).get_vocab())
    if vocabularies[0] == vocabularies[1]:
        return
    a, b = ({ident: token for token, ident in each.items()} for each in vocabularies)
    at = min(ident for ident in {*a, *b} if a.get(ident) != b.get(ident))
    names = f"'{one.record.name}' and '{other.record.name}'"
    raise UsageError(
        f"{names} read different tokens (id {at} is {a.get(at)!r} to one and {b.get(at)!r} to the other), so "
        "that this recipe means nothing for them.",
        code="tokenizers-differ",
    )
