"""`python -m heredity`: the same as the `heredity` command."""

from __future__ import annotations

import sys

from heredity.cli import main

sys.exit(main())
