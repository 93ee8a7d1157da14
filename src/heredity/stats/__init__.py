"""Statistics: numbers in, numbers out. No records are read, no settings, no clock; nothing is ever seeded.

intervals     one rate: Wilson, Clopper-Pearson, clustered
paired        two models on the same trials: table, McNemar, Tango, Newcombe, clustered
inheritance   parent and child: kept, lost, gained, never; retention
verdicts      worse, not worse, not enough evidence; in a word and in a sentence
multiple      Holm, Benjamini-Hochberg
judge_error   Rogan-Gladen
power         planning
sequential    e-values, and intervals that hold at every moment; `looks` compares two models with them,
              `sequential_power` and `outlook` plan with them
ppi           prediction-powered estimates: few labels, many judged trials
"""

from heredity.stats.inheritance import Inherited, inherited, retention
from heredity.stats.intervals import clopper_pearson, clustered_rate, wilson
from heredity.stats.judge_error import rogan_gladen
from heredity.stats.multiple import benjamini_hochberg, holm
from heredity.stats.paired import (
    Comparison,
    Table,
    clustered_difference,
    compare,
    mcnemar_exact,
    mcnemar_mid_p,
    newcombe,
    tabulate,
    tango,
)
from heredity.stats.power import detectable_difference, n_for_difference, n_for_margin, n_for_rate_width
from heredity.stats.verdicts import upper_bound, verdict, verdict_words

__all__ = [
    "Comparison",
    "Inherited",
    "Table",
    "benjamini_hochberg",
    "clopper_pearson",
    "clustered_difference",
    "clustered_rate",
    "compare",
    "detectable_difference",
    "holm",
    "inherited",
    "mcnemar_exact",
    "mcnemar_mid_p",
    "n_for_difference",
    "n_for_margin",
    "n_for_rate_width",
    "newcombe",
    "retention",
    "rogan_gladen",
    "tabulate",
    "tango",
    "upper_bound",
    "verdict",
    "verdict_words",
    "wilson",
]
