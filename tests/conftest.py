"""How hypothesis draws: without a deadline everywhere, and in CI the same examples each time.

No claim here is about time, and a machine may be busy. CI tells whether a change broke something, so it must
not depend on the luck of a draw; at a desk the draws are new each time, and `--hypothesis-profile deep` makes
many of them.
"""

import os
from pathlib import Path

from hypothesis import settings

from heredity.core import host

os.environ.setdefault("HEREDITY_MIRRORS", str(Path(__file__).parents[1] / "examples" / "mirrors.toml"))
host.configure()  # as every entry point does: before any test loads torch

settings.register_profile("desk", deadline=None, max_examples=50)
settings.register_profile("ci", deadline=None, max_examples=50, derandomize=True)
settings.register_profile("deep", deadline=None, max_examples=3000)
settings.load_profile("ci" if os.environ.get("CI") else "desk")
