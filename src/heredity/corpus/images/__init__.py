"""A corpus of captioned images: resized images, captions as tokens, and a fingerprint.

build.py     from a recipe whose sources are of kind "images" (corpus/recipe.py) to shards
card.py      the contents of corpus.json
reader.py    checked and memory-mapped shards

Promises: the same recipe over the same files with the same Pillow gives the same bytes.
Leaves to others: image files (formats/images.py), the shards of captions (corpus/), and training.
"""

from heredity.corpus.images.reader import ImageCorpus as ImageCorpus
