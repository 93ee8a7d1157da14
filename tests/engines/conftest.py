"""The fixtures of every test of an engine."""

from tests.support.model_sources import tiny_gguf as tiny_gguf
from tests.support.tiny_models import any_model as any_model
from tests.support.tiny_models import tiny_llama as tiny_llama
