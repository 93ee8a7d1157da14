"""The tasks of pictures: each shows what its caption says, and is known by its bytes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from heredity.core.errors import BadInput
from heredity.evals import metrics, tasks
from heredity.evals.metrics import ItemAnswer
from heredity.evals.run import WAYS, put
from tests.support.errors import raises

COLOURS = {
    "red": (214, 40, 40), "green": (40, 160, 60), "blue": (40, 80, 210), "yellow": (240, 210, 40),
    "black": (20, 20, 20), "orange": (240, 130, 30), "purple": (130, 50, 160), "brown": (120, 75, 40),
}  # fmt: skip
FULL = {"square": 1.0, "circle": 0.785, "ring": 0.59, "cross": 5 / 9, "triangle": 0.5}  # of the square around


def told(picture: bytes) -> str:
    """The caption of a drawn shape, by its colour and how much of its square is full."""
    image = pytest.importorskip("PIL.Image")
    points = np.asarray(image.open(io.BytesIO(picture)).convert("RGB")).astype(int)
    is_full = (points != 255).any(2)
    rows, columns = (np.flatnonzero(is_full.any(axis)) for axis in (1, 0))
    share = is_full.sum() / (np.ptp(rows) + 1) / (np.ptp(columns) + 1)
    mean = points[is_full].mean(0)
    colour = min(COLOURS, key=lambda name: float(np.abs(mean - COLOURS[name]).sum()))
    is_hollow = not is_full[int(rows.mean()), int(columns.mean())]
    shape = "ring" if is_hollow else min(FULL.keys() - {"ring"}, key=lambda name: abs(share - FULL[name]))
    return f"{'an' if colour[0] == 'o' else 'a'} {colour} {shape}"


def caption(text: str) -> str:
    picture = tasks.bytes_of(text)
    return text if picture is None else told(picture)


@pytest.mark.parametrize("name", ["picture_names", "picture_search"])
def test_the_reference_alone_is_what_is_shown(name: str) -> None:
    (task,) = tasks.load([name])
    assert len(task.items) == 40 == len({item.input for item in task.items})
    for item in task.items:
        options = [caption(option) for option in item.options]
        assert len(set(options)) == 4
        assert options[item.options.index(item.references[0])] == caption(item.input), item.id
        assert sum(option == caption(item.input) for option in options) == 1


def test_they_are_put_only_where_they_are_named_or_matched() -> None:
    assert not {"picture_names", "picture_search"} & {task.name for task in tasks.load()}
    assert {"picture_names", "picture_search"} <= {task.name for task in tasks.load(has_pictures=True)}


class Echo:
    """A dual engine that knows everything."""

    def match(self, images: list[bytes], texts: list[str]) -> list[list[float]]:
        return [[float(told(image) == text) for text in texts] for image in images]


def test_a_matcher_that_knows_all_is_right_in_both_and_one_that_tells_nothing_apart_in_none() -> None:
    for task in tasks.load(["picture_names", "picture_search"]):
        asked = [put(task, item, 0, "plain") for item in task.items]
        metric = metrics.load(task.metric)
        found = list(WAYS["match"].answers(Echo(), asked))
        scores = [metric.score(task.items[f.place], ItemAnswer("", f.logs)) for f in found]
        assert scores == [1.0] * 40
        assert metric.score(task.items[0], ItemAnswer("", (0.5,) * 4)) == 0.0


def test_a_picture_that_is_not_there_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'title = "Mine"\ndescription = "Mine."\nedition = "1"\nmetric = "nearest"\nprompt = "{input}"\n'
        'plain = "{input}"\n[[item]]\nid = "one"\ninput = "picture:gone.png"\n'
        'reference = "a"\nwrong = ["b"]\n'
    )
    with raises(BadInput, "unreadable-file", mentions=["mine.toml:7", "picture:gone.png"]):
        tasks.load([str(path)])
    (tmp_path / "gone.png").write_bytes(b"one")
    one = tasks.load([str(path)])[0].digest
    (tmp_path / "gone.png").write_bytes(b"two")
    assert tasks.load([str(path)])[0].digest != one
