"""The command: what it prints and opens, and what it refuses; the server itself is played."""

from __future__ import annotations

import webbrowser
from pathlib import Path

import pytest

uvicorn = pytest.importorskip("uvicorn")

from heredity.cli import main
from tests.support.errors import check_refused, run_here
from tests.view.conftest import written


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The addresses that a browser was sent to; the server ends at once."""
    opened: list[str] = []
    monkeypatch.setenv("HEREDITY_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(webbrowser, "open", opened.append)
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: [each.close() for each in sockets])
    return opened


def test_the_address_of_the_only_study_is_printed_and_opened(
    served: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = written(tmp_path).studies()[0].key
    assert main(["view", str(tmp_path / "runs"), "--port", "0", "--open"]) == 0
    (address,) = served
    assert address.startswith("http://127.0.0.1:") and address.endswith(f"/s/{key}")
    assert "1 study at" in capsys.readouterr().err


def test_at_another_address_a_new_token_is_in_the_address(served: list[str], tmp_path: Path) -> None:
    written(tmp_path)
    for _ in range(2):
        assert main(["view", str(tmp_path / "runs"), "--host", "0.0.0.0", "--port", "0", "--open"]) == 0
    first, second = (address.partition("?token=")[2] for address in served)
    assert len(first) > 30 and first != second


def test_a_place_or_token_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    check_refused(run_here("view", str(tmp_path / "no")), "bad-usage", ["no"])
    check_refused(run_here("view", str(tmp_path), "--token-env", "NO_SUCH"), "bad-usage", ["NO_SUCH"])
