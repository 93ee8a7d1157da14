"""The README's tree is the tree on disk."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "heredity"


def tree() -> dict[str, str]:
    """First word of each line of the README's tree -> the rest of it, continued lines joined."""
    block = re.search(r"```\nsrc/heredity/\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block is not None
    found: dict[str, str] = {}
    for line in block[1].splitlines():
        if re.match(r"  \S", line):
            name, _, rest = line.strip().partition(" ")
            found[name] = rest.strip()
        else:
            found[next(reversed(found))] += " " + line.strip()
    return found


def test_the_tree_in_the_readme_is_the_one_on_disk() -> None:
    on_disk = {p.name + "/" * p.is_dir() for p in SOURCE.iterdir() if p.suffix != ".typed"}
    assert set(tree()) == {name for name in on_disk if name != "__pycache__/"}


def test_every_public_file_of_an_open_folder_is_in_the_tree() -> None:
    for name, comment in tree().items():
        if name.endswith("/"):
            suffix = ".toml" if name in ("probes/", "tasks/") else ".py"
            files = {p.stem for p in (SOURCE / name).glob(f"*{suffix}") if not p.name.startswith("_")}
            files |= {p.parent.name for p in (SOURCE / name).glob("*/__init__.py") if name == "train/"}
            assert set(comment.rpartition(":")[2].split()) == files, name


def test_every_local_link_in_the_documents_leads_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
