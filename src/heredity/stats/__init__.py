"""Statistics: numbers in, numbers out. They read no records, settings or clock, and seed no generator.

intervals        one rate: Wilson, clustered; success within k tries
paired           two models on the same trials: table, McNemar, Tango, verdicts, Holm; retention;
                 Cohen's kappa; behaviours crossed with attacks
judge_error      Rogan-Gladen, prediction-powered estimates, and unclear answers: codings, declared shares
edges            a child against its parent: items, judge, runs and seeds in one difference; the verdict
sequential       e-values, intervals that hold at every moment, and spending of alpha at interim analyses
power            sample sizes and detectable differences, of a fixed plan and of a study that stops early
technique_rates  mixed-effects logit: shrunk rates, a new technique; whether techniques differ
means            means of scores, and repeated samples: flips, item and sample variance
decision         expected cost by the user's costs, chance to be the best, ranks
scaling          scaling laws
"""

from heredity.stats.intervals import clustered_rate, wilson
from heredity.stats.judge_error import rogan_gladen
from heredity.stats.paired import (
    Comparison,
    Inherited,
    Table,
    clustered_difference,
    compare,
    holm,
    inherited,
    mcnemar_exact,
    retention,
    tabulate,
    tango,
    upper_bound,
    verdict,
    verdict_words,
)
from heredity.stats.power import detectable_difference, n_for_difference, n_for_margin, n_for_rate_width

__all__ = [
    "Comparison",
    "Inherited",
    "Table",
    "clustered_difference",
    "clustered_rate",
    "compare",
    "detectable_difference",
    "holm",
    "inherited",
    "mcnemar_exact",
    "n_for_difference",
    "n_for_margin",
    "n_for_rate_width",
    "retention",
    "rogan_gladen",
    "tabulate",
    "tango",
    "upper_bound",
    "verdict",
    "verdict_words",
    "wilson",
]
