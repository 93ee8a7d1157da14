"""The protocols of the files in view/pages/: each is a page, and some have a form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from heredity.view.site import Asked, Site


@runtime_checkable
class Page(Protocol):
    """A page.

    PATH   its path; a part in braces is any text without a slash: "/s/{study}/t/{index}"
    MENU   its title in the menu over all studies; "" for none
    TAB    its title among the pages of a study; "" for none. Both begin with a number, which orders them
    IS_EXPORTED  whether exported pages have it
    """

    PATH: str
    MENU: str
    TAB: str
    IS_EXPORTED: bool

    def render(self, site: Site, asked: Asked) -> str:
        """The HTML, by Site.html. Raises HeredityError, which becomes a page of its own."""
        ...


@runtime_checkable
class FormPage(Page, Protocol):
    """A page with a form."""

    def act(self, site: Site, asked: Asked, form: Mapping[str, str]) -> str:
        """Do what a form asks for, and return the address of the page to show next."""
        ...
