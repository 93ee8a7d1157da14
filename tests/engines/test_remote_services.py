"""Models behind APIs by name: the reference, the key's variable, and a dated price for the budget."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from heredity.cli import _remote
from heredity.core.errors import Unavailable, UnknownName, UsageError
from heredity.engines.remote import services
from heredity.engines.remote.services import HOMES, KEYS, Budget, Calls, Price, Usage, known_models
from heredity.lineage.store import Store
from heredity.recipes.targets.remote import parse
from tests.support.errors import raises

KNOWN = known_models()


@pytest.mark.parametrize("name", KNOWN)
def test_a_name_is_the_model_of_its_reference(name: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    record = store.get(name).record
    assert record.id == store.get(KNOWN[name].reference).record.id
    assert parse(KNOWN[name].reference).name == record.name == KNOWN[name].reference
    assert all(store.get(alias).record.id == record.id for alias in KNOWN[name].aliases)


@pytest.mark.parametrize("name", KNOWN)
def test_every_price_has_a_date_and_a_source(name: str) -> None:
    known = KNOWN[name]
    assert date(2025, 1, 1) < known.as_of <= date(2026, 11, 28) and known.source.startswith("https://")
    assert 0 < known.price[0] < known.price[1] and known.context >= 100_000
    if known.base_url:
        assert known.variable not in KEYS.values()
    else:
        assert known.variable == KEYS[known.api]


def test_the_families_of_the_vendors_are_there() -> None:
    wanted = {
        "gpt-5", "gpt-5-mini", "gpt-5-nano", "claude-opus-4.6", "claude-sonnet-4.6", "claude-haiku-4.5",
        "gemini-2.5-pro", "gemini-3-flash", "mistral-large-3", "deepseek-flash",
    }  # fmt: skip
    assert wanted <= KNOWN.keys()
    assert services.reference("claude-opus-4-6") == services.reference("claude-opus-4.6")


def test_gpt_5_takes_no_temperature_and_has_room_to_think() -> None:
    recipe = parse(KNOWN["gpt-5"].reference)
    assert recipe.options == {"omit": ["temperature", "top_p"], "think": 8192}
    assert parse(KNOWN["gpt-5.1"].reference).options == {}


def test_a_mistyped_name_suggests_the_nearest(tmp_path: Path) -> None:
    for wrong, right in (("claude-opus-4.7", "claude-opus-4.6"), ("gpt-5-mni", "gpt-5-mini")):
        with raises(UnknownName, "unknown-name", mentions=[right]):
            Store(tmp_path).get(wrong)
        with raises(UnknownName, "unknown-name", mentions=[right]):
            Store(tmp_path).pull(wrong)


def test_pulling_a_name_records_its_reference(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.pull("gpt-5").record == store.pull(KNOWN["gpt-5"].reference).record
    assert [model.name for model in store.models()] == [KNOWN["gpt-5"].reference]


# --- keys ---


@pytest.mark.parametrize(
    "name", ["gpt-5", "claude-opus-4.6", "gemini-3.1-pro", "mistral-large-3", "deepseek-flash"]
)
def test_each_vendor_has_its_own_variable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = KNOWN[name]
    address = known.base_url or HOMES[known.api]
    monkeypatch.delenv(known.variable, raising=False)
    with raises(Unavailable, "key-unset", mentions=[known.variable]):
        Calls().key(known.reference, known.api, address)
    monkeypatch.setenv(known.variable, "planted-key")
    assert Calls().key(known.reference, known.api, address) == "planted-key"
    assert Calls().key(known.reference, known.api, "http://127.0.0.1:1/v1") != "planted-key"


# --- prices ---


def test_a_known_model_has_a_price_without_one_given() -> None:
    known = KNOWN["claude-opus-4.6"]
    budget = Calls(budget=Budget(max_cost=1.0))
    found = budget.price(known.reference, "anthropic", HOMES["anthropic"], "claude-opus-4-6")
    assert found == Price(5.0, 25.0, 0.5, as_of=known.as_of.isoformat())
    assert found.cost_of(Usage(1_000_000, 100_000)) == pytest.approx(7.5)


def test_the_price_holds_whatever_the_options_but_not_at_another_address() -> None:
    calls = Calls()
    assert (
        calls.price("remote:openai:gpt-5?reasoning_effort=low", "openai", HOMES["openai"], "gpt-5")
        is not None
    )
    assert calls.price("remote:openai:gpt-5", "openai", "http://127.0.0.1:1/v1", "gpt-5") is None
    with raises(UsageError, "bad-usage"):
        Calls(budget=Budget(max_cost=1.0)).price("m", "openai", HOMES["openai"], "gpt-of-tomorrow")


def test_a_price_that_the_user_gives_wins() -> None:
    for ref in ("", "gpt-5", KNOWN["gpt-5"].reference):
        how = _remote.calls(price=[f"{ref}=1,2" if ref else "1,2"])
        found = how.price(KNOWN["gpt-5"].reference, "openai", HOMES["openai"], "gpt-5")
        assert found == Price(1.0, 2.0) and found.as_of == ""


def test_a_listed_price_is_told_with_its_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "planted-key")
    known = KNOWN["gpt-5-mini"]
    _remote.check([Store(tmp_path).get("gpt-5-mini")], Calls())
    said = capsys.readouterr().err
    assert "0.25" in said and known.as_of.isoformat() in said and "--price gpt-5-mini=" in said


def test_a_dry_run_shows_what_a_study_would_cost_and_asks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner

    from heredity.cli.study import command

    monkeypatch.setenv("HEREDITY_STORE", str(tmp_path / "store"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    desk = Path(__file__).parents[2] / "examples" / "support-desk.toml"
    arguments = ["--model", "gpt-5-mini", "--application", str(desk), "--out", str(tmp_path / "study")]
    done = CliRunner().invoke(command, [*arguments, "--dry-run"], standalone_mode=False)
    assert done.exception is None and done.return_value == 0
    assert "output tokens, which cost" in done.stderr
    assert not (tmp_path / "study").exists()
