"""Every command and every flag of 9797035 is still taken, as itself or as an alias."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support import old_version as old

FLAGS = old.table("flags")


@pytest.mark.parametrize("verb", FLAGS)
def test_its_flags_are_taken(verb: str) -> None:
    """--help comes after a flag that there is not, and before what its value means."""
    lost = []
    for each in FLAGS[verb]:
        for flag in each["flags"] if each["kind"] == "option" else []:
            if flag in ("--help", "-h"):
                continue
            value = [_value(each)] if each["takes_value"] else []
            code, _, err = old.heredity(*verb.split(), flag, *value, "--help")
            if code != 0:
                lost.append(f"heredity {verb} {flag} {' '.join(value)}: {err.strip()}")
    assert not lost, "taken by 9797035 and not any more:\n  " + "\n  ".join(lost)


def test_choices_are_taken() -> None:
    """A choice that there is not is answered with those that there are."""
    lost, n_checked = [], 0
    for verb, params in FLAGS.items():
        for each in (each for each in params if "choices" in each and each["kind"] == "option"):
            _, _, err = old.heredity(*verb.split(), each["flags"][0], "none-of-them")
            if "none-of-them" in err:  # else something that is required was missed first
                n_checked += 1
                lost += [f"{verb} {each['flags'][0]} {c}" for c in each["choices"] if f"'{c}'" not in err]
    assert not lost, f"choices of 9797035 that are no more: {lost}"
    assert n_checked == 31


def _value(param: dict[str, Any]) -> str:
    return str(param["choices"][0]) if "choices" in param else "1"
