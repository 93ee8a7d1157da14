"""A corpus: text from many sources, cleaned, cut into tokens, written as shards with a record of the build.

recipe.py       the recipe, read from TOML
sources/        where documents come from, one file per kind
text.py         a batch of documents as arrays of bytes, with the counts that filters share
steps/          what is done to documents, one file per step; filters have datatrove's names
work.py         steps applied to a batch, with a count of each
jobs.py         one job of a worker process
build.py        the whole build, in one process or many
workspace.py    the work folder, from which a killed build resumes
tokenizer.py    a byte-level BPE tokenizer that transformers and llama.cpp can load
canaries.py     planted sentences with secrets
mixture.py      how often each document is taken
shards.py       tokens on disk
card.py         the contents of corpus.json
integrity.py    writing corpus.json, and checking a corpus against it
reader.py       Corpus: checked and memory-mapped shards
images/         a corpus of captioned images
distributed.py  a recipe split in two: many tasks, and a build of the documents that they keep
executors.py    the steps on datatrove's executors

Promises: the same recipe over the same files gives the same bytes, for any number of processes.
Leaves to others: texts to keep out (lab/corpus.py passes them in), and training.
"""

from heredity.corpus.reader import Corpus as Corpus
