"""What a process asks of the libraries below torch, before they are loaded."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

ASKED = {"GOMP_SPINCOUNT": "5000", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128"}


@pytest.mark.parametrize("package", ["heredity.engines", "heredity.train.loop"])
@pytest.mark.parametrize("given", [{}, dict.fromkeys(ASKED, "7")], ids=["ours", "the user's"])
def test_it_is_asked_before_torch_is_there_and_what_the_user_set_stays(
    package: str, given: dict[str, str]
) -> None:
    code = (
        "import os, sys\n"
        "class First:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'torch':\n"
        f"            print(*(os.environ.get(each) for each in {list(ASKED)!r}))\n"
        "            sys.exit()\n"
        "sys.meta_path.insert(0, First())\n"
        f"import {package}, torch"
    )
    kept = {name: value for name, value in os.environ.items() if name not in {*ASKED, "OMP_WAIT_POLICY"}}
    said = subprocess.run(
        [sys.executable, "-c", code], env=kept | given, capture_output=True, text=True, check=True
    )
    assert said.stdout.split() == list((given or ASKED).values())
