"""Statistics: numbers in, numbers out. They read no records, settings or clock, and seed no generator.

intervals         one rate: Wilson, Clopper-Pearson, clustered
paired            two models on the same trials: table, McNemar, Tango, Newcombe, verdicts, Holm
inheritance       parent and child: kept, lost, gained, never; retention
judge_error       Rogan-Gladen
power             sample sizes and detectable differences of a fixed plan
sequential        e-values, and intervals that hold at every moment
group_sequential  two models compared at interim analyses
sequential_power  the size of a study that stops early
sample_size       both kinds of plan next to each other
pass_at_k         success within k tries
ppi               prediction-powered estimates: few labels, many judged trials
heterogeneity     a paired difference by technique, and whether techniques differ
technique_rates   mixed-effects logit: shrunk rates, this bank's mean, a new technique
crossed           behaviours crossed with attacks: pigeonhole bootstrap, two-way clusters
repeats           repeated samples: flips, item and sample variance, what more samples buy
decision          expected cost by the user's costs, chance to be the best, ranks
unclear           unclear answers: three codings, a declared share, the share that tips a claim
"""

from heredity.stats.intervals import clopper_pearson, clustered_rate, wilson
from heredity.stats.judge_error import rogan_gladen
from heredity.stats.paired import (
    Comparison,
    Inherited,
    Table,
    benjamini_hochberg,
    clustered_difference,
    compare,
    holm,
    inherited,
    mcnemar_exact,
    mcnemar_mid_p,
    newcombe,
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
