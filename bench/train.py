"""Tokens per second and peak memory of fine-tuning: heredity's loop compared with TRL's trainers.

    python bench/train.py --trl PYTHON [--model smollm2-135m-instruct] [--steps 12] [--batch 8]
    python bench/train.py --trl PYTHON --exact --steps 3     # the losses of both in float32, step by step
    python bench/train.py --system 150  # rows with a system message of 150 words, read once a step

    full       all weights
    lora       an adapter of rank 16
    distill    off-policy, forward KL; the teacher is the model, the student the model without six layers

Both sides get the same token ids in the same order with the same target positions. The optimizer is AdamW
(betas 0.9 and 0.95) at a constant rate. The gradient norm is clipped at 1. Each side runs in its own
process. TRL runs twice: with fp32 weights under bf16 autocast, which is heredity's precision, and with bf16
weights. Its gradient checkpointing is off, and its batches are padded. With --system heredity runs twice:
as it is, and with each row held whole. Tokens are counted without padding, and the first two steps are left
out. Everything runs --repeats times, interleaved, so that other load falls on both sides. The last lines are
the medians of the ratios with their range, and the loss of both.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from _worker import result_of, tell

DATA = Path(__file__).resolve().parents[1] / ".." / "shared" / "data" / "gsm8k" / "train.jsonl"
KINDS = {"full": 2e-5, "lora": 2e-4, "distill": 1e-4}  # and their rates
N_WARM = 2
SENTENCE = "You are the support desk of a maker of devices, and you answer in one short sentence."
ALPHA = RANK = 16
VARIANTS = ("autocast", "bf16")
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main() -> None:
    options = parse()
    if options.exact and not options.trl:
        raise SystemExit("--exact compares with TRL: name its Python with --trl.")
    if not options.worker and not options.data.is_file():
        raise SystemExit(f"No training rows at {options.data}: name a file with --data.")
    if options.worker:
        side, kind, variant = options.worker.split("/")
        result = (with_trl if side == "trl" else with_heredity)(
            json.loads(options.load.read_text()) | {"is_whole": side == "whole"}, kind, variant
        )
        tell(result)
        return
    import torch

    print(
        f"machine: {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, python {platform.python_version()}; "
        f"{options.steps} steps of {options.batch}"
    )
    with tempfile.TemporaryDirectory() as folder:
        load = Path(folder) / "load.json"
        load.write_text(json.dumps(make_load(options)))
        for kind in options.kinds.split(","):
            if options.exact:
                both = [run(f"{side}/{kind}/float32", load, python)
                        for side, python in (("heredity", sys.executable), ("trl", options.trl))]  # fmt: skip
                show_exact(kind, both[0], both[1])
                continue
            rounds = [
                one_round(kind, load, options.trl, i % 2 == 1, options.system > 0)
                for i in range(options.repeats if options.trl or options.system else 1)
            ]
            show(kind, rounds)


def one_round(
    kind: str, load: Path, trl: str | None, is_reversed: bool, has_system: bool
) -> dict[str, dict[str, Any]]:
    """Each worker once, by its name: heredity first, or last if `is_reversed`."""
    workers = [(f"heredity/{kind}/auto", sys.executable)]
    if has_system:
        workers += [(f"whole/{kind}/auto", sys.executable)]
    if trl:
        workers += [(f"trl/{kind}/{variant}", trl) for variant in VARIANTS]
    return {
        worker: run(worker, load, python) for worker, python in (workers[::-1] if is_reversed else workers)
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--system", type=int, default=0, help="words of a system message in every row")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--trl", help="the python of an environment that has trl and peft")
    parser.add_argument("--exact", action="store_true", help="everything in float32: compares the losses")
    parser.add_argument("--worker")
    parser.add_argument("--load", type=Path)
    return parser.parse_args()


def make_load(options: argparse.Namespace) -> dict[str, Any]:
    """The examples as token ids in the order in which both sides see them, and the folders of the models."""
    import heredity as h
    from heredity.core.records import Message
    from heredity.recipes.prune import Prune
    from heredity.train.data import chat
    from heredity.train.data import chat as documents
    from heredity.train.loop import BatchSampler

    store = h.Store()
    grown = store.ready(store.pull(options.model))
    n_layers = json.loads((grown.folder / "config.json").read_text())["num_hidden_layers"]
    pruned = store.grow_once(Prune(n_layers - 6), [grown])
    words = (SENTENCE.split() * options.system)[: options.system]
    system = (Message("system", " ".join(words)),) if words else ()
    dialogues = [
        each._replace(messages=(*system, *each.messages)) for each in chat.read_data(options.data).dialogues
    ]
    examples = documents.ConversationEncoder(grown.folder).prepare(dialogues, 1024).examples
    order = BatchSampler(examples, options.batch, seed=0)
    rows = [examples[order.at(place)].document for place in range(options.steps * options.batch)]
    return {
        "folder": str(grown.folder), "pruned": str(pruned.folder), "batch": options.batch,
        "steps": options.steps, "rows": [[list(row.tokens), list(row.is_learned)] for row in rows],
    }  # fmt: skip


def run(worker: str, load: Path, python: str) -> dict[str, Any]:
    command = [python, __file__, "--worker", worker, "--load", str(load)]
    result: dict[str, Any] = result_of(worker, command, {**os.environ, "HF_HUB_OFFLINE": "1"})
    print(f"{worker}: { ({k: v for k, v in result.items() if k != 'losses'}) }", flush=True)
    return {"worker": worker, **result}


def measured(load: dict[str, Any], ends: list[float], losses: list[float]) -> dict[str, Any]:
    """A worker's report; `ends` are the times at which its steps ended."""
    if not len(ends) == len(losses) == load["steps"]:
        raise SystemExit(f"{len(ends)} steps and {len(losses)} losses of {load['steps']}")
    timed = load["rows"][N_WARM * load["batch"] :]
    n_tokens = sum(len(tokens) for tokens, _ in timed)
    return {
        "tokens_per_second": round(n_tokens / (ends[-1] - ends[N_WARM - 1]), 1),
        "first_loss": round(losses[0], 4), "last_loss": round(losses[-1], 4),
        "mean_loss": round(sum(losses) / len(losses), 4), "losses": losses,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, "steps": len(losses),
    }  # fmt: skip


def with_heredity(load: dict[str, Any], kind: str, variant: str) -> dict[str, Any]:
    from heredity.core import host

    host.configure()
    from heredity.engines.chat import Document
    from heredity.train import loop
    from heredity.train.data.chat import TokenizedExample
    from heredity.train.loop import BatchSampler
    from heredity.train.models import causal_lm
    from heredity.train.models.causal_lm import FullFinetune, LowRankAdapters
    from heredity.train.objectives.causal import Causal
    from heredity.train.objectives.distill import Distillation

    examples = [TokenizedExample(Document(tuple(tokens), tuple(learned))) for tokens, learned in load["rows"]]

    class InOrder(BatchSampler):
        def at(self, place: int) -> int:
            return place

    if load["is_whole"]:
        causal_lm.MIN_SHARED = sys.maxsize
    net = causal_lm.load(Path(load["pruned" if kind == "distill" else "folder"]), variant)
    objective: Any = Causal()
    if kind == "distill":
        teacher = causal_lm.load(Path(load["folder"]), str(net.model.dtype).removeprefix("torch."))
        teacher.model.requires_grad_(False)
        objective = Distillation(teacher)
    trainable = LowRankAdapters(RANK, ALPHA) if kind == "lora" else FullFinetune()
    plan = loop.TrainingPlan("bench", load["steps"], KINDS[kind], "constant")
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        metrics = loop.train(
            net, trainable, objective, InOrder(examples, load["batch"], 0), plan, Path(folder),
            lambda _: ends.append(time.perf_counter()),
        )  # fmt: skip
    return {"dtype": str(net.model.dtype), **measured(load, ends, [m.loss for m in metrics])}


def with_trl(load: dict[str, Any], kind: str, variant: str) -> dict[str, Any]:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    ends: list[float] = []
    losses: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            if "loss" in logs:
                losses.append(float(logs["loss"]))

    # An adapter's base is frozen: held in bf16 either way, its adapters in fp32 under autocast.
    is_short = variant == "bf16" or (variant == "autocast" and kind == "lora")
    dtype = torch.bfloat16 if is_short else torch.float32
    tokenizer = AutoTokenizer.from_pretrained(load["folder"])
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token

    def read(folder: str) -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)

    common = {
        "per_device_train_batch_size": load["batch"], "max_steps": load["steps"],
        "learning_rate": KINDS[kind], "lr_scheduler_type": "constant", "weight_decay": 0.0,
        "adam_beta2": 0.95, "max_grad_norm": 1.0, "bf16": variant == "autocast",
        "gradient_checkpointing": False,
        "train_sampling_strategy": "sequential", "logging_steps": 1, "save_strategy": "no", "report_to": [],
        "disable_tqdm": True, "use_cpu": True, "max_length": 1024, "dataloader_pin_memory": False,
    }  # fmt: skip
    rows = [
        {"input_ids": tokens, "labels": [t if use else -100 for t, use in zip(tokens, learned, strict=True)]}
        for tokens, learned in load["rows"]
    ]
    with tempfile.TemporaryDirectory() as folder:
        common["output_dir"] = folder
        if kind == "distill":
            trainer = _distiller(load, rows, common, read, tokenizer)
        else:
            adapter = None
            if kind == "lora":
                from peft import LoraConfig

                adapter = LoraConfig(
                    r=RANK, lora_alpha=ALPHA, use_rslora=True, lora_dropout=0.0, task_type="CAUSAL_LM",
                    target_modules=LINEAR,
                )  # fmt: skip
            trainer = SFTTrainer(
                read(load["folder"]), SFTConfig(**common), train_dataset=Dataset.from_list(rows),
                processing_class=tokenizer, peft_config=adapter,
            )  # fmt: skip
        trainer.add_callback(Clock())
        trainer.train()
    versions = {name: version(name) for name in ("trl", "transformers", "torch", "peft")}
    return {"dtype": variant, **measured(load, ends, losses), "versions": versions}


def _distiller(load: dict[str, Any], rows: Any, common: dict[str, Any], read: Any, tokenizer: Any) -> Any:
    import torch
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    def collate(picked: list[dict[str, Any]]) -> dict[str, Any]:
        width = max(len(row["input_ids"]) for row in picked)

        def filled(name: str, filler: int) -> Any:
            return torch.tensor([row[name] + [filler] * (width - len(row[name])) for row in picked])

        mask = [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in picked]
        ids = filled("input_ids", tokenizer.pad_token_id)
        return {"input_ids": ids, "attention_mask": torch.tensor(mask), "labels": filled("labels", -100)}

    config = GKDConfig(**common, lmbda=0.0, beta=0.0, temperature=1.0)
    return GKDTrainer(
        read(load["pruned"]), read(load["folder"]), config, data_collator=collate,
        train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
    )  # fmt: skip


def show_exact(kind: str, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Print the difference. Each side draws its own adapter, so for one only the first step compares."""
    pairs = list(zip(ours["losses"], theirs["losses"], strict=True))[: 1 if kind == "lora" else None]
    apart = max(abs(a - b) for a, b in pairs)
    print(f"{kind}: losses of {len(pairs)} steps {pairs}, at most {apart:.1e} apart")


def show(kind: str, rounds: list[dict[str, dict[str, Any]]]) -> None:
    """heredity against each other worker: TRL at the same precision, TRL without masters, rows held whole."""
    mine = f"heredity/{kind}/auto"
    for theirs in [worker for worker in rounds[0] if worker != mine]:
        pairs = [(one[mine], one[theirs]) for one in rounds]
        speed, memory = (ratios(pairs, field) for field in ("tokens_per_second", "peak_mib"))
        print(
            f"{mine} to {theirs}: {speed} x tokens/s, {memory} x peak memory over {len(rounds)} repeats; "
            f"mean loss {pairs[0][0]['mean_loss']} against {pairs[0][1]['mean_loss']}"
        )


def ratios(pairs: list[tuple[dict[str, Any], dict[str, Any]]], field: str) -> str:
    """The median over the repeats, ours by theirs, and the range."""
    found = sorted(float(ours[field]) / float(theirs[field]) for ours, theirs in pairs)
    return f"{statistics.median(found):.2f} [{found[0]:.2f}, {found[-1]:.2f}]"


if __name__ == "__main__":
    main()
