"""A small encoder that reads a request together with its answer, tuned by a low-rank adapter (MiniLM, 22M).

Promises: nothing is downloaded. The logits of a pair depend only on that pair. Pairs run one by one, in fp32.
Any text is accepted: of a long one the beginning and the end are read.
Leaves to others: tuning the adapter and the heads (training/tune.py), and probabilities (model.py).

Sources: cross-encoders, Nogueira and Cho 2019 (1901.04085); low-rank adapters, Hu et al. 2021 (2106.09685).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from heredity.core import host
from heredity.core.errors import Damaged, Unavailable, how_to_install
from heredity.formats.tokenizer_files import read_tokenizer
from heredity.redteam.judges.learned.model import BASE, Floats, PairLogits, complies
from heredity.redteam.judges.learned.voices import readings
from heredity.redteam.text import without_thought

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import BertConfig, BertModel

REQUEST, ANSWER = (40, 20), (96, 48)  # tokens from the beginning and from the end of each
RANK, SCALE = 16, 2.0  # of an adapter: the layer's weight is W + SCALE * B A
HEADS = ("refuses", "addresses", "usable", "harmful")
_READ = 3000  # characters of each end of a text that are tokenized
_CLS, _SEP = 101, 102


class PairIds(NamedTuple):
    """The tokens of a request and its answer: [CLS] request [SEP] answer [SEP].

    n_first: the number of tokens up to the first [SEP].
    """

    ids: list[int]
    n_first: int


class PairTokenizer:
    """Cuts a request and an answer to tokens."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = read_tokenizer(folder / "tokenizer.json")

    def pair(self, prompt: str, text: str) -> PairIds:
        """The tokens of a pair; `prompt` may be ""."""
        asked, said = self._cut(prompt, *REQUEST), self._cut(without_thought(text), *ANSWER)
        first = [_CLS, *asked, _SEP]
        return PairIds([*first, *said, _SEP], len(first))

    def _cut(self, text: str, n_first: int, n_last: int) -> list[int]:
        text = text if len(text) <= 2 * _READ else f"{text[:_READ]} {text[-_READ:]}"
        clean = text.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate is not valid text
        ids: list[int] = self._tokenizer.encode(clean, add_special_tokens=False).ids
        return ids if len(ids) <= n_first + n_last else ids[:n_first] + ids[-n_last:]


class CrossEncoder:
    """The encoder with an adapter merged into it, and the heads.

    arrays: the adapter's matrices by layer, and "heads.weight" and "heads.bias". Raises Unavailable without
    torch, or Damaged.
    """

    def __init__(self, folder: Path, arrays: Mapping[str, Floats]) -> None:
        try:
            import torch

            self._embeddings, self._layers = _load_layers(folder, arrays)
            self.tokenizer = PairTokenizer(folder)
        except ImportError as error:
            raise Unavailable(
                f"The judge 'learned' needs torch, and {error.name} is not installed. "
                f"{how_to_install('torch')}, or take the judge 'rules'."
            ) from None
        except MemoryError:  # it says nothing about the files
            raise
        except Exception as error:  # the tokenizer's errors have no narrower type
            raise Damaged(f"{folder}: not the encoder '{BASE}': {error}. Pull it again.") from None
        self._torch = torch
        self._weight, self._bias = arrays["heads.weight"], arrays["heads.bias"]

    def logits(self, prompt: str, text: str) -> PairLogits:
        """The logits of the heads for one pair; of two voices the highest of their readings."""
        return max((self._read(prompt, each) for each in readings(prompt, text)), key=complies)

    def _read(self, prompt: str, text: str) -> PairLogits:
        torch, pair = self._torch, self.tokenizer.pair(prompt, text)
        n_all = len(pair.ids)
        ids = torch.tensor([pair.ids])
        kinds = torch.tensor([[0] * pair.n_first + [1] * (n_all - pair.n_first)])
        # One thread: a short text gains little by two; a busy machine loses much.
        with host.torch_threads(1), torch.inference_mode():
            hidden = self._embeddings(ids, token_type_ids=kinds, position_ids=torch.arange(n_all)[None])
            for layer in self._layers:
                hidden = layer(hidden)
            read = pooled(hidden, torch.tensor([pair.n_first]), torch.tensor([n_all]))
        # Not `@`: a BLAS product may round otherwise at another address in memory.
        products = self._weight * read[0].numpy().astype(float)
        return PairLogits(*(products.sum(axis=1) + self._bias).tolist())


def pooled(hidden: torch.Tensor, n_first: torch.Tensor, n_all: torch.Tensor) -> torch.Tensor:
    """The first token's state, then the mean over the answer's. (batch, 2 * hidden)"""
    import torch

    place = torch.arange(hidden.shape[1])[None]
    is_answer = ((place >= n_first[:, None]) & (place < n_all[:, None])).to(hidden.dtype)
    mean = (hidden * is_answer[..., None]).sum(1) / is_answer.sum(1, keepdim=True)
    return torch.cat([hidden[:, 0], mean], 1)


def load_bert(folder: Path) -> BertModel:
    """The encoder in fp32. Raises ImportError without torch, ValueError without a weight."""
    import torch
    from safetensors.torch import load_file
    from transformers import BertConfig, BertModel

    config = BertConfig.from_json_file(str(folder / "config.json"))
    with torch.device("meta"):  # drawing weights that are replaced at once would take most of the time
        network = BertModel(config, add_pooling_layer=False)
    weights = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    missing = network.load_state_dict(weights, strict=False, assign=True).missing_keys
    if missing:
        raise ValueError(f"it lacks {missing[0]}")
    return network


def linear_layers(network: BertModel) -> Iterator[tuple[str, nn.Linear]]:
    """Each linear layer of the encoder and its name, "2.attention.self.query"."""
    import torch

    for name, module in network.encoder.layer.named_modules():
        if isinstance(module, torch.nn.Linear):
            yield name, module


def _load_layers(
    folder: Path, arrays: Mapping[str, Floats]
) -> tuple[nn.Module, list[nn.TransformerEncoderLayer]]:
    """The embeddings, and the layers with the adapter merged."""
    import torch

    network = load_bert(folder)
    for name, layer in linear_layers(network):
        if f"{name}.a" in arrays:
            change = torch.from_numpy(SCALE * arrays[f"{name}.b"] @ arrays[f"{name}.a"]).float()
            with torch.no_grad():
                layer.weight.add_(change)
    layers = [_fused(layer, network.config) for layer in network.encoder.layer]
    return network.embeddings.eval(), layers


_PARTS = {  # of torch's layer -> of transformers'
    "self_attn.out_proj": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "linear1": "intermediate.dense",
    "linear2": "output.dense",
    "norm2": "output.LayerNorm",
}


def _fused(layer: nn.Module, config: BertConfig) -> nn.TransformerEncoderLayer:
    """A layer as torch's own, one kernel: transformers' modules take a fifth longer for a short text."""
    import torch

    weights, made = layer.state_dict(), {}
    for kind in ("weight", "bias"):
        qkv = [weights[f"attention.self.{each}.{kind}"] for each in ("query", "key", "value")]
        made[f"self_attn.in_proj_{kind}"] = torch.cat(qkv)
        made |= {f"{ours}.{kind}": weights[f"{theirs}.{kind}"] for ours, theirs in _PARTS.items()}
    fused = torch.nn.TransformerEncoderLayer(
        config.hidden_size,
        config.num_attention_heads,
        config.intermediate_size,
        activation=config.hidden_act,
        layer_norm_eps=config.layer_norm_eps,
        batch_first=True,
        device="meta",
    )
    fused.load_state_dict(made, assign=True)
    return fused.eval()
