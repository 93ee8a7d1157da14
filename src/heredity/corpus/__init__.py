"""A corpus: text from many sources, cleaned, cut into tokens, and written as shards that know what made them.

recipe.py       the recipe, read from TOML
sources/        where documents come from: text markdown html jsonl parquet dataset hub code
batch.py        documents as arrays of bytes, and what is counted in them
steps/          what is done to them, one file a step, filters by datatrove's names
work.py         steps over a batch, each counted
build.py        the whole way, in one process or many
workspace.py       the work folder, from which a killed build resumes
tokenizer.py    a byte-level BPE tokenizer that transformers and llama.cpp know
canaries.py     planted sentences with secrets
distributed.py       a recipe cut in two, for many tasks and for a build of what they keep
executors.py    its steps on datatrove's executors
mixture.py      how often each document is taken
shards.py       tokens on disk
card.py         what corpus.json says
integrity.py      whether what is on disk is still what was built
reader.py       Corpus: shards checked and mapped

Promises: the same recipe over the same files gives the same bytes, whatever the number of processes.
Leaves to others: probes to keep out (heredity/corpus.py hands their texts in), and training.
"""

from heredity.corpus.reader import Corpus as Corpus
