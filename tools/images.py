"""Make the images in docs/images from the recorded study: `python tools/images.py`, with the extra `serve`.

    python tools/images.py --browser /usr/bin/chromium --store ~/.cache/heredity

Promises: each image is of the demo's report, or of a page of a running `heredity view`, of answers that ship
with heredity. Only that of a training is of a store: its newest, if one is given. Nothing is downloaded.
Leaves to others: the browser, which is Chromium or Chrome.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

import uvicorn

from heredity.study.folders import write_demo
from heredity.study.report import write_report
from heredity.view.app import ViewSettings, app
from heredity.view.pages.training import runs
from heredity.view.pairs import pairs, shared
from heredity.view.places import OpenStudy, StudyPlace
from heredity.view.queries import board_of
from heredity.view.site import Site

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
SIZE = 1200, 860  # pixels
REPORT_SIZE = 1240, 780  # to the end of the first screen


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--browser", default="/usr/bin/chromium", help="The program of the browser.")
    parser.add_argument(
        "--store", type=lambda text: Path(text).resolve(), help="A store whose newest training is shown."
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # so that no image shows a path of this machine
        root = Path()
        write_demo(root / "runs" / "demo")
        place = StudyPlace(root / "runs", root / "store")
        study = place.open(place.studies()[0].key)
        study.refresh()
        take(given.browser, write_report(root / "runs" / "demo").resolve().as_uri(), "report", REPORT_SIZE)
        with serving(place) as address:
            for name, (path, query) in chosen(study).items():
                take(given.browser, f"{address}{path}?{urlencode(query)}", name)
        if given.store is not None:
            with serving(StudyPlace(given.store, root / "store")) as address:
                take(given.browser, address + newest(given.store), "view-training")
    return 0


@contextmanager
def serving(place: StudyPlace) -> Iterator[str]:
    """The address of a server of these studies."""
    settings = ViewSettings(is_closing=lambda: server.should_exit)
    server = uvicorn.Server(uvicorn.Config(app(Site(place), settings), port=0, log_level="error", ws="none"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


def chosen(study: OpenStudy) -> dict[str, tuple[str, dict[str, str]]]:
    """The pages: of the study, of the first trial that only a child broke, and of the lineage."""
    (a, b), here = next(pairs(study)), f"/s/{study.key}"
    place = shared(study, board_of(study), a, b).places("only-b")[0]
    names = {"a": study.names[a], "b": study.names[b], "which": "only-b"}
    parent, child = (study.plan.models[m].id for m in (a, b))
    return {
        "view-studies": ("/", {}),
        "view-study": (here, {}),
        "view-conversations": (f"{here}/conversations", {"outcome": "broke"}),
        "view-pairs": (f"{here}/pairs", names),
        "view-pair": (f"{here}/pair/{place}", names),
        "view-lineage": ("/lineage", {}),
        "view-edge": (f"/lineage/{parent}/{child}", {}),
    }


def newest(store: Path) -> str:
    """The path of the page of a store's newest training. Raises IndexError without one."""
    return f"/training/{runs(store)[0].key}"


def take(browser: str, address: str, name: str, size: tuple[int, int] = SIZE) -> None:
    """An image of the top of a page."""
    image = IMAGES / f"{name}.png"
    settings = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--screenshot={image}")
    command = [browser, *settings, f"--window-size={size[0]},{size[1]}", address]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    print(image)


if __name__ == "__main__":
    raise SystemExit(main())
