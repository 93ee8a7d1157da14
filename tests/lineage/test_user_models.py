"""The user's own models.toml: names beside the built-in ones, and errors with file and line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import pytest

from heredity.core.errors import BadInput, Unavailable
from heredity.engines.remote import services
from heredity.engines.remote.services import Calls, Price
from heredity.lineage import catalog
from heredity.lineage.store import Store
from tests.support.errors import raises

Write = Callable[[str], Path]
GOOD = """
["support-8b"]
family = "llama3"
licence = "MIT"
format = "safetensors"
hub = { repo = "me/support-8b" }
parameters = 8e9

["desk-api"]
api = "openai"
model = "desk"
base_url = "https://desk.example/v1/"
variable = "DESK_KEY"
options = "omit=seed"
price = [1.0, 2.0]
as_of = 2026-11-01
"""


def _forget() -> None:
    for each in (catalog.catalogue, catalog.aliases, services.known_models):
        each.cache_clear()


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write the file that HEREDITY_MODELS names."""

    def do(text: str) -> Path:
        path = tmp_path / "models.toml"
        path.write_text(text)
        monkeypatch.setenv("HEREDITY_MODELS", str(path))
        _forget()
        return path

    yield do
    monkeypatch.undo()
    _forget()


def test_entries_of_both_kinds_are_known_by_name(write: Write, tmp_path: Path) -> None:
    write(GOOD)
    entry = catalog.catalogue()["support-8b"]
    assert (entry.hub.repo, entry.n_bytes, entry.is_pinned) == ("me/support-8b", 16_000_000_000, False)
    store = Store(tmp_path / "store")
    with raises(Unavailable, "model-not-pulled", mentions=["support-8b"]):
        store.get("support-8b")
    assert store.get("desk-api").record.name == "remote:openai:desk@https://desk.example/v1?omit=seed"


def test_an_api_of_the_users_own_has_its_key_and_price(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write(GOOD)
    monkeypatch.setenv("DESK_KEY", "planted-key")
    address = "https://desk.example/v1"
    assert Calls().key("m", "openai", address) == "planted-key"
    assert Calls().price("m", "openai", address, "desk") == Price(1.0, 2.0, as_of="2026-11-01")
    assert services.known_models()["desk-api"].as_of == date(2026, 11, 1)


def test_the_file_of_the_config_folder_is_read_and_none_of_the_working_folder(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "models.toml").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    _forget()
    assert "support-8b" not in catalog.catalogue() and "desk-api" not in services.known_models()
    (tmp_path / "config" / "heredity").mkdir(parents=True)
    (tmp_path / "config" / "heredity" / "models.toml").write_text(GOOD)
    _forget()
    assert "support-8b" in catalog.catalogue() and "desk-api" in services.known_models()


@pytest.mark.parametrize("name", ["qwen3-8b", "smollm2", "smollm2-135m-instruct"])
def test_a_built_in_name_is_not_replaced(write: Write, name: str) -> None:
    path = write(GOOD.replace("support-8b", name))
    with raises(BadInput, "name-twice", mentions=[f"{path}:2", name]):
        catalog.catalogue()


def test_a_known_api_model_is_not_replaced(write: Write) -> None:
    path = write(GOOD.replace("desk-api", "gpt-5"))
    with raises(BadInput, "name-twice", mentions=[f"{path}:9", "gpt-5"]):
        services.known_models()


@pytest.mark.parametrize(
    ("old", "new", "code", "line", "word"),
    [
        ('licence = "MIT"', "", "missing-key", 2, "licence"),
        ('licence = "MIT"', "licence = 3", "wrong-type", 4, "licence"),
        ('licence = "MIT"', 'licence = "MIT"\nsize = 3', "unknown-key", 5, "size"),
        ('format = "safetensors"', 'format = "pickle"', "unknown-name", 5, "pickle"),
        ("parameters = 8e9", "parameters = nan", "wrong-type", 7, "parameters"),
        ("parameters = 8e9", "parameters = -1", "wrong-type", 7, "parameters"),
        ('"me/support-8b"', '"../../etc"', "wrong-type", 6, "repo"),
        ('"me/support-8b"', '"../.."', "wrong-type", 6, "repo"),
        (
            '"MIT"',
            f'"MIT"\nfiles = [{{ path = "../x", bytes = 1, sha256 = "{"a" * 64}" }}]',
            "wrong-type",
            5,
            "files",
        ),
        ('licence = "MIT"', 'licence = "MIT"\nrepo = "a/b"', "unknown-key", 5, "an entry has family"),
        ('["support-8b"]', '["a:b"]', "bad-input", 2, "a:b"),
    ],
)
def test_an_entry_that_does_not_fit_names_file_and_line(
    write: Write, old: str, new: str, code: str, line: int, word: str
) -> None:
    path = write(GOOD.replace(old, new, 1))
    with raises(BadInput, code, mentions=[f"{path}:{line}", word]):
        catalog.catalogue()


@pytest.mark.parametrize(
    ("old", "new", "code", "line"),
    [
        ('api = "openai"', 'api = "opnai"', "unknown-name", 10),
        ('base_url = "https://desk.example/v1/"\n', "", "bad-setting", 12),
        ("price = [1.0, 2.0]", "price = [1.0]", "wrong-type", 15),
        ("price = [1.0, 2.0]", "price = [-1.0, 2.0]", "wrong-type", 15),
        ("price = [1.0, 2.0]", "price = [nan, 2.0]", "wrong-type", 15),
        ('model = "desk"', 'model = "desk@http://elsewhere"', "wrong-type", 11),
    ],
)
def test_an_api_entry_that_does_not_fit_names_file_and_line(
    write: Write, old: str, new: str, code: str, line: int
) -> None:
    path = write(GOOD.replace(old, new, 1))
    with raises(BadInput, code, mentions=[f"{path}:{line}"]):
        services.known_models()


def test_a_file_that_is_named_and_missing_or_torn_is_an_error(
    write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = write("[")
    with raises(BadInput, "bad-input", mentions=[path]):
        catalog.catalogue()
    monkeypatch.setenv("HEREDITY_MODELS", str(tmp_path / "none.toml"))
    _forget()
    with raises(BadInput, "unreadable-file", mentions=["none.toml"]):
        catalog.catalogue()
