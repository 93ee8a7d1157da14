"""Tiny real models, wheels, and a server that drops connections, refuses ranges or plays the hub."""

from __future__ import annotations

import hashlib
import json
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heredity.lineage.store import Store

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def left_over(store: Store) -> list[str]:
    """Every file of the store that is neither a lock nor part of a recorded model."""
    recorded = {p.parent for p in store.root.glob("models/*/model.json")}
    files = (p for p in store.root.rglob("*") if p.is_file() and not p.name.startswith(".lock"))
    return [str(p) for p in files if not any(p.is_relative_to(r) for r in recorded)]


def byte_tokens() -> list[str]:
    """The 256 symbols of byte-level BPE."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 100 thousand random weights in Q8_0, with a byte-level tokenizer and a chat template."""
    gguf = pytest.importorskip("gguf")
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    tokens = [*SPECIALS, *byte_tokens(), "Ġa"]
    for add, value in (
        (writer.add_context_length, 128),
        (writer.add_embedding_length, 64),
        (writer.add_block_count, 2),
        (writer.add_feed_forward_length, 128),
        (writer.add_head_count, 4),
        (writer.add_head_count_kv, 2),
        (writer.add_rope_dimension_count, 16),
        (writer.add_rope_freq_base, 10_000.0),
        (writer.add_layer_norm_rms_eps, 1e-5),
        (writer.add_vocab_size, len(tokens)),
        (writer.add_license, "apache-2.0"),
        (writer.add_tokenizer_model, "gpt2"),
        (writer.add_tokenizer_pre, "smollm"),
        (writer.add_token_list, tokens),
        (writer.add_token_types, [3] * 3 + [1] * (len(tokens) - 3)),
        (writer.add_token_merges, ["Ġ a"]),
        (writer.add_bos_token_id, 1),
        (writer.add_eos_token_id, 2),
        (writer.add_pad_token_id, 2),
        (writer.add_add_bos_token, False),
        (writer.add_chat_template, TEMPLATE),
    ):
        add(value)
    rng = np.random.default_rng(0)
    for name, shape in _shapes(len(tokens)).items():
        values = rng.normal(0, 0.05, shape).astype(np.float32)
        if "norm" in name:
            writer.add_tensor(name, np.ones(shape, np.float32))
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _shapes(n_tokens: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (n_tokens, 64), "output_norm.weight": (64,)}
    for n in range(2):
        shapes |= {f"blk.{n}.{name}.weight": (64,) for name in ("attn_norm", "ffn_norm")}
        shapes |= {f"blk.{n}.attn_{name}.weight": (64, 64) for name in ("q", "output")}
        shapes |= {f"blk.{n}.attn_{name}.weight": (32, 64) for name in ("k", "v")}
        shapes |= {f"blk.{n}.ffn_{name}.weight": (128, 64) for name in ("gate", "up")}
        shapes[f"blk.{n}.ffn_down.weight"] = (64, 128)
    return shapes


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama that transformers built and saved, with its tokenizer."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel

    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    vocabulary = {token: i for i, token in enumerate([*SPECIALS, *byte_tokens()])}
    tokenizer = Tokenizer(BPE(vocabulary, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(list(SPECIALS))
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")
    wrapped.chat_template = TEMPLATE
    wrapped.save_pretrained(folder)
    config = transformers.LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        eos_token_id=2,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# tiny\n")
    return folder


@dataclass
class Server:
    """A local HTTP server over a dictionary of files, with faults to order."""

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    pages: dict[str, Any] = field(default_factory=dict)  # path -> JSON
    errors: dict[str, tuple[int, str]] = field(default_factory=dict)  # path -> status, and the hub's code
    drop_after: list[int] = field(default_factory=list)  # bytes; one entry is used up a request
    can_resume: bool = True
    seconds_a_block: float = 0.0
    ranges: list[str] = field(default_factory=list)  # the Range header of every request for a file

    asked: list[str] = field(default_factory=list)  # the path of every request

    def url(self, name: str) -> str:
        return f"{self.address}/{name}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        state, name = self.server_state, self.path.lstrip("/").split("?")[0]
        state.asked.append(name)
        if name in state.errors:
            status, code = state.errors[name]
            return self._send(status, b"", {"X-Error-Code": code})
        if name in state.pages or name == "":
            page = state.pages.get(name)
            body, kind = (
                (json.dumps(page).encode(), "application/json") if page else (self._index(), "text/html")
            )
            return self._send(200, body, {"Content-Type": kind})
        if name not in state.files:
            return self._send(404, b"", {})
        data, wanted = state.files[name], self.headers.get("Range", "")
        state.ranges.append(wanted)
        if not (wanted and state.can_resume):
            return self._send(200, data, {})
        start = int(wanted.removeprefix("bytes=").split("-")[0])
        if start >= len(data):
            return self._send(416, b"", {})
        span = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        return self._send(206, data[start:], span)

    def _index(self) -> bytes:
        """What pip reads with --find-links."""
        return "".join(
            f'<a href="/{name}#sha256={hashlib.sha256(data).hexdigest()}">{name}</a>'
            for name, data in self.server_state.files.items()
        ).encode()

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        limit = self.server_state.drop_after.pop(0) if self.server_state.drop_after and body else len(body)
        for start in range(0, limit, 65_536):
            self.wfile.write(body[start : min(limit, start + 65_536)])
            time.sleep(self.server_state.seconds_a_block)
        if limit < len(body):
            self.close_connection = True


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()
    handler = type("Handler", (_Handler,), {"server_state": state})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        http.handle_error = lambda *_: None  # type: ignore[method-assign]  # a killed client is no news
        state.address = f"http://127.0.0.1:{http.server_address[1]}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield state
        http.shutdown()
        thread.join()


@pytest.fixture
def make_wheel(tmp_path: Path) -> Callable[..., tuple[str, bytes]]:
    """Build a wheel that pip accepts: (name, {path inside: bytes}) -> file name, bytes."""

    def make(package: str, members: dict[str, bytes]) -> tuple[str, bytes]:
        stem = f"{package.replace('-', '_')}-1.0"
        path = tmp_path / f"{stem}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in members.items():
                archive.writestr(name, data)
            info = f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n"
            archive.writestr(f"{stem}.dist-info/METADATA", info)
            archive.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            archive.writestr(f"{stem}.dist-info/RECORD", "")
        return path.name, path.read_bytes()

    return make
