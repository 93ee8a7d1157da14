"""Write docs/reference/cli.md and api.md, and the records of formats.md, from the code itself.

    python tools/reference.py            write them
    python tools/reference.py --check    exit 1 where a page is not what the code says

In formats.md a line `<!-- records: Plan findings/ -->` begins a list of these records and of all that they
hold, and `<!-- end -->` ends it. `findings/` is every record in a folder of that name. A record is described
once, by its docstring and its comments.

Promises: nothing else in these pages is written by hand; the same code gives the same bytes.
Leaves to others: the help texts (click), the docstrings, and the rest of formats.md.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import json
import re
import sys
import textwrap
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec

ROOT = Path(__file__).resolve().parents[1]
FOLDER, SOURCE = ROOT / "docs" / "reference", ROOT / "src" / "heredity"
PAGE = FOLDER / "formats.md"
NOTE = "<!-- Written by tools/reference.py. Change help texts or docstrings, then run `make reference`. -->\n"
SHARED = 3  # verbs that take an option, from which on it is described once
REQUIRED = "required"
RECORDS = {"Record", "records.Record", "msgspec.Struct"}
ONLY_GIVEN = ("RawResponse", "StudyEvidence")  # values that only heredity makes
# Of the library: records whose fields the page of the file formats has.
ONLY_READ = (
    "Application", "Decoding", "Estimate", "Estimates", "GuardSpec", "Message", "Model", "Probe", "Response",
    "Retrieval", "StudyForecast", "Tool", "Verdict",
)  # fmt: skip


def cli() -> str:
    """The page of the command line: every verb with its arguments, options and example."""
    from heredity.cli import SECTIONS, heredity

    context = click.Context(heredity, info_name="heredity")
    sections = {
        title: [each for verb in verbs for each in _verbs(heredity, verb, context)]
        for title, verbs in SECTIONS.items()
    }
    uses = Counter(_what(param) for verbs in sections.values() for verb in verbs for param in _options(verb))
    shared = {what: [] for what, n_verbs in uses.items() if n_verbs >= SHARED}
    for verb in chain(*sections.values()):
        for param in _options(verb):
            if _what(param) in shared:
                shared[_what(param)].append(_default(param, verb))
    common = {}  # the default of most verbs, most used options first
    for what, defaults in sorted(shared.items(), key=lambda each: -len(each[1])):
        default, n_verbs = Counter(defaults).most_common(1)[0]
        common[what] = default if 2 * n_verbs > len(defaults) else ""
    lines = [NOTE, "# Command line", ""]
    lines += ["`heredity help VERB` says more about a verb. Every verb takes `--help`, and `--debug`, which"]
    lines += [
        "shows the traceback of an error. A verb names its shared options, with its own default if any."
    ]
    trainings = [set(map(_what, _options(verb))) for verb in chain(*sections.values()) if _trains(verb)]
    training = {what for what in set.intersection(*trainings) if uses[what] <= len(trainings) + 1}  # pretrain
    for title, is_training in (("Shared options", False), ("Options of a training", True)):
        shown = [what for what in common if (what in training) == is_training]
        lines += ["", f"## {title}", "", *(f"- {what}{_with(common[what])}" for what in shown)]
    for title, verbs in sections.items():
        lines += ["", f"## {title}"]
        for verb in verbs:
            lines += _verb(verb, common, training)
    return "\n".join(lines) + "\n"


def _verbs(group: click.Group, name: str, context: click.Context) -> Iterator[click.Context]:
    """A verb, and the verbs below it."""
    command = group.get_command(context, name)
    assert command is not None
    verb = click.Context(command, context, info_name=name)
    yield verb
    if isinstance(command, click.Group):
        for below in command.list_commands(verb):
            yield from _verbs(command, below, verb)


def _options(verb: click.Context) -> list[click.Option]:
    """A verb's options, without those that every verb has."""
    params = [param for param in verb.command.get_params(verb) if isinstance(param, click.Option)]
    return [p for p in params if not (p.hidden or p.name == "debug" or "--help" in p.opts)]


def _trains(verb: click.Context) -> bool:
    """Whether a verb is a recipe that trains on data."""
    return any("--epochs" in param.opts for param in _options(verb))


def _verb(verb: click.Context, common: Mapping[str, str], training: set[str]) -> Iterator[str]:
    """One verb: its usage, help, options and example. `common`: the shared options with their defaults."""
    usage = " ".join(verb.command.collect_usage_pieces(verb)).removeprefix("[OPTIONS]").strip()
    yield from ("", f"{'#' * verb.command_path.count(' ')}## {verb.command_path}", "")
    yield from ([f"    {verb.command_path} {usage}", ""] if usage else ())
    yield _prose((verb.command.help or "").partition("\n\n")[0])
    own = [param for param in _options(verb) if _what(param) not in common]
    if own:
        yield from ("", *(f"- {_what(param)}{_with(_default(param, verb))}" for param in own))
    also = ["[those of a training](#options-of-a-training)"] if _trains(verb) else []
    for param in _options(verb):
        default = _default(param, verb)
        is_usual = _trains(verb) and _what(param) in training and default == common[_what(param)]
        if _what(param) in common and not is_usual:
            differs = f" ({default or 'no default'})" if default != common[_what(param)] else ""
            also.append(f"`{param.opts[0]}`{differs}")
    if also:
        yield from ("", *_list([f"[Shared](#shared-options): {also[0]}", *also[1:]]))
    if " --" in (example := getattr(verb.command, "example", "")):  # the usage shows the others
        yield from ("", *(f"    {line.strip()}" for line in example.splitlines()))


def _what(param: click.Option) -> str:
    """An option's names, the form of its value, and its help."""
    names = ", ".join(f"`{name}`" for name in [*param.opts, *param.secondary_opts])
    value = "" if param.is_flag else f" `{param.make_metavar(click.Context(click.Command('')))}`"
    return f"{names}{value}: {_plain((param.help or '').partition('[default:')[0])}"


def _with(default: str) -> str:
    return " **Required.**" if default == REQUIRED else f" Default: {_plain(default)}." if default else ""


def _default(param: click.Option, context: click.Context) -> str:
    """An option's default in words; "" for none."""
    if shown := (param.help or "").partition("[default:")[2]:
        return shown.rstrip("] ")
    if param.is_flag or not param.show_default:
        return REQUIRED if param.required else ""
    if isinstance(param.show_default, str):
        return param.show_default
    found = param.get_default(context, call=False)
    if found is None or callable(found):
        return ""
    return ", ".join(map(str, found)) if isinstance(found, tuple) else str(found)


def _prose(text: str) -> str:
    """A help text as Markdown; a paragraph that click leaves unwrapped (\\b) stays as it is typed."""
    parts = []
    for part in inspect.cleandoc(text).split("\n\n"):
        is_typed = part.startswith(("\b", "    "))
        typed = "\n".join(f"    {line}" for line in part.lstrip("\b\n").splitlines())
        parts.append(typed if is_typed else _plain(part))
    return "\n\n".join(parts)


def _plain(text: str) -> str:
    text = " ".join(text.split()).replace("<", "&lt;").replace("*", "\\*")
    return re.sub(r"(?<![\w`-])--[a-z][\w-]*(?!`)", r"`\g<0>`", text)  # typographers make one dash of two


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|")


def api() -> str:
    """The page of the library: every public name with its signature, docstring and public methods."""
    import heredity

    names = [name for name in heredity.__all__ if not name.startswith("_")]
    lines = [NOTE, "# Library", "", "Everything public is in the package itself: `import heredity as h`."]
    lines += [
        "A recipe that trains takes the [settings of a training](#settings-of-a-training), with the defaults"
    ]
    lines += [
        "shown there or its own. `Pretrain` takes those of [its verb](cli.md#heredity-pretrain), and `Study`"
    ]
    lines += ["those of [StudySpec](#studyspec). [File formats](formats.md) describes the fields of records."]
    lines += ["A program on top may import `heredity.evals.tasks` and `heredity.redteam.probes`, too."]
    lines += ["", "## Settings of a training", "", *_signature("settings", _ancestor(heredity.Lora), True)]
    for name in names:
        thing = getattr(heredity, name)
        fields = f"[Its fields](formats.md#{name.lower()})."
        is_alias = not inspect.isclass(thing) and not inspect.isfunction(thing)
        if name in ONLY_READ:
            shown, docs = [fields], _docs(thing).split("\n\n")[0]
        elif is_alias:
            shown, docs = [f"`{re.sub(r'[a-z_]+[.](?=[a-zA-Z])', '', str(thing))}`"], ""
        else:
            shown, docs = [] if name in ONLY_GIVEN else _signature(name, thing), _docs(thing)
        lines += ["", f"## {name}", "", *shown, "", docs]
        if thing is heredity.StudySpec:
            lines += ["", "The options of [heredity study](cli.md#heredity-study) describe its fields."]
        if inspect.isclass(thing):
            members = list(_methods(thing))
            values = [(method, each) for method, each in members if isinstance(each, property)]
            lines += ["", *(f"- `{method}`: {_plain(_docstring(each))}" for method, each in values)]
            for method, each in members:
                if not isinstance(each, property):
                    lines += ["", *_method(name, method, each), "", _docs(each)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)) + "\n"


def _method(name: str, method: str, each: Any) -> list[str]:
    """The heading of a method: its signature if that is short, else its name above its signature."""
    lines = _signature(f"{name}.{method}", each)
    return [f"### {lines[0]}"] if len(lines) == 1 else [f"### {name}.{method}", "", *lines]


def _list(items: Iterable[str]) -> list[str]:
    """Items with commas between them, in lines of at most 110 characters."""
    return textwrap.wrap(", ".join(items), 110, break_long_words=False, break_on_hyphens=False)


def _methods(thing: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties that the class itself defines and documents, but a recipe's `apply`."""
    for name, member in vars(thing).items():
        each = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
        is_shown = inspect.isfunction(each) or isinstance(each, property)
        is_shown = is_shown and not (name == "apply" and dataclasses.is_dataclass(thing))
        if is_shown and not name.startswith("_") and each.__doc__:
            yield name, each


def _ancestor(thing: type) -> type:
    """The nearest ancestor of a recipe that has fields and is not public itself."""
    import heredity

    bases = (base for base in thing.__mro__[1:] if base.__name__ not in heredity.__all__)
    return next((base for base in bases if dataclasses.is_dataclass(base)), object)


def _inherited(thing: Any) -> set[str]:
    """Parameters that another place shows: those of an ancestor with its default, or a verb's options."""
    import heredity

    if not (inspect.isclass(thing) and dataclasses.is_dataclass(thing)):
        return set()
    if thing is heredity.Pretrain:
        return {field.name for field in dataclasses.fields(thing) if "help" in field.metadata} - {"corpus"}
    base = _ancestor(thing)
    mine, theirs = (
        {f.name: f.default for f in dataclasses.fields(each)} if dataclasses.is_dataclass(each) else {}
        for each in (thing, base)
    )
    return {name for name, default in theirs.items() if mine[name] == default}


def _signature(name: str, thing: Any, is_whole: bool = False) -> list[str]:
    """The call as it is written, one argument a line if it is long; of a recipe without what it inherits."""
    try:
        found = inspect.signature(thing)
    except ValueError:
        return []
    if "args" in found.parameters and inspect.isclass(thing):
        return []  # a protocol, which nobody makes, or an error
    hidden = set() if is_whole else _inherited(thing)
    given = [
        p for p in found.parameters.values() if p.name not in {"self", "cls"} | hidden and p.name[0] != "_"
    ]
    if hidden & {"lr", "batch_size", "probes"}:
        given.append(inspect.Parameter("settings", inspect.Parameter.VAR_KEYWORD))
    if isinstance(thing, type) and issubclass(thing, msgspec.Struct):  # its `encoded` defaults
        made = {f.name: f.default_factory for f in msgspec.structs.fields(thing)}
        given = [p.replace(default=f()) if callable(f := made.get(p.name)) else p for p in given]
    shown = [p if p.default is p.empty else p.replace(default=_Shown(p.default)) for p in given]
    text = str(found.replace(parameters=shown))
    text = re.sub(r"ForwardRef\('(.*?)'(?:, module='[^']*')?\)", r"\1", text).replace("'", "")
    text = re.sub(r"\b(?:heredity|collections|pathlib|typing|msgspec)\.(?:\w+\.)*", "", text)
    text = re.sub(r'"(Literal\[[^\]]*\])"', r"\1", text)
    text = text.removesuffix(" -> None").replace(" | UnsetType = UNSET", " = ...")
    if len(name + text) <= 120:
        return [f"`{name}{text}`"]
    inside, _, after = text[1:].rpartition(")")
    parts = (f"    {part}," for part in _split(inside))
    return ["```python", f"{name}(", *parts, f"){after}", "```"]


class _Shown:
    """A default as the page shows it: an object's address would be another one each time."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        text = json.dumps(self.value) if isinstance(self.value, str) else repr(self.value)
        return "..." if " at 0x" in text or len(text) > 60 else text


def _split(inside: str) -> list[str]:
    """Arguments apart at commas that are in no bracket."""
    parts, depth, start = [], 0, 0
    for at, letter in enumerate(inside):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append(inside[start:at].strip())
            start = at + 1
    return [*parts, inside[start:].strip()]


def _docstring(thing: Any) -> str:
    return inspect.cleandoc(thing.__doc__ or "")


def _docs(thing: Any) -> str:
    """A docstring as Markdown: its indented examples stay, all else is text."""
    parts = []
    for part in _docstring(thing).split("\n\n"):
        is_code = part.startswith("    ")
        parts.append(part if is_code else part.replace("<", "&lt;").replace("*", "\\*"))
    return "\n\n".join(parts)


def formats() -> str:
    """The page of the files: as it is, with the records in its marked places written again."""
    records = dict(_records())
    shown: set[str] = set()

    def rewritten(match: re.Match[str]) -> str:
        level = re.findall(r"^#+", page[: match.start()], re.MULTILINE)[-1] + "#"
        names = [each for word in match[2].split() for each in _named(word, records)]
        lines = [line for name in names for line in _record(name, level, records, shown)]
        return "\n".join([match[1], *lines]) + "\n<!-- end -->"

    page = re.sub(r"(<!-- records: [\w/ ]+ -->\n).*?(?=<!-- end -->)", r"\1", _read(PAGE), flags=re.DOTALL)
    return re.sub(r"(<!-- records: ([\w/ ]+) -->)\n.*?<!-- end -->", rewritten, page, flags=re.DOTALL)


def _named(word: str, records: Mapping[str, _Struct]) -> list[str]:
    """A record by its name; of "findings/", every record of the files in a folder of that name."""
    if not word.endswith("/"):
        return [word]
    return [name for name, record in records.items() if record.folder == word[:-1]]


class _Struct(NamedTuple):
    """A record's source: the name of its folder, its class, and the comment of each line that has one."""

    folder: str
    node: ast.ClassDef
    comments: Mapping[int, str]


def _records() -> Iterator[tuple[str, _Struct]]:
    """Every record of the package, by its name: read, not imported, so that no module has to be named."""
    for path in sorted(SOURCE.rglob("*.py")):
        text = path.read_text("utf-8")
        if "msgspec" not in text and "Record" not in text:
            continue
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        comments = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
        for node in ast.parse(text).body:
            if not isinstance(node, ast.ClassDef) or any(each.arg == "tag" for each in node.keywords):
                continue  # a tag is that of a message between processes
            if {ast.unparse(base) for base in node.bases} & RECORDS:
                yield node.name, _Struct(path.parent.name, node, comments)


def _record(name: str, level: str, records: Mapping[str, _Struct], shown: set[str]) -> Iterator[str]:
    """A record under a heading of this level, then those that it holds; none that the page has already."""
    if name in shown:
        return
    shown.add(name)
    _, node, comments = records[name]
    fields = [each for each in node.body if isinstance(each, ast.AnnAssign)]
    rows = _rows(ast.get_docstring(node) or "", {ast.unparse(each.target) for each in fields})
    yield from ("", f"{level} {name}", "", rows, "")
    plain: list[str] = []
    for field in [*fields, None]:
        comment = comments.get(field.lineno, "") if field else ""
        comment = "" if comment.startswith(("fmt:", "noqa", "type:")) else comment
        if plain and (comment or field is None):
            first, *rest = _list(plain)
            yield from (f"- {first}", *(f"  {line}" for line in rest))
            plain = []
        if field and comment:
            yield f"- `{ast.unparse(field.target)}`: {_plain(comment)}"
        elif field and f"`{ast.unparse(field.target)}`" not in rows:
            plain.append(f"`{ast.unparse(field.target)}`")
    for field in fields:
        for inner in re.findall(r"\w+", ast.unparse(field.annotation)):
            if inner in records:
                yield from _record(inner, level, records, shown)


def _rows(text: str, fields: set[str]) -> str:
    """A docstring as Markdown, with its rows ("term  what it is", "field: what it is") as a list."""
    lines: list[str] = []
    is_list = False
    for line in text.splitlines():
        row = re.match(r"(\w[\w, -]*?)  +(?=\S)(.*)", line) or re.match(r"(\w+): (.*)", line)
        if row and ("  " in line or row[1] in fields):
            names = ", ".join(f"`{name}`" if name in fields else name for name in row[1].split(", "))
            if lines and lines[-1] and not is_list:
                lines.append("")
            is_list = True
            lines.append(f"- {names}: {_plain(row[2])}")
        else:
            is_list = is_list and bool(line)
            lines.append(_plain(line))
    return "\n".join(lines)


PAGES = {"cli.md": cli, "api.md": api, "formats.md": formats}


def main() -> int:
    """Write the pages, or say which are stale."""
    stale = [name for name, page in PAGES.items() if _read(FOLDER / name) != page()]
    if "--check" in sys.argv[1:]:
        for name in stale:
            print(f"docs/reference/{name} is stale: make reference", file=sys.stderr)
        return 1 if stale else 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in stale:
        (FOLDER / name).write_text(PAGES[name](), "utf-8")
        print(f"wrote docs/reference/{name}")
    return 0


def _read(path: Path) -> str:
    return path.read_text("utf-8") if path.exists() else ""


if __name__ == "__main__":
    sys.exit(main())
