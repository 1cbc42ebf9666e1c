"""A trained model in use: pictures and texts in, tokens out.

Legend: B batch, T text tokens, L all tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from vlbeit.config import DataConfig, RunConfig, TextConfig
from vlbeit.data.records import open_image
from vlbeit.data.text import Tokenizer
from vlbeit.data.transforms import ClassificationEval, EvalImage
from vlbeit.models.encoder import MoMEEncoder, join
from vlbeit.models.heads import Heads
from vlbeit.models.hub_model import HubModel
from vlbeit.models.image_tokenizer import ImageTokenizer
from vlbeit.models.report import LoadReport
from vlbeit.types import Meta, Tokens

Picture = str | Path | bytes | Image.Image


@dataclass
class Model(HubModel):
    """A trained encoder with the heads found beside it, in evaluation mode on the CPU.

    `normalize` is `data.normalize` of its pictures; `report` says what became of every tensor of the file.
    `description` and `origin` are what the checkpoint says of itself and where it lies; `parts` are the modules that
    were built of it, by what the names of their tensors begin with there.
    """

    encoder: MoMEEncoder | None
    heads: Heads
    image_tokenizer: ImageTokenizer | None
    meta: Meta
    config: dict[str, Any]
    normalize: str = "half"
    report: LoadReport = field(default_factory=LoadReport)
    description: dict[str, Any] = field(default_factory=dict)
    origin: Path | None = None
    parts: dict[str, nn.Module] = field(default_factory=dict)

    @torch.no_grad()
    def encode(
        self, image: Tensor | None = None, text_ids: Tensor | None = None, text_keep: Tensor | None = None
    ) -> Tokens:
        """Any of the three passes: final, normalised tokens [B, L, D], text first when both are given.

        A classifier that pools patches has no final norm, its `fc_norm` comes after pooling: here each token goes
        through that norm (the logits are `ImageTower.from_run(path)(image)`). A segmentation backbone has neither: its
        tokens get a norm without scale and shift.

        Args:
            image: [B, 3, height, width], normalised as in training (`transform` does it).
            text_ids: [B, T]; text_keep: [B, T], False on padding.

        Raises:
            ValueError: neither is given, or the encoder lacks the part.
        """
        encoder = self._encoder()
        parts = []
        if text_ids is not None:
            parts.append(encoder.embed_text(text_ids, text_keep))
        if image is not None:
            parts.append(encoder.embed_image(image))
        if not parts:
            raise ValueError("encode() needs an image, text_ids or both")
        tokens = encoder(join(*parts) if len(parts) > 1 else parts[0])
        return tokens if encoder.spec.final_norm else tokens._replace(x_BLD=self._normalised(tokens.x_BLD))

    @property
    def transform(self) -> Callable[[Picture], Tensor]:
        """A picture (PIL, path or encoded bytes) to [3, height, width], as in the evaluation of this checkpoint.

        With text the whole picture is squeezed into the size (VLMo); else the middle is cut out, 0.875 of it below 384
        pixels (BEiT). Raises ValueError for an encoder of text alone.
        """
        spec = self._encoder().spec
        if spec.image_size is None:
            raise ValueError("this encoder was built for text alone: it takes no pictures")
        mean, std = RunConfig(data=DataConfig(normalize=self.normalize)).normalization
        if spec.vocab_size is not None:
            return _Opened(EvalImage(spec.image_size, mean, std))
        task = self.config.get("task") or {}
        return _Opened(ClassificationEval(spec.image_size, mean, std, crop_pct=task.get("crop_pct")))

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Text to token ids, as in training; None where the checkpoint brings none, as official files."""
        if "tokenizer" not in self.meta:
            return None
        return Tokenizer.from_json(
            self.meta["tokenizer"], (self.config.get("text") or {}).get("max_length", TextConfig.max_length)
        )

    def _encoder(self) -> MoMEEncoder:
        if self.encoder is None:
            raise ValueError("this checkpoint has no encoder: it is a tokenizer of pictures, `model.image_tokenizer`")
        return self.encoder

    def _normalised(self, x_BLD: Tensor) -> Tensor:
        if "classification" in self.heads and self.heads["classification"].pool == "avg":
            return self.heads["classification"].fc_norm(x_BLD)
        return F.layer_norm(x_BLD, x_BLD.shape[-1:], eps=1e-6)


class _Opened:
    """A transform of PIL pictures for all that a picture may come as."""

    def __init__(self, image: Callable[[Image.Image], Tensor]) -> None:
        self.image = image

    def __call__(self, picture: Picture) -> Tensor:
        return self.image(open_image(picture))
