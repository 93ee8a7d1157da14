"""The fixtures of the tests of weight files."""

from tests.support.model_sources import tiny_gguf as tiny_gguf
