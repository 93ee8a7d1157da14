"""Turn a GGUF, int8 or packed weights into bf16 safetensors that others load: once, and as a recorded child.

Promises: the child loads with transformers without remote code. Its config agrees with its tensors; a head
equal to the embedding is tied and dropped. Its chat template is the GGUF's own, unchanged. Every control
token of the GGUF is one token with the same id.
Leaves to others: downloading (pull/recipe.py) and answering
(engines/). The only recipe here that needs torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heredity.core import host
from heredity.core.errors import Damaged, Refused, Unavailable, first_line, how_to_install
from heredity.core.files import explain_full_disk
from heredity.core.progress import Watch, about, phase
from heredity.formats.gguf import GgufHeader, read_gguf
from heredity.formats.safetensors_io import INDEX, copy_rest, read_safetensors, replace_json
from heredity.lineage.types import Description, Grown

if TYPE_CHECKING:
    import torch

SHARD = 2 << 30
_KEY = "quantization_config"


def is_packed(folder: Path) -> bool:
    """Whether config.json names a quantization."""
    return bool(json.loads((folder / "config.json").read_text("utf-8")).get(_KEY))


def unpack_folder(
    folder: Path, out: Path, dtype: str, shard: int = SHARD, watch: Watch | None = None
) -> None:
    """Write the numbers that the packed weights stand for, in `dtype`. watch: gets the count of tensors.

    Raises Unavailable for a packing that is not read here, Damaged for tensors that do not fit each other.
    """
    config = json.loads((folder / "config.json").read_text("utf-8"))
    copy_rest(folder, out)
    (out / INDEX).unlink(missing_ok=True)
    held: dict[str, torch.Tensor] = {}
    n_bytes, where = 0, dict[str, str]()
    for name, tensor in _tensors(folder, config[_KEY], dtype, watch):
        if held and n_bytes + tensor.nbytes > shard:
            _save(held, out, where)
            held, n_bytes = {}, 0
        held[name] = tensor
        n_bytes += tensor.nbytes
    _save(held, out, where)
    files = sorted(set(where.values()))
    if len(files) == 1:
        (out / files[0]).rename(out / "model.safetensors")
    else:
        replace_json(out / INDEX, {"metadata": {}, "weight_map": where})
    replace_json(out / "config.json", {k: v for k, v in config.items() if k != _KEY} | {"dtype": dtype})


def _tensors(
    folder: Path, how: dict[str, object], dtype: str, watch: Watch | None
) -> Iterator[tuple[str, torch.Tensor]]:
    import torch
    from safetensors import safe_open

    from heredity.formats.packed import packing_of, unpack

    headers = {path: read_safetensors(path) for path in sorted(folder.glob("*.safetensors"))}
    where = {name: path for path, header in headers.items() for name in header}
    if not where:
        raise Damaged(f"{folder}: there is no safetensors file")
    files = {path: safe_open(path, framework="pt") for path in headers}

    def take(name: str) -> torch.Tensor:
        tensor: torch.Tensor = files[where[name]].get_tensor(name)
        return tensor

    packing, kept = packing_of(how, where), getattr(torch, dtype)
    mains = {
        name: name.removesuffix(end) for end in packing.main for name in sorted(where) if name.endswith(end)
    }
    if not mains:
        raise Damaged(f"{folder}: config.json names packed weights, and there are none.")
    weights = {f"{base}.weight" for base in mains.values()}
    made = [name for name in sorted(where) if name in mains or name not in weights]
    made = [name for name in made if name in mains or not name.endswith(packing.parts)]

    def whole(name: str) -> tuple[str, torch.Tensor]:
        if name in mains:
            return f"{mains[name]}.weight", unpack(packing, mains[name], take).to(kept).contiguous()
        tensor = take(name)
        return name, tensor.to(kept) if tensor.is_floating_point() else tensor

    with phase(watch, "converting", n_total=len(made), unit="tensors") as meter:
        yield from meter.each(made, whole)


def _save(tensors: dict[str, torch.Tensor], out: Path, where: dict[str, str]) -> None:
    from safetensors.torch import save_file

    path = out / f"model-{len(set(where.values())) + 1:05}.safetensors"
    with explain_full_disk(out, sum(tensor.nbytes for tensor in tensors.values())):
        save_file(tensors, path, metadata={"format": "pt"})
    where |= dict.fromkeys(sorted(tensors), path.name)


_DIGITS = ("smollm",)  # names under which llama.cpp splits each digit off first
_PLAIN = ("gpt-2", *_DIGITS)  # and those under which it splits as GPT-2 did
_AS_WRITTEN = ("PreTrainedTokenizerFast", "TokenizersBackend")  # classes that read tokenizer.json as it is
_CONTROL = 3  # tokenizer.ggml.token_type of a special token
_CIRCUMSTANCES = (
    "transformers_version",
    "name_or_path",
    "_name_or_path",
    "_model_name_or_path",
    "_from_model_config",
    "is_local",
    "local_files_only",
)
# Tokens that end an answer whatever the file names as its one EOS (llama.cpp does the same).
_ENDS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "<|end|>", "<end_of_turn>", "</s>")


@dataclass(frozen=True)
class Dequantize:
    """GGUF, int8 or packed weights in, safetensors of `dtype` out. GGUF blocks in ggml's own arithmetic."""

    dtype: str = "bfloat16"
    watch: Watch | None = field(default=None, compare=False)

    kind = "dequantize"

    def settings(self) -> dict[str, Any]:
        """The settings that change the result."""
        return {"dtype": self.dtype}

    def apply(self, parents: Sequence[Grown], out: Path) -> Description:
        """Write config, weights and tokenizer of the one parent into `out`.

        Raises Unavailable without torch, Damaged for a damaged GGUF, Refused for an architecture or a
        tokenizer that transformers does not read.
        """
        (parent,) = parents
        watch = about(self.watch, parent.record.name)
        if parent.record.format == "int8":
            from heredity.formats.int8 import dequantize_int8

            dequantize_int8(parent.folder, out, self.dtype, watch)
        elif parent.record.format == "safetensors" and is_packed(parent.folder):
            unpack_folder(parent.folder, out, self.dtype, watch=watch)
        else:
            paths = [file.path for file in parent.record.files if file.path.endswith(".gguf")]
            if parent.record.format != "gguf" or len(paths) != 1:
                raise Refused(
                    f"'{parent.record.name}' is not a single GGUF file; there is nothing to dequantize."
                )
            self._read_gguf(parent.folder / paths[0], out, watch)
        record = parent.record
        return Description(
            name=f"{record.name}-bf16" if self.dtype == "bfloat16" else f"{record.name}-{self.dtype}",
            family=record.family,
            licence=record.licence,
            format="safetensors",
            modality=record.modality,
            notes=record.notes,
            versions={name: version(name) for name in ("torch", "transformers", "gguf")},
        )

    def _read_gguf(self, gguf: Path, out: Path, watch: Watch | None = None) -> None:
        with phase(watch, "reading the header"):
            header = read_gguf(gguf)
        kind = header.metadata.get("general.architecture")
        if kind == "llama" and any(tensor.name.endswith(".bias") for tensor in header.tensors):
            raise Refused(
                f"{gguf.name}: transformers reads a Llama without its biases; it would answer otherwise."
            )
        host.keep_freed_memory()  # each tensor takes the memory of the one before
        with host.LOADING, ExitStack() as stack:
            with phase(watch, "loading the libraries"):
                stack.enter_context(_quiet_transformers(len(header.tensors), watch))
            _write_weights(gguf, header, out, self.dtype, watch)
            with phase(watch, "writing the tokenizer"):
                from transformers import AutoTokenizer

                try:
                    tokenizer = AutoTokenizer.from_pretrained(
                        gguf.parent, gguf_file=gguf.name, local_files_only=True
                    )
                except (ValueError, KeyError, NotImplementedError, TypeError) as error:
                    reason = f"transformers does not read the tokenizer of {gguf.name}"
                    raise Refused(f"{reason}: {first_line(error)}") from error
                tokenizer.save_pretrained(out)
                _set_pre_tokenizer(header.text("tokenizer.ggml.pre"), out)
                place = out / "chat_template.jinja"
                place.unlink(missing_ok=True)
                if template := header.text("tokenizer.chat_template"):
                    place.write_text(template, encoding="utf-8", newline="")
        host.trim_memory()
        # The versions that transformers writes go, so that the id is the same everywhere.
        for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
            if not (out / name).is_file():
                continue
            config = json.loads((out / name).read_text("utf-8"))
            kept = {key: value for key, value in config.items() if key not in _CIRCUMSTANCES}
            (out / name).write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        _check_tokens(header, out)


@contextmanager
def _quiet_transformers(n_tensors: int, watch: Watch | None) -> Iterator[None]:
    """A library prints nothing: silence transformers' bars and advice, and put its settings back.

    watch: gets the count of the tensors that transformers has read, of `n_tensors`.
    """
    try:
        import torch  # noqa: F401  # transformers imports without it and then fails late
        from transformers import PreTrainedModel  # noqa: F401  # it loads late what takes most of the time
        from transformers import modeling_gguf_pytorch_utils as legacy
        from transformers.utils import logging

        from heredity.formats.gguf_weights import quick_gguf
    except ImportError as error:
        raise Unavailable(
            f"Dequantizing a GGUF needs torch and transformers. {how_to_install('torch')}"
        ) from error
    level, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    bar = getattr(legacy, "tqdm", None)
    qwen3 = legacy.GGUF_CONFIG_MAPPING.get("qwen3", {})
    had_width = "attention.key_length" in qwen3
    qwen3.setdefault("attention.key_length", "head_dim")  # 5.24 forgets it, and then takes another
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()

    def counted(items: Iterable[object], **_: object) -> Iterator[object]:
        with phase(watch, "converting", n_total=n_tensors, unit="tensors") as meter:
            yield from meter.each(items, lambda item: item)

    legacy.tqdm = counted  # this bar asks no setting
    try:
        with quick_gguf():
            yield
    finally:
        legacy.tqdm = bar
        if not had_width:
            del qwen3["attention.key_length"]
        logging.set_verbosity(level)
        if had_bars:
            logging.enable_progress_bar()


def _write_weights(gguf: Path, header: GgufHeader, out: Path, dtype: str, watch: Watch | None) -> None:
    import torch
    import transformers

    from heredity.formats.gguf_weights import complete_gemma, is_gemma

    kind: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True, "trust_remote_code": False}
    if hasattr(transformers, "GgufConfig"):  # from 5.24 on, blocks may stay packed unless this says no
        kind["quantization_config"] = transformers.GgufConfig(dequantize=True)
    try:
        # Until the first tensor is counted, transformers reads the header again and builds the model.
        with phase(watch, "preparing the model"):
            model = transformers.AutoModelForCausalLM.from_pretrained(
                gguf.parent, dtype=getattr(torch, dtype), **kind
            )
    except (ValueError, KeyError, NotImplementedError, RuntimeError) as error:
        raise Refused(f"transformers does not load {gguf.name}: {first_line(error)}") from error
    if is_gemma(model.config):
        complete_gemma(model.config, header.metadata)
    _tie_equal_head(model)
    # transformers 5 marks a model read from a GGUF as quantized and then refuses to save it.
    model.hf_quantizer = None
    for place, name in (
        (model, "is_quantized"),
        (model, "quantization_method"),
        (model.config, "quantization_config"),
    ):
        if hasattr(place, name):
            delattr(place, name)
    # The file's own EOS first.
    named = [header.special_id(name) for name in ("eos", "eot")]
    known = [ident for ident, token in _control_tokens(header) if token in _ENDS]
    ends = list(dict.fromkeys(ident for ident in [*named, *known] if ident is not None))
    if ends:
        model.generation_config.eos_token_id = ends[0] if len(ends) == 1 else ends
    with phase(watch, "writing"):
        model.save_pretrained(out, max_shard_size="5GB")


def _tie_equal_head(model: Any) -> None:
    """Where the head is the embedding, say so in the config, so that one tensor is stored and not two."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or embedding is None:
        return
    is_tied = head.weight.shape == embedding.weight.shape and bool((head.weight == embedding.weight).all())
    model.config.tie_word_embeddings = is_tied
    if is_tied:
        head.weight = embedding.weight


def _control_tokens(header: GgufHeader) -> list[tuple[int, str]]:
    kinds = header.metadata.get("tokenizer.ggml.token_type")
    pairs = zip(header.tokens, kinds if isinstance(kinds, tuple) else (), strict=False)
    return [(ident, token) for ident, (token, kind) in enumerate(pairs) if kind == _CONTROL]


def _set_pre_tokenizer(name: str, out: Path) -> None:
    """Split text as llama.cpp does under this name. transformers writes each such tokenizer as GPT-2's, and
    on reading always uses the split of the model's own kind."""
    path, config_path = out / "tokenizer.json", out / "tokenizer_config.json"
    tokenizer = json.loads(path.read_text("utf-8"))
    known = (tokenizer.get("pre_tokenizer") or {}).get("type")
    if name not in _PLAIN or known != "ByteLevel":
        return
    if name in _DIGITS:
        digits = {"type": "Digits", "individual_digits": True}
        tokenizer["pre_tokenizer"] = {
            "type": "Sequence",
            "pretokenizers": [digits, tokenizer["pre_tokenizer"]],
        }
        path.write_text(json.dumps(tokenizer, indent=2, ensure_ascii=False), encoding="utf-8")
    config = json.loads(config_path.read_text("utf-8"))
    if config.get("tokenizer_class") not in _AS_WRITTEN:
        config["tokenizer_class"] = _AS_WRITTEN[0]
        config_path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _check_tokens(header: GgufHeader, out: Path) -> None:
    """A special token that falls apart would let an answer run on, or a user's text become a command."""
    from tokenizers import Tokenizer

    written = Tokenizer.from_file(str(out / "tokenizer.json"))
    for ident, token in _control_tokens(header):
        ids = written.encode(token, add_special_tokens=False).ids
        if ids != [ident]:
            raise Damaged(
                f"The tokenizer reads the special token {token!r} as {ids[:8]}, the GGUF gives it the id"
                f" {ident}: this version of transformers does not read this file right. Try another."
            )
