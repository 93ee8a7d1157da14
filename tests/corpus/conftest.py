"""The fixtures of every test of a corpus."""

from tests.support.corpora import built as built
from tests.support.corpora import shelf as shelf
