"""Make the images of the web pages in docs/images, from the recorded study: `python tools/images.py`.

    python tools/images.py --browser /usr/bin/chromium --store ~/.cache/heredity

Promises: each image is of a page as `heredity view` shows it, of answers that ship with heredity. Only that
of a training is of a store: its newest, if one is given. No server runs and nothing is downloaded.
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
from heredity.view.training import runs

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
WIDTH, HEIGHT = 1200, 860  # pixels


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--browser", default="/usr/bin/chromium", help="The program of the browser.")
    parser.add_argument("--store", type=Path, help="A store whose newest training is shown.")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_demo(root / "runs" / "demo")
        place = StudyPlace(root / "runs", root / "store")
        study = place.open(place.studies()[0].key)
        study.refresh()
        pages = {name: (place, *asked) for name, asked in chosen(study).items()}
        if given.store is not None:
            pages["view-training"] = StudyPlace(given.store, root / "store"), newest(given.store), {}
        for name, (shown, path, query) in pages.items():
            page = root / f"{name}.html"
            site = Site(shown, lambda *_: "#", is_live=False)
            page.write_text(site.render(path, query), encoding="utf-8")
            take(given.browser, page, IMAGES / f"{name}.png")
            print(IMAGES / f"{name}.png")
    return 0


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


def take(browser: str, page: Path, image: Path) -> None:
    """An image of the top of a page."""
    settings = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--screenshot={image}")
    command = [browser, *settings, f"--window-size={WIDTH},{HEIGHT}", page.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)


if __name__ == "__main__":
    raise SystemExit(main())
