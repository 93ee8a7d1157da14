"""Whether two models read the same tokens: the same id means the same text to both."""

from __future__ import annotations

from heredity.core.errors import Damaged, HeredityError, UsageError
from heredity.core.records import Model
from heredity.lineage.graph import FORMS
from heredity.lineage.store import read_record
from heredity.lineage.types import Grown

_TOKENIZER = "tokenizer.json"


def refuse_other_tokens(one: Grown, other: Grown) -> None:
    """Raises UsageError if two models' tokenizers differ, and names the first differing token."""
    from tokenizers import Tokenizer

    vocabularies = []
    for grown in (one, other):
        path = grown.folder / _TOKENIZER
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
        "that this recipe means nothing for them."
    )


def aligned(model: Grown) -> list[str]:
    """Names of the other models of its store that have exactly its tokenizer file, sorted."""
    aligned_ids = []
    for path in sorted(model.folder.parents[1].glob("*/model.json")):
        try:
            aligned_ids.append(read_record(path))
        except HeredityError:
            continue
    records = {each.id: each for each in aligned_ids}

    def source(record: Model) -> Model:
        """The model that a user would name: what a mere form is a form of."""
        is_form = record.recipe.kind in FORMS and record.parents and record.parents[0] in records
        return source(records[record.parents[0]]) if is_form else record

    wanted = _tokenizer_hash(model.record)
    same = [source(each) for each in records.values() if wanted and _tokenizer_hash(each) == wanted]
    return sorted({each.name for each in same if each.id != source(model.record).id})


def _tokenizer_hash(record: Model) -> str:
    return next((file.sha256 for file in record.files if file.path == _TOKENIZER), "")
