"""`heredity view`: the studies of a folder as web pages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from heredity.cli import Name, PathArgument, Verb
from heredity.deploy.serve import LOOPBACK, bound, check_installed

if TYPE_CHECKING:
    from heredity.view.places import StudyPlace


@click.command("view", cls=Verb, example="heredity view runs")
@click.argument("place", metavar="[DIR]", type=PathArgument(), required=False)
@click.option("--host", type=Name(), default=LOOPBACK[0], show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8010, show_default=True,
    help="Port; 0 chooses a free one.",
)  # fmt: skip
@click.option(
    "--token-env", type=Name(), metavar="NAME",
    help="Environment variable with the token of readers.  [default: a new one, where --host is not local]",
)  # fmt: skip
@click.option("--open", "opens", is_flag=True, help="Open the pages in this machine's browser.")
@click.option(
    "--export", type=PathArgument(), metavar="OUT", help="Write the pages to a new folder instead, and stop."
)
def command(
    place: Path | None, host: str, port: int, token_env: str | None, opens: bool, export: Path | None
) -> None:
    """Open the studies of a folder as web pages.

    DIR is a study's folder, or any folder above studies; without it, the current folder. The pages show a
    study while it runs, all its conversations with search and filters, and two models side by side on the
    same trials. Stop with Ctrl-C.
    """
    from heredity.core.errors import UsageError
    from heredity.view.places import StudyPlace
    from heredity.view.site import Site

    root = place or Path()
    if not root.is_dir():
        raise UsageError(f"{root} is not a folder.")
    if export is not None:
        _export(StudyPlace(root), export)
        return
    check_installed("The pages need")
    token = _token(host, token_env)
    listening = bound(host, port)
    site = Site(StudyPlace(root))
    import webbrowser

    from heredity.core.sanitize import plural
    from heredity.core.terminal import note
    from heredity.view.app import run

    studies = site.place.studies()
    path = f"/s/{studies[0].key}" if len(studies) == 1 else "/"
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listening.getsockname()[1]}{path}" + (f"?token={token}" if token else "")
    note(f"{plural(len(studies), 'study')} at {address}")
    if opens:
        listening.listen()  # the browser waits until the server answers
        webbrowser.open(address)
    run(site, listening, token, is_local=host in LOOPBACK)


def _export(place: StudyPlace, out: Path) -> None:
    from heredity.core.sanitize import plain, plural
    from heredity.core.terminal import Display, write
    from heredity.view.export import export

    def show(n: int, n_known: int) -> None:
        display.show("write", n, n_known, plural(n, "file"))

    with Display() as display:
        pages = export(place, out, show)
    write(plain(str(pages.page)))


def _token(host: str, name: str | None) -> str:
    """The token that readers send; "" for none, on a loopback address. Raises UsageError."""
    import os
    import secrets

    from heredity.core.errors import UsageError

    if name is None:
        return "" if host in LOOPBACK else secrets.token_urlsafe(24)
    token = os.environ.get(name, "")
    if not (token.isascii() and token.isprintable() and token == token.strip() and token):
        raise UsageError(f"The environment variable {name} holds no token of printable ASCII.")
    return token
