"""Check the English of the documents, docstrings and help texts.

    python tools/prose.py                                 # the whole project: `make prose`
    python tools/prose.py src/heredity/train docs/x.md    # a part of it
    python tools/prose.py --counts                        # only the table
    python tools/prose.py --all src/heredity              # also comments and messages, for banned words

The rules:

    words      a sentence has at most 25 words
    numbers    a sentence has at most two numbers
    line       a line has at most 120 characters in Markdown and 110 in code
    banned     no word or phrase of banned_words.txt is used

README, CONTRIBUTING, SECURITY, the newest section of CHANGELOG and every page of docs are checked. In an HTML
template the paragraphs, headings and list items are, with inserted values as one word. In code, including
bench and examples:

- every docstring
- every string passed as `help`, `short_help` or `epilog`
- the text given with a field's default
- each sentence in a dictionary at the top of a module

Code blocks, doctests and link targets are not prose. In a table, only banned words are looked for. Inline
code counts as one word and no number. It is never banned: write an old name as code if you must mention it.
A list item is a sentence of its own. A range (7-39) is one number. Years, versions, arXiv ids and names with
digits (4-bit, Q4_K_M) are not numbers. In `docs/benchmarks.md` and `docs/results/` a sentence may
have any number of numbers.

Exit 0: no finding. 1: at least one. 2: a path does not exist.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
BANNED = Path(__file__).with_name("banned_words.txt")
DEFAULT = (
    "README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "docs", "src/heredity", "bench", "examples"
)  # fmt: skip
RULES = ("words", "numbers", "line", "banned")
MAX_WORDS, MAX_NUMBERS = 25, 2
MAX_LINE = {".md": 120, ".py": 110}
_TEMPLATE = ".jinja"
MANY_NUMBERS = ("docs/benchmarks.md", "docs/results/")  # pages whose subject is figures

_HELP = ("help", "short_help", "epilog")


@dataclass(frozen=True, slots=True)
class Block:
    """A run of prose: a paragraph, a heading, a list item, a table row, a comment."""

    line: int
    text: str  # inline markup already replaced
    is_sentence: bool = True  # False: only banned words are looked for
    is_one_line: bool = False  # every sentence is reported at `line`

    def line_at(self, offset: int) -> int:
        """The line of a character of the text."""
        return self.line if self.is_one_line else self.line + self.text.count("\n", 0, offset)


class Finding(NamedTuple):
    """One breach of a rule."""

    path: str
    line: int
    rule: str
    detail: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.rule} {self.detail}: {self.text}"


class Banned(NamedTuple):
    """A phrase that is not used, and what to write instead."""

    pattern: re.Pattern[str]
    instead: str


# --- inline markup ----------------------------------------------------------------------------------

_INLINE = re.compile(
    r"(?P<code>(?P<ticks>`+)(?!`).+?(?<!`)(?P=ticks)(?!`))"
    r"|(?P<image>!\[[^\]]*\]\([^)]*\))"
    r"|\[(?P<link>[^\]]*)\]\([^)\s]*(?:\s+\"[^\"]*\")?\)"
    r"|(?P<url><?\b(?:https?|ftp|mailto):[^\s>)\]]+>?)"
    r"|(?P<tag></?[a-zA-Z][^<>\n]*>)",
    re.DOTALL,
)
_EMPHASIS = re.compile(r"\*+|(?<![\w])_+(?=\w)|(?<=\w)_+(?![\w])|\{[a-z:]+\}(?=CODE)")


def plain(text: str) -> str:
    """The text without inline markup; inline code and addresses become one word. Line ends are kept."""

    def replaced(match: re.Match[str]) -> str:
        kept = "\n" * match[0].count("\n")
        if match["link"] is not None:
            return _INLINE.sub(replaced, match["link"])
        return ("CODE" if match["code"] else "URL" if match["url"] else "") + kept

    return _EMPHASIS.sub("", _INLINE.sub(replaced, text))


# --- blocks -----------------------------------------------------------------------------------------

_FENCE = re.compile(r"\s*(`{3,}|~{3,}|:{3,})\s*(\S*)")
_PROSE_FENCE = re.compile(
    r"\{(note|warning|tip|important|admonition|seealso|hint|caution|danger|attention|dropdown)\}"
)
_ITEM = re.compile(r"(\s*)([-*+]|\d{1,3}[.)])(\s+)(?=\S)")
_TABLE = re.compile(r"\s*\|")
_RULER = re.compile(r"\s*([-=*_])\1{2,}\s*$")
_DEFINITION = re.compile(r"\s*\[[^\]]+\]:\s")
_LABEL = re.compile(
    r"\s*(Promises|Leaves to others|Raises|Returns|Yields|Args|Arguments|Parameters|Attributes|Sources?|"
    r"Examples?|Notes?|See also|Shapes?|Units?|Errors):"
)
_ROW = re.compile(r"(\s*)(\S+(?: \S+)?)(?<![.!?:])(\s{2,})(?=\S)")  # term, two spaces or more, what it is
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)


class _Reader:
    """Splits the lines of a document, or of a docstring, into blocks."""

    def __init__(self, first_line: int, is_docstring: bool) -> None:
        self.first_line, self.is_docstring = first_line, is_docstring
        self.open: list[str] = []  # lines of the block that is being read
        self.start = 0
        self.indent = 0  # where the text of the current list item begins
        self.term = -1  # where the term of the current row begins; -1: not a row
        self.fence = ""  # what closes the code block
        self.notes: list[str] = []  # what closes the notes that are open
        self.is_skipping = False  # until the next blank line

    def read(self, text: str) -> Iterator[Block]:
        lines = _COMMENT.sub(lambda match: "\n" * match[0].count("\n"), text).split("\n")
        for number, line in enumerate(lines, self.first_line):
            yield from self._line(number, line)
        yield from self._close()

    def _line(self, number: int, line: str) -> Iterator[Block]:
        if self.fence:
            self.fence = "" if line.strip() == self.fence else self.fence
        elif not line.strip():
            self.is_skipping = False
            yield from self._close()
        elif self.is_skipping:
            return
        elif self._starts_code(line):
            yield from self._close()
        elif not self.is_docstring and _TABLE.match(line):
            yield from self._close()
            yield Block(number, plain(line), is_sentence=False)
        elif not self.is_docstring and (line.startswith("#") or _DEFINITION.match(line)):
            yield from self._close()
            if line.startswith("#"):
                yield Block(number, plain(line.lstrip("# ")))
        elif _RULER.match(line):
            yield from self._close()
        else:
            yield from self._prose(number, line)

    def _starts_code(self, line: str) -> bool:
        """Whether this line is code, or opens a block of it."""
        if fence := _FENCE.match(line):
            self._open_fence(fence[1], fence[2])
            return True
        if line.strip().startswith((">>>", "\b")):
            self.is_skipping = True
            return True
        indent = len(line) - len(line.lstrip())
        if indent < self.indent:
            self.indent = 0
        return not self.open and indent - self.indent >= 4 and not _ITEM.match(line)

    def _open_fence(self, marker: str, directive: str) -> None:
        """A fence opens code, except around a note, whose two lines are markup and whose text is prose."""
        if _PROSE_FENCE.match(directive):
            self.notes.append(marker)
        elif marker in self.notes and not directive:
            self.notes.remove(marker)
        elif not marker.startswith(":"):
            self.fence = marker

    def _prose(self, number: int, line: str) -> Iterator[Block]:
        indent = len(line) - len(line.lstrip())
        item = _ITEM.match(line)
        row = _ROW.match(line) if self.is_docstring and (not self.open or indent == self.term) else None
        if item or row or (self.is_docstring and _LABEL.match(line)):
            yield from self._close()
        if match := item or row:
            self.indent = match.end()
            line = line[match.end() :]
        if not self.open:
            self.start, self.term = number, indent if row and not item else -1
        self.open.append(line.strip().removeprefix("> "))

    def _close(self) -> Iterator[Block]:
        if self.open:
            yield Block(self.start, plain("\n".join(self.open)))
        self.open = []


def read_markdown(text: str) -> Iterator[Block]:
    """Every block of a Markdown document."""
    return _Reader(1, is_docstring=False).read(text)


def read_docstring(text: str, line: int) -> Iterator[Block]:
    """Every block of a docstring that begins at `line`."""
    first, *rest = text.split("\n")
    margin = min((len(each) - len(each.lstrip()) for each in rest if each.strip()), default=0)
    return _Reader(line, is_docstring=True).read(
        "\n".join([first.strip(), *(each[margin:] for each in rest)])
    )


_ELEMENT = re.compile(r"<(p|h[1-6]|li|figcaption)\b[^>]*>(.*?)</\1>", re.DOTALL)
_INSERTED, _STATEMENT, _TAG = re.compile(r"{{.*?}}"), re.compile(r"{%.*?%}"), re.compile(r"</?[a-z][^>]*>")


def read_template(text: str) -> Iterator[Block]:
    """The paragraphs, headings and list items of an HTML template. Both sides of a condition are text."""
    for match in _ELEMENT.finditer(text):
        words = _TAG.sub(" ", _STATEMENT.sub(" ", _INSERTED.sub("CODE", match[2])))
        yield Block(text.count("\n", 0, match.start()) + 1, " ".join(words.split()), is_one_line=True)


def read_python(source: str, is_all: bool = False) -> Iterator[Block]:
    """Docstrings and help texts; `is_all`: comments and messages too, for banned words."""
    seen: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            seen.add(id(node.value))
            yield from read_docstring(node.value.value, node.lineno)
        for each in _help_of(node):
            text = literal(each)
            if text and id(each) not in seen:
                seen.update(id(part) for part in ast.walk(each))
                yield from _one_line(read_docstring(text, each.lineno))
    if is_all:
        yield from _messages(ast.parse(source))
        yield from _comments(source)


def _one_line(blocks: Iterable[Block]) -> Iterator[Block]:
    """A text that its source breaks elsewhere than its line ends: reported where it begins."""
    start = 0
    for block in blocks:
        start = start or block.line
        yield Block(start, block.text, block.is_sentence, is_one_line=True)


def literal(node: ast.AST) -> str | None:
    """A string as far as it is written down; what an f-string inserts is one word."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(literal(part) or "CODE" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = literal(node.left), literal(node.right)
        return None if left is None and right is None else (left or "CODE") + (right or "CODE")
    return None


def _is_sentence(text: str | None) -> bool:
    return text is not None and text.endswith(".") and len(text.split()) > 2


def _help_of(node: ast.AST) -> Iterator[ast.AST]:
    """The help texts of a call, the text given with a field's default, the sentences of a module's table."""
    if isinstance(node, ast.Call):
        yield from (keyword.value for keyword in node.keywords if keyword.arg in _HELP)
    if isinstance(node, ast.Module):
        tables = (each.value for each in node.body if isinstance(each, ast.Assign | ast.AnnAssign))
        for table in tables:
            if isinstance(table, ast.Dict):
                yield from (each for each in ast.walk(table) if _is_sentence(literal(each)))
    if isinstance(node, ast.ClassDef):
        for statement in node.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.value, ast.Call):
                yield from (each for each in statement.value.args[1:] if literal(each))


def _messages(tree: ast.AST) -> Iterator[Block]:
    inside: set[int] = set()  # parts of an f-string are read with it, docstrings are read elsewhere
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            inside.add(id(node.value))
        if isinstance(node, ast.JoinedStr):
            inside.update(id(part) for part in node.values)
        if isinstance(node, ast.Constant | ast.JoinedStr) and id(node) not in inside:
            text = literal(node)
            if text and len(text.split()) > 3:
                yield Block(node.lineno, plain(text), is_sentence=False, is_one_line=True)


def _comments(source: str) -> Iterator[Block]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield Block(token.start[0], plain(token.string.lstrip("# ")), is_sentence=False)


# --- sentences --------------------------------------------------------------------------------------

_END = re.compile(r"[.!?]+([\"')\]”’]*)(?=\s|$)")
_ABBREVIATIONS = {
    *("e.g", "i.e", "et", "al", "cf", "vs", "etc", "approx", "resp", "ca", "incl", "excl", "viz", "est"),
    *("fig", "figs", "no", "nos", "sec", "secs", "eq", "eqs", "p", "pp", "ed", "eds", "ch", "chap", "vol"),
    *("dr", "mr", "ms", "prof", "st", "max", "min", "avg"),
}
_LAST = re.compile(r"[\w.]*$")


def split_sentences(text: str) -> Iterator[tuple[int, str]]:
    """Offset and text of each sentence."""
    start = 0
    for match in _END.finditer(text):
        if not _ends(text, match):
            continue
        yield from _sentence(text, start, match.end())
        start = match.end()
    yield from _sentence(text, start, len(text))


def _sentence(text: str, start: int, end: int) -> Iterator[tuple[int, str]]:
    part = text[start:end]
    if part.strip():
        yield start + len(part) - len(part.lstrip()), " ".join(part.split())


def _ends(text: str, match: re.Match[str]) -> bool:
    following = text[match.end() :].lstrip()[:1]
    if following.islower() and (match[1] or match[0].startswith("...")):
        return False  # "I cannot." is a refusal; a trailing ... in the middle
    if not match[0].startswith(".") or match[0].startswith(".."):
        return True
    last = _LAST.search(text[: match.start()])
    word = last[0] if last else ""
    is_initial = len(word) == 1 and word.isupper() and following.isupper()
    return word.lower() not in _ABBREVIATIONS and not is_initial


def count_words(sentence: str) -> int:
    """Count words; a sign between spaces, such as × or -, does not count."""
    return sum(bool(re.search(r"\w", each)) for each in re.split(r"[\s—]+", sentence))


_NUMBER = re.compile(
    r"[~≈<>≤≥=±+$€-]*\d[\d,._']*(?:e[+-]?\d+)?(?:[-–]\d[\d,.]*)?"
    r"(?:%|x|×|k|K|M|B|T|s|ms|µs|ns|h|min|[KMGT]i?B|kB|pt|pp)?(?:/s)?"
)
_YEAR = re.compile(r"(?:19|20)\d\d")
_NAMES = re.compile(r"\d{4}\.\d{4,5}(v\d+)?|\d+\.\d+\.\d+.*|#\d+")  # arXiv ids, versions, issues
_NAMED = {  # a number after one of these is a name
    *(
        "python",
        "pep",
        "rfc",
        "iso",
        "version",
        "versions",
        "schema",
        "edition",
        "http",
        "port",
        "status",
        "code",
    ),
    *(
        "section",
        "sections",
        "step",
        "steps",
        "chapter",
        "appendix",
        "figure",
        "table",
        "equation",
        "eq",
        "line",
    ),
    *("issue", "format", "level", "class", "type", "part", "v"),
}


def count_numbers(sentence: str) -> int:
    """Numbers that a reader must hold; a range is one, a year, a version or a name none."""
    found, before = 0, ""
    for token in sentence.split():
        word = token.strip("()[]{}\"'“”‘’.,;:!?*")
        is_number = _NUMBER.fullmatch(word) and not _YEAR.fullmatch(word) and not _NAMES.fullmatch(word)
        found += bool(is_number) and before not in _NAMED
        before = word.lower()
    return found


# --- rules ------------------------------------------------------------------------------------------


def parse_banned(text: str) -> list[Banned]:
    """Read lines of `phrase => what to write`. `*` is any letters; `re:` begins a regular expression."""
    entries = []
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            phrase, arrow, instead = line.partition("=>")
            if not arrow or not phrase.strip() or not instead.strip():
                raise ValueError(f"not 'phrase => what to write': {line}")
            entries.append(Banned(_pattern(phrase.strip()), instead.strip()))
    return entries


def _pattern(phrase: str) -> re.Pattern[str]:
    if phrase.startswith("re:"):
        return re.compile(phrase.removeprefix("re:").strip(), re.IGNORECASE)
    words = r"\s+".join(re.escape(word).replace(r"\*", r"\w*") for word in phrase.split())
    return re.compile(rf"(?<![\w-]){words}(?![\w-])", re.IGNORECASE)


@cache
def banned() -> list[Banned]:
    """The list of the project."""
    return parse_banned(BANNED.read_text(encoding="utf-8"))


def check_blocks(path: str, blocks: Iterable[Block], entries: list[Banned]) -> Iterator[Finding]:
    """Sentences that are too long, hold too many numbers, or use a banned word."""
    for block in blocks:
        for offset, sentence in split_sentences(block.text):
            line = block.line_at(offset)
            if block.is_sentence:
                yield from _check_sentence(path, line, sentence)
            for entry in entries:
                for match in entry.pattern.finditer(sentence):
                    yield Finding(path, line, "banned", f'"{match[0]}" (write: {entry.instead})', sentence)


def _check_sentence(path: str, line: int, sentence: str) -> Iterator[Finding]:
    if (n_words := count_words(sentence)) > MAX_WORDS:
        yield Finding(path, line, "words", str(n_words), sentence)
    has_figures = any(part in path for part in MANY_NUMBERS)
    if not has_figures and (n_numbers := count_numbers(sentence)) > MAX_NUMBERS:
        yield Finding(path, line, "numbers", str(n_numbers), sentence)


def check_lines(path: str, text: str, limit: int) -> Iterator[Finding]:
    """Lines that are too long and could be broken: not a table row, not one that ends in an address.

    As in ruff, a `# noqa` at the end of a line does not count.
    """
    for number, line in enumerate(map(_without_pragma, text.split("\n")), 1):
        if len(line) > limit and not _is_unbreakable(line, limit):
            yield Finding(path, number, "line", str(len(line)), line.strip()[:limit] + " ...")


def _without_pragma(line: str) -> str:
    return re.sub(r"\s*# noqa(?:: [A-Z]+\d+(?:, ?[A-Z]+\d+)*)?$", "", line)


def _is_unbreakable(line: str, limit: int) -> bool:
    last = line.rstrip().rpartition(" ")[2]
    is_address = "://" in last or "](" in last
    return line.lstrip().startswith("|") or (is_address and len(line.rstrip()) - len(last) <= limit)


GENERATED = "<!-- Written by "
RECORDS = re.compile(r"^<!-- records: .*?^<!-- end -->", re.MULTILINE | re.DOTALL)


def newest_section(text: str) -> str:
    """A changelog down to the end of its newest section; the rest becomes no text."""
    heads = [match.start() for match in re.finditer(r"^## ", text, re.MULTILINE)]
    return text[: heads[1]] if len(heads) > 1 else text


def check_file(path: Path, shown: str, is_all: bool = False) -> list[Finding]:
    """Every finding of a file, by line."""
    text = path.read_text(encoding="utf-8")
    if text.startswith(GENERATED):  # its sentences are checked where they are written
        return []
    if path.name == "CHANGELOG.md":
        text = newest_section(text)
    if path.suffix == _TEMPLATE:
        return sorted(set(check_blocks(shown, read_template(text), banned())), key=lambda each: each.line)
    text = RECORDS.sub(lambda match: re.sub(r"[^\n]", "", match[0]), text)  # likewise
    blocks = read_markdown(text) if path.suffix == ".md" else read_python(text, is_all)
    found = [*check_blocks(shown, blocks, banned()), *check_lines(shown, text, MAX_LINE[path.suffix])]
    return sorted(set(found), key=lambda each: (each.line, RULES.index(each.rule), each.detail))


# --- the command ------------------------------------------------------------------------------------


def files_of(path: Path) -> list[Path]:
    """The documents and modules beneath a path."""
    if path.is_file():
        return [path] if path.suffix in (*MAX_LINE, _TEMPLATE) else []
    found = (each for suffix in (*MAX_LINE, _TEMPLATE) for each in path.rglob(f"*{suffix}"))
    return sorted(each for each in found if "__pycache__" not in each.parts)


def shown_path(path: Path) -> str:
    """Show a path relative to the root of the repository, or absolute if it is outside."""
    path = path.resolve()
    return (path.relative_to(ROOT) if path.is_relative_to(ROOT) else path).as_posix()


def package_of(path: str) -> str:
    """The row of the table in which a file counts."""
    parts = path.split("/")
    if parts[:2] == ["src", "heredity"]:
        return f"src/heredity/{parts[2]}" if len(parts) > 3 else "src/heredity"
    return "/".join(parts[:-1]) or path


def table(findings: Iterable[Finding], files: Iterable[str]) -> Iterator[str]:
    """Counts by package and rule."""
    counts = Counter((package_of(each.path), each.rule) for each in findings)
    packages = sorted({package_of(path) for path in files})
    width = max([len(package) for package in packages] + [len("total")])
    yield f"{'':{width}}" + "".join(f"{rule:>9}" for rule in (*RULES, "total"))
    for package in packages:
        row = [counts[package, rule] for rule in RULES]
        yield f"{package:{width}}" + "".join(f"{n:9,}" for n in (*row, sum(row)))
    totals = [sum(counts[package, rule] for package in packages) for rule in RULES]
    yield f"{'total':{width}}" + "".join(f"{n:9,}" for n in (*totals, sum(totals)))


def main(arguments: list[str] | None = None) -> int:
    """Print each finding and the table of counts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("paths", nargs="*", help="files or folders (default: the whole project)")
    parser.add_argument("--counts", action="store_true", help="print the table only")
    parser.add_argument("--all", action="store_true", help="check comments and messages for banned words too")
    given = parser.parse_args(arguments)
    paths = [Path(each) for each in given.paths] or [ROOT / each for each in DEFAULT]
    if missing := [str(each) for each in paths if not each.exists()]:
        print(f"no such file or folder: {', '.join(missing)}", file=sys.stderr)
        return 2
    files = {shown_path(each): each for path in paths for each in files_of(path)}
    findings = [each for shown, path in files.items() for each in check_file(path, shown, given.all)]
    if not given.counts:
        print("\n".join(map(str, findings)))
    print("\n".join(table(findings, files)))
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
