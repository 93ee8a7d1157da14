"""A report format."""

from pathlib import Path

import heredity as h


class CountReport:
    """Writes the number of models, and no more."""

    def write(self, folder: Path, out: Path, with_text: bool = True) -> Path:
        n_models = len(h.Result.read(folder).estimates.models)
        h.write_atomic(out, f"{n_models} models asked\n".encode())
        return out
