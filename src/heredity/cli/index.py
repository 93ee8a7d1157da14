"""`heredity index`: make documents searchable for an application, and try a search."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from heredity.cli import Name, PathArgument, Verb, open_store, shown_work

if TYPE_CHECKING:
    from heredity.application.retrieval.build import Built
    from heredity.application.retrieval.documents import Match
    from heredity.application.retrieval.index import IndexManifest, PassageIndex
    from heredity.application.retrieval.models import Reranking

_SHOWN = 20  # files left out that are printed; all are in index.json


@click.command("index", cls=Verb, example="heredity index manuals --embed all-minilm-l6-v2")
@click.argument("folder", metavar="FOLDER", type=PathArgument())
@click.option(
    "--out", type=PathArgument(), metavar="DIR", help="Write the index here.  [default: NAME.index]"
)
@click.option("--embed", type=Name(), metavar="MODEL", help="Also embed each passage with this model.")
@click.option("--words", type=click.IntRange(20, 2000), help="Maximum words per passage.  [default: 160]")
@click.option("--max-bytes", type=click.IntRange(1), help="Leave out larger files.  [default: 50000000]")
@click.option("--ask", type=Name(), metavar="TEXT", help="Search: FOLDER is an index.")
@click.option("--passages", type=click.IntRange(1), default=4, show_default=True, help="Of a search.")
@click.option("--method", type=Name(), help="Of a search: bm25, dense or hybrid.  [default: the best there]")
@click.option("--rerank", type=Name(), metavar="MODEL", help="Of a search: a cross-encoder orders it again.")
@click.option(
    "--candidates", type=click.IntRange(1), default=50, show_default=True, help="Passages it reads."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    folder: Path, out: Path | None, embed: str | None, words: int | None, max_bytes: int | None,
    ask: str | None, passages: int, method: str | None, rerank: str | None, candidates: int, as_json: bool,
) -> None:  # fmt: skip
    """Index a folder of documents for retrieval, or search an index.

    Text, Markdown, HTML, PDF and DOCX are read. A file that cannot be read is named and left out, with the
    reason. Links are not followed, and hidden files are left out. The same command updates an index: only
    files that changed are read again. Without --embed or --words an update keeps the index's own.

    With --ask, FOLDER is an index; the passages found are shown with their file and lines, or page.
    """
    from heredity.application.retrieval.build import build
    from heredity.application.retrieval.documents import Limits
    from heredity.core import terminal

    if ask is not None:
        _search(folder, ask, passages, method, (rerank, candidates), as_json)
        return
    out = out or Path(f"{folder.resolve().name}.index")
    limits = Limits() if max_bytes is None else Limits(max_bytes)
    store = open_store()
    with shown_work(store, "reading the folder") as display:
        built = build(folder, out, embed=embed, words=words, limits=limits, store=store, watch=display)
    if as_json:
        manifest = built.manifest
        left_out = [
            {"path": each.path, "reason": each.reason, "detail": each.detail} for each in manifest.left_out
        ]
        terminal.write_json({
            "index": str(out), "hash": manifest.hash, "n_documents": len(manifest.sources),
            "n_passages": manifest.n_chunks, "n_read": built.n_read, "n_kept": built.n_kept,
            "n_embedded": built.n_embedded, "left_out": left_out,
        })  # fmt: skip
    else:
        _show_built(built, out)


def _search(
    folder: Path, ask: str, passages: int, method: str | None, rerank: tuple[str | None, int], as_json: bool
) -> None:
    from heredity.application.retrieval.index import PassageIndex

    store = open_store()
    with shown_work(store, "searching"):  # the models of a search may load for seconds
        index = PassageIndex.open(folder, store)
        method, reranking, (name, candidates) = index.check_method(method or index.usual_method), None, rerank
        if name is not None:
            from heredity.application.retrieval.models import Reranker, Reranking, find_reranker

            reranking = Reranking(Reranker(find_reranker(name, store=store)), candidates)
        matches = index.search(ask, passages, method, reranking)
    _show_found(index, matches, method, reranking, as_json)


def _show_found(
    index: PassageIndex, matches: list[Match], method: str, reranking: Reranking | None, as_json: bool
) -> None:
    from heredity.core import terminal
    from heredity.core.sanitize import plain

    if as_json:
        rows = [
            {"citation": each.chunk.citation, "score": each.score, "chunk": each.chunk} for each in matches
        ]
        shown = {"index": index.hash, "method": method, "passages": rows}
        if reranking is not None:
            shown["rerank"] = reranking.reranker.model.id
        terminal.write_json(shown)
        return
    how = method if reranking is None else f"{method}, {reranking.reranker.model.name}"
    for number, (chunk, score) in enumerate(matches, 1):
        terminal.out().print(terminal.cell(f"{number}. {chunk.citation}", "bold"), soft_wrap=True)
        if chunk.heading:
            terminal.write(plain(f"   {chunk.heading}"))
        terminal.write(plain(chunk.text, lines=True) + "\n")
        terminal.note(f"({how} {score:.4g})")
    if not matches:
        terminal.note(f"No passage matches, of {index.manifest.n_chunks:,} (method {method}).")


def _show_built(built: Built, out: Path) -> None:
    from heredity.core import terminal
    from heredity.core.sanitize import plain, plural

    manifest = built.manifest
    terminal.out().print(_documents(manifest))
    if manifest.left_out:
        terminal.write("")
        terminal.out().print(_left_out(manifest))
        if (n_more := len(manifest.left_out) - _SHOWN) > 0:
            terminal.write(plain(f"and {n_more:,} more: {out}/index.json"))
        terminal.write("")
        n_left = len(manifest.left_out)
        were = "file or folder was" if n_left == 1 else "files or folders were"
        terminal.warn(f"{n_left:,} {were} left out.")
    terminal.note(
        f"{plural(built.n_read, 'document')} read, {built.n_kept:,} unchanged, "
        f"{plural(built.n_embedded, 'passage')} embedded"
    )
    terminal.write(plain(f"{out}  {manifest.hash}"))


def _documents(manifest: IndexManifest) -> object:
    """The table of documents and passages by the ending of the file's name."""
    from collections import Counter

    from heredity.core import terminal

    n_files, n_bytes, n_chunks = Counter[str](), Counter[str](), Counter[str]()
    for each in manifest.sources:
        ending = Path(each.path).suffix.lower() or "(no ending)"
        n_files[ending] += 1
        n_bytes[ending] += each.bytes
        n_chunks[ending] += each.n_chunks
    grid = terminal.table(
        "read", "documents", "size", "passages", right=("documents", "size", "passages"), whole=("read",)
    )
    for ending, n in n_files.most_common():
        size = terminal.size(n_bytes[ending])
        grid.add_row(terminal.cell(ending), f"{n:,}", size, f"{n_chunks[ending]:,}")
    return grid


def _left_out(manifest: IndexManifest) -> object:
    """The table of files that were left out."""
    from heredity.application.retrieval.readers import REASONS
    from heredity.core import terminal

    grid = terminal.table("left out", "reason")
    for each in manifest.left_out[:_SHOWN]:
        detail = f" ({each.detail})" if each.detail else ""
        grid.add_row(terminal.cell(each.path), terminal.cell(REASONS[each.reason] + detail))
    return grid
