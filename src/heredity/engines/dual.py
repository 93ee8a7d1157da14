"""A dual encoder that compares images with texts: transformers' CLIP or SigLIP.

Promises: fp32, one image and one text at a time, so that a similarity depends only on these two. An image is
prepared as in training, its background included. It generates no text: a request for one is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import torch
from torch.nn import functional

from heredity.core import host
from heredity.core.errors import Damaged, UsageError
from heredity.core.host import CPU, Device
from heredity.core.records import Model, Request
from heredity.engines import Capabilities
from heredity.engines.encoder import SilentEngine
from heredity.formats import images as pixels
from heredity.formats.tokenizer_files import load_tokenizer

_PREPARATION = "preprocessor_config.json"


class ImagePreparation(msgspec.Struct):
    """How images become pixels: preprocessor_config.json of CLIP or SigLIP."""

    crop_size: dict[str, int]
    image_mean: Annotated[list[float], msgspec.Meta(min_length=3, max_length=3)]
    image_std: Annotated[list[float], msgspec.Meta(min_length=3, max_length=3)]
    do_center_crop: bool | None = None
    background: int = 255  # of transparent pixels


def load(
    model: Model,  # noqa: ARG001
    folder: Path,
    tuning: Path | None = None,  # noqa: ARG001
    device: Device | None = None,
) -> DualEngine:
    return DualEngine(folder, host.choose_device(device))


class DualEngine(SilentEngine):
    """An engine that compares images with texts."""

    kind, why = "dual", "this compares images with texts, and generates no text"
    capabilities = Capabilities(is_base=True)

    def __init__(self, folder: Path, device: Device = CPU) -> None:
        """Load the model in a folder. Raises Damaged if it does not describe how images are prepared."""
        import transformers

        try:
            self._preparation = msgspec.json.decode(
                (folder / _PREPARATION).read_bytes(), type=ImagePreparation
            )
        except (OSError, ValueError, msgspec.DecodeError) as error:
            raise Damaged(
                f"{folder / _PREPARATION}: {error}. It describes how images are prepared."
            ) from None
        super().__init__(transformers.AutoModel, folder, load_tokenizer(folder), device)

    def match(self, images: Sequence[Path | bytes], texts: Sequence[str]) -> list[list[float]]:
        """Return the similarity, from -1 to 1, of each image (rows: a file or bytes) to each text (columns).

        Raises UsageError for a file that is not an image.
        """
        with torch.inference_mode():
            captions = torch.cat([self._of_text(text) for text in texts])
            rows = [self._of_image(image) @ captions.T for image in images]
        return [row[0].tolist() for row in rows]

    def render(self, request: Request) -> str:
        """Return the text of a request; it is never answered."""
        return request.prefill

    def _of_text(self, text: str) -> torch.Tensor:
        longest = self._loaded.config.text_config.max_position_embeddings
        row = self._tokenizer(
            text, padding="max_length", max_length=longest, truncation=True, return_tensors="pt"
        ).input_ids.to(self._device)
        return functional.normalize(self._loaded.get_text_features(input_ids=row).pooler_output, dim=1)

    def _of_image(self, image: Path | bytes) -> torch.Tensor:
        how = self._preparation
        fit: pixels.Fit = "crop" if how.do_center_crop else "stretch"
        try:
            picture = pixels.read_image(image, how.crop_size["height"], fit, how.background)
        except pixels.UnreadableImage as error:
            raise UsageError(f"{error}. Name a picture: PNG, JPEG, WebP, GIF or BMP.") from None
        mean, deviation = torch.tensor([how.image_mean, how.image_std])[:, :, None, None]
        scaled = torch.from_numpy(picture.copy()).permute(2, 0, 1).float() / 255
        prepared = ((scaled - mean) / deviation)[None].to(self._device)
        features = self._loaded.get_image_features(pixel_values=prepared)
        return functional.normalize(features.pooler_output, dim=1)
