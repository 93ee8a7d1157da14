"""An image file as an array: transparency filled, EXIF orientation applied, in one size.

Promises: a file that is not an image is an UnreadableImage. An image of more than 64 million pixels is
refused before it is decoded.
"""

from __future__ import annotations

import io
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from heredity.core.errors import Unavailable, how_to_install

if TYPE_CHECKING:
    from PIL.Image import Image

Fit = Literal["stretch", "crop"]
ImageArray = NDArray[np.uint8]  # (side, side, 3)
MAX_PIXELS = 64_000_000  # pixels of an image
KINDS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")


class UnreadableImage(ValueError):
    """A file that is not an image, is broken, or is too large."""


def library() -> ModuleType:
    """Pillow. Raises Unavailable."""
    try:
        import PIL.Image
        import PIL.ImageOps
    except ImportError:
        raise Unavailable(f"Images need Pillow. {how_to_install('corpus')}") from None
    module_type: ModuleType = PIL
    return module_type


def read_image(file: Path | bytes, side: int, fit: Fit, background: int) -> ImageArray:
    """Read the image in a file, or in bytes. Raises UnreadableImage."""
    pil = library()
    path = "an image" if isinstance(file, bytes) else file
    try:
        with pil.Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=KINDS) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise UnreadableImage(f"{path} has {opened.width} x {opened.height} pixels")
            turned = pil.ImageOps.exif_transpose(opened)
            return sized(turned, side, fit, background)
    except (OSError, ValueError, SyntaxError, EOFError, pil.Image.DecompressionBombError) as error:
        raise UnreadableImage(f"{path}: {error}") from None


def sized(picture: Image, side: int, fit: Fit, background: int) -> ImageArray:
    """Fill the transparency of a Pillow image with a background and resize it to a square of `side`."""
    image = library().Image
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        clear = picture.convert("RGBA")
        ground = image.new("RGBA", clear.size, (background,) * 3 + (255,))
        picture = image.alpha_composite(ground, clear)
    picture = picture.convert("RGB")
    if fit == "crop":
        short = min(picture.size)
        left, top = (picture.width - short) // 2, (picture.height - short) // 2
        picture = picture.crop((left, top, left + short, top + short))
    return np.asarray(picture.resize((side, side), image.Resampling.BICUBIC), dtype=np.uint8)
