"""The environment in which pages of hostile text are rendered: the report, and the pages of `heredity view`.

Promises: every value is escaped, and its control characters are made visible.
Leaves to others: the templates and what they may call.
"""

from __future__ import annotations

from pathlib import Path

import jinja2
from markupsafe import Markup

from heredity.core.sanitize import visible


def environment(folder: Path) -> jinja2.Environment:
    """Return the environment of the templates in `folder`. A name that is not defined is an error."""
    return jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_final,
        loader=jinja2.FileSystemLoader(folder),
    )


def _final(value: object) -> object:
    """The last step before escaping: make every text visible, even if a caller forgot to clean it."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
