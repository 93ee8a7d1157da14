"""Make the images of the web pages in docs/images, from the recorded study: `python tools/images.py`.

    python tools/images.py --browser /usr/bin/chromium

Promises: each image is of a page as `heredity view` shows it, of answers that ship with heredity. No server
runs and nothing is downloaded.
Leaves to others: the browser, which is Chromium or Chrome.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path

from heredity.study.demo import write_demo
from heredity.view.pairs import pairs, shared
from heredity.view.places import OpenStudy, StudyPlace
from heredity.view.rates import board_of
from heredity.view.site import Site

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
WIDTH, HEIGHT = 1200, 860  # pixels


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--browser", default="/usr/bin/chromium", help="The program of the browser.")
    browser = parser.parse_args().browser
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_demo(root / "runs" / "demo")
        place = StudyPlace(root / "runs", root / "store")
        site = Site(place, lambda *_: "#", is_live=False)
        study = place.open(place.studies()[0].key)
        study.refresh()
        for name, (path, query) in chosen(study).items():
            page = root / f"{name}.html"
            page.write_text(site.render(f"/s/{study.key}{path}", query), encoding="utf-8")
            take(browser, page, IMAGES / f"{name}.png")
            print(IMAGES / f"{name}.png")
    return 0


def chosen(study: OpenStudy) -> dict[str, tuple[str, dict[str, str]]]:
    """The pages: the study, and the first trial that only a child broke."""
    a, b = next(pairs(study))
    place = shared(study, board_of(study), a, b).places("only-b")[0]
    names = {"a": study.names[a], "b": study.names[b], "which": "only-b"}
    return {"view-study": ("", {}), "view-pair": (f"/pair/{place}", names)}


def take(browser: str, page: Path, image: Path) -> None:
    """An image of the top of a page."""
    settings = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--screenshot={image}")
    command = [browser, *settings, f"--window-size={WIDTH},{HEIGHT}", page.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)


if __name__ == "__main__":
    raise SystemExit(main())
