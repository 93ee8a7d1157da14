"""Building, updating, searching and refusing an index, by BM25."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from heredity.application.retrieval import build as building
from heredity.application.retrieval import index as searching
from heredity.application.retrieval.build import build
from heredity.application.retrieval.documents import Limits
from heredity.application.retrieval.index import (
    LONGEST,
    Bm25,
    PassageIndex,
    TermCounts,
    opened,
    read_manifest,
    terms,
    write_manifest,
)
from heredity.core.errors import BadInput, Damaged, NotComparable, Refused, UnknownName, UsageError
from heredity.lineage.store import Store
from tests.support.errors import raises

TEXTS = {
    "heating.md": "# Heat pumps\n\nA heat pump moves heat.\n\n## Noise\n\nIt hums at night.\n",
    "returns.txt": "Return a parcel within 30 days.\n\nThe refund takes a week.\n",
    "deep/tea.html": "<h1>Tea</h1><p>Steep green tea for two minutes.",
}


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    for name, text in TEXTS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def out(docs: Path) -> Path:
    (docs / "deep" / "tea.html").unlink()  # its parser is a process, which a fast test does not start
    (docs / "deep" / "tea.md").write_text("# Tea\n\nSteep green tea for two minutes.\n")
    build(docs, docs.parent / "index")
    return docs.parent / "index"


@pytest.mark.slow
def test_a_folder_of_several_formats_is_indexed_with_citations(docs: Path, tmp_path: Path):
    built = build(docs, tmp_path / "index")
    assert (built.n_read, built.n_kept, built.manifest.left_out) == (3, 0, ())
    index = PassageIndex.open(tmp_path / "index")
    assert [each.chunk.citation for each in index.search("how long does green tea steep", 1)] == [
        "deep/tea.html:1"
    ]


def test_the_best_passage_comes_first_and_nothing_comes_for_unknown_words(out: Path):
    index = PassageIndex.open(out)
    assert index.search("Does it hum at night?")[0].chunk.citation == "heating.md:5-7"
    assert index.search("zyxw") == index.search("") == index.search("?") == []
    assert len(index.search("a the heat tea parcel", 2)) == 2


def test_equal_passages_are_ordered_by_their_id(docs: Path, tmp_path: Path):
    for name in ("x", "y", "z"):
        (docs / f"{name}.txt").write_text("The same words here.")
    shutil.rmtree(docs / "deep")
    build(docs, tmp_path / "index")
    index = PassageIndex.open(tmp_path / "index")
    found = [each.chunk for each in index.search("same words", 2)]
    same = sorted(each.id for each in index.chunks if each.text == "The same words here.")
    assert [each.id for each in found] == same[:2]


def test_two_builds_have_one_hash_wherever_they_lie(docs: Path, out: Path, tmp_path: Path):
    moved = tmp_path / "elsewhere" / "papers"
    shutil.copytree(docs, moved)
    again = build(moved, tmp_path / "elsewhere" / "second").manifest
    assert again.hash == read_manifest(out).hash
    assert {each.sha256 for each in again.files} == {each.sha256 for each in read_manifest(out).files}


def test_an_unchanged_file_is_not_read_again_and_the_result_is_that_of_a_new_build(docs: Path, out: Path):
    (docs / "returns.txt").write_text("No returns at all.")
    (docs / "deep" / "tea.md").unlink()
    (docs / "new.txt").write_text("A new file.")
    built = build(docs, out)
    assert (built.n_read, built.n_kept) == (2, 1)
    assert built.manifest.hash == build(docs, docs.parent / "fresh").manifest.hash
    names = {each.name for each in out.iterdir() if not each.name.startswith(".")}
    assert names == {"index.json", *(each.path for each in built.manifest.files)}


def test_an_update_without_a_change_computes_no_file_again(docs: Path, out: Path, monkeypatch):
    before = build(docs, out).manifest
    with monkeypatch.context() as patched:
        patched.setattr(building, "_write_files", lambda *_: pytest.fail("written again"))
        again = build(docs, out)
    assert again.manifest == before and (again.n_read, again.n_embedded) == (0, 0)
    PassageIndex.open(out)
    (docs / next(each.path for each in before.sources)).unlink()
    assert build(docs, out).manifest.hash != before.hash


def test_the_files_of_a_killed_update_are_removed_also_without_a_change(docs: Path, out: Path):
    build(docs, out)
    (out / "chunks-0123456789ab.jsonl").write_text("{}")
    (out / "bm25-data-new.npy").write_text("")
    manifest = build(docs, out).manifest
    names = {each.name for each in out.iterdir() if not each.name.startswith(".")}
    assert names == {"index.json", *(each.path for each in manifest.files)}


def test_other_settings_read_everything_again(docs: Path, out: Path):
    assert build(docs, out, words=50).n_read == 3
    assert build(docs, out).manifest.settings.words == 50  # an update keeps the settings


def test_an_update_leaves_the_old_index_whole_when_it_fails(docs: Path, out: Path, monkeypatch):
    before = read_manifest(out)
    (docs / "returns.txt").write_text("Changed.")

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(building, "write_manifest", fail)
    with pytest.raises(KeyboardInterrupt):
        build(docs, out)
    index = PassageIndex.open(out, may_be_stale=True)
    assert index.hash == before.hash
    monkeypatch.undo()
    assert build(docs, out).manifest.hash != before.hash


def test_what_cannot_be_read_is_counted_and_not_parsed_twice(docs: Path, out: Path):
    (docs / "bad.txt").write_bytes(b"a\0b")
    (docs / "bad.exe").write_bytes(b"x")
    for _ in range(2):
        left = {each.path: each.reason for each in build(docs, out).manifest.left_out}
        assert left == {"bad.txt": "binary", "bad.exe": "unsupported"}
    PassageIndex.open(out)  # not stale: what was left out is unchanged
    (docs / "bad.txt").write_bytes(b"now text")
    with raises(Refused, "refused", ["bad.txt"]):
        PassageIndex.open(out)


@pytest.mark.parametrize("change", ["edit", "add", "remove"])
def test_a_stale_index_is_refused_with_the_command_that_updates_it(docs: Path, out: Path, change: str):
    if change == "remove":
        (docs / "returns.txt").unlink()
    else:
        (docs / ("returns.txt" if change == "edit" else "more.txt")).write_text("Other words.")
    with raises(Refused, "refused", [docs, out, "heredity index"]):
        PassageIndex.open(out)
    PassageIndex.open(out, may_be_stale=True)
    build(docs, out)
    PassageIndex.open(out)


@pytest.fixture
def walked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, Limits]]:
    """The folders that are walked, with their limits."""
    found, walk = list[tuple[Path, Limits]](), searching.walk

    def noted(folder: Path, out: Path, limits: Limits) -> object:
        found.append((folder, limits))
        return walk(folder, out, limits)

    monkeypatch.setattr(searching, "walk", noted)
    return found


@pytest.mark.parametrize("is_link", [False, True])
def test_an_index_of_somebody_else_chooses_no_folder(
    docs: Path, out: Path, tmp_path: Path, walked: list[tuple[Path, Limits]], is_link: bool
) -> None:
    store, theirs = Store(tmp_path / "store"), tmp_path / "theirs"
    place = str(docs)
    if is_link:
        theirs.mkdir()
        (theirs / "docs").symlink_to(docs)
        place = "../docs"
    build(docs, theirs / "index", store=Store(tmp_path / "their-store"))
    manifest = msgspec.structs.replace(read_manifest(theirs / "index"), folder=place, max_bytes=1 << 62)
    write_manifest(theirs / "index", manifest)
    (docs / "returns.txt").write_text("Changed.")
    index = PassageIndex.open(theirs / "index", store)
    assert index.search("parcel") and not walked
    with raises(UsageError, "bad-usage", ["FOLDER"]):
        index.check_method("dense")


def test_an_index_of_this_store_is_compared_with_documents_elsewhere(
    docs: Path, out: Path, tmp_path: Path, walked: list[tuple[Path, Limits]]
) -> None:
    store, out, large = Store(tmp_path / "store"), tmp_path / "far" / "index", Limits(60_000_000)
    build(docs, out, store=store, limits=large)
    PassageIndex.open(out, store)
    assert walked == [(docs, large)]
    (docs / "returns.txt").write_text("Changed.")
    with raises(Refused, "refused", [docs]):
        PassageIndex.open(out, store)


def test_an_index_next_to_its_documents_never_raises_the_limit(
    docs: Path, out: Path, tmp_path: Path, walked: list[tuple[Path, Limits]]
) -> None:
    for given, limit in ((1 << 62, Limits().max_bytes), (9_999, 9_999)):
        write_manifest(out, msgspec.structs.replace(read_manifest(out), max_bytes=given))
        PassageIndex.open(out, Store(tmp_path / "store"))
        assert walked.pop() == (docs, Limits(limit))


def test_an_index_without_its_documents_is_opened(docs: Path, out: Path):
    shutil.rmtree(docs)
    assert PassageIndex.open(out).search("parcel")


def test_an_index_with_one_changed_byte_is_refused(out: Path):
    for each in sorted(out.iterdir()):
        if each.name.startswith("."):
            continue
        data = each.read_bytes()
        each.write_bytes(bytes([*data[:-2], data[-2] ^ 1, data[-1]]))
        with raises(Damaged, "damaged", [out]):
            PassageIndex.open(out)
        each.unlink()
        with pytest.raises((Damaged, UsageError)):
            PassageIndex.open(out)
        each.write_bytes(data)
    PassageIndex.open(out)


def test_an_edited_manifest_is_refused(out: Path):
    path = out / "index.json"
    path.write_text(path.read_text().replace("returns.txt", "retains.txt"))
    with raises(Damaged, "damaged"):
        PassageIndex.open(out)


def test_a_damaged_index_is_built_again_from_the_start(docs: Path, out: Path):
    chunks = next(out.glob("chunks-*"))
    chunks.write_bytes(chunks.read_bytes()[:-5])
    assert build(docs, out).n_read == 3
    PassageIndex.open(out)


def test_an_array_with_pickled_objects_is_refused(out: Path):
    manifest = read_manifest(out)
    path = manifest.file(out, "bm25-data")
    assert path is not None
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    from heredity.core.files import hash_file
    from heredity.core.records import FileHash

    files = tuple(
        FileHash(each.path, path.stat().st_size, hash_file(path)) if each.path == path.name else each
        for each in manifest.files
    )
    write_manifest(out, msgspec.structs.replace(manifest, files=files))
    with raises(Damaged, "damaged"):
        PassageIndex.open(out)


def test_another_schema_is_refused(out: Path):
    path = out / "index.json"
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 99'))
    with raises(NotComparable, "schema-mismatch", ["99"]):
        PassageIndex.open(out)


def test_a_folder_of_something_else_is_never_written_into(docs: Path, tmp_path: Path):
    other = tmp_path / "photos"
    other.mkdir()
    (other / "cat.jpg").write_text("x")
    with raises(UsageError, "bad-usage", ["cat.jpg"]):
        build(docs, other)
    assert [each.name for each in other.iterdir()] == ["cat.jpg"]
    with raises(UsageError, "bad-usage"):
        build(docs, other / "cat.jpg")


def test_an_index_is_not_indexed(out: Path):
    with raises(UsageError, "bad-usage", ["--ask"]):
        build(out, out.parent / "second")


def test_a_folder_without_a_document_is_refused(tmp_path: Path):
    (tmp_path / "docs").mkdir()
    with raises(BadInput, "bad-input"):
        build(tmp_path / "docs", tmp_path / "index")


def test_a_method_without_its_embeddings_is_refused_with_the_command(out: Path):
    index = PassageIndex.open(out)
    with raises(UsageError, "bad-usage", ["--embed"]):
        index.search("tea", method="hybrid")
    with raises(UnknownName, "unknown-name", ["dense"]):
        index.search("tea", method="dens")
    with raises(UsageError, "bad-usage"):
        PassageIndex.open(out.parent)


def test_an_index_of_another_hash_is_refused(docs: Path, out: Path):
    wanted = read_manifest(out).hash
    assert opened(out, wanted).hash == wanted
    with raises(NotComparable, "not-comparable"):
        opened(out, "0" * 32)


def test_terms_are_folded_words_and_pairs_of_ideographs():
    assert terms("Größe GRÖSSE ﬁne, e-mail") == ["grösse", "grösse", "fine", "e", "mail"]
    assert terms("日本語 と x") == ["日本", "本語", "と", "x"]


def test_a_plural_and_its_singular_are_one_term():
    assert terms("pumps policies classes status analysis gas") == [
        "pump", "policy", "classe", "status", "analysis", "gas",
    ]  # fmt: skip


def test_function_words_of_a_question_count_only_if_there_are_no_others():
    index = Bm25.from_texts(["what does it do", "the noise of pumps"])
    assert index.scores("what does the noise do").argmax() == 1
    assert index.scores("what does it do").argmax() == 0


def test_an_index_of_other_terms_is_refused_and_built_again(docs: Path, out: Path):
    manifest = read_manifest(out)
    other = msgspec.structs.replace(manifest.settings, terms=0)
    write_manifest(out, msgspec.structs.replace(manifest, settings=other))
    with raises(NotComparable, "not-comparable", ["heredity index"]):
        PassageIndex.open(out)
    assert build(docs, out).n_read == 3
    PassageIndex.open(out)


def test_scores_are_those_of_the_formula():
    texts = ["heat pump heat", "tea", "heat tea tea cup"]
    found = Bm25.from_texts(texts).scores("heat")
    n, df, mean = 3, 2, sum(len(each.split()) for each in texts) / 3
    idf = np.log(1 + (n - df + 0.5) / (df + 0.5))
    for text, score in zip(texts, found, strict=True):
        tf = text.split().count("heat")
        wanted = idf * tf / (tf + 1.5 * (1 - 0.75 + 0.75 * len(text.split()) / mean))
        assert score == pytest.approx(wanted, rel=1e-5)


def test_of_a_long_question_the_beginning_is_searched_for() -> None:
    texts = ["heat of pumps", "noise of pumps"]
    index, counts = Bm25.from_texts(texts), TermCounts.from_texts(texts)
    question = "heat " * (LONGEST // 5)
    assert len(question) == LONGEST
    assert index.scores(f"{question}noise").tolist() == index.scores(question).tolist()
    assert counts.scores(f"{question}noise", []).tolist() == counts.scores(question, []).tolist()
