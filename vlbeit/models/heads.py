"""What sits on top of the encoder: one small module per purpose, rebuilt from a checkpoint by `Heads`.

Legend: B batch, N patches, L all tokens, D width, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlbeit.models.aggregation import PatchAggregation
from vlbeit.models.detector import Detector
from vlbeit.models.pyramid import FeatureNecks
from vlbeit.models.setr import SETRPUP
from vlbeit.models.upernet import FCNHead, UPerNet


class MaskedPatchHead(nn.Linear):
    """D -> `dim_out` on masked patches: visual-token logits or pixel values (BEiT's `lm_head`)."""

    def __init__(self, dim: int, dim_out: int) -> None:
        super().__init__(dim, dim_out)
        _normal(self)


class MLMHead(nn.Module):
    """BERT's masked-word head: dense, GELU, norm (eps 1e-12), decoder. Not tied to the word embeddings (VLMo)."""

    def __init__(self, dim: int, vocab_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-12)
        self.decoder = nn.Linear(dim, vocab_size)
        _normal(self)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., V]."""
        return self.decoder(self.norm(F.gelu(self.dense(x))))


class Pooler(nn.Module):
    """tanh of a linear map of the first token (VLMo: the text's [CLS])."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dense = nn.Linear(dim, dim)
        _normal(self)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """[B, L, D] -> [B, D]."""
        return torch.tanh(self.dense(x_BLD[:, 0]))


class Compared(NamedTuple):
    """Texts and pictures that belong together row by row, as a contrastive loss compares them."""

    text_BD: Tensor  # unit vectors
    image_BD: Tensor
    scale: Tensor  # factor of their products: 1 / temperature
    bias: Tensor | None = None  # added to the products


class ContrastHead(nn.Module):
    """The two projections and the temperature of one contrastive pair; unit vectors out.

    Args:
        dim: D.
        scale: factor of the products at first, 1 / temperature (CLIP, VLMo); learned as its logarithm.
        bias: added to the products at first, and learned (SigLIP); None builds none.
    """

    def __init__(self, dim: int, scale: float = 1 / 0.07, bias: float | None = None) -> None:
        super().__init__()
        self.text = nn.Linear(dim, dim, bias=False)
        self.image = nn.Linear(dim, dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor(float(bias)))
        _normal(self)

    def embed_text(self, x_BLD: Tensor) -> Tensor:
        """First token -> unit vector [B, D]."""
        return F.normalize(self.text(x_BLD[:, 0]), dim=-1)

    def embed_image(self, x_BLD: Tensor) -> Tensor:
        """First token -> unit vector [B, D]."""
        return F.normalize(self.image(x_BLD[:, 0]), dim=-1)

    def forward(self, text_BLD: Tensor, image_BLD: Tensor) -> Compared:
        """Unit vectors of texts and images [B, D] with the factor and the bias of their products."""
        text_BD, image_BD = self.embed_text(text_BLD), self.embed_image(image_BLD)
        return Compared(text_BD, image_BD, self.logit_scale.exp(), self.logit_bias)


class MatchHead(nn.Linear):
    """Pooled [B, D] -> [B, 2]: logits of mismatch and match."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, 2)
        _normal(self)


class VQAHead(nn.Sequential):
    """Pooled [B, D] -> answer logits [B, V]: linear to 2D, norm (eps 1e-5), GELU, linear."""

    def __init__(self, dim: int, num_answers: int) -> None:
        super().__init__(
            nn.Linear(dim, 2 * dim), nn.LayerNorm(2 * dim, eps=1e-5), nn.GELU(), nn.Linear(2 * dim, num_answers)
        )
        _normal(self)


class PairHead(nn.Sequential):
    """Pooled tokens of two pictures with one text, side by side [B, 2D] -> logits (VLMo's NLVR2: false, true)."""

    def __init__(self, dim: int, num_classes: int = 2) -> None:
        super().__init__(
            nn.Linear(2 * dim, 2 * dim), nn.LayerNorm(2 * dim, eps=1e-5), nn.GELU(), nn.Linear(2 * dim, num_classes)
        )
        _normal(self)


class LinearProbe(nn.Module):
    """One linear map on fixed features, which `mean` and `scale` (at first 0 and 1) may bring to one size before."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        self.fc = nn.Linear(dim, num_classes)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x_BD: Tensor) -> Tensor:
        """[B, D] -> class logits [B, classes]."""
        return self.fc((x_BD - self.mean) * self.scale)


class ClassificationHead(nn.Module):
    """Mean of the patch tokens (CLS left out), norm (eps 1e-6), linear; the linear starts scaled by `init_scale`.

    Args:
        dim: D.
        num_classes: 0: no linear, what is pooled comes out.
        init_scale: factor on the initial weights.
        pool: avg, or token: the CLS token, without a norm of its own; the encoder then has the final one.
    """

    def __init__(self, dim: int, num_classes: int, init_scale: float = 0.001, pool: str = "avg") -> None:
        super().__init__()
        self.pool = pool
        self.fc_norm = nn.LayerNorm(dim, eps=1e-6) if pool == "avg" else nn.Identity()
        self.fc = nn.Linear(dim, num_classes) if num_classes else nn.Identity()
        if isinstance(self.fc, nn.Linear):
            nn.init.trunc_normal_(self.fc.weight, std=0.02)
            nn.init.zeros_(self.fc.bias)
            with torch.no_grad():
                self.fc.weight.mul_(init_scale)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """CLS + patches [B, 1+N, D] -> class logits [B, classes]."""
        return self.fc(self.fc_norm(x_BLD[:, 1:].mean(1) if self.pool == "avg" else x_BLD[:, 0]))


KINDS: dict[str, type[nn.Module]] = {
    "masked_patch": MaskedPatchHead,
    "mlm": MLMHead,
    "pooler": Pooler,
    "contrast": ContrastHead,
    "match": MatchHead,
    "vqa": VQAHead,
    "pair": PairHead,
    "classification": ClassificationHead,
    "linear_probe": LinearProbe,
    "patch_aggregation": PatchAggregation,
    "feature_necks": FeatureNecks,
    "upernet": UPerNet,
    "fcn": FCNHead,
    "setr_pup": SETRPUP,
    "detector": Detector,
}


class Heads(nn.ModuleDict):
    """Heads by name, built from their specs: `Heads({"answer": {"kind": "vqa", "dim": 768, "num_answers": 3129}})`.

    A plug-in may add a head of its own by assignment; it is then rebuilt by its task alone, not by `vlbeit.load`.
    """

    def __init__(self, specs: dict[str, dict[str, Any]]) -> None:
        super().__init__({name: _build(spec) for name, spec in specs.items()})
        self.specs = specs


def _build(spec: dict[str, Any]) -> nn.Module:
    numbers = {name: value for name, value in spec.items() if name != "kind"}
    return KINDS[spec["kind"]](**numbers)


@torch.no_grad()
def _normal(module: nn.Module) -> None:
    """BERT's initialisation of linear layers: weights normal 0.02, biases 0."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
