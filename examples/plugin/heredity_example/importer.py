"""An importer of answers that another tool recorded."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from heredity.study.importers import Raw


class TabImporter:
    """Reads answers kept as PROMPT <tab> MODEL <tab> RESPONSE, in files named *.tabs."""

    OWN: ClassVar[dict[str, str]] = {}

    def is_mine(self, path: Path, start: bytes) -> bool:
        return path.suffix == ".tabs"

    def read(self, path: Path) -> Iterator[Raw]:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            yield Raw(number, dict(zip(("prompt", "model", "response"), line.split("\t"), strict=True)))
