"""Adapters that PEFT itself writes, with random values, and PEFT's own logits for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

IDS = [5, 9, 33, 71, 14, 8, 40, 2, 77]


def make_adapter(base: Path, out: Path, seed: int = 3, strength: float = 0.1, **settings: Any) -> Path:
    """Write an adapter of `base` with PEFT. settings: of LoraConfig."""
    peft = pytest.importorskip("peft")
    import transformers

    network = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = peft.LoraConfig(**{"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 6, **settings})
    adapted = peft.get_peft_model(network, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * strength)
    adapted.save_pretrained(out)
    return out


def peft_logits(base: Path, adapter: Path) -> torch.Tensor:
    """The logits of the last of IDS, as PEFT computes them in float32."""
    import peft
    import transformers

    network = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = peft.PeftModel.from_pretrained(network, adapter).eval()
    with torch.inference_mode():
        return adapted(torch.tensor([IDS])).logits[0, -1]


def engine_logits(base: Path, adapter: Path | None = None) -> torch.Tensor:
    """The logits of the last of IDS, as the torch engine computes them in float32."""
    from heredity.engines.torch.engine import open_folder

    engine = open_folder(base, dtype="float32", adapter=adapter, is_probed=False)
    with torch.inference_mode():
        decoder = engine.decoder
        hidden = decoder.prefill(decoder.prefix(()), decoder.slots(1, 64), 0, tuple(IDS))[len(IDS) - 1]
        return decoder.logits(hidden[None])[0]
