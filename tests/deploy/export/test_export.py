"""What is handed out says what the model says to others' readers; else it is refused, and nothing is left."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("gguf")

from heredity.cli import main
from heredity.core import registry
from heredity.core.errors import OutOfMemory, Refused, UnknownName, UsageError
from heredity.core.progress import Progress
from heredity.core.records import Decoding, Message, Request
from heredity.deploy import export
from heredity.deploy.export import _parity
from heredity.formats import gguf_weights
from heredity.formats.gguf import read_gguf
from heredity.lineage.store import Store
from heredity.lineage.types import Grown
from heredity.recipes.lora import Lora
from heredity.recipes.quantize import Quantize
from heredity.train.data.chat import Data
from tests.support.errors import raises
from tests.support.tiny_models import make_model

LARGER = {"hidden_size": 128, "intermediate_size": 256, "max_position_embeddings": 1024}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture(params=["llama", "qwen2", "qwen3"])
def model(store: Store, tmp_path: Path, request: pytest.FixtureRequest) -> Grown:
    return store.pull(str(make_model(tmp_path / "tiny", request.param, **LARGER)))


@pytest.mark.parametrize("form", registry.names("deploy.export"))
def test_every_format_is_read_back_by_every_reader(
    store: Store, model: Grown, form: str, tmp_path: Path
) -> None:
    if form == "adapter":
        model = store.grow_once(Lora(Data.of("rows", [("the fox", "jumps")]), steps=1, rank=2), [model])
    done = export.export(store, model, form, tmp_path / "out")
    assert done.parities and all(p.n > 0 or p.left_out for p in done.parities)
    assert all(p.largest <= p.tolerance for p in done.parities)
    assert done.parities[-1].reader == {"hf": "transformers", "adapter": "PEFT"}.get(form, "llama.cpp")
    assert {"README.md", "bom.cdx.json"} < {path.name for path in done.folder.iterdir()}


@pytest.mark.parametrize("form", ["hf", "gguf"])
def test_the_phases_of_an_export_are_reported_in_order(store: Store, form: str, tmp_path: Path) -> None:
    seen: list[Progress] = []
    model = store.pull(str(make_model(tmp_path / "tiny", "llama", **LARGER)))
    with store.report.to(seen.append):
        export.export(store, model, form, tmp_path / "out", dtype="float32")
    names = [name for name, _ in groupby(each.phase for each in seen if each.phase)]
    written, back = names.index("writing"), names.index("reading the files back")
    assert names.index("converting") < back and written < back < names.index("reading the model")
    assert names.index("reading the model") < names.index("asking") < names.index("comparing with the files")
    asked = [each for each in seen if each.phase == "asking"]
    assert (asked[0].n_done, asked[0].n_total, asked[0].model) == (0, 32, model.record.name)


@pytest.mark.parametrize(("to", "name"), [("q4_0", "Q4_0"), ("f16", "F16")])
def test_a_quantized_child_answers_and_is_exported_as_it_is(
    store: Store, tmp_path: Path, to: str, name: str
) -> None:
    import gguf

    parent = store.pull(str(make_model(tmp_path / "tiny", "llama", **LARGER)))
    child = store.grow_once(Quantize(to), [parent])
    (path,) = child.folder.iterdir()
    kinds = {t.name: gguf.GGMLQuantizationType(t.type).name for t in read_gguf(path).tensors}
    assert kinds["blk.0.attn_q.weight"] == name and kinds["output_norm.weight"] == "F32"
    assert kinds["token_embd.weight"] == ("F16" if to == "f16" else "Q8_0")
    engine = _engine(store, child)
    (reply,) = engine.reply([Request(0, (Message("user", "the fox"),), Decoding(max_tokens=4))])
    assert reply.error is None
    done = export.export(store, child, "gguf", tmp_path / "out")
    (out,) = done.folder.glob("*.gguf")
    assert out.read_bytes() == path.read_bytes()


def _engine(store: Store, child: Grown) -> object:
    from heredity.engines.torch.engine import open_folder

    return open_folder(store.ready(child).folder, dtype="float32")


def test_a_quantized_child_is_the_same_bytes_again_and_near_its_parent(store: Store, tmp_path: Path) -> None:
    parent = store.pull(str(make_model(tmp_path / "tiny", "qwen2", **LARGER)))
    children = [store.grow_once(Quantize(to), [parent]) for to in ("q8_0", "q4_0", "f32")]
    again = store.grow(Quantize("q4_0"), [parent])
    assert again.record.id == children[1].record.id
    wanted = _parity.read_folder(_parity.LoadedFolder(parent.folder), "parent", 0).logs
    far = []
    for child in children:
        source = _parity.ExportSource(store, child, store.whole(child), tmp_path / child.record.id, "gguf")
        source.bench.mkdir()
        logs = _parity.reference(source).logs
        far.append(max(abs(a - b) for a, b in zip(wanted, logs, strict=True)))
    assert far[2] < 1e-5 < far[0] < far[1]


def test_weights_in_the_wrong_place_are_refused_and_nothing_is_left(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = store.pull(str(make_model(tmp_path / "tiny", "llama", **LARGER)))
    monkeypatch.setattr(gguf_weights, "_turned", lambda name, array, config: array)
    with raises(Refused, "refused"):
        export.export(store, model, "gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list((store.root / "tmp").glob("*/"))


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        (
            "chat_template.jinja",
            lambda text: text.replace("assistant", "helper"),
            ("refused", []),
        ),
        ("generation_config.json", lambda text: text.replace("2", "7"), ("refused", [])),
        (
            "tokenizer.json",
            lambda text: text.replace('prefix_space": false', 'prefix_space": true'),
            ("refused", []),
        ),
    ],
)
def test_a_difference_beside_the_weights_is_refused(
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    change: Callable[[str], str],
    said: tuple[str, list[str]],
) -> None:
    from heredity.deploy.export import hf

    model = store.pull(str(make_model(tmp_path / "tiny", "llama", **LARGER)))
    written = hf.write

    def damaged(source: _parity.ExportSource, out: Path) -> None:
        written(source, out)
        before = (out / name).read_text("utf-8")
        (out / name).write_text(change(before), "utf-8")
        assert (out / name).read_text("utf-8") != before

    monkeypatch.setattr(hf, "write", damaged)
    with raises(Refused, *said):
        export.export(store, model, "hf", tmp_path / "out")


def test_what_is_not_known_is_refused_by_name(store: Store, tmp_path: Path) -> None:
    model = store.pull(str(make_model(tmp_path / "tiny", "llama", **LARGER)))
    windowed = store.pull(str(make_model(tmp_path / "windowed", "mistral")))
    with raises(Refused, "refused"):
        store.grow_once(Quantize(), [windowed])
    with raises(UnknownName, "unknown-name", mentions=["gguf"]):
        export.export(store, model, "ggfu", tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").write_text("mine")
    with raises(UsageError, "bad-usage"):
        export.export(store, model, "hf", tmp_path / "full")


def _converter(place: Path, body: str) -> None:
    """A stand-in for llama.cpp's program, which takes its arguments and runs `body`."""
    import sys

    program = place / "convert_hf_to_gguf.py"
    program.write_text(f"#!{sys.executable}\nimport sys\nfrom pathlib import Path\n{body}\n")
    program.chmod(0o755)


WRITES = """
from heredity.engines.chat import read_gguf_chat
from heredity.formats.gguf_weights import write_gguf
write_gguf(Path(sys.argv[1]), Path(sys.argv[3]), sys.argv[5], "converted", read_gguf_chat)
"""


@pytest.mark.proof
def test_another_architecture_is_converted_by_the_program_of_llama_cpp(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = store.pull(str(make_model(tmp_path / "tiny", "llama", **LARGER)))
    monkeypatch.setattr(gguf_weights, "_ARCHITECTURES", {})
    monkeypatch.setenv("PATH", str(tmp_path))
    with raises(Refused, "refused", mentions=["llama", "convert_hf_to_gguf.py"]):
        export.export(store, model, "gguf", tmp_path / "none")
    _converter(tmp_path, "sys.exit('no such architecture')")
    with raises(Refused, "refused", mentions=["no such architecture"]):
        export.export(store, model, "gguf", tmp_path / "failed")
    _converter(tmp_path, WRITES)
    done = export.export(store, model, "gguf", tmp_path / "out")
    assert done.parities[0].n > 0 and done.parities[0].largest <= done.parities[0].tolerance


def test_the_bill_of_materials_has_the_whole_ancestry_and_fits_the_schema(
    store: Store, tmp_path: Path
) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    parent = store.pull(str(make_model(tmp_path / "tiny", "llama", **LARGER)))
    child = store.grow_once(Quantize("q8_0", name="small|<b>\n# x"), [parent])
    done = export.export(store, child, "gguf", tmp_path / "out")
    text = (done.folder / "bom.cdx.json").read_text("utf-8")
    validator, bill = JsonStrictValidator(SchemaVersion.V1_6), json.loads(text)
    assert validator.validate_str(text) is None
    for wrong in (bill | {"unknown": 1}, bill | {"metadata": {"timestamp": "yesterday"}}):
        assert validator.validate_str(json.dumps(wrong)) is not None  # formats are checked, too
    assert [c["bom-ref"] for c in bill["components"]] == [child.record.id, parent.record.id]
    assert {"ref": child.record.id, "dependsOn": [parent.record.id]} in bill["dependencies"]
    hashes = {f["name"]: f["hashes"][0]["content"] for f in bill["metadata"]["component"]["components"]}
    there = {path.name for path in done.folder.iterdir()} - {"bom.cdx.json"}
    assert hashes == {name: hashlib.sha256((done.folder / name).read_bytes()).hexdigest() for name in there}
    card = (done.folder / "README.md").read_text("utf-8")
    assert "<b>" not in card and "\n# x" not in card and "quantize" in card
    assert "Nothing was measured" in card


def test_the_card_quotes_a_study(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import heredity as h

    model = store.pull(str(make_model(tmp_path / "tiny", "llama", max_position_embeddings=4096)))
    desk = h.Application("desk", "Be kind.", decoding=Decoding(max_tokens=4))
    h.Study(h.StudySpec([model], desk, probes="direct_injection", out=tmp_path / "study"), store=store).run()
    monkeypatch.setenv("HEREDITY_STORE", str(store.root))
    given = ["export", "tiny", str(tmp_path / "out"), "--to", "hf", "--study", str(tmp_path / "study")]
    assert main(given) == 0
    assert "transformers agrees within" in capsys.readouterr().err
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "| breach, as checks decide |" in card and "% intervals" in card
    other = store.grow_once(Quantize("q8_0", name="other"), [model])
    with raises(UsageError, "bad-usage", mentions=["tiny", "other"]):  # before anything is written
        export.export(store, other, "gguf", tmp_path / "other", tmp_path / "study")


def test_of_a_form_that_was_made_whole_the_descent_names_that_step(store: Store, tmp_path: Path) -> None:
    parent = store.pull(str(make_model(tmp_path / "tiny", "llama", **LARGER)))
    child = store.grow_once(Quantize("int8", name="small"), [parent])
    done = export.export(store, child, "hf", tmp_path / "out")
    whole = store.whole(child).record
    bill = json.loads((done.folder / "bom.cdx.json").read_text("utf-8"))
    assert [c["bom-ref"] for c in bill["components"]] == [whole.id, child.record.id, parent.record.id]
    handed = bill["metadata"]["component"]["bom-ref"]
    assert bill["dependencies"][:2] == [
        {"ref": handed, "dependsOn": [whole.id]},
        {"ref": whole.id, "dependsOn": [child.record.id]},
    ]
    card = (done.folder / "README.md").read_text("utf-8")
    rows = [line.split(" | ")[1] for line in card.splitlines() if line.startswith("| ") and "`" not in line]
    assert rows[1:4] == ["dequantize", "quantize", "pull"] and card.startswith("---\n")


def test_what_does_not_fit_into_memory_is_refused_before_it_starts_with_what_would(
    store: Store, tmp_path: Path
) -> None:
    model = store.pull(str(make_model(tmp_path / "tiny", "llama", **LARGER, num_hidden_layers=6)))
    source = _parity.ExportSource(store, model, store.whole(model), tmp_path, "gguf")
    hf, whole = (sum(export.peak_memory(source, form).values()) for form in ("hf", "gguf"))
    assert hf < whole == sum(p.numel() for p in _network(model).parameters()) * 4
    with raises(OutOfMemory, "out-of-memory", mentions=["--to hf"]):
        export.export(store, model, "gguf", tmp_path / "out", memory=whole - 1)
    with raises(OutOfMemory, "out-of-memory", mentions=["100%"]):
        export.export(store, model, "hf", tmp_path / "out", memory=hf - 1)
    assert not (tmp_path / "out").exists()
    assert export.export(store, model, "hf", tmp_path / "out", memory=hf).parities


def _network(model: Grown) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model.folder)


def test_weights_that_are_read_a_layer_at_a_time_say_what_all_of_them_say(model: Grown) -> None:
    from heredity.engines.torch.engine import _Layers, open_folder

    ask = Request(0, (Message("user", "the quick brown fox"),))
    said, steps, tokens = [5, 9, 260, 7], [0, 3, 4], [5, 11, 300]
    found = []
    for is_streamed in (False, True):
        engine = open_folder(model.folder, dtype="float32", is_probed=False, is_streamed=is_streamed)
        found.append(engine.log_probabilities(ask, said)[steps, tokens].tolist())
        assert isinstance(engine.decoder.weights.blocks, _Layers) is is_streamed
    assert found[0] == pytest.approx(found[1], abs=1e-6)
    assert len(engine.decoder.weights.blocks[1:]) == len(engine.decoder.weights.blocks) - 1
