"""A user's own files, with every key that 9797035 read, are read and mean what they meant."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

import heredity as h
from heredity.core.records import digest, encode
from heredity.study.plan import PlanFile, read_plan
from tests.support import old_version as old

TABLE = old.table("files")
RECIPES = old.table("recipes")
DATA = ("data", "harmful", "harmless")


@pytest.mark.parametrize("name", sorted(TABLE["applications"]))
def test_an_application_has_the_digest_that_it_had(place: Path, name: str) -> None:
    """Rows of a study name it: with another digest no old answer would be compared with a new one."""
    assert h.Application.load(name).digest == TABLE["applications"][name]


def test_probes_are_what_they_were(place: Path) -> None:
    shown = json.loads(old.done("probes", "show", "probes.toml", "--json"))
    old.assert_same(TABLE["probes"], shown, "probes show probes.toml --json")


def test_a_plan_file_is_the_study_that_it_was(place: Path) -> None:
    """But for the analysis, for the order of the probes, and for their severity and use.

    9797035 declared none of them. A folder of then is resumed as it is.
    """
    old.done("study", "plan.toml", "--out", "planned")
    made, replace = read_plan(Path("planned")).questions, msgspec.structs.replace
    ours = sorted((p for p in made.probes if "plain-0" in p.id), key=lambda p: p.id)
    probes = (*ours, *(p for p in made.probes if "plain-0" not in p.id))
    probes = tuple(replace(p, useful=msgspec.UNSET, severity=msgspec.UNSET) for p in probes)
    then = replace(made, probes=probes)
    assert digest(then) == TABLE["plan"]
    for path in Path("planned").iterdir():
        path.unlink()
    Path("planned/plan.json").write_bytes(encode(PlanFile(TABLE["plan"], made.application.digest, then)))
    old.done("study", "planned")
    assert json.loads(Path("planned/plan.json").read_bytes())["study"] == TABLE["plan"]


@pytest.mark.parametrize("name", ["tasks", "calibrated", "sized"])
def test_what_a_command_made_of_a_file_it_makes_now(place: Path, name: str) -> None:
    now = json.loads(old.done(*TABLE[name]["argv"]))
    then = {key: value for key, value in TABLE[name]["json"].items() if key != "judged_by"}  # its version
    old.assert_same(then, now, " ".join(TABLE[name]["argv"]))


def test_a_file_of_labels_to_train_a_judge_on_is_read(place: Path) -> None:
    """It fails for want of a model, which comes after every key was read."""
    code, _, err = old.heredity(
        "judges", "train", "--data", "judge_data.toml", "--root", ".", "--out", "trained"
    )
    assert code == 2 and "all-minilm-l6-v2" in err and "judge_data.toml" not in err, err


def test_a_reference_is_the_model_that_it_was(place: Path) -> None:
    known = old.table("store")["references"]
    for each in known:
        made = h.Store().get(each["ref"]).record
        assert json.loads(json.dumps(made.recipe.settings)) == each["settings"], each["ref"]
        if not each["ref"].startswith("call:"):  # its source is python's own
            assert made.id == each["id"], f"{each['ref']} has another id"


def _digest(kind: str, settings: dict[str, Any]) -> str:
    """The start of SHA-256 over canonical JSON, as ids are made of."""
    text = msgspec.json.encode({"kind": kind, "settings": settings}, order="deterministic")
    return hashlib.sha256(text).hexdigest()[:32]


def _id(row: dict[str, Any]) -> str:
    return f"{row['kind']}-{'-'.join(key for key in row['given'] if key not in ('data',))[:40]}"


@pytest.mark.parametrize("row", RECIPES, ids=_id)
def test_a_recipe_records_the_settings_that_it_recorded(place: Path, row: dict[str, Any]) -> None:
    """Under the names of then: the id of a model is a hash over them."""
    given = {
        key: h.Data.read(value, has_answers=not value.startswith("asked")) if key in DATA else value
        for key, value in row["given"].items()
    }
    if "targets" in given:
        given["targets"] = tuple(given["targets"])
    made = h.recipe(row["kind"], **given)
    assert json.loads(json.dumps(made.settings())) == row["settings"], "names and values are hashed into ids"
    assert (made.kind, _digest(made.kind, row["settings"])) == (row["kind"], row["digest"])


@pytest.mark.parametrize("row", old.table("corpora")["pretrain"], ids=lambda row: row["file"])
def test_a_pretraining_records_the_settings_that_it_recorded(
    place: Path, corpora: Path, row: dict[str, Any]
) -> None:
    for name in ("corpus", "pictures"):
        shutil.copytree(corpora / name, place / name)
    made = h.Pretrain.read(place / row["file"])
    assert json.loads(json.dumps(made.settings())) == row["settings"], "names and values are hashed into ids"
