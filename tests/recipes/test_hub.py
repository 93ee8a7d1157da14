"""One download: it resumes, it is bounded, and a wrong hash leaves nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from heredity.core.errors import Damaged, HeredityError, Unavailable, WrongHash
from heredity.core.progress import Progress
from heredity.recipes.pull import hub
from heredity.recipes.pull.hub import Address, fetch
from tests.support.errors import raises
from tests.support.model_sources import Server, sha256

DATA = bytes(range(256)) * 8_000  # 2 MB


def test_a_download_ends_with_the_right_bytes_and_tells_its_progress(server: Server, tmp_path: Path) -> None:
    server.files["a"] = DATA
    seen: list[Progress] = []
    fetch(Address(server.url("a"), sha256(DATA), "a file"), tmp_path / "a.part", seen.append)
    assert (tmp_path / "a.part").read_bytes() == DATA
    assert seen[-1] == Progress("download", "a file", len(DATA), len(DATA), unit="bytes")
    assert seen == sorted(seen, key=lambda at: at.n_done)


def test_a_dropped_connection_goes_on_where_it_stopped(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub.time, "sleep", lambda _: None)
    server.files["a"], server.drop_after = DATA, [1_300_000, 500_000]
    fetch(Address(server.url("a"), sha256(DATA), "a"), tmp_path / "a.part")
    assert (tmp_path / "a.part").read_bytes() == DATA
    assert server.ranges[0] == "" and all(r.startswith("bytes=") for r in server.ranges[1:])
    assert len(server.ranges) == 3


def test_a_server_that_cannot_resume_sends_all_again(server: Server, tmp_path: Path) -> None:
    server.files["a"], server.can_resume = DATA, False
    (tmp_path / "a.part").write_bytes(DATA[:1000])
    fetch(Address(server.url("a"), sha256(DATA), "a"), tmp_path / "a.part")
    assert (tmp_path / "a.part").read_bytes() == DATA


@pytest.mark.parametrize("old", [DATA, b"other bytes" * 100, DATA + b"more"])
def test_an_old_part_of_any_kind_ends_right(server: Server, tmp_path: Path, old: bytes) -> None:
    server.files["a"] = DATA
    (tmp_path / "a.part").write_bytes(old)
    fetch(Address(server.url("a"), sha256(DATA), "a"), tmp_path / "a.part")
    assert (tmp_path / "a.part").read_bytes() == DATA


def test_a_wrong_hash_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.files["a"] = DATA
    with raises(WrongHash, "hash-mismatch"):
        fetch(Address(server.url("a"), sha256(b"other"), "a"), tmp_path / "a.part")
    assert list(tmp_path.iterdir()) == []


def test_more_than_was_announced_is_not_kept(server: Server, tmp_path: Path) -> None:
    server.files["a"] = DATA
    with raises(Damaged, "damaged", mentions=["1,000"]):
        fetch(Address(server.url("a"), sha256(DATA), "a", limit=1000), tmp_path / "a.part")


def test_an_absent_file_or_server_is_unavailable_with_its_reason(server: Server, tmp_path: Path) -> None:
    with raises(Unavailable, "unavailable", mentions=["404"]):
        fetch(Address(server.url("none"), "", "a"), tmp_path / "a.part")
    with raises(Unavailable, "hub-unreachable"):
        fetch(Address("http://127.0.0.1:9/a", "", "a"), tmp_path / "a.part")


def test_a_disk_without_room_is_said_before_the_download(tmp_path: Path) -> None:
    with raises(HeredityError, "disk-full"):
        hub.check_room(tmp_path, 1 << 60)
