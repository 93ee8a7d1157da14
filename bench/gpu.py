"""Speed on a GPU: the engine compared with `generate` and vLLM, and tokens per second of training.

    python bench/gpu.py [--model smollm2-135m-instruct] [--device cuda:0] [--out gpu.json]
    python bench/gpu.py --device cpu --quick --model FOLDER      # that it runs, on a processor

All answer the same prompts greedily, in the same dtype, with the same number of tokens for each answer.
transformers' `generate` has the batch size that is fastest on a part of the prompts. vLLM is measured if this
environment has it. Training is LoRA, full tuning, and pre-training from new weights of the same shape. MFU
is the share of the FLOP/s that the device's matmuls reach at the shapes of the model's layers and head. They
are timed with the rows of a microbatch of pre-training. The last lines are the results; `--out` writes JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import random
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from _commit import commit
from _worker import result_of, tell

TEXT = "a heat pump moves warmth from cold air to a warm room and needs power to do so every day"
WORDS = TEXT.split()
N_SHARED = 200  # words that all prompts begin with


def main() -> None:
    options = parse()
    if options.worker:
        tell(with_vllm(json.loads(options.worker.read_text())))
        return
    import torch

    import heredity as h
    from heredity.core import host

    device = host.choose_device(host.read_device(options.device))
    store = h.Store(device=str(device))
    grown = store.ready(store.pull(options.model))
    about = {
        "device": device.title, "driver": driver(), "torch": torch.__version__, "cuda": torch.version.cuda,
        "python": platform.python_version(), "commit": commit(), "model": grown.record.name,
        "quick": options.quick,
    }  # fmt: skip
    print(*(f"{name}: {value}" for name, value in about.items()), sep="\n", flush=True)
    found = answers(grown.folder, device, options) | training(grown.folder, device, options)
    for name, value in found.items():
        print(f"{name}: {value:,.4g}" if isinstance(value, float) else f"{name}: {value}", flush=True)
    if options.out:
        options.out.write_text(json.dumps(about | found, indent=2) + "\n", "utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--requests", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=128, help="tokens of each answer")
    parser.add_argument("--steps", type=int, default=12, help="training steps that are timed")
    parser.add_argument("--quick", action="store_true", help="few short answers and steps, to see it work")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.requests, options.tokens, options.steps = 8, 8, 2
    return options


def driver() -> str:
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "none"


# --- answers ---


def answers(folder: Path, device: Any, options: argparse.Namespace) -> dict[str, Any]:
    from heredity.core.records import Decoding, Message, Request
    from heredity.engines.torch.engine import open_folder

    engine = open_folder(folder, device=device)
    stream = random.Random(1)
    n_shared, n_most = (20, 12) if options.quick else (N_SHARED, 120)
    system = Message("system", " ".join(stream.choices(WORDS, k=n_shared)))
    asked = [
        Request(
            i, (system, Message("user", " ".join(stream.choices(WORDS, k=stream.randint(5, n_most))))),
            Decoding(options.tokens), n_shared=1,
        )
        for i in range(options.requests)
    ]  # fmt: skip
    engine._reader.is_over = lambda _: False  # every answer has as many tokens as the peers'
    list(engine.reply(asked[: engine.width]))
    engine.pool.drop_prefixes()
    began = time.perf_counter()
    replies = {reply.key: reply for reply in engine.reply(asked)}
    seconds = time.perf_counter() - began
    if failed := [reply.error for reply in replies.values() if reply.error is not None]:
        raise SystemExit(f"{len(failed)} of {len(asked)} requests failed: {failed[0]}")
    alone = [next(iter(engine.reply([request]))) for request in asked[:: max(1, len(asked) // 8)]]
    load = {
        "folder": str(folder), "dtype": str(engine.decoder.dtype).removeprefix("torch."),
        "tokens": options.tokens, "prompts": [list(engine.codec.encode(engine.render(r))) for r in asked],
    }  # fmt: skip
    found: dict[str, Any] = {
        "engine": engine.name,
        "engine tokens/s": sum(len(reply.tokens) for reply in replies.values()) / seconds,
        "equal bits alone and in company": all(replies[one.key].tokens == one.tokens for one in alone),
        "widths": list(engine.pool.widths),
    }
    engine.close()
    found |= with_generate(load, device.torch)
    if find_spec("vllm"):
        with tempfile.TemporaryDirectory() as temporary:
            (path := Path(temporary) / "load.json").write_text(json.dumps(load))
            import sys

            found |= result_of("vllm", [sys.executable, __file__, "--worker", str(path)])
    return found


def with_generate(load: dict[str, Any], device: Any) -> dict[str, Any]:
    """transformers' generate, with the batch size that is fastest on the first prompts."""
    import torch
    from transformers import AutoModelForCausalLM

    dtype = getattr(torch, load["dtype"])
    model = AutoModelForCausalLM.from_pretrained(load["folder"], dtype=dtype).to(device).eval()
    prompts, best, speed = load["prompts"], 0, 0.0
    size = 4
    while size <= len(prompts):
        try:
            timed = generate(model, prompts[:size], size, load["tokens"], device)
        except torch.OutOfMemoryError:
            break
        if timed < 0.8 * speed:
            break
        best, speed = (size, timed) if timed > speed else (best, speed)
        size *= 2
    whole = generate(model, prompts, best, load["tokens"], device)
    del model
    clear()
    return {"generate tokens/s": whole, "generate batch": best}


def generate(model: Any, prompts: list[list[int]], size: int, n_tokens: int, device: Any) -> float:
    """Tokens per second, in batches of prompts of similar length."""
    import torch

    from heredity.core import host

    ordered = sorted(prompts, key=len)
    batches = [ordered[at : at + size] for at in range(0, len(ordered), size)]
    began = time.perf_counter()
    for batch in batches:
        width = max(map(len, batch))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in batch], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in batch], device=device)
        with torch.inference_mode():
            model.generate(
                ids, attention_mask=mask, do_sample=False, max_new_tokens=n_tokens, min_new_tokens=n_tokens,
                pad_token_id=0,
            )  # fmt: skip
    host.synchronize(torch.device(device))
    return len(prompts) * n_tokens / (time.perf_counter() - began)


def with_vllm(load: dict[str, Any]) -> dict[str, Any]:
    """vLLM with its prefix cache, in a process of its own."""
    from vllm import LLM, SamplingParams

    model = LLM(load["folder"], dtype=load["dtype"], enable_prefix_caching=True)
    how = SamplingParams(temperature=0.0, max_tokens=load["tokens"], ignore_eos=True)
    prompts = [{"prompt_token_ids": prompt} for prompt in load["prompts"]]
    model.generate(prompts[:8], how)
    began = time.perf_counter()
    model.generate(prompts, how)
    return {"vllm tokens/s": len(prompts) * load["tokens"] / (time.perf_counter() - began)}


# --- training ---


def training(folder: Path, device: Any, options: argparse.Namespace) -> dict[str, Any]:
    from heredity.train import loop
    from heredity.train.models import causal_lm, shapes
    from heredity.train.models.causal_lm import FullFinetune, LowRankAdapters
    from heredity.train.models.shapes import flops_per_token, n_matrix_parameters

    found: dict[str, Any] = {}
    for name, trainable, n_words in (
        ("lora", LowRankAdapters(), 512), ("full", FullFinetune(), 512), ("pretrain", FullFinetune(), 2048),
    ):  # fmt: skip
        network = causal_lm.load(folder, "auto", device)
        config = network.model.config
        if name == "pretrain":
            network = causal_lm.from_config(config.to_dict(), 0, str(network.head.dtype).split(".")[1])
            network.model.to(device.torch)
        n_words = min(n_words, config.max_position_embeddings, 64 if options.quick else n_words)
        speed = tokens_per_second(network, trainable, n_words, config.vocab_size, device, options.steps)
        shape = loop.shape_of_model(network)
        limit = shapes.matmul_limit(shape, network.head.dtype, device=device.torch)
        flops = flops_per_token(shape, n_words)
        if name == "lora":  # frozen weights have no gradient of their own
            flops -= 2 * n_matrix_parameters(shape) + 2 * shape.vocabulary * shape.width
        found |= {f"{name} tokens/s": speed, f"{name} MFU": speed * flops / limit}
        found["matmul FLOP/s"] = limit
        del network
        clear()
    return found


def tokens_per_second(
    network: Any, trainable: Any, n_words: int, vocabulary: int, device: Any, n_steps: int
) -> float:
    """Tokens per second of the loop, without its first step."""
    from heredity.engines.chat import Document
    from heredity.train import loop
    from heredity.train.data.chat import TokenizedExample
    from heredity.train.loop import BatchSampler, placed
    from heredity.train.objectives.causal import Causal

    stream = random.Random(2)
    documents = [
        Document(tuple(stream.choices(range(vocabulary), k=n_words)), (False,) + (True,) * (n_words - 1))
        for _ in range(16)
    ]
    source = BatchSampler([TokenizedExample(each) for each in documents], 8, 0)
    times: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        loop.train(
            network, trainable, Causal(), source, loop.TrainingPlan("bench", n_steps + 1, 1e-5),
            Path(folder), lambda _: times.append(time.perf_counter()), dist=placed(None, device),
        )  # fmt: skip
    return 8 * n_words * n_steps / (times[-1] - times[0])


def clear() -> None:
    from heredity.core import host

    gc.collect()
    host.trim_memory()


if __name__ == "__main__":
    main()
