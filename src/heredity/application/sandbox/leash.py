"""Run a command that ends with its parent: an MCP server that hangs must not outlive its study.

    python -m heredity.application.sandbox.leash COMMAND ARGUMENT...

Promises: on Linux the command is killed when the process that started this one ends.
Leaves to others: other systems, where a server sees the end of its input.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Become the command."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with suppress(ImportError, OSError, ValueError):  # the client's own limits are not the server's
        import resource

        for limit in (resource.RLIMIT_AS, resource.RLIMIT_CPU):
            most = resource.getrlimit(limit)[1]
            resource.setrlimit(limit, (most, most))
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
