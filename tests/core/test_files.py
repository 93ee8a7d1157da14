"""The bytes on disk, killed, torn, filled up and shared."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heredity.core import files
from heredity.core.cache import ResponseCache, cache_key
from heredity.core.errors import Busy, Damaged, HeredityError, NotComparable, Refused
from heredity.core.files import (
    Lock,
    Rows,
    default_root,
    explain_full_disk,
    hash_file,
    is_locked,
    open_handle,
    read_file,
    read_lines,
    refuse_linked_folders,
    write_atomic,
)
from heredity.core.records import Decoding, Reply, Verdict
from tests.support.errors import names, raises


def verdict(index: int, evidence: str = "") -> Verdict:
    return Verdict(index, f"trial-{index}", "checks", "held", "compliance", evidence)


def run(code: str, *args: object, **kind: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **kind)  # type: ignore[call-overload]


# Whatever ends the program, its last line has the error's class and code before the message.
CODED = """
import sys
def told(kind, error, _):
    print(kind.__name__, getattr(error, "code", ""), error, file=sys.stderr)
sys.excepthook = told
"""


def test_the_store_is_where_the_variable_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HEREDITY_STORE", str(tmp_path))
    assert default_root() == tmp_path
    monkeypatch.delenv("HEREDITY_STORE")
    assert default_root() == Path.home() / ".cache" / "heredity"


def test_a_file_hashes_as_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"heredity" * 300_000)
    assert hash_file(tmp_path / "a") == hashlib.sha256(b"heredity" * 300_000).hexdigest()


def test_an_atomic_write_replaces_whole_and_leaves_nothing_beside(tmp_path: Path) -> None:
    write_atomic(tmp_path / "deep" / "plan.json", b"old")
    write_atomic(tmp_path / "deep" / "plan.json", b"new")
    assert (tmp_path / "deep" / "plan.json").read_bytes() == b"new"
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["plan.json"]


# A limit on the size of a file fails as a full disk does, in the middle of a write (EFBIG instead of ENOSPC).
FULL = (
    CODED
    + """
import errno, resource, signal, sys
from pathlib import Path
import heredity.core.files as store
store._FULL = (*store._FULL, errno.EFBIG)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
folder = Path(sys.argv[1])
"""
)


@pytest.mark.slow
def test_a_full_disk_names_the_folder_and_the_bytes_and_keeps_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"old")
    done = run(FULL + "store.write_atomic(folder / 'a.json', b'x' * 200_000)", tmp_path)
    assert done.stderr.startswith("HeredityError disk-full ")
    assert names(done.stderr, "200,000") and names(done.stderr, tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a.json": b"old"}


@pytest.mark.slow
def test_a_full_disk_keeps_the_rows_that_fit_and_no_half_row(tmp_path: Path) -> None:
    code = """
from heredity.core.records import Verdict
from heredity.core.files import Rows
rows = Rows(folder / "v.jsonl", Verdict)
rows.append(Verdict(0, "t", "checks", "held", None)); rows.flush()
try:
    rows.extend(Verdict(i, "t" * 90, "checks", "held", None) for i in range(1, 2000)); rows.flush()
except store.HeredityError as error:
    print(error.code)
rows.close()
"""
    done = run(FULL + code, tmp_path)
    assert done.stdout == "disk-full\n", done.stderr
    kept = [row.index for row in Rows(tmp_path / "v.jsonl", Verdict)]
    assert kept == list(range(len(kept)))
    size = (tmp_path / "v.jsonl").stat().st_size
    assert size <= 100_000 < size + size // (len(kept) - 1)  # one row more would not have fitted
    assert (tmp_path / "v.jsonl").read_bytes().endswith(b"\n")


def test_rows_come_back_equal_and_in_order(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    with Rows(path, Verdict) as rows:
        rows.extend(verdict(i) for i in range(100))
        assert len(list(rows)) == 100  # what was appended is seen before it is flushed
    with Rows(path, Verdict) as rows:
        rows.append(verdict(100))
    assert list(Rows(path, Verdict)) == [verdict(i) for i in range(101)]


def test_rows_that_are_not_there_are_no_rows_and_reading_makes_no_file(tmp_path: Path) -> None:
    assert list(Rows(tmp_path / "none.jsonl", Verdict)) == []
    assert not list(tmp_path.iterdir())


def test_a_torn_last_line_is_ignored_and_dropped_by_the_next_append(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    with Rows(path, Verdict) as rows:
        rows.extend([verdict(0), verdict(1)])
    whole = path.read_bytes()
    for cut in (1, 5, len(whole) // 3):
        path.write_bytes(whole[:-cut])
        assert list(Rows(path, Verdict)) == [verdict(0)]
    with Rows(path, Verdict) as rows:
        rows.append(verdict(7))
    assert list(Rows(path, Verdict)) == [verdict(0), verdict(7)]


def test_a_line_that_is_finished_while_rows_are_read_is_left_to_the_next_reading(tmp_path: Path) -> None:
    """Workers write while their driver reads: the rest of a torn line is no row of its own."""
    path = tmp_path / "verdicts.jsonl"
    with Rows(path, Verdict) as writer:
        writer.extend([verdict(0), verdict(1)])
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    rows = Rows(path, Verdict)
    reading = iter(rows)
    assert next(reading) == verdict(0)
    path.write_bytes(whole)
    assert list(reading) == []
    rows.skip_read()
    assert list(rows) == [verdict(1)]


def test_a_torn_line_longer_than_a_block_is_dropped_whole(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    with Rows(path, Verdict) as rows:
        rows.append(verdict(0))
    path.write_bytes(path.read_bytes() + b'{"index":1,"evidence":"' + b"x" * (5 << 20))
    with Rows(path, Verdict) as rows:
        rows.append(verdict(1))
    assert list(Rows(path, Verdict)) == [verdict(0), verdict(1)]


def test_a_bad_line_inside_is_an_error_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    with Rows(path, Verdict) as rows:
        rows.extend([verdict(0), verdict(1)])
    lines = path.read_bytes().splitlines(keepends=True)
    two = lines[0].rstrip() + lines[0]
    for bad in (b"{not json}\n", b'{"index": "one"}\n', b"\xff\xfe\n", b"\n", b"[]\n", two):
        path.write_bytes(lines[0] + bad + lines[1])
        with raises(Damaged, "damaged", mentions=["verdicts.jsonl:2", "verdicts.jsonl"]):
            list(Rows(path, Verdict))


def test_the_rows_before_a_bad_line_are_read_and_it_is_told_by_its_place_behind_many(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    with Rows(path, Verdict) as rows:
        rows.extend(verdict(i) for i in range(3_000))
    with path.open("ab") as file:
        file.write(b"[]\n" + path.read_bytes().splitlines(keepends=True)[0])
    reader = iter(Rows(path, Verdict))
    assert [next(reader).index for _ in range(3_000)] == list(range(3_000))
    with raises(Damaged, "damaged", mentions=["verdicts.jsonl:3001"]):
        next(reader)


def test_a_bad_line_of_a_later_reading_is_told_by_its_place_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    with Rows(path, Verdict) as rows:
        rows.extend([verdict(0), verdict(1)])
    reader = Rows(path, Verdict)
    assert [row.index for row in reader] == [0, 1]
    reader.skip_read()
    assert list(reader) == []
    with path.open("ab") as file:
        file.write(path.read_bytes().splitlines(keepends=True)[0] + b"[]\n")
    with raises(Damaged, "damaged", mentions=["verdicts.jsonl:4"]):
        list(reader)


def test_rows_of_another_schema_are_refused_even_with_other_fields(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    with Rows(path, Verdict) as rows:
        rows.append(verdict(0))
    row = json.loads(path.read_bytes())
    for other in ({**row, "schema": 99}, {"schema": 0, "nothing": "alike"}):
        path.write_text(json.dumps(other) + "\n")
        with raises(NotComparable, "schema-mismatch"):
            list(Rows(path, Verdict))


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_rows_or_a_clear_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.jsonl"
    path.write_bytes(data)
    try:
        list(Rows(path, Verdict))
    except (Damaged, NotComparable):
        assert b"\n" in data


@pytest.mark.slow
@given(st.text(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_text_survives_a_row(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "text.jsonl"
    path.unlink(missing_ok=True)
    with Rows(path, Verdict) as rows:
        rows.append(verdict(0, text))
    assert next(iter(Rows(path, Verdict))).evidence == text


@pytest.mark.slow
def test_flushed_rows_survive_kill_9(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from heredity.core.records import Verdict
from heredity.core.files import Rows
rows = Rows(Path(sys.argv[1]), Verdict)
for i in range(50):
    rows.append(Verdict(i, "t", "checks", "held", None))
    if i == 29:
        rows.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert run(code, tmp_path / "v.jsonl").returncode == -signal.SIGKILL
    assert [row.index for row in Rows(tmp_path / "v.jsonl", Verdict)] == list(range(30))


@pytest.mark.slow
def test_reading_a_long_file_keeps_memory_flat(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    with Rows(path, Verdict) as rows:
        rows.extend(verdict(i, "x" * 150) for i in range(200_000))  # 50 MB
    tracemalloc.start()  # what Python allocates, and not what the process has of the machine
    try:
        assert sum(1 for _ in Rows(path, Verdict)) == 200_000
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_a_second_process_is_told_the_folder_and_the_holder(tmp_path: Path) -> None:
    code = CODED + "from pathlib import Path\nfrom heredity.core.files import Lock\n"
    code += "with Lock(Path(sys.argv[1])):\n    print('held')"
    with Lock(tmp_path):
        done = run(code, tmp_path)
        assert done.stderr.startswith("Busy busy ")
        assert names(done.stderr, f"pid {os.getpid()}") and names(done.stderr, tmp_path)
        with pytest.raises(Busy), Lock(tmp_path):
            pass
    assert run(code, tmp_path).stdout == "held\n"


@pytest.mark.slow
def test_a_killed_holder_frees_its_folder(tmp_path: Path) -> None:
    code = "import os, sys\nfrom pathlib import Path\nfrom heredity.core.files import Lock\n"
    code += "Lock(Path(sys.argv[1])).__enter__()\nos.kill(os.getpid(), 9)"
    assert run(code, tmp_path).returncode == -9
    with Lock(tmp_path):
        pass


@pytest.mark.slow
def test_what_a_killed_write_left_is_removed_under_the_folders_lock(tmp_path: Path) -> None:
    code = "import os, sys, heredity.core.files as s\nfrom pathlib import Path\n"
    code += "os.fsync = lambda handle: os.kill(os.getpid(), 9)\n"
    code += "s.write_atomic(Path(sys.argv[1]) / 'a.json', b'x')"
    assert run(code, tmp_path).returncode == -9
    assert [p.name.startswith(".a.json.") for p in tmp_path.iterdir()] == [True]
    (tmp_path / ".mine.tmp").touch()
    with Lock(tmp_path):
        assert {p.name for p in tmp_path.iterdir()} == {".lock", ".lock.pid", ".mine.tmp"}


REPLY = Reply(5, "the prompt", "the answer \u00e9\x1b[31m", (1, 2, 3), (), "end", 9)


def test_the_cache_gives_back_what_was_said_marked_as_cached(tmp_path: Path) -> None:
    with ResponseCache(tmp_path / "cache.sqlite") as cache:
        cache.put("k", REPLY)
        assert cache.get("k") == cache.get("k")
        assert cache.get("other") is None
    with ResponseCache(tmp_path / "cache.sqlite") as cache:
        found = cache.get("k")
    assert found is not None and found.is_cached
    assert (found.prompt, found.text, found.tokens) == (REPLY.prompt, REPLY.text, REPLY.tokens)


def test_an_error_is_never_cached(tmp_path: Path) -> None:
    with ResponseCache(tmp_path / "cache.sqlite") as cache:
        cache.put("k", Reply(0, "p", "", stop="error", error="no room"))
        assert cache.get("k") is None


@pytest.mark.slow
def test_processes_share_one_cache(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from heredity.core.records import Reply
from heredity.core.cache import ResponseCache
with ResponseCache(Path(sys.argv[1])) as cache:
    for i in range(500):
        cache.put(f"{sys.argv[2]}-{i}", Reply(i, "p", sys.argv[2]))
"""
    path = tmp_path / "cache.sqlite"
    command = [sys.executable, "-c", code, str(path)]
    workers = [subprocess.Popen([*command, name]) for name in ("a", "b", "c")]
    assert [worker.wait(60) for worker in workers] == [0, 0, 0]
    with ResponseCache(path) as cache:
        assert all(cache.get(f"{name}-{i}") for name in "abc" for i in range(500))


def test_a_damaged_cache_says_that_only_time_is_lost(tmp_path: Path) -> None:
    (tmp_path / "cache.sqlite").write_bytes(b"no database at all, only some text" * 100)
    with raises(Damaged, "damaged"):
        ResponseCache(tmp_path / "cache.sqlite")


def test_the_seed_keys_an_answer_only_where_something_is_drawn() -> None:
    greedy, drawn = Decoding(), Decoding(temperature=1.0)
    assert cache_key("n", "m", "p", greedy, 1) == cache_key("n", "m", "p", greedy, 2)
    assert cache_key("n", "m", "p", drawn, 1) != cache_key("n", "m", "p", drawn, 2)
    base = ("n", "m", "p", greedy, 1)
    for place, other in enumerate(("N", "M", "P", Decoding(max_tokens=9))):
        changed = (*base[:place], other, *base[place + 1 :])
        assert cache_key(*changed) != cache_key(*base)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_disk_that_is_full_for_safetensors_is_full(tmp_path: Path) -> None:
    """Whose error is no OSError."""
    pytest.importorskip("safetensors")
    write = (
        "import numpy; from safetensors.numpy import save_file\n"
        "with store.explain_full_disk(folder, 0):\n"
        "    save_file({'x': numpy.zeros(200_000)}, folder / 'x.safetensors')"
    )
    done = subprocess.run([sys.executable, "-c", FULL + write, str(tmp_path)], capture_output=True, text=True)
    assert done.stderr.startswith("HeredityError disk-full "), done.stderr
    assert names(done.stderr, tmp_path)
    with raises(ValueError, mentions=["28"]), explain_full_disk(tmp_path, 0):
        raise ValueError("a text that says (os error 28)")


def test_errors_that_are_no_full_disk_pass_unchanged(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        write_atomic(tmp_path / "folder", b"x")
    assert caught.value.errno == errno.EISDIR and not isinstance(caught.value, HeredityError)
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


# --- temporary files of processes that were killed -------------------------------------------------------

# Writes a file whole, and stands still before it takes its place, until it is killed or told to go on.
HALF = """
import os, sys, time
from pathlib import Path
from heredity.core import files as store
real = os.fsync
def still(handle):
    (Path(sys.argv[1]).parent / "at-work").touch()
    while not (Path(sys.argv[1]).parent / "go").exists():
        time.sleep(0.005)
    real(handle)
os.fsync = still
store.write_atomic(Path(sys.argv[1]), sys.argv[2].encode())
"""


def half_written(target: Path, text: str = "half") -> subprocess.Popen[bytes]:
    """A process in the middle of writing `target`."""
    process = subprocess.Popen([sys.executable, "-c", HALF, str(target), text])
    deadline = time.monotonic() + 60
    while not (target.parent / "at-work").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    (target.parent / "at-work").unlink()
    return process


def kill(process: subprocess.Popen[bytes], sign: signal.Signals = signal.SIGKILL) -> None:
    process.send_signal(sign)
    process.wait(60)


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL])
def test_the_next_process_removes_what_a_killed_one_left(sign: signal.Signals, tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    kill(half_written(target), sign)
    assert [path.name for path in tmp_path.iterdir()] != []  # something was left, or this shows nothing
    code = "import sys; from pathlib import Path; from heredity.core import files as store;"
    done = run(code + "store.write_atomic(Path(sys.argv[1]), b'whole')", target)
    assert done.returncode == 0, done.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"report.html": b"whole"}


@pytest.mark.slow
def test_what_is_left_of_another_file_is_no_ones_to_remove(tmp_path: Path) -> None:
    kill(half_written(tmp_path / "report.html"))
    (tmp_path / ".report.html.notours.tmp").write_text("theirs")
    (tmp_path / ".report.html.deadbeef.tmp").mkdir()
    (tmp_path / "elsewhere").write_text("kept")
    (tmp_path / ".report.html.0badcafe.tmp").symlink_to(tmp_path / "elsewhere")
    before = {path.name for path in tmp_path.iterdir()}
    write_atomic(tmp_path / "report.htm", b"whole")
    write_atomic(tmp_path / "html", b"whole")
    assert {path.name for path in tmp_path.iterdir()} == before | {"report.htm", "html"}
    assert (tmp_path / "elsewhere").read_text() == "kept"


@pytest.mark.slow
def test_two_processes_that_write_one_file_leave_each_others_alone(tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    first = half_written(target, "first")
    code = "import sys; from pathlib import Path; from heredity.core import files as store;"
    assert run(code + "store.write_atomic(Path(sys.argv[1]), b'second')", target).returncode == 0
    assert target.read_bytes() == b"second"
    with Lock(tmp_path):  # neither does the folder's lock take it from it
        pass
    (tmp_path / "go").touch()
    assert first.wait(60) == 0
    assert target.read_bytes() == b"first" and not list(tmp_path.glob(".*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["html", "csv"])
def test_a_killed_report_leaves_nothing_behind_the_next_one(kind: str, tmp_path: Path) -> None:
    from tests.support.studies import plan, study

    study(tmp_path / "s", plan(n=1)).run()
    out = tmp_path / "shared" / f"report.{kind}"
    out.parent.mkdir()
    arguments = ["report", str(tmp_path / "s"), "--format", kind, "--out", str(out)]
    call = (
        HALF.rpartition("store.write_atomic")[0]
        + "from heredity.cli import main\nsys.exit(main(sys.argv[2:]))"
    )
    process = subprocess.Popen([sys.executable, "-c", call, str(out), *arguments])
    while not (out.parent / "at-work").exists():
        assert process.poll() is None
        time.sleep(0.005)
    kill(process, signal.SIGTERM)
    (out.parent / "at-work").unlink()
    assert len(list(out.parent.iterdir())) == 1 and not out.exists()
    done = subprocess.run(
        [sys.executable, "-m", "heredity", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert list(out.parent.iterdir()) == [out]


def test_a_folder_is_listed_once_however_many_files_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed: list[Path] = []
    real = Path.iterdir

    def iterdir(self: Path) -> Iterator[Path]:
        listed.append(self)
        return real(self)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    for number in range(50):
        write_atomic(tmp_path / f"{number}.json", b"{}")
    assert listed.count(tmp_path) == 1


def forged(kind: str, folder: Path) -> Path:
    """A name in `folder` that is no ordinary file, beside a `victim` outside of it."""
    folder.mkdir()
    victim, path = folder.parent / "victim", folder / "rows.jsonl"
    victim.write_bytes(b"whole\nno newline")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "second name":
        os.link(victim, path)
    else:
        path.symlink_to({"link": victim, "device": "/dev/zero", "new": victim.with_name("new")}[kind])
    return path


@pytest.mark.parametrize("flags", [0, None], ids=["without the flags of POSIX", "with them"])
@pytest.mark.parametrize("kind", ["link", "new", "second name", "pipe", "device", "folder"])
def test_a_forged_name_is_refused_and_what_it_names_stays(
    kind: str, flags: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = forged(kind, tmp_path / "s")
    if flags is not None:
        monkeypatch.setattr(files, "_OPENING", flags)
    if kind != "second name":
        for read in (read_file, lambda path: list(read_lines(path))):
            with raises(Refused, "refused", [path]):
                read(path)
    with Rows(path, Verdict) as rows, raises(Refused, "refused", [path]):
        rows.append(verdict(0))
    assert (tmp_path / "victim").read_bytes() == b"whole\nno newline" and not (tmp_path / "new").exists()


@pytest.mark.parametrize("kind", ["link", "pipe", "device"])
def test_a_name_that_is_forged_after_the_check_is_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = forged(kind, tmp_path / "s")

    def gone(_: Path) -> os.stat_result:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "lstat", gone)
    for how in (os.O_RDONLY, os.O_RDWR | os.O_CREAT):
        with raises(Refused, "refused", [path]):
            open_handle(path, how)


def test_a_file_that_is_too_large_to_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 9)
    assert read_file(tmp_path / "a", 9) == b"x" * 9
    with raises(Refused, "refused", [9]):
        read_file(tmp_path / "a", 8)
    with raises(Refused, "refused"):
        list(read_lines(tmp_path / "a", max_bytes=8))


@pytest.mark.parametrize("kind", ["link", "new", "second name", "pipe", "device"])
@pytest.mark.parametrize("name", [".lock", ".lock.pid"])
def test_the_files_of_a_lock_lead_nowhere(name: str, kind: str, tmp_path: Path) -> None:
    folder, victim = tmp_path / "s", tmp_path / "victim"
    forged(kind, folder).rename(folder / name)
    assert not is_locked(folder)
    if name == ".lock":
        with raises(Refused, "refused", [folder / name]), Lock(folder):
            pass
    else:
        with Lock(folder):
            assert (folder / name).read_text() == str(os.getpid()) and is_locked(folder)
    assert victim.read_bytes() == b"whole\nno newline" and not (tmp_path / "new").exists()


def test_a_linked_folder_within_a_study_is_refused_and_the_users_own_link_to_it_is_not(
    tmp_path: Path,
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "s" / "shards" / "1-of-2").mkdir(parents=True)
    (tmp_path / "mine").symlink_to(tmp_path / "s")
    refuse_linked_folders(tmp_path / "mine", "shards", "absent")
    (tmp_path / "s" / "shards" / "2-of-2").symlink_to(tmp_path / "elsewhere")
    with raises(Refused, "refused", [tmp_path / "mine" / "shards" / "2-of-2"]):
        refuse_linked_folders(tmp_path / "mine", "shards")
    with Lock(tmp_path / "mine"), Rows(tmp_path / "mine" / "rows.jsonl", Verdict) as rows:
        rows.append(verdict(0))
