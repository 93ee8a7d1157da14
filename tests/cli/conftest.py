"""The fixtures of every test of the command line."""

from tests.support.cli import place as place
from tests.support.cli import run as run
from tests.support.cli import studied as studied
