"""A corpus: text from many sources, cleaned, cut into tokens, written as shards with a record of the build.

Promises: the same recipe over the same files gives the same bytes, for any number of processes.
Leaves to others: texts to keep out (lab/corpus.py passes them in), and training.
"""

from heredity.corpus.storage import Corpus as Corpus
from heredity.corpus.storage import ImageCorpus as ImageCorpus
