"""lm-evaluation-harness: multiple choice and generated answers through a server."""

import json
import tempfile
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from play import GIVEN, play

FOLDER = Path(tempfile.mkdtemp())
N_TOKENS = GIVEN["drawn"]["max_tokens"]
WHERE = {"model": GIVEN["model"], "num_concurrent": 1, "max_retries": 1}
TEXTS = {**WHERE, "base_url": f"{GIVEN['address']}/completions", "tokenizer": GIVEN["folder"]}
CHATS = {**WHERE, "base_url": f"{GIVEN['address']}/chat/completions"}


def task(name: str, rows: list[dict[str, Any]], lines: str) -> None:
    """Write a task over a file of rows."""
    data = FOLDER / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    held = json.dumps({"data_files": {"test": str(data)}})
    head = f"task: {name}\ndataset_path: json\ndataset_kwargs: {held}\ntest_split: test\n"
    (FOLDER / f"{name}.yaml").write_text(head + lines)


def samples(name: str, model: str, how: dict[str, Any], **more: Any) -> list[Any]:
    """The answers of a task, in the order of its rows."""
    tasks = TaskManager(include_path=str(FOLDER), include_defaults=False)  # its own are thousands of files
    found = simple_evaluate(
        model=model, model_args=how, tasks=[name], task_manager=tasks,
        bootstrap_iters=0, log_samples=True, **more,
    )  # fmt: skip
    return [each["filtered_resps"] for each in sorted(found["samples"][name], key=lambda row: row["doc_id"])]


def choice() -> list[list[Any]]:
    lines = 'output_type: multiple_choice\ndoc_to_text: "{{question}}"\ndoc_to_choice: "{{choices}}"\n'
    task("choice", GIVEN["questions"], lines + "doc_to_target: 0\nmetric_list: [{metric: acc}]\n")
    return samples("choice", "local-completions", TEXTS)


def chat() -> str:
    lines = 'output_type: generate_until\ndoc_to_text: "{{said}}"\ndoc_to_target: "x"\n'
    lines += f"generation_kwargs: {{until: [], max_gen_toks: {N_TOKENS}}}\n"
    lines += "metric_list: [{metric: exact_match}]\n"
    task("talk", [{"said": each["content"]} for each in GIVEN["messages"]], lines)
    return samples("talk", "local-chat-completions", CHATS, apply_chat_template=True)[0][0]


play(choice, chat)
