"""Pictures and captions: a corpus of them, and a model that learns which is of which, by the one loop."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
image = pytest.importorskip("PIL.Image")

from heredity.core.errors import BadInput, EngineFailure, OutOfMemory, Unavailable, UsageError, WrongHash
from heredity.corpus import Corpus, ImageCorpus
from heredity.deploy.export import export
from heredity.evals.run import Evaluation
from heredity.formats import images
from heredity.formats.weights import read_config
from heredity.lab import corpus as corpora
from heredity.lineage.store import Store, engine_loader
from heredity.recipes.pretrain.contrastive import (
    TO_CAPTION,
    TO_PICTURE,
    ZERO_SHOT,
    CaptionLayout,
    Contrastive,
    PairSampler,
    shift_image,
    to_pixels,
)
from heredity.recipes.pretrain.recipe import Pretrain
from heredity.train import loop
from heredity.train.models import dual
from tests.support.errors import raises
from tests.support.processes import ends_after_kills, n_rows

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220), "grey": (128, 128, 128)}
PLACES = ("top", "middle", "bottom")
RECIPE = """
[[source]]
name = "stripes"
kind = "images"
path = "stripes"
[picture]
side = 16
[tokenizer]
vocabulary = 290
least_count = 1
[shards]
validation = 0.25
"""


def draw(folder: Path) -> None:
    """A stripe of a colour, at a place, of a height and on a ground: 4 x 3 x 4 x 2 pictures, 48 captions."""
    for colour, rgb in COLOURS.items():
        for i, place in enumerate(PLACES):
            for height in range(4):
                for ground in (0, 255):
                    pixels_of = np.full((24, 24, 3), ground, np.uint8)
                    pixels_of[i * 8 : i * 8 + 3 + height] = rgb
                    path = folder / place / f"{colour}-{height}-{ground}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    image.fromarray(pixels_of).save(path)
                    path.with_suffix(".txt").write_text(f"a {colour} stripe at the {place}, {height}\nfr=x\n")


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    draw(tmp_path / "stripes")
    (tmp_path / "pictures.toml").write_text(RECIPE)
    return tmp_path / "pictures.toml"


@pytest.fixture
def pictures(recipe_file: Path) -> Path:
    corpora.build_corpus(recipe_file, workers=1)
    return recipe_file.with_suffix("")


def recipe(corpus: Path, **changes: object) -> Pretrain:
    small = {
        "size": "150K",
        "pairs": 40 * 24,
        "batch_size": 24,
        "lr": 3e-3,
        "checkpoint_every": 4,
        "evaluations": 2,
    }
    said = (
        {"dtype": "float32", "objective": "contrastive", "caption_tokens": 24, "patch_size": 4}
        | small
        | changes
    )
    return Pretrain(corpus, **said)  # type: ignore[arg-type]


def test_the_same_recipe_gives_the_same_bytes_and_equal_captions_are_on_one_side(
    recipe_file: Path, tmp_path: Path
) -> None:
    one, two = (corpora.build_corpus(recipe_file, tmp_path / name, n) for name, n in (("a", 1), ("b", 3)))
    assert one.fingerprint == two.fingerprint
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
    opened = ImageCorpus.open(tmp_path / "a")
    said = [
        {split.caption(i).tobytes() for i in range(len(split))}
        for split in (opened.split("train"), opened.split("validation"))
    ]
    assert len(said[0]) + len(said[1]) == 48 and not said[0] & said[1]
    assert opened.card.classes == ("", "bottom", "middle", "top")
    (tmp_path / "a" / "train-00000.rgb").write_bytes(bytes(len(opened.split("train")) * 16 * 16 * 3))
    with raises(WrongHash, "hash-mismatch"):
        ImageCorpus.open(tmp_path / "a")


def test_what_is_no_pair_is_left_out_and_counted(recipe_file: Path) -> None:
    folder = recipe_file.parent / "stripes"
    (folder / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    (folder / "torn.txt").write_text("torn")
    (folder / "drawn.svg").write_text("<svg/>")
    image.new("RGB", (8, 8)).save(folder / "mute.png")
    for name in ("once", "twice"):
        image.new("RGB", (8, 8)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text("a black square")
    (folder / "gone.png").symlink_to(folder / "nothing.png")
    card = corpora.build_corpus(recipe_file)
    why = ("broken_link", "drawing", "duplicate", "no_caption", "unreadable")
    assert card.sources[0].skipped == dict.fromkeys(why, 1)


def test_a_table_of_captions_is_read_and_its_mistakes_named(recipe_file: Path) -> None:
    table = recipe_file.parent / "captions.csv"
    table.write_text(
        "image,caption,class\ntop/red-0-0.png,a red thing,warm\ntop/blue-0-0.png,a blue thing,cold\n"
    )
    text = RECIPE.replace('path = "stripes"', 'path = "stripes"\ncaptions = "captions.csv"')
    recipe_file.write_text(text.replace("vocabulary = 290", "vocabulary = 270").replace("0.25", "0"))
    assert corpora.build_corpus(recipe_file).classes == ("", "warm", "cold")
    table.write_text("image,caption\nnowhere.png,a thing\n")
    with raises(BadInput, "unreadable-file", mentions=["captions.csv:2"]):
        corpora.build_corpus(recipe_file, recipe_file.parent / "again")
    table.write_text("image,captoin\ntop/red-0-0.png,a thing\n")
    with raises(BadInput, "unknown-key", mentions=["captoin"]):
        corpora.build_corpus(recipe_file, recipe_file.parent / "again")


def test_pictures_and_text_are_two_corpora(recipe_file: Path, pictures: Path) -> None:
    with raises(UsageError, "bad-usage", mentions=["contrastive"]):
        Corpus.open(pictures)
    for text in ("[[step]]\nkind = 'normalise'\n", "[mixture]\ntokens = 5\n"):
        recipe_file.write_text(RECIPE + text)
        with raises(BadInput, "bad-input"):
            corpora.build_corpus(recipe_file, recipe_file.parent / "other")
    recipe_file.write_text(RECIPE + '[[source]]\nname = "b"\nkind = "text"\npath = "stripes"\n')
    with raises(BadInput, "bad-input"):
        corpora.build_corpus(recipe_file, recipe_file.parent / "other")


def test_what_is_clear_is_filled_and_a_long_picture_is_stretched_or_cropped(tmp_path: Path) -> None:
    path = tmp_path / "clear.png"
    image.new("RGBA", (40, 20), (255, 0, 0, 0)).save(path)
    assert (images.read_image(path, 8, "stretch", 255) == 255).all()
    assert (images.read_image(path, 8, "stretch", 0) == 0).all()
    half = np.zeros((20, 40, 3), np.uint8)
    half[:, 10:30] = 200
    image.fromarray(half).save(path)
    assert (images.read_image(path, 8, "crop", 255) == 200).all()
    assert images.read_image(path, 8, "stretch", 255)[0, 0, 0] < 20


def test_a_shifted_picture_repeats_its_edge() -> None:
    picture = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
    moved = shift_image(picture, 1, -1)
    assert (moved[1:, :-1] == picture[:-1, 1:]).all() and (moved[0] == moved[1]).all()


def test_pairs_hang_on_seed_and_step_alone_and_every_epoch_has_all(pictures: Path) -> None:
    pairs = ImageCorpus.open(pictures).split("train")
    n = len(pairs)
    steps = PairSampler(pairs, CaptionLayout(0, 3, 24), n // 2, 1, 2)
    (one,), (again,), (other,) = steps.batches(0), steps.batches(0), steps.batches(1)
    assert one.images is not None and again.images is not None
    assert torch.equal(one.images, again.images) and torch.equal(one.tokens, again.tokens)
    assert not torch.equal(one.tokens, other.tokens)
    rows = [row.tobytes() for batch in (one, other) for row in batch.tokens.view(-1, 24).numpy()]
    every = [steps.captions.row(pairs.caption(i)).tobytes() for i in range(n)]
    assert len(rows) == n // 2 * 2 and not set(rows) - set(every)
    cut = CaptionLayout(0, 3, 4).row(np.array([9, 8, 7, 6, 5, 0]))
    assert cut.tolist() == [9, 8, 7, 0]


@pytest.mark.parametrize("architecture", ["clip", "siglip"])
def test_the_loss_is_that_of_transformers_and_equal_captions_are_left_out(
    pictures: Path, architecture: str
) -> None:
    made = recipe(pictures, architecture=architecture)
    from heredity.core import registry
    from heredity.train.models.architectures import Specials

    config = registry.load("train.models.architectures", architecture).config(made.dial.shape, Specials(0, 3))
    net = dual.from_config(config, 1, "float32")
    steps = PairSampler(ImageCorpus.open(pictures).split("train"), CaptionLayout(0, 3, 24), 8, 1)
    first = [int(i) for i in np.unique(steps.same)[:8]]
    batch = steps.collate(first)
    ours = Contrastive().loss(net, batch).total / 8
    theirs = net.model(input_ids=batch.tokens.view(8, -1), pixel_values=batch.images, return_loss=True).loss
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-5)
    twin = next(i for i in range(len(steps.same)) if steps.same[i] != i)
    both = steps.collate([int(steps.same[twin]), twin])
    scores = net.similarities(net.embed(both)).detach()
    alone = 0.0 if architecture == "clip" else float(-torch.nn.functional.logsigmoid(scores.diag()).sum())
    assert float(Contrastive().loss(net, both).total.detach()) == pytest.approx(alone, abs=1e-6)


@pytest.mark.parametrize("architecture", ["clip", pytest.param("siglip", marks=pytest.mark.proof)])
def test_a_dual_encoder_is_grown_learns_and_loads_in_transformers(
    pictures: Path, tmp_path: Path, architecture: str
) -> None:
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel, SiglipModel

    store = Store(tmp_path / "store")
    grown = store.grow_once(recipe(pictures, architecture=architecture), [])
    record, folder = grown.record, grown.folder
    assert record.modality == "image-text" and record.name == f"{architecture}-150k"
    assert record.recipe.settings["corpus"] == ImageCorpus.open(pictures).fingerprint
    assert "context" not in record.recipe.settings and "tokens" not in record.recipe.settings
    rows = list(loop.Rows(folder / "training.jsonl", loop.StepMetrics))
    looks = [row.terms for row in rows if f"{TO_CAPTION} @1" in row.terms]
    chance = math.log(24) if architecture == "clip" else rows[0].loss
    assert rows[0].loss == pytest.approx(chance, abs=0.6) and rows[-1].loss < 0.8 * rows[0].loss
    n_captions = ImageCorpus.open(pictures).card.splits[1].captions
    assert looks[-1][f"{TO_CAPTION} @5"] > 5 / n_captions and looks[-1][f"{TO_PICTURE} @1"] > 0
    assert 0 <= looks[-1][ZERO_SHOT] <= 1
    theirs = (CLIPModel if architecture == "clip" else SiglipModel).from_pretrained(folder)
    ours, path = dual.load(folder), tmp_path / "square.png"
    held_out = ImageCorpus.open(pictures).split("validation")
    image.fromarray(held_out.image(0)).save(path)
    seen = AutoImageProcessor.from_pretrained(folder)(image.open(path), return_tensors="pt")["pixel_values"]
    assert torch.allclose(seen, to_pixels(held_out.image(0)[None]), atol=1e-6)
    words = AutoTokenizer.from_pretrained(folder)
    text = words("a red stripe at the top, 3", padding="max_length", truncation=True, return_tensors="pt")
    with torch.no_grad():
        found = theirs(**text, pixel_values=seen)
        assert torch.allclose(ours.embed_images(seen), found.image_embeds, atol=1e-5)
        assert torch.allclose(ours.embed_captions(text.input_ids), found.text_embeds, atol=1e-5)
    with raises(Unavailable, "unavailable", mentions=["image-text"]):
        engine_loader(record)
    with raises(Unavailable, "unavailable", mentions=[architecture]):
        read_config(folder)
    with raises(UsageError, "bad-usage"):
        export(store, grown, "hf", tmp_path / "out")
    matcher = engine_loader(record, needs_text=False)(record, folder)
    (row,) = matcher.match([path], ["a red stripe at the top, 3", "a grey stripe"])  # type: ignore[attr-defined]
    assert row[0] == pytest.approx(float(found.image_embeds[0] @ found.text_embeds[0]), abs=1e-5)
    (path.with_suffix(".txt")).write_text("none")
    with raises(UsageError, "bad-usage"):
        matcher.match([path.with_suffix(".txt")], ["a"])  # type: ignore[attr-defined]
    with raises(EngineFailure, "engine-failure"):
        matcher.reply([])
    grades = Evaluation([grown], limit=5, store=store, out=tmp_path / "evals").run()
    asked = {one.task: one.score.n for one in grades.grades if not one.refused}
    assert asked == {"picture_names": 5, "picture_search": 5} and not any(g.n_error for g in grades.grades)


def run(corpus: Path, work: Path) -> str:
    """Train and return a digest of every weight."""
    from heredity.recipes.pretrain import contrastive

    made = contrastive.train(recipe(corpus, seed=5, pairs=14 * 24), work)
    raw = b"".join(p.detach().numpy().tobytes() for _, p in sorted(made.network.model.named_parameters()))
    return hashlib.sha256(raw).hexdigest()


@pytest.mark.proof  # the loop is killed in test_loop.py
def test_killed_again_and_again_it_comes_to_the_same_bits(pictures: Path, tmp_path: Path) -> None:
    whole = run(pictures, tmp_path / "whole")
    program = (
        "import sys, time; from pathlib import Path; import heredity.train.loop as loop;"
        "tick = loop._ProgressClock.tick;"
        "loop._ProgressClock.tick = lambda self, m: (tick(self, m), time.sleep(0.05));"
        "from tests.train.test_contrastive import run;"
        f"print(run(Path({str(pictures)!r}), Path(sys.argv[1])))"
    )
    command = ["-c", program, str(tmp_path / "killed")]
    metrics = tmp_path / "killed" / loop.METRICS
    last = ends_after_kills(command, tmp_path, lambda: n_rows([metrics]), (8,))
    assert last.stdout.strip() == whole


def test_what_cannot_be_is_refused_before_the_first_step(pictures: Path) -> None:
    with raises(UsageError, "unknown-key", mentions=["context"]):
        recipe(pictures, context=64)
    with raises(UsageError, "bad-usage", mentions=["patch"]):
        _ = recipe(pictures, patch_size=5).dial
    with raises(UsageError, "bad-setting", mentions=["batch", "2"]):
        _ = recipe(pictures, batch_size=1000).dial
    from heredity.recipes.pretrain import contrastive

    work = pictures.parent / "work"
    with raises(OutOfMemory, "out-of-memory", mentions=["GiB", "150K", "24"]):
        contrastive.train(recipe(pictures, memory=0.001), work)
    assert not work.exists()
