"""A corpus: text from many sources, cleaned, cut into tokens, written as shards with a record of the build.

recipe.py       the recipe, read from TOML, and split in two: many tasks, and a build of what they keep
sources/        where documents come from, one file per kind
text.py         a batch of documents as arrays of bytes, with the counts that filters share
steps/          what is done to documents, one file per step; filters have datatrove's names
jobs.py         one job of a worker process: steps applied to batches, with a count of each
build.py        the whole build, in one process or many: planted canaries, mixture and shards of text
images.py       the build of a corpus of captioned images
workspace.py    the work folder, from which a killed build resumes
tokenizer.py    a byte-level BPE tokenizer that transformers and llama.cpp can load
storage.py      shards and corpus.json on disk: written, checked, and memory-mapped as a Corpus
executors.py    the steps on datatrove's executors

Promises: the same recipe over the same files gives the same bytes, for any number of processes.
Leaves to others: texts to keep out (lab/corpus.py passes them in), and training.
"""

from heredity.corpus.storage import Corpus as Corpus
from heredity.corpus.storage import ImageCorpus as ImageCorpus
