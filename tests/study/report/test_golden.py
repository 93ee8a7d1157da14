"""What every text format writes of one lineage, line by line, against its golden file.

HEREDITY_RENEW=1 writes the golden files again: read their diff before you commit it.
"""

from __future__ import annotations

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from heredity.cli import _findings
from heredity.lineage.graph import Edge
from heredity.study import aggregate
from heredity.study.report import write_report
from tests.support.report_studies import make, plan

GOLDEN = Path(__file__).with_name("golden")
FORMATS = {
    "csv": "csv",
    "html": "html.txt",
    "json": "json",
    "junit": "xml",
    "markdown": "md",
    "sarif": "sarif",
}


def lineage(folder: Path, n_probes: int) -> Path:
    """Three models: the second tuned from the first, the third distilled from both."""
    made = plan(3, n_probes=n_probes)
    first, second, third = (model.id for model in made.models)
    edges = (
        Edge(first, second, "lora"),
        Edge(first, third, "distill", "start"),
        Edge(second, third, "distill", "teacher"),
    )
    return make(folder, msgspec.structs.replace(made, edges=edges))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of trials enough for verdicts."""
    return lineage(tmp_path_factory.mktemp("golden") / "study", 12)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For the formats that have a row for each trial."""
    return lineage(tmp_path_factory.mktemp("golden") / "study", 1)


class Words(HTMLParser):
    """The words of a page, a line for each block; a cell of a table ends in a bar."""

    BLOCKS = frozenset("p h1 h2 h3 h4 tr li dt dd pre summary caption figcaption nav section svg div".split())  # noqa: SIM905

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.feed(re.sub(r"(?s)<style>.*?</style>", "", page))

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.words.append(
            "\n" if tag in self.BLOCKS else " " if tag in ("br", "b", "small", "span", "a") else ""
        )

    def handle_endtag(self, tag: str) -> None:
        self.words.append("\n" if tag in self.BLOCKS else " | " if tag in ("td", "th", "text") else "")

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def __str__(self) -> str:
        lines = (" ".join(line.split()) for line in "".join(self.words).splitlines())
        return "\n".join(filter(None, lines)) + "\n"


def check(name: str, text: str) -> None:
    golden = GOLDEN / name
    if os.environ.get("HEREDITY_RENEW"):
        golden.write_text(text, "utf-8")
    assert text == golden.read_text("utf-8")


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_writes_its_golden_file(name: str, study: Path, small: Path, tmp_path: Path) -> None:
    is_page = name in ("html", "markdown")
    path = write_report(study if is_page else small, name, tmp_path / "report", with_text=not is_page)
    text = path.read_text("utf-8").replace(str(small), "/study")
    if name == "html":
        text = str(Words(text))
    if name == "json":  # of each table the first row
        tables = {key: rows[:1] if isinstance(rows, list) else rows for key, rows in json.loads(text).items()}
        text = json.dumps(tables, indent=1) + "\n"
    check(f"report.{FORMATS[name]}", text)


def test_the_terminal_prints_its_golden_lines(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    read = aggregate.read_study(study)
    _findings.show(read.estimates, read.plan, Path("study"), is_full=True)
    check("terminal.txt", re.sub(" +\n", "\n", capsys.readouterr().out))
