"""Find a plug-in by its name: to add a probe, an attack, a judge or an engine, add one file to its folder.

A package adds to the folders of GROUPS by entry points, `[project.entry-points."heredity.attacks"]`, whose
value is a module or `module:object`. Code adds an object with `use`, and the user's own words with `named`.

Promises: listing a folder imports nothing. The error for an unknown name suggests the nearest known one. A
plug-in that lacks a member of its folder's protocol is refused. A name of ours wins over one from outside.
`load` never imports a module because its argument names it.
"""

from __future__ import annotations

import ast
import importlib
import sys
from functools import cache
from operator import attrgetter
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import NamedTuple, TypeVar, cast

from heredity.core.errors import HeredityError, Unavailable, UnknownName, UsageError, first_line

_ROOT = Path(__file__).parents[1]
_LISTING_VERBS = {"engines", "attacks", "judges", "probes"}  # verbs that list an open folder
GUIDE = "docs/how-to/plugins.md"
_RESERVED = frozenset({"protocols"})  # a module that says what the folder's plug-ins are
# The open folders that a package adds to: the group of its entry points is `heredity.` and this word.
GROUPS = {
    "attacks": "redteam.attacks",
    "checks": "redteam.checks",
    "engines": "engines",
    "findings": "study.findings",
    "guards": "application.guards",
    "importers": "study.importers",
    "judges": "redteam.judges",
    "recipes": "recipes",
    "reports": "study.report",
    "tasks": "evals.tasks",
}
# Where the module of a folder names its object; an object from outside needs no module around it.
_MEMBER = {
    "redteam.attacks": "ATTACK",
    "redteam.checks": "CHECK",
    "application.guards": "GUARD",
    "recipes": "DERIVES",
}

T = TypeVar("T")


class Outside(NamedTuple):
    """A plug-in that is not ours. `plugin` is the object itself if the user's own code gave it."""

    package: str
    version: str
    value: str  # module, or module:object
    path: Path  # its file, which need not exist
    plugin: object = None

    def __str__(self) -> str:
        return f"{self.package} {self.version}".strip()

    @property
    def root(self) -> Path:
        """The folder of its package; its file, if that is the whole of it."""
        top = self.value.replace(":", ".").partition(".")[0]
        return next((folder for folder in self.path.parents if folder.name == top), self.path)

    @property
    def sha256(self) -> str:
        """A hash of the file, if there is one, and of the public attributes of an object."""
        import hashlib

        own = self.path.read_bytes() if self.path.is_file() else b""
        return hashlib.sha256(own + _state(self.plugin)).hexdigest()


def _state(plugin: object) -> bytes:
    """The public attributes of an object that the user's own code gave; b"" for none."""
    from msgspec import Struct, json

    if isinstance(plugin, type | ModuleType):
        return b""
    try:
        own = {name: value for name, value in vars(plugin).items() if not name.startswith("_")}
    except TypeError:
        return repr(plugin).encode() if isinstance(plugin, Struct) else b""
    return json.encode(own, enc_hook=lambda value: type(value).__qualname__, order="sorted") if own else b""


_GIVEN: dict[str, dict[str, Outside]] = {}  # by folder and name: objects of the user's own code


def names(folder: str, suffix: str = ".py") -> list[str]:
    """The plug-ins of an open folder ("engines", "redteam.attacks"), sorted.

    A plug-in is a file `NAME.py`, or a package `NAME/` with a file of the folder's kind
    (`engines/torch/engine.py`). Names with a leading underscore are private; `protocols.py` is reserved.
    Those of installed packages are among them, and the objects that `use` was given.
    """
    return sorted({*_own(folder, suffix), *_outsiders(folder)})


@cache
def _own(folder: str, suffix: str = ".py") -> list[str]:
    root = _folder(folder)
    stems = {p.stem for p in root.glob(f"*{suffix}")}
    if suffix == ".py":
        stems |= {p.parent.name for p in root.glob(f"*/{_kind(folder)}.py")}
    return sorted(name for name in stems - _RESERVED if not name.startswith("_"))


def load(folder: str, name: str) -> ModuleType:
    """The module of a plug-in.

    Raises UnknownName with the nearest known name, and Unavailable with file and line if the file raises an
    error while it is imported. An ImportError of ours stays: the caller knows which package to name.
    """
    known = names(folder)
    if name not in known:
        last = folder.rpartition(".")[2]
        lister = f"heredity {last}" if last in _LISTING_VERBS else ", ".join(known)
        if "." in name:  # as `use` names them
            lister += f"; one of your own code: --{_kind(folder)} {':'.join(name.rsplit('.', 1))}"
        raise UnknownName(_kind(folder), name, known, lister)
    there = outside(folder, name)
    try:
        if there is None:
            return importlib.import_module(f"heredity.{folder}.{name}{_inside(folder, name)}")
        plugin = there.plugin or _imported(there.value)
        if isinstance(plugin, ModuleType):
            return plugin
        member = _MEMBER.get(folder)
        if isinstance(plugin, type) != (member in ("CHECK", "GUARD", "DERIVES")):  # which are classes
            plugin = plugin() if isinstance(plugin, type) else type(plugin)
        if member is None:
            return cast(ModuleType, plugin)
        return cast(ModuleType, SimpleNamespace(**{member: plugin, "__doc__": plugin.__doc__}))
    except (HeredityError, MemoryError):
        raise
    except Exception as error:
        if there is None and isinstance(error, ImportError):
            raise
        raise _unloadable(folder, name, error) from error


def _imported(value: str) -> object:
    module, _, place = value.partition(":")
    plugin = importlib.import_module(module)
    return attrgetter(place)(plugin) if place else plugin


# --- plug-ins from outside ---


def outside(folder: str, name: str) -> Outside | None:
    """The plug-in of this name if it is not ours; None for a name of ours or an unknown one.

    Raises Unavailable if two packages have one of this name.
    """
    several = _outsiders(folder).get(name, ())
    if not several or is_ours(folder, name):
        return None
    if len(several) > 1:
        raise Unavailable(
            f"Two packages have a plug-in '{name}' in {folder}: {' and '.join(map(str, several))}. "
            "Uninstall one of them.",
            code="plugin-broken",
        )
    return several[0]


def is_ours(folder: str, name: str) -> bool:
    """Whether the folder itself has this plug-in: it wins over those of packages."""
    return name in _own(folder, ".toml" if folder == GROUPS["tasks"] else ".py")


def _outsiders(folder: str) -> dict[str, tuple[Outside, ...]]:
    given = {name: (each,) for name, each in _GIVEN.get(folder, {}).items()}
    return given | installed().get(folder, {}) if folder in GROUPS.values() else {}


@cache
def installed() -> dict[str, dict[str, tuple[Outside, ...]]]:
    """By folder and name, the plug-ins of installed packages. Metadata is read, and nothing is imported.

    Those of an unknown group are under the group itself: nothing loads them.
    """
    from importlib.metadata import entry_points

    by_folder: dict[str, dict[str, tuple[Outside, ...]]] = {}
    points = entry_points()
    for group in sorted(group for group in points.groups if group.startswith("heredity.")):
        its = by_folder.setdefault(GROUPS.get(group.partition(".")[2], group), {})
        for point in points.select(group=group):
            package, version = (point.dist.name, point.dist.version) if point.dist else ("", "")
            path = _file(point.module, ".toml" if group == "heredity.tasks" else ".py")
            its[point.name] = (*its.get(point.name, ()), Outside(package, version, point.value, path))
    return by_folder


def _file(module: str, suffix: str) -> Path:
    """The file of a module. Only its top package is looked up: to look up a part imports what it is in."""
    from importlib.util import find_spec

    top, *rest = module.split(".")
    if (spec := find_spec(top)) and spec.origin and not rest:
        return Path(spec.origin)
    bases = [Path(root, *rest) for root in (spec.submodule_search_locations if spec else None) or [top]]
    files = [base.with_name(base.name + suffix) for base in bases] + [base / "__init__.py" for base in bases]
    return next((path for path in files if path.is_file()), bases[0])


def use(folder: str, plugin: object, name: str = "") -> str:
    """Take an object of the user's own code as a plug-in, for this process; return its name, MODULE.OBJECT.

    A plan stores the name, and who asks its study again gives the object again. Raises UsageError for an
    object without a file, and for a second one with other attributes.
    """
    new = of_object(plugin)
    given, name = _GIVEN.setdefault(folder, {}), name or new.value
    if name in given and _state(given[name].plugin) != _state(plugin):
        raise UsageError(
            f"Two objects are named {name}, with different attributes: give each a class of its own.",
            code="bad-setting",
        )
    given[name] = new
    return name


def forget(folder: str, name: str) -> None:
    """Drop the object of this name, which its folder refuses, so that a listing does not meet it."""
    _GIVEN.get(folder, {}).pop(name, None)


def of_object(plugin: object) -> Outside:
    """An object of the user's own code as a plug-in. Raises UsageError if no file defines it."""
    import inspect

    kind = plugin if isinstance(plugin, type | ModuleType) else type(plugin)
    name = kind.__name__ if isinstance(kind, ModuleType) else f"{kind.__module__}.{kind.__qualname__}"
    try:
        path = Path(inspect.getfile(kind))
    except (TypeError, OSError):
        raise UsageError(
            f"No file defines the plug-in {name}, so a plan cannot record its hash. Put it into a module.",
            code="bad-setting",
        ) from None
    return Outside(name.partition(".")[0], "", name, path, plugin)


def named(folder: str, text: str) -> str:
    """The name of the plug-in that the user's own words give as `module:object`, which is imported.

    The current folder is looked in last. For words of the command line, of Python, and of the user's plan
    file; never for those of a study's folder or a store. Other words come back unchanged.
    """
    from importlib.util import find_spec

    module, _, rest = text.partition(":")
    place, more, variant = rest.partition(":")
    words = [*module.split("."), *place.split(".")]
    if module in _own(folder) or not all(map(str.isidentifier, words)):
        return text
    sys.path += {str(Path.cwd())}.difference(sys.path)  # last, so that it hides no installed package
    if words[0] not in sys.modules and find_spec(words[0]) is None:
        return text  # an unknown name: whoever loads it suggests the nearest
    try:
        plugin = _imported(f"{module}:{place}")
    except Exception as error:
        raise Unavailable(
            f"The plug-in '{module}:{place}' cannot be loaded: {first_line(error)}.", code="plugin-broken"
        ) from error
    return use(folder, plugin, f"{module}.{place}") + more + variant


def fault_of(error: BaseException) -> str:
    """The plug-in from outside in whose code an error came up, and where; "" if it passed through none."""
    import traceback

    passed = [
        (path, line, f".{frame.f_code.co_qualname}", name, its)
        for frame, line in reversed([*traceback.walk_tb(error.__traceback__)])
        for path in [Path(frame.f_code.co_filename)]
        for folder in GROUPS.values()
        for name, several in _outsiders(folder).items()
        for its in several
        if its.root in (path, *path.parents)
    ]
    if not passed:
        return ""
    own = [each for each in passed if f".{each[4].value.replace(':', '.').split('.')[-1]}." in each[2]]
    path, line, _, _, its = passed[0]
    names = list(dict.fromkeys(each[3] for each in own or passed))
    what = f"plug-in '{names[0]}'" if own or len(names) == 1 else "code"
    return f"The {what} of {its} failed at {path}:{line}: {first_line(error)}."


def fault_words(folder: str, name: str, error: Exception) -> str:
    """An error of a plug-in from outside, for a report: kind and place; its text may hold an answer."""
    import traceback

    if isinstance(error, Unavailable) and error.code == "plugin-broken":
        return str(error)
    its = outside(folder, name)
    own = its.root if its else Path()
    places = [(Path(each.filename), each.lineno) for each in traceback.extract_tb(error.__traceback__)]
    at = [f" at {path.name}:{line}" for path, line in places if own in (path, *path.parents)]
    return f"The plug-in '{name}' of {its} failed{at[-1] if at else ''}: {type(error).__name__}."


def broken(folder: str, name: str, words: str) -> Unavailable:
    """The error for a plug-in of which `words` say what is wrong, with its package and how to go on."""
    there = outside(folder, name)
    whose = f"of {there}" if there else f"in {folder}"
    way = f" Correct it, or uninstall {there.package}." if there and there.plugin is None else ""
    return Unavailable(f"The plug-in '{name}' {whose} {words}.{way}", code="plugin-broken")


def _unloadable(folder: str, name: str, error: Exception) -> Unavailable:
    """The error for a plug-in whose file raises `error`; the line is the last one in that file."""
    import traceback

    path = source(folder, name)
    frames = traceback.extract_tb(error.__traceback__)
    line = next((frame.lineno for frame in reversed(frames) if frame.filename == str(path)), None)
    if isinstance(error, SyntaxError) and error.filename == str(path):
        line = error.lineno
    place = path if line is None else f"{path}:{line}"
    return broken(folder, name, f"cannot be loaded: {place}: {first_line(error)}")


def load_as(protocol: type[T], folder: str, name: str) -> T:
    """The module of a plug-in as the runtime-checkable protocol that its folder's plug-ins follow.

    Raises UnknownName as `load` does, and Unavailable if the module lacks a member of the protocol.
    """
    module = load(folder, name)
    if not isinstance(module, protocol):
        forget(folder, name)
        missing = [form for member, form in members(protocol).items() if not hasattr(module, member)]
        raise broken(folder, name, f"lacks `{'`, `'.join(missing)}` ({GUIDE})")
    return module


def source(folder: str, name: str) -> Path:
    """The file of a plug-in, which can be read without importing it."""
    if there := outside(folder, name):
        return there.path
    root = _folder(folder)
    return root / name / f"{_kind(folder)}.py" if _inside(folder, name) else root / f"{name}.py"


def purposes(folder: str) -> dict[str, str]:
    """Map each plug-in of an open folder to the first paragraph of its docstring; none is imported.

    One from outside has its package behind it. For a broken one it is the error, which spoils no other.
    """
    shown = {}
    for name in names(folder):
        try:
            shown[name] = _first_paragraph(folder, name)
        except Unavailable as error:
            shown[name] = str(error)
    return shown


def _first_paragraph(folder: str, name: str) -> str:
    path, there = source(folder, name), outside(folder, name)
    place = there.value.rpartition(":")[2] if there else ""
    try:
        tree = ast.parse(path.read_bytes(), str(path))
        own = (each for each in tree.body if isinstance(each, ast.ClassDef) and each.name == place)
        docstring = ast.get_docstring(next(own, tree)) or ""
    except (SyntaxError, ValueError, OSError) as error:
        raise _unloadable(folder, name, error) from None
    return " ".join(docstring.split("\n\n")[0].split()) + (f" ({there})" if there else "")


def members(protocol: type) -> dict[str, str]:
    """The members of a protocol, each as an author writes it: `cost: str`, `def close(self) -> None`."""
    import inspect

    forms: dict[str, str] = {}
    for base in protocol.__mro__:
        own = vars(base) if getattr(base, "_is_protocol", False) else {}
        forms |= {name: f"{name}: {kind}" for name, kind in own.get("__annotations__", {}).items()}
        for name, its in own.items():
            if isinstance(its, property) and its.fget:
                forms[name] = f"{name}: {inspect.signature(its.fget).return_annotation}"
            elif inspect.isfunction(its):
                forms[name] = f"def {name}{inspect.signature(its)}".replace("'", "")
    return {name: forms[name] for name in sorted(forms) if not name.startswith("_")}


def _folder(folder: str) -> Path:
    return _ROOT.joinpath(*folder.split("."))


@cache
def declaring(folder: str, name: str) -> tuple[str, ...]:
    """The plug-ins of an open folder that assign `name` at the top level of their file; none is imported.

    Those of packages are all among them: their entry points say what they are.
    """
    return tuple(
        each for each in names(folder) if not is_ours(folder, each) or _declares(source(folder, each), name)
    )


def _declares(path: Path, name: str) -> bool:
    text = path.read_bytes()
    if name.encode() not in text:
        return False
    targets: list[ast.expr] = []
    for line in ast.parse(text).body:
        targets += line.targets if isinstance(line, ast.Assign) else ()
        targets += [line.target] if isinstance(line, ast.AnnAssign) and line.value is not None else ()
    return any(isinstance(target, ast.Name) and target.id == name for target in targets)


def _kind(folder: str) -> str:
    return folder.rpartition(".")[2].removesuffix("s")


def _inside(folder: str, name: str) -> str:
    is_package = _folder(folder).joinpath(name, f"{_kind(folder)}.py").is_file()
    return f".{_kind(folder)}" if is_package else ""
