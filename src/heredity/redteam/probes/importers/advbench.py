"""AdvBench: harmful behaviours with the beginning of an obeying answer, which is not used.

Source: Zou et al. 2023 (arXiv 2307.15043), harmful_behaviors.csv (goal, target). Decided by a judge.
"""

from __future__ import annotations

from heredity.redteam.probes.importers import FIELDS, unchanged

SOURCE = "Zou et al. 2023 (arXiv 2307.15043)"
BY_FILE = False
OPTIONS = (*FIELDS, "benign")
NAMES = {"prompt": ("goal", "prompt", "text", "behavior"), "id": ("id",), "cluster": ("cluster",)}
rows = unchanged(NAMES)
