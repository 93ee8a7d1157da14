"""Words before a passage that bring its embedding near that of a question: greedy coordinate gradient.

Source: Zhong et al. 2023 (arXiv 2310.19156), with the step of Zou et al. 2023 (engines/torch/gcg.py). A step
takes the gradient of the similarity with respect to the words and draws candidates that differ in one word.
It keeps the best one if it is nearer.

Promises: equal weights, texts, steps and seed give the same words, on one kind of machine. A word is ASCII
letters and one token. None is a term of the question, so that a search by words finds nothing new. Candidates
are scored as the text that is planted, tokenized again. At most `n_steps` gradients and
`n_steps * CANDIDATES` forward passes.
Leaves to others: which texts (redteam/attacks/poisoned_index.py), and keeping the result
(study/runner.py).
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

from heredity.application.retrieval.index import terms
from heredity.application.retrieval.models import Embedder
from heredity.core.errors import EngineFailure
from heredity.engines.torch.gcg import one_token_swaps

CANDIDATES = 32  # of a step
N_WORDS = 10  # of a trigger
_SHORTEST = 3  # letters of a word
_AT_ONCE = 16  # candidates in one forward pass
_ROUNDING = 1e-3  # of a cosine, between one text and a batch of them
_STARTS = 100  # that are drawn, until the tokenizer leaves one whole


class TriggerText(NamedTuple):
    """The words, and the cosine of question and text without and with them."""

    words: str
    before: float
    after: float


def search(embedder: Embedder, question: str, passage: str, n_steps: int, seed: int) -> TriggerText:
    """The words that bring `words + passage` near the question.

    Raises EngineFailure if the model's tokenizer has too few words or splits them, or if the model does not
    take input embeddings.
    """
    with torch.inference_mode(False), torch.no_grad():
        words, best = _TriggerSearch(embedder, question, passage, seed).run(n_steps)
    asked = embedder.embed(question)
    before, after = (float(embedder.embed(text) @ asked) for text in (passage, words + passage))
    if abs(after - best) > _ROUNDING:
        raise EngineFailure(
            f"'{embedder.model.name}' embeds a text and the input embeddings of its tokens differently: no "
            "trigger can be searched for on it"
        )
    return TriggerText(words, round(before, 4), round(after, 4))


class _TriggerSearch:
    """One running search. A trigger is a list of tokens, each a whole word."""

    def __init__(self, embedder: Embedder, question: str, passage: str, seed: int) -> None:
        self._embedder, self._passage = embedder, passage
        self._target = torch.tensor(embedder.embed(question))  # (hidden,)
        self._draw = torch.Generator().manual_seed(seed)
        asked = set(terms(question))
        self._words = {
            token: word for token, word in _words(embedder).items() if not asked & set(terms(word))
        }
        if len(self._words) < 2 * N_WORDS:
            raise EngineFailure(
                f"the embedding model '{embedder.model.name}' has {len(self._words)} whole words of ASCII "
                f"letters that are not in the question, and a search needs {2 * N_WORDS}"
            )
        self._matrix = embedder.token_vectors.detach()
        self._allowed = torch.zeros(len(self._matrix), dtype=torch.bool)
        self._allowed[list(self._words)] = True

    def run(self, n_steps: int) -> tuple[str, float]:
        """The best words after `n_steps` steps, and their similarity."""
        tokens = self._start()
        best = float(self._similarities([tokens])[0])
        for _ in range(n_steps):
            with torch.enable_grad():  # of the similarity, with respect to each word
                vectors = self._matrix[self._read(tokens)][None].requires_grad_()
                near = self._embedder.embed_vectors(vectors)[0] @ self._target
                gradient = torch.autograd.grad(near, vectors)[0][0, self._first : self._first + N_WORDS]
            swaps = one_token_swaps(
                tokens, -(gradient @ self._matrix.T), self._allowed, self._draw, CANDIDATES
            )
            others = [one for one in swaps if self._is_whole(one)]
            if not others:
                continue
            cosines = self._similarities(others)
            at = int(cosines.argmax())
            if float(cosines[at]) > best:
                best, tokens = float(cosines[at]), others[at]
        return self._text(tokens), best

    def _start(self) -> list[int]:
        """Random words. Notes the place of the first one among the tokens of the text, and their number."""
        known = torch.tensor(sorted(self._words))
        for _ in range(_STARTS):
            tokens = known[torch.randperm(len(known), generator=self._draw)[:N_WORDS]].tolist()
            read = self._read(tokens)
            self._first = read.index(tokens[1]) - 1 if tokens[1] in read else 0
            self._n_read = len(read)
            if self._is_whole(tokens):
                return tokens
        raise EngineFailure(
            f"the tokenizer of '{self._embedder.model.name}' leaves no words whole before this passage"
        )

    def _text(self, tokens: list[int]) -> str:
        return " ".join(self._words[token] for token in tokens)

    def _read(self, tokens: list[int]) -> list[int]:
        return self._embedder.tokens(self._text(tokens) + self._passage)

    def _is_whole(self, tokens: list[int]) -> bool:
        """Whether each word is one token of the text; the first one may be another where a text begins."""
        read = self._read(tokens)
        return len(read) == self._n_read and read[self._first + 1 : self._first + N_WORDS] == tokens[1:]

    def _similarities(self, many: list[list[int]]) -> torch.Tensor:
        """The cosine of each text and the question. (text,)"""
        cosines = []
        for start in range(0, len(many), _AT_ONCE):
            read = torch.tensor([self._read(one) for one in many[start : start + _AT_ONCE]])
            cosines.append(self._embedder.embed_vectors(self._matrix[read]) @ self._target)
        return torch.cat(cosines)


@lru_cache(maxsize=2)
def _words(embedder: Embedder) -> dict[int, str]:
    """The tokens of a model that are whole words of ASCII letters, also behind another word."""
    tokenizer = embedder.tokenizer
    special = set(tokenizer.all_special_ids)
    named = zip(
        range(len(tokenizer)), tokenizer.batch_decode([[i] for i in range(len(tokenizer))]), strict=True
    )
    some = {i: word.strip() for i, word in named if i not in special}
    some = {i: w for i, w in some.items() if w.isascii() and w.isalpha() and len(w) >= _SHORTEST}
    (before,) = tokenizer(["the"], add_special_tokens=False)["input_ids"]
    read = tokenizer([f"the {word}" for word in some.values()], add_special_tokens=False)["input_ids"]
    return {i: word for (i, word), ids in zip(some.items(), read, strict=True) if ids == [*before, i]}
