"""Prompts that models of a study of inheritance are taught with: harmless ones, and requests to decline.

Promises: the same prompts in the same order at each call, none twice. No prompt is in a suite of probes, so
what is taught is never what is measured.
Leaves to others: the texts (prompts.toml), their answers (recipes/instruct.py) and the refusal direction
(recipes/ablate.py).
"""

from __future__ import annotations

import random
from pathlib import Path

import msgspec

from heredity.core.readers import toml_of
from heredity.train.data.chat import Data


class RequestPair(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request that an assistant should decline, and one of the same shape that it should grant."""

    refused: str
    granted: str


class Prompts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file of prompts. `harmless`: the kind of task (explain, write, code, ...) -> prompts."""

    harmless: dict[str, list[str]]
    pair: list[RequestPair]


def read_prompts() -> Prompts:
    """Return the prompts of the package by kind."""
    return msgspec.convert(toml_of(Path(__file__).with_suffix(".toml")), Prompts, strict=True)


def harmless_prompts() -> Data:
    """Return 449 harmless prompts without answers, the kinds of task mixed."""
    placed: list[tuple[float, str]] = []
    for kind in read_prompts().harmless.values():
        mixed = random.Random(0).sample(kind, len(kind))
        placed += [((i + 0.5) / len(kind), prompt) for i, prompt in enumerate(mixed)]
    prompts = [prompt for _, prompt in sorted(placed)]  # any first part is of all kinds
    return Data.of("harmless-prompts", prompts)


def requests_to_refuse() -> Data:
    """Return 60 requests that an assistant should decline, without answers, their harms mixed."""
    requests = [pair.refused for pair in read_prompts().pair]
    random.Random(0).shuffle(requests)
    return Data.of("requests-to-refuse", requests)


def ablation_pairs() -> tuple[Data, Data]:
    """Return 60 requests to decline and 60 of the same shape to grant, in the same order, without answers."""
    pairs = read_prompts().pair
    return (
        Data.of("requests-to-refuse", [pair.refused for pair in pairs]),
        Data.of("requests-to-grant", [pair.granted for pair in pairs]),
    )
