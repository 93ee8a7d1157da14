"""The fixtures of every test of a recipe."""

from tests.support.model_sources import make_wheel as make_wheel
from tests.support.model_sources import server as server
from tests.support.model_sources import store as store
from tests.support.model_sources import tiny_gguf as tiny_gguf
from tests.support.model_sources import tiny_llama as tiny_llama
from tests.support.played_hub import files as files
from tests.support.played_hub import play as play
