"""The page on serving says with which version of each client the server was tested."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.version import Version

from tests.deploy.clients.environments import CLIENTS, PLAYED, Client

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "serve.md"


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_the_page_names_a_version_that_the_tests_take(client: Client) -> None:
    rows = dict(re.findall(r"^\| ([\w-]+) \| (.+?) \|", PAGE.read_text("utf-8"), re.MULTILINE))
    named = dict(re.findall(r"([\w@/-]+) (\d[\d.]+\d)", rows[client.name]))
    assert (PLAYED / client.play).is_file() and named.keys() == client.lowest.keys()
    for package, lowest in client.lowest.items():
        assert Version(named[package]) >= Version(lowest)
