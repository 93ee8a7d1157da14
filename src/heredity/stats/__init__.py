"""Statistics: numbers in, numbers out. They read no records, settings or clock, and seed no generator."""

from heredity.stats.intervals import clustered_rate as clustered_rate
from heredity.stats.intervals import wilson as wilson
from heredity.stats.judge_error import rogan_gladen as rogan_gladen
from heredity.stats.paired import Comparison as Comparison
from heredity.stats.paired import Table as Table
from heredity.stats.paired import compare as compare
from heredity.stats.paired import holm as holm
from heredity.stats.paired import inherited as inherited
from heredity.stats.paired import mcnemar_exact as mcnemar_exact
from heredity.stats.paired import retention as retention
from heredity.stats.paired import tabulate as tabulate
from heredity.stats.paired import tango as tango
from heredity.stats.paired import upper_bound as upper_bound
from heredity.stats.paired import verdict as verdict
from heredity.stats.paired import verdict_words as verdict_words
from heredity.stats.power import detectable_difference as detectable_difference
from heredity.stats.power import n_for_difference as n_for_difference
from heredity.stats.power import n_for_margin as n_for_margin
from heredity.stats.power import n_for_rate_width as n_for_rate_width
