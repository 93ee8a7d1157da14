"""The files around the package agree with each other: versions, ranges and constraints."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import heredity

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def requirements() -> list[Requirement]:
    """Every requirement of the package and of its extras."""
    extras = [each for extra in PROJECT["optional-dependencies"].values() for each in extra]
    return [Requirement(each) for each in [*PROJECT["dependencies"], *extras]]


def pinned() -> dict[str, str]:
    """constraints.txt: a package -> its version."""
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def test_one_version_stands_everywhere() -> None:
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    assert PROJECT["version"] == heredity.__version__
    assert re.search(r"^version: (.+)$", citation, re.MULTILINE)[1] == PROJECT["version"]
    assert f"## [{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_the_constraints_lie_in_the_ranges() -> None:
    versions = pinned()
    for each in requirements():
        version = versions.get(canonicalize_name(each.name))
        assert version is None or each.specifier.contains(version), f"{each} and {version}"


def test_every_requirement_of_the_core_is_pinned() -> None:
    named = {canonicalize_name(Requirement(each).name) for each in PROJECT["dependencies"]}
    assert named <= set(pinned())
