"""The fixtures of every test of an engine."""

from tests.support.tiny_models import any_model as any_model
from tests.support.tiny_models import tiny_llama as tiny_llama
