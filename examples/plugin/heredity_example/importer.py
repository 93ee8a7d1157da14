"""An importer of answers that another tool recorded."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import heredity as h


class TabImporter:
    """Reads answers kept as PROMPT <tab> MODEL <tab> RESPONSE, in files named *.tabs."""

    OWN: ClassVar[dict[str, str]] = {}

    def is_mine(self, path: Path, start: bytes) -> bool:
        return path.suffix == ".tabs"

    def read(self, path: Path) -> Iterator[h.RecordedAnswer]:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            yield h.RecordedAnswer(
                number, dict(zip(("prompt", "model", "response"), line.split("\t"), strict=True))
            )
