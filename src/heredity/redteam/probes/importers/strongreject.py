"""StrongREJECT: forbidden prompts in six categories.

Source: Souly et al. 2024 (arXiv 2402.10260), strongreject_dataset.csv (category, source, forbidden_prompt).
Decided by a judge: heredity's own, not the set's rubric.
"""

from __future__ import annotations

from heredity.redteam.probes.importers import FIELDS, unchanged

SOURCE = "Souly et al. 2024 (arXiv 2402.10260)"
BY_FILE = False
OPTIONS = (*FIELDS, "benign")
NAMES = {"prompt": ("forbidden_prompt", "prompt"), "id": ("id",), "cluster": ("cluster",)}
rows = unchanged(NAMES)
