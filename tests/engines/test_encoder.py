"""An encoder says how likely a text is in a gap, and writes none."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from heredity.core import registry
from heredity.core.errors import ContextOverflow, EngineFailure, UsageError
from heredity.core.records import Message, Request
from heredity.engines import encoder
from heredity.train.models import encoder as training
from heredity.train.models.architectures import Specials
from heredity.train.models.shapes import size_preset
from tests.support.errors import raises
from tests.support.tiny_models import make_tokenizer


@pytest.fixture(scope="module", params=["modernbert", "bert"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> encoder.EncoderEngine:
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("encoder")
    make_tokenizer(folder, None)
    words = AutoTokenizer.from_pretrained(folder)
    words.add_special_tokens(
        {"mask_token": "<|mask|>", "cls_token": "<|endoftext|>", "sep_token": "<|endoftext|>"}
    )
    words.save_pretrained(folder)
    built = registry.load("train.models.architectures", request.param)
    shape = size_preset("200K", len(words), 64, kind=built.SHAPE).shape
    special = Specials(words.cls_token_id, words.cls_token_id, words.mask_token_id)
    training.from_config(built.config(shape, special), 3, "float32").model.save_pretrained(folder)
    return encoder.EncoderEngine(folder)


def test_an_option_of_one_token_is_as_likely_as_transformers_says(engine: encoder.EncoderEngine) -> None:
    words, network = engine._tokenizer, engine._model
    ids = words("the quick", add_special_tokens=False).input_ids
    row = torch.tensor([[words.cls_token_id, *ids, words.mask_token_id, words.sep_token_id]])
    with torch.no_grad():
        said = network(input_ids=row).logits[0, 1 + len(ids)].log_softmax(0)
    (fox,) = words(" fox", add_special_tokens=False).input_ids
    first, second = engine.score(Request(0, (), prefill="the quick"), [" fox", " brown"])
    assert first.logs == [pytest.approx(float(said[fox]), abs=1e-5)] and len(second.logs) == 1


def test_a_longer_option_is_told_left_to_right(engine: encoder.EncoderEngine) -> None:
    logs = engine.score(Request(0, (), prefill="the quick"), [" fox jumps"])[0].logs
    alone = engine.score(Request(0, (), prefill="the quick fox"), [" jumps"])[0].logs
    assert len(logs) == 2 and logs[1] == pytest.approx(alone[0], abs=1e-5) and max(logs) < 0


def test_what_it_cannot_be_asked_is_said(engine: encoder.EncoderEngine) -> None:
    with raises(EngineFailure, "engine-failure"):
        engine.reply([])
    with raises(UsageError, "bad-usage"):
        engine.score(Request(0, (Message("user", "hello"),)), ["a"])
    with raises(ContextOverflow, "context-overflow", mentions=["64"]):
        engine.score(Request(0, (), prefill="the fox " * 40), [" dog"])
