"""Run `heredity ARGS...` and write the code of the error that ends it to the file named first.

    python tests/support/command.py FILE ARGS...

What a user sees is unchanged: the code is taken where the command line puts the error into words.
"""

import sys
from pathlib import Path

from heredity import cli
from heredity.core.errors import HeredityError

explain = cli._explain


def noting(error: BaseException, show_traceback: bool) -> int:
    Path(sys.argv[1]).write_text(error.code if isinstance(error, HeredityError) else "", "utf-8")
    return explain(error, show_traceback)


if __name__ == "__main__":
    cli._explain = noting
    sys.exit(cli.main(sys.argv[2:]))
