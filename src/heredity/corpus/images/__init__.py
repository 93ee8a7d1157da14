"""A corpus of captioned images: resized images, captions as tokens, and a fingerprint.

build.py        from a recipe whose sources are of kind "images" (corpus/recipe.py) to shards
engines/formats/images.py       one image file as an array
card.py         what corpus.json says
reader.py       checked and memory-mapped shards

Promises: the same recipe over the same files with the same Pillow gives the same bytes.
Leaves to others: tokenizers and the shards of captions (corpus/), and training.
"""

from heredity.corpus.images.reader import Pictures as Pictures
