"""Speed, peak memory and held-out loss of pre-training: heredity compared with the Hugging Face Trainer.

    python bench/pretrain.py CORPUS --peer PYTHON [--size 10M] [--steps 40] [--batch 8192] [--context 512]

CORPUS is a folder that `heredity corpus build` made; PYTHON has torch, transformers and accelerate.

    the same for all    initial weights (Qwen3 of this size, seed 0), documents, number of tokens
    optimizer           AdamW, betas 0.9 and 0.95, weight decay 0.1, gradient norm clipped at 1
    learning rate       cosine, with a tenth of the steps as warmup
    heredity            whole documents, packed; each attends to itself only
    Trainer             rows of `context` tokens of concatenated documents; fp32 weights, bf16 autocast
    muon                heredity with its default optimizer
    plain               heredity without compilation, as in short runs

Each side runs in its own process, interleaved, --repeats times. The first two steps, which compile, are not
timed. The same code computes the held-out loss of each side. The last lines are medians of the repeats'
ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import re
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _worker import result_of, tell

N_WARM = 2
SIDES = ("heredity", "trainer", "muon", "plain")


def main() -> None:
    options = parse()
    if options.worker:
        work = {"trainer": with_trainer, "litgpt": with_litgpt}.get(options.worker, with_heredity)
        tell(work(options))
        return
    if not (options.corpus / "corpus.json").is_file():
        raise SystemExit(f"{options.corpus} is not a corpus. Build one: heredity corpus build RECIPE.toml")
    import torch

    print(
        f"machine: {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}, python {platform.python_version()}; {options.size}, {options.steps} steps of "
        f"{options.batch} tokens, context {options.context}"
    )
    with tempfile.TemporaryDirectory() as folder:
        options.work = Path(folder)
        share = prepare(options)
        limits = [limit_of(options)]
        print(f"{share['parameters']:,} parameters")
        sides = ("heredity",) if options.alone else (*SIDES, "litgpt") if options.litgpt else SIDES
        found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
        for repeat in range(options.repeats):
            for side in sides if repeat % 2 == 0 else sides[::-1]:
                result = run(side, options)
                is_ours = side != "litgpt"  # its weights have other names and another start
                result["bits"] = told(options, options.work / side) if is_ours else float("nan")
                found[side].append(result)
                print(
                    f"{side:10} {result['tokens_per_second']:8,.0f} tokens/s  peak "
                    f"{result['peak_mib']:6,.0f} MiB  {result['bits']:.4f} held-out bits per byte", flush=True
                )  # fmt: skip
            limits.append(limit_of(options))
    for side in sides:
        flops = statistics.median(r["tokens_per_second"] for r in found[side]) * share["flops_a_token"]
        print(
            f"{side}: {flops / max(limits):.0%} of {max(limits) / 1e9:,.0f} GFLOP/s, the most of "
            f"{len(limits)} measurements of its own products ({min(limits) / 1e9:,.0f} the least)"
        )
    for peer in () if options.alone else ("trainer", "litgpt")[: 1 + bool(options.litgpt)]:
        for side in ("heredity", "muon", "plain"):
            pairs = list(zip(found[side], found[peer], strict=True))
            ratios = [a["tokens_per_second"] / b["tokens_per_second"] for a, b in pairs]
            memory = [a["peak_mib"] / b["peak_mib"] for a, b in pairs]
            print(
                f"{side}: {statistics.median(ratios):.2f} x the tokens a second of {peer} ({min(ratios):.2f} "
                f"to {max(ratios):.2f}, n {len(ratios)}), {statistics.median(memory):.2f} x its peak memory, "
                f"bits per byte {found[side][0]['bits']:.4f} against {found[peer][0]['bits']:.4f}"
                f"{' (not evaluated)' if peer == 'litgpt' else ''}"
            )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path, help="a folder that `heredity corpus build` made")
    parser.add_argument("--peer", default=sys.executable)
    parser.add_argument("--litgpt", default="", help="a Python that has litgpt")
    parser.add_argument(
        "--alone", action="store_true", help="heredity's side only, for its share of the limit"
    )
    parser.add_argument("--size", default="10M")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=8192)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--worker", default="")
    parser.add_argument("--work", type=Path)
    return parser.parse_args()


def prepare(options: argparse.Namespace) -> dict[str, Any]:
    """The same start for all sides, and the Trainer's rows; what a token costs."""
    import numpy as np

    from heredity.recipes.pretrain.training import config_of
    from heredity.train.models import causal_lm, shapes

    recipe = recipe_of(options)
    net = causal_lm.from_config(config_of(recipe, recipe.text), 0, "float32")
    net.model.save_pretrained(options.work / "start")
    corpus = recipe.text
    flat = np.concatenate([corpus.document("train", i) for i in range(corpus.n_documents("train"))])
    n_rows = options.steps * options.batch // options.context
    rows = np.resize(flat, n_rows * options.context).reshape(n_rows, options.context)
    np.save(options.work / "rows.npy", np.random.default_rng(0).permutation(rows).astype(np.int64))
    shape = recipe.dial.shape
    (options.work / "shape.json").write_text(
        json.dumps({f: getattr(shape, f) for f in shape.__struct_fields__})
    )
    length = shapes.mean_chunk_length(corpus.lengths("train"), options.context)
    n_parameters = sum(each.numel() for each in net.model.parameters())
    return {"parameters": n_parameters, "flops_a_token": shapes.flops_per_token(shape, length)}


def limit_of(options: argparse.Namespace) -> float:
    """FLOP/s of the model's products as the machine is now: neighbours move it by a third."""
    import torch

    from heredity.train.models import shapes

    return shapes.matmul_limit(recipe_of(options).dial.shape, torch.bfloat16)


def recipe_of(options: argparse.Namespace) -> Any:
    from heredity.recipes.pretrain.recipe import Pretrain

    return Pretrain(
        options.corpus, size=options.size, context=options.context, tokens=options.steps * options.batch,
        batch_size=options.batch, lr=options.rate,
    )  # fmt: skip


def run(side: str, options: argparse.Namespace) -> dict[str, Any]:
    python = {"trainer": options.peer, "litgpt": options.litgpt}.get(side, sys.executable)
    command = [python, __file__, str(options.corpus), "--worker", side, "--work", str(options.work)]
    for name in ("size", "steps", "batch", "context", "rate"):
        command += [f"--{name}", str(getattr(options, name))]
    return dict(result_of(side, command))


def told(options: argparse.Namespace, folder: Path) -> float:
    """Bits per byte of the held-out documents, computed by one function for all sides."""
    from heredity.recipes.pretrain import training
    from heredity.train.models import causal_lm

    corpus = recipe_of(options).text
    look = training.PerplexityCheck(
        corpus.split("validation"), training.specials(corpus).end, options.context,
        training.token_bytes(corpus.folder / "tokenizer.json"), 20_000, 1,
    )  # fmt: skip
    return look.evaluate(causal_lm.load(folder))[training.BITS_PER_BYTE]


def with_heredity(options: argparse.Namespace) -> dict[str, Any]:
    from heredity.core import host

    host.configure()
    from heredity.recipes.pretrain import training
    from heredity.train import kernels as fused
    from heredity.train import loop
    from heredity.train.data.packed import PackedDataset
    from heredity.train.models import causal_lm
    from heredity.train.models.causal_lm import CausalLM, FullFinetune
    from heredity.train.objectives.causal import Causal

    corpus = recipe_of(options).text
    is_fused = options.worker != "plain" and not fused.why_unavailable()
    net = CausalLM(causal_lm.load(options.work / "start").model, options.work, is_fused)
    stream = PackedDataset(
        corpus.split("train"), training.specials(corpus).end, options.batch, options.context, 0
    )  # fmt: skip
    times: list[tuple[float, int]] = []

    class Noted:
        def batches(self, step: int) -> Any:
            batches = stream.batches(step)
            times.append((time.perf_counter(), sum(len(batch.tokens) for batch in batches)))
            return batches

    kind = "muon" if options.worker == "muon" else "adamw"
    warm = options.steps // 10
    plan = loop.TrainingPlan("bench", options.steps, options.rate, "cosine", warm, 0.1, 1.0, kind)
    loop.train(net, FullFinetune(), Causal(), Noted(), plan, options.work / f"training-{os.getpid()}")
    end = time.perf_counter()
    FullFinetune().save(net, options.work / options.worker)
    n_tokens = sum(n for _, n in times[N_WARM:])
    return {"tokens_per_second": n_tokens / (end - times[N_WARM][0]), "peak_mib": peak()}


def with_trainer(options: argparse.Namespace) -> dict[str, Any]:
    import numpy as np
    import torch
    import transformers

    rows = np.load(options.work / "rows.npy")
    transformers.utils.logging.set_verbosity_error()
    model = transformers.AutoModelForCausalLM.from_pretrained(options.work / "start", dtype=torch.float32)
    times: list[float] = []

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

    class Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return len(rows)

        def __getitem__(self, at: int) -> dict[str, torch.Tensor]:
            row = torch.from_numpy(rows[at])
            return {"input_ids": row, "labels": row}

    told = transformers.TrainingArguments(
        output_dir=str(options.work / "trainer-runs"), max_steps=options.steps, bf16=True, use_cpu=True,
        per_device_train_batch_size=options.batch // options.context, learning_rate=options.rate,
        lr_scheduler_type="cosine", warmup_steps=options.steps // 10, weight_decay=0.1, adam_beta1=0.9,
        adam_beta2=0.95, max_grad_norm=1.0, optim="adamw_torch_fused", report_to=[], save_strategy="no",
        logging_strategy="no", disable_tqdm=True, seed=0,
    )  # fmt: skip
    trainer = transformers.Trainer(model=model, args=told, train_dataset=Rows(), callbacks=[Clock()])
    trainer.train()
    end = time.perf_counter()
    model.save_pretrained(options.work / "trainer")
    n_tokens = (options.steps - N_WARM) * options.batch
    return {"tokens_per_second": n_tokens / (end - times[N_WARM]), "peak_mib": peak()}


def with_litgpt(options: argparse.Namespace) -> dict[str, Any]:
    """litgpt's own pretrain, its compiled model and all, on the Trainer's rows."""
    import numpy as np
    import torch
    from litgpt import pretrain
    from litgpt.args import EvalArgs, TrainArgs
    from litgpt.config import Config
    from litgpt.data import DataModule

    rows, shape = np.load(options.work / "rows.npy"), json.loads((options.work / "shape.json").read_text())
    whole = [torch.from_numpy(np.concatenate([row, row[:1]])) for row in rows]
    n_rows = options.batch // options.context

    class Data(DataModule):  # type: ignore[misc]
        def connect(self, *_: Any, **__: Any) -> None:
            pass

        def train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(whole, batch_size=n_rows)

        def val_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(whole[:n_rows], batch_size=n_rows)

    config = Config(
        name="bench", block_size=options.context, vocab_size=shape["vocabulary"],
        padded_vocab_size=shape["vocabulary"], n_layer=shape["layers"], n_head=shape["heads"],
        n_embd=shape["width"], n_query_groups=shape["kv_heads"], rotary_percentage=1.0, bias=False,
        parallel_residual=False, norm_class_name="RMSNorm", mlp_class_name="LLaMAMLP", norm_eps=1e-6,
        intermediate_size=shape["wide"], head_size=shape["head"], norm_qk=True,
    )  # fmt: skip
    pretrain.save_checkpoint = lambda *_, **__: None  # it would read this program's own arguments
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        pretrain.setup(
            "bench", model_config=config, out_dir=options.work / "litgpt", precision="bf16-mixed",
            data=Data(),
            train=TrainArgs(
                save_interval=None, log_interval=1, global_batch_size=n_rows, micro_batch_size=n_rows,
                max_tokens=options.steps * options.batch, max_norm=1.0, max_seq_length=options.context,
                lr_warmup_steps=options.steps // 10, tie_embeddings=True,
            ),
            eval=EvalArgs(interval=10_000, max_iters=1, final_validation=False), devices=1, logger_name="csv",
        )  # fmt: skip
    told = re.findall(r"iter time: ([0-9.]+) ms", said.getvalue())
    seconds = [float(each) / 1000 for each in told[N_WARM:]]
    return {"tokens_per_second": len(seconds) * options.batch / sum(seconds), "peak_mib": peak()}


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
