"""Responses per second on a study's load: heredity's torch engine compared with transformers and garak.

    python bench/engine.py [--model smollm2-135m-instruct] [--trials 256] [--garak PYTHON]

Every engine gets the same rendered prompts: the probes of examples/support-desk.toml, behind their shared
prefix. Decoding is greedy, up to 128 tokens, in the same dtype. Each engine runs in its own process, one
after the other. transformers' `generate` uses the batch size that was fastest on a first part of the load,
and the same allocator settings. garak's generator takes one prompt at a time, so it is timed on a part of
the load. The last lines are ratios of this run, and the share of the matmul limit measured at the model's
own shapes.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _worker import result_of, tell

MAX_TOKENS = 128


def main() -> None:
    options = parse()
    if options.worker:
        tell(WORKERS[options.worker](options))
        return
    import torch

    print(
        f"machine: {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, python {platform.python_version()}"
    )
    with tempfile.TemporaryDirectory() as folder:
        load = Path(folder) / "load.json"
        load.write_text(json.dumps(make_load(options.model, options.trials)))
        ours = run("heredity", load, sys.executable)
        theirs = run("transformers", load, sys.executable)
        show(ours, theirs)
        if options.garak:
            show_garak(ours, run("garak", load, options.garak))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--trials", type=int, default=256)
    parser.add_argument("--garak", help="the python of an environment that has garak")
    parser.add_argument("--worker", choices=sorted(WORKERS))
    parser.add_argument("--load", type=Path)
    return parser.parse_args()


def make_load(model: str, n: int) -> dict[str, Any]:
    """The first n trials of the example study, as rendered text; the model's folder; the dtype."""
    import torch

    import heredity as h
    from heredity.core import host
    from heredity.redteam import attacks, probes

    grown = h.Store().ready(h.Store().pull(model))
    application = h.Application.load(Path(__file__).parent.parent / "examples" / "support-desk.toml")
    all_probes = [
        probes.fill(probe, application)
        for probe in probes.load("core")
        if not probes.applies(probe, application)
    ]
    requests, stream = [], all_probes[:: max(1, len(all_probes) // n)]
    while len(requests) < n:
        probe = stream[len(requests) % len(stream)]
        request = next(h.ApplicationSession(application).converse(attacks.load("direct")(probe), probe))
        requests.append([[m.role, m.content] for m in request.messages])
        n_shared = request.n_shared
    config = json.loads((grown.folder / "config.json").read_text())
    dtype = host.choose_dtype(config["hidden_size"], config["intermediate_size"])
    return {"folder": str(grown.folder), "dtype": dtype, "n_shared": n_shared,
            "messages": requests, "threads": torch.get_num_threads()}  # fmt: skip


def run(worker: str, load: Path, python: str) -> dict[str, Any]:
    command = [python, __file__, "--worker", worker, "--load", str(load)]
    result: dict[str, Any] = result_of(worker, command)
    print(f"{worker}: {result}", flush=True)
    return result


def with_heredity(options: argparse.Namespace) -> dict[str, Any]:
    from heredity.core import host

    host.configure()  # as every entry point does before torch is loaded
    from heredity.core.records import Decoding, Message, Request
    from heredity.engines.torch import engine as engine_file

    load = json.loads(options.load.read_text())
    engine = engine_file.open_folder(Path(load["folder"]), dtype=load["dtype"])
    requests = [
        Request(i, tuple(Message(*m) for m in messages), Decoding(MAX_TOKENS), n_shared=load["n_shared"])
        for i, messages in enumerate(load["messages"])
    ]
    list(engine.reply(requests[:2]))  # kernels are chosen on first use, as in the warm-up of the others
    engine.pool.drop_prefixes()  # the shared prefix is part of what is timed
    began = time.perf_counter()
    replies = {reply.key: reply for reply in engine.reply(requests)}
    seconds = time.perf_counter() - began
    n_own = sum(r.n_prompt_tokens - len(engine.codec.shared(requests[0])) for r in replies.values())
    n_said = sum(len(reply.tokens) for reply in replies.values())
    n_shared = len(engine.codec.shared(requests[0]))
    limit, flops = product_limit(engine, n_shared + n_own, n_said)
    return {
        "responses_per_second": len(replies) / seconds, "seconds": seconds, "n": len(replies),
        "tokens_said": n_said, "shared_prefix": n_shared, "engine": engine.name,
        "limit_gflops": limit / 1e9, "share_of_limit": flops / seconds / limit,
    }  # fmt: skip


def product_limit(engine: Any, n_prefilled: int, n_said: int) -> tuple[float, float]:
    """The machine's FLOP/s in this model's own products at the batch's width, and the FLOPs the load needs.

    A multiply-add counts as two. The head counts once per generated token; attention's products are left out.
    """
    import torch

    decoder, width = engine.decoder, engine.pool.widths[-1]
    blocks, shape = decoder.weights.blocks, decoder.shape
    x = torch.ones(width, shape.hidden_size, dtype=decoder.dtype)
    best = float("inf")
    with torch.inference_mode():
        middle = blocks[0].gate_up(x)[:, : blocks[0].gate_up(x).shape[1] // 2].contiguous()
        heads = torch.ones(width, shape.n_heads * shape.head_dim, dtype=decoder.dtype)
        for _ in range(5):
            began = time.perf_counter()
            for block in blocks:
                block.qkv(x), block.out(heads), block.gate_up(x), block.down(middle)
            decoder.weights.head(x)
            best = min(best, time.perf_counter() - began)
    n_qkv = (shape.n_heads + 2 * shape.n_kv_heads) * shape.head_dim
    a_block = 2 * (
        shape.hidden_size * n_qkv
        + heads.shape[1] * shape.hidden_size
        + 3 * shape.hidden_size * middle.shape[1]
    )
    head = 2 * shape.hidden_size * shape.vocab_size
    limit = width * (shape.n_layers * a_block + head) / best
    return limit, (n_prefilled + n_said) * shape.n_layers * a_block + n_said * head


def with_transformers(options: argparse.Namespace) -> dict[str, Any]:
    from heredity.core import host

    host.configure()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    host.keep_freed_memory()
    load = json.loads(options.load.read_text())
    tokenizer = AutoTokenizer.from_pretrained(load["folder"], padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(load["folder"], dtype=getattr(torch, load["dtype"])).eval()
    prompts = [
        tokenizer.apply_chat_template([{"role": r, "content": c} for r, c in messages], tokenize=False,
                                      add_generation_prompt=True) for messages in load["messages"]
    ]  # fmt: skip
    prompts.sort(key=len)

    def answer(batch: list[str]) -> list[str]:
        inputs = tokenizer(batch, return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.inference_mode():
            out = model.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False,
                                 pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id)  # fmt: skip
        return tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    answer(prompts[:2])
    speed = {}
    for width in (16, 32, 64):
        part = prompts[len(prompts) // 4 :][:width]
        began = time.perf_counter()
        answer(part)
        speed[width] = len(part) / (time.perf_counter() - began)
        if speed[width] < 0.7 * max(speed.values()):
            break
    width = max(speed, key=lambda one: speed[one])
    began, texts = time.perf_counter(), []
    for at in range(0, len(prompts), width):
        texts += answer(prompts[at : at + width])
    seconds = time.perf_counter() - began
    by_width = {str(w): round(s, 2) for w, s in speed.items()}
    return {"responses_per_second": len(prompts) / seconds, "seconds": seconds, "n": len(texts),
            "width": width, "responses_per_second_by_width": by_width}  # fmt: skip


def with_garak(options: argparse.Namespace) -> dict[str, Any]:
    """garak's Hugging Face generator as a campaign drives it: one prompt a call."""
    from garak import _config

    _config.load_config()
    from garak.attempt import Conversation, Message, Turn
    from garak.generators.huggingface import Model

    load = json.loads(options.load.read_text())
    generator = Model(name=load["folder"], config_root=_config)
    generator.max_tokens = MAX_TOKENS
    some = load["messages"][:: max(1, len(load["messages"]) // 12)][:12]
    turns = [Conversation([Turn(role, Message(text)) for role, text in messages]) for messages in some]
    generator.generate(turns[0])
    began = time.perf_counter()
    for turn in turns:
        generator.generate(turn)
    seconds = time.perf_counter() - began
    return {"responses_per_second": len(turns) / seconds, "seconds": seconds, "n": len(turns)}


WORKERS = {"heredity": with_heredity, "transformers": with_transformers, "garak": with_garak}


def show(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    speed, other = ours["responses_per_second"], theirs["responses_per_second"]
    print(f"\nheredity      {speed:7.2f} responses/s  (n={ours['n']}, {ours['tokens_said']} tokens said)")
    print(f"transformers  {other:7.2f} responses/s  (n={theirs['n']}, width {theirs['width']})")
    print(f"ratio         {speed / other:7.2f} x transformers generate")
    share, limit = ours["share_of_limit"], ours["limit_gflops"]
    print(f"share of the matrix-multiply limit: {share:.2f} of {limit:.0f} GFLOP/s", flush=True)


def show_garak(ours: dict[str, Any], garak: dict[str, Any]) -> None:
    speed, other = ours["responses_per_second"], garak["responses_per_second"]
    print(f"garak         {other:7.2f} responses/s  (n={garak['n']})")
    print(f"ratio         {speed / other:7.2f} x garak")


if __name__ == "__main__":
    main()
