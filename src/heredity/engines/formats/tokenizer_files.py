"""The tokenizer in a model's folder, and the errors of files that do not load.

Promises: files that do not load are an error that names the folder. The errors of transformers and tokenizers
share no class, and a panic of Rust code is not an Exception.
Leaves to others: the prompts (chat/codec.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from heredity.core.errors import Damaged, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@contextmanager
def tokenizer_errors(what: str) -> Iterator[None]:
    """Raise ValueError, which begins with `what`, for an error of transformers or tokenizers.

    Errors about a missing package or too little memory are not about the files, and stay.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError, ImportError):
        raise
    except BaseException as error:
        raise ValueError(f"{what}: {first_line(error)}") from None


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, by transformers. Raises Damaged."""
    from transformers import AutoTokenizer

    try:
        with tokenizer_errors("its tokenizer does not load"):
            found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                folder, trust_remote_code=False, local_files_only=True
            )
    except ValueError as error:
        raise Damaged(f"{folder}: {error}. Get the model again.", code="tokenizer-damaged") from None
    return found
