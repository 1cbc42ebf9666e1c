"""The tokenizer of BEiT v2, trained by vector-quantized knowledge distillation (VQ-KD, arXiv 2208.06366, section 2.2).

Evaluation only: training one is not part of this package.

Legend of shape suffixes: B batch, C colour channels, H height and W width in pixels, D width, K channels of a code,
V vocabulary, Y rows and X columns of tokens, N = Y * X tokens, T channels of the teacher's features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlbeit.errors import UsageError
from vlbeit.models.encoder import MoMEEncoder
from vlbeit.models.image_tokenizer import ImageTokenizer
from vlbeit.models.quantizer import in_full_precision
from vlbeit.models.spec import EncoderSpec
from vlbeit.nn.embed import PatchEmbed


@dataclass(frozen=True)
class VQKDSpec:
    """Everything needed to rebuild a VQKD; `VQKDSpec.from_dict(asdict(spec)) == spec`.

    encoder: image only, absolute positions. decoder: the same over the grid of codes, patches of 1; None: none is
    kept. mean, std: of the three colours, which are normalised by (x - mean) / std. The published tokenizers scale
    pixels to [-1, 1] (microsoft/unilm beit2/modeling_vqkd.py, `process_type default`), whatever their teacher was.
    """

    encoder: EncoderSpec
    decoder: EncoderSpec | None = None
    vocab_size: int = 8192
    code_dim: int = 32
    teacher_dim: int = 512  # of CLIP ViT-B/16; 768 of DINO ViT-B/16
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @property
    def downsample(self) -> int:
        """Side of the square of pixels that one token stands for: a patch."""
        return self.encoder.patch_size

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> VQKDSpec:
        """From `dataclasses.asdict`, also after a round trip through JSON."""
        decoder = values["decoder"]
        return cls(
            **{
                **values,
                "encoder": EncoderSpec.from_dict(values["encoder"]),
                "decoder": None if decoder is None else EncoderSpec.from_dict(decoder),
                "mean": tuple(values["mean"]),
                "std": tuple(values["std"]),
            }
        )


class VQKD(ImageTokenizer):
    """ViT, projection to codes on the unit sphere, the nearest entry of a codebook; a small ViT back to the teacher.

    It takes pictures of `spec.encoder.image_size` alone, since its positions are absolute.
    """

    kind = "vqkd"
    interpolation = "bicubic"  # of the second view in BEiT v2; DALL-E's tokenizer had lanczos in BEiT v1
    spec: VQKDSpec
    mean: Tensor
    std: Tensor

    def __init__(self, spec: VQKDSpec) -> None:
        super().__init__()
        self.spec = spec
        self.encoder = MoMEEncoder(spec.encoder)
        self.to_code = _projection(spec.encoder.embed_dim, spec.code_dim)
        # rows are unit vectors in every trained file
        self.codebook = nn.Parameter(F.normalize(torch.randn(spec.vocab_size, spec.code_dim), dim=-1))
        self.decoder: MoMEEncoder | None = None
        self.to_teacher: nn.Sequential | None = None
        if spec.decoder is not None:
            self.decoder = MoMEEncoder(spec.decoder)
            self.decoder.patch_embed = PatchEmbed(1, spec.decoder.embed_dim, channels=spec.code_dim)
            self.to_teacher = _projection(spec.decoder.embed_dim, spec.teacher_dim)
        self.register_buffer("mean", torch.tensor(spec.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(spec.std)[:, None, None], persistent=False)

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> VQKD:
        """A fresh VQKD from what `describe` gave."""
        return cls(VQKDSpec.from_dict(description))

    def describe(self) -> dict[str, Any]:
        """The spec as JSON values."""
        return asdict(self.spec)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens; UsageError for any size but that of its positions."""
        size, grid, step = self.spec.encoder.image_size, self.spec.encoder.grid, self.spec.downsample
        assert size is not None and grid is not None
        if (height, width) != tuple(size):
            raise UsageError(
                f"the VQ-KD tokenizer makes {grid[0]}x{grid[1]} tokens of {size[0]}x{size[1]} pixels, "
                f"{height // step}x{width // step} of {height}x{width} are needed: its positions are absolute, choose "
                f"data.image_size and model.patch_size such that the encoder has {grid[0]}x{grid[1]} patches"
            )
        return grid

    def encode(self, pixels_BCHW: Tensor) -> Tensor:
        """Unit vectors [B, N, K], row by row, before the look-up; in full precision also under autocast."""
        self.grid(*pixels_BCHW.shape[-2:])
        tokens = self.encoder(self.encoder.embed_image((pixels_BCHW - self.mean) / self.std))
        return F.normalize(in_full_precision(self.to_code, tokens.x_BLD[:, 1:]), dim=-1)

    def tokens(self, pixels_BCHW: Tensor) -> Tensor:
        """Ids of the nearest codes, int [B, Y, X]."""
        code_BNK = self.encode(pixels_BCHW)
        with torch.autocast(code_BNK.device.type, enabled=False):
            # the nearest by squared distance, up to a constant: for unit vectors the one of largest cosine
            nearness_BNV = code_BNK @ self.codebook.T - 0.5 * self.codebook.square().sum(1)
        return nearness_BNV.argmax(-1).unflatten(1, self.grid(*pixels_BCHW.shape[-2:]))

    def decode(self, ids_BYX: Tensor) -> Tensor:
        """The teacher's features [B, N, T] as the decoder guesses them. ValueError where no decoder was kept."""
        if self.decoder is None or self.to_teacher is None:
            raise ValueError("this VQ-KD tokenizer was kept without its decoder: it makes tokens alone")
        code_BKYX = self.codebook[ids_BYX].permute(0, 3, 1, 2)
        return self.to_teacher(self.decoder(self.decoder.embed_image(code_BKYX)).x_BLD[:, 1:])


def _projection(width_in: int, width_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width_in, width_in), nn.Tanh(), nn.Linear(width_in, width_out))
