"""What of a folder is read, and what is left out before anything is parsed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from heredity.application.retrieval.documents import Limits, folder_of, place_of, read_bytes, walk
from heredity.application.retrieval.readers import Unreadable
from heredity.core.errors import UsageError
from tests.support.errors import raises

posix = pytest.mark.skipif(sys.platform == "win32", reason="names and links of POSIX")


def reasons(folder: Path, max_bytes: int = 100) -> dict[str, str]:
    return {each.path: each.reason for each in walk(folder, folder / "out", Limits(max_bytes))[1]}


@posix
def test_links_are_not_followed(tmp_path: Path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text("secret")
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.txt").write_text("a")
    (folder / "link.txt").symlink_to(outside / "secret.txt")
    (folder / "folder").symlink_to(outside)
    (folder / "loop").symlink_to(folder)
    files, _ = walk(folder, folder / "out", Limits())
    assert [each.path for each in files] == ["a.txt"]
    assert reasons(folder) == {"link.txt": "link", "folder": "link", "loop": "link"}


@posix
@pytest.mark.parametrize(
    "name", [b"a\nb.txt", b"a\x1b[2Jb.txt", "a\u202etxt.md".encode(), b"caf\xe9.txt", "a\u200b.txt".encode()]
)
def test_a_poisoned_name_is_left_out_and_can_be_shown(tmp_path: Path, name: bytes):
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))).write_text("words")
    ((shown, reason),) = reasons(tmp_path).items()
    assert reason == "file-name"
    shown.encode()  # no lone surrogate: it fits into the manifest


@posix
def test_a_pipe_is_left_out_and_never_opened(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.txt")
    assert reasons(tmp_path) == {"pipe.txt": "not-a-file"}
    with pytest.raises(Unreadable) as error:
        read_bytes(tmp_path / "pipe.txt", Limits())
    assert error.value.reason == "not-a-file"


@posix
def test_a_file_that_became_a_link_is_not_read(tmp_path: Path):
    (tmp_path / "a.txt").symlink_to("/etc/hostname")
    with pytest.raises(Unreadable) as error:
        read_bytes(tmp_path / "a.txt", Limits())
    assert error.value.reason == "unreadable"


def test_hidden_unknown_and_large_files_are_named(tmp_path: Path):
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "a.txt").write_text("x")
    (tmp_path / ".env").write_text("x")
    (tmp_path / "a.exe").write_text("x")
    (tmp_path / "b.TXT").write_text("x" * 11)
    found = reasons(tmp_path, max_bytes=10)
    assert found == {".git": "hidden", ".env": "hidden", "a.exe": "unsupported", "b.TXT": "too-large"}


def test_a_file_that_grew_over_the_limit_is_not_read(tmp_path: Path):
    (tmp_path / "a.txt").write_text("x" * 11)
    with pytest.raises(Unreadable) as error:
        read_bytes(tmp_path / "a.txt", Limits(max_bytes=10))
    assert error.value.reason == "too-large"


def test_the_index_itself_and_others_are_no_documents(tmp_path: Path):
    for name in ("out", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "index.json").write_text("{}")
        (tmp_path / name / "chunks-0.jsonl").write_text("")
    assert reasons(tmp_path) == {"other": "index"}


def test_a_folder_near_the_index_is_recorded_relative_to_it(tmp_path: Path):
    docs, index = tmp_path / "docs", tmp_path / "docs.index"
    assert place_of(docs, index) == "../docs"
    assert folder_of("../docs", index) == docs
    far = tmp_path / "a" / "b" / "c"
    assert place_of(docs, far) == str(docs.resolve())
    assert folder_of(str(docs), far) == docs


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path):
    with raises(UsageError, "unreadable-file", [tmp_path / "none"]):
        walk(tmp_path / "none", tmp_path / "out", Limits())


def test_limits_are_above_zero():
    with raises(ValueError, "bad-setting"):
        Limits(max_bytes=0)


@posix
def test_a_folder_deeper_than_python_recurses_is_read(tmp_path: Path):
    deep, here = tmp_path, os.open(tmp_path, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        deep, here = deep / "d", inner
    os.close(here)
    (deep / "a.txt").write_text("words")
    files, left = walk(tmp_path, tmp_path / "out", Limits())
    assert [each.file for each in files] == [deep / "a.txt"] and not left
    for _ in range(1200):  # what ends the test recurses too
        deep, _ = deep.parent, [each.unlink() if each.is_file() else each.rmdir() for each in deep.iterdir()]
