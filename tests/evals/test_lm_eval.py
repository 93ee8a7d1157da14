"""lm-evaluation-harness over our engines: its own evaluator, on data that lies here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from heredity.core.errors import ContextOverflow, Unavailable, UsageError
from heredity.core.records import Decoding, Request
from heredity.engines.scripted import ScriptedEngine
from heredity.evals import lm_eval as harness
from tests.support.errors import raises
from tests.support.tiny_models import WORDS, make_model


def asked(*args: Any) -> Any:
    """A request as the harness gives it."""
    return SimpleNamespace(args=args)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from heredity.engines.torch import engine as torch

    folder = make_model(tmp_path_factory.mktemp("harness"), "llama")
    engine = torch.open_folder(folder, dtype="float32", is_probed=False)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def lm(engine: Any) -> Any:
    pytest.importorskip("lm_eval", reason="needs the extra harness")
    return harness.over(engine)


def test_without_the_extra_it_says_how_to_get_it(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lm_eval.api.model", None)
    with raises(Unavailable, "package-missing", mentions=["pip install", ".[harness]"]):
        harness.over(engine)


def test_what_is_greedy_is_what_the_engine_would_say(engine: Any) -> None:
    n_seen = 0
    for word in WORDS:
        request = Request(0, (), Decoding(max_tokens=2), prefill=f"the {word}")
        (reply,) = engine.reply(iter([request]))
        if engine.codec.continuation(reply.text) == reply.tokens:  # random tokens may be half a letter
            n_seen += 1
            own, other = engine.score(request, [reply.text, " dog dog dog"])
            assert own.is_greedy and not other.is_greedy
            assert engine.score(request, [" dog dog dog"]) == [other]
    assert n_seen > 0


def test_a_log_likelihood_is_the_engines_own(lm: Any, engine: Any) -> None:
    ((log, is_greedy),) = lm.loglikelihood([asked("the quick", " brown fox")])
    (found,) = engine.score(Request(0, (), prefill="the quick"), [" brown fox"])
    assert (log, is_greedy) == (sum(found.logs), found.is_greedy)


def test_an_empty_context_is_the_token_between_texts(lm: Any, engine: Any) -> None:
    assert engine.boundary == "<|im_end|>"
    ((log, _),) = lm.loglikelihood([asked("", "the fox")])
    assert lm.loglikelihood_rolling([asked("the fox")]) == [log]


def test_an_answer_ends_at_the_first_mark(lm: Any, engine: Any) -> None:
    (whole,) = lm.generate_until([asked("the quick", {"until": [], "max_gen_toks": 12})])
    mark = whole[len(whole) // 2]
    (cut,) = lm.generate_until([asked("the quick", {"until": [mark], "max_gen_toks": 12})])
    assert cut == whole.split(mark, 1)[0]


def test_a_chat_is_rendered_by_the_models_template(lm: Any) -> None:
    told = [{"role": "user", "content": "the fox"}, {"role": "assistant", "content": "jumps"}]
    assert lm.apply_chat_template(told[:1]).endswith("the fox<|im_end|>\n<|im_start|>assistant\n")
    assert lm.apply_chat_template(told, add_generation_prompt=False).endswith("assistant\njumps")


def test_what_does_not_fit_is_an_error_and_never_cut(lm: Any) -> None:
    with pytest.raises(ContextOverflow):
        lm.loglikelihood([asked("the fox " * 600, "jumps")])


def test_sampling_and_engines_without_probabilities_are_refused(lm: Any) -> None:
    with raises(UsageError, "bad-usage"):
        lm.generate_until([asked("the", {"do_sample": True})])
    with raises(UsageError, "bad-usage"):
        harness.over(ScriptedEngine("helpful"))  # type: ignore[arg-type]


def test_the_harness_evaluates_a_task_through_the_engine(
    lm: Any, engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    import lm_eval

    rows = [{"q": f"the {word}", "a": n % 2} for n, word in enumerate(["quick", "lazy", "wise", "old"])]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = {
        "task": "tiny", "dataset_path": "json", "output_type": "multiple_choice", "test_split": "train",
        "dataset_kwargs": {"data_files": str(tmp_path / "rows.jsonl"), "cache_dir": str(tmp_path / "cache")},
        "doc_to_text": "{{q}}", "doc_to_target": "a", "doc_to_choice": ["fox", "owls"],
        "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    found = lm_eval.simple_evaluate(lm, tasks=[task], bootstrap_iters=0)
    n_right = 0
    for row in rows:
        logs = [one.logs for one in engine.score(Request(0, (), prefill=str(row["q"])), [" fox", " owls"])]
        n_right += (sum(logs[1]) > sum(logs[0])) == row["a"]
    assert found["results"]["tiny"]["acc,none"] == n_right / 4
