"""A hub on this machine that serves a tiny model, and changes it, hides it or refuses it to order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from heredity.lineage.catalog import Entry, Hub, catalogue
from tests.support.model_sources import Server, sha256

REPO = "someone/tiny"
ENTRY = Entry("llama3", "MIT", "safetensors", Hub(REPO), architecture="llama", parameters=1e5)
FIRST, SECOND = "c0ffee" * 6, "decaf0" * 6
Play = Callable[..., None]


@pytest.fixture
def files(tiny_llama: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in tiny_llama.iterdir()}


@pytest.fixture
def play(server: Server, monkeypatch: pytest.MonkeyPatch) -> Play:
    """Let the loopback hub serve these files at a commit, as its newest or not."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setitem(catalogue(), "tiny", ENTRY)

    def serve(files: dict[str, bytes], commit: str = FIRST, is_newest: bool = True, **more: object) -> None:
        siblings = [
            {"rfilename": name, "size": len(data)}
            | (_large(data) if name.endswith((".safetensors", ".gguf")) else {})
            for name, data in files.items()
        ]
        page = {"id": REPO, "sha": commit, "siblings": siblings, "cardData": {"license": "mit"}, **more}
        server.pages[f"api/models/{REPO}/revision/{commit}"] = page
        if is_newest:
            server.pages[f"api/models/{REPO}"] = server.pages[f"api/models/{REPO}/revision/main"] = page
        for name, data in files.items():
            server.files[f"{REPO}/resolve/{commit}/{name}"] = data

    return serve


def _large(data: bytes) -> dict[str, object]:
    return {"lfs": {"sha256": sha256(data), "size": len(data), "pointerSize": 1}}
