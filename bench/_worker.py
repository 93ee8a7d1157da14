"""Run one side of a benchmark in a process of its own, and read the result that it prints.

A worker prints one line, "RESULT " and a JSON object. Imports nothing but the standard library: a peer's
own environment, which has no heredity, runs the same scripts.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

MARK = "RESULT "


def tell(result: object) -> None:
    """Print a worker's result."""
    print(MARK + json.dumps(result), flush=True)


def result_of(name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> Any:
    """The result of a worker. Raises SystemExit with the end of its errors if it gives none."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    except OSError as error:
        raise SystemExit(f"{name} cannot run: {error}") from None
    found = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not found:
        said = done.stderr.strip()[-2000:]
        raise SystemExit(f"{name} failed, with exit code {done.returncode}, in {command[0]}:\n{said}")
    return json.loads(found[-1].removeprefix(MARK))
