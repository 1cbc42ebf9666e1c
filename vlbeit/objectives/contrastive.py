"""Image-text contrast: each text against the pictures of all processes, and each picture against all texts.

Legend: B local rows, G rows of all processes, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vlbeit import dist
from vlbeit.models.heads import Compared
from vlbeit.models.quantizer import at_least_float
from vlbeit.types import Logs

GATHERS = ("gradient", "published")


class ContrastRule(NamedTuple):
    """What is compared, and how.

    `loss`: a key of `LOSSES`. `gather`: `gradient`: a loss reaches the features of all processes, so the gradient is
    that of one process with the whole batch (`vlbeit.dist`). `published`, VLMo's: what is gathered carries no gradient,
    so that of the features is 1 / number of processes of the true one, beside other losses of full gradient; that of
    scale and bias is the true one, and so is every value. `same_picture_negatives`: whether another caption of the same
    picture counts as a negative (VLMo); else it takes no part.
    """

    loss: str = "softmax"
    gather: str = "gradient"
    same_picture_negatives: bool = False


class Likenesses(NamedTuple):
    """Scaled products of the local rows with all rows, -inf where a pair takes no part."""

    text_BG: Tensor  # local texts against all pictures
    image_BG: Tensor  # local pictures against all texts


def contrast_head(dim: int, loss: str) -> dict[str, Any]:
    """Spec of the head for a loss: `softmax` as CLIP and VLMo, `sigmoid` with SigLIP's first scale and bias."""
    first = {"scale": 10.0, "bias": -10.0} if loss == "sigmoid" else {}
    return {"kind": "contrast", "dim": dim, **first}


def softmax_terms(likenesses: Likenesses, own_B: Tensor) -> Tensor:
    """[B]: mean of text->image and image->text cross-entropy, the right one among all (CLIP, arXiv 2103.00020)."""
    parts = [F.cross_entropy(logits_BG, own_B, reduction="none") for logits_BG in likenesses]
    return (parts[0] + parts[1]) / 2


def sigmoid_terms(likenesses: Likenesses, own_B: Tensor) -> Tensor:
    """[B]: each local picture with every text, a yes or no for every pair, summed (SigLIP, arXiv 2303.15343)."""
    sign_BG = torch.full_like(likenesses.image_BG, -1.0).scatter_(1, own_B[:, None], 1.0)
    return -F.logsigmoid(sign_BG * likenesses.image_BG).sum(1)


LOSSES: dict[str, Callable[[Likenesses, Tensor], Tensor]] = {"softmax": softmax_terms, "sigmoid": sigmoid_terms}

LEARNED = ("temperature", "bias", "temperature_fused", "bias_fused")
"""Names that `learned_logs` gives."""


def learned_logs(pairs: Sequence[Compared]) -> Logs:
    """For the logs: `temperature` of the first contrast and, with sigmoid, `bias`; `_fused` of the second."""
    logs = {}
    for pair, suffix in zip(pairs, ("", "_fused"), strict=False):
        one = torch.ones_like(pair.scale.detach())
        logs[f"temperature{suffix}"] = (1 / pair.scale.detach(), one)
        if pair.bias is not None:
            logs[f"bias{suffix}"] = (pair.bias.detach(), one)
    return logs


def own_columns(rows: int, device: torch.device) -> Tensor:
    """Where the local rows stand among those of all processes, [B]."""
    return torch.arange(rows, device=device) + dist.rank() * rows


def others_of_picture(picture_B: Tensor, picture_G: Tensor, own_B: Tensor) -> Tensor:
    """[B, G], True where another row of all has the same picture."""
    return (picture_B[:, None] == picture_G).scatter_(1, own_B[:, None], False)


def likenesses(rows: Compared, text_GD: Tensor, image_GD: Tensor, left_out_BG: Tensor | None) -> Likenesses:
    """Products of local rows and all rows. Of full precision also under autocast: cosines of 8 bits would tie."""
    with torch.autocast(text_GD.device.type, enabled=False):
        text_BG = rows.scale * at_least_float(rows.text_BD) @ at_least_float(image_GD).T
        image_BG = rows.scale * at_least_float(rows.image_BD) @ at_least_float(text_GD).T
        if rows.bias is not None:
            text_BG, image_BG = text_BG + rows.bias, image_BG + rows.bias
    if left_out_BG is not None:
        text_BG, image_BG = (logits.masked_fill(left_out_BG, -torch.inf) for logits in (text_BG, image_BG))
    return Likenesses(text_BG, image_BG)


def contrast(rows: Compared, rule: ContrastRule, left_out_BG: Tensor | None = None) -> tuple[Tensor, Likenesses]:
    """Terms [B] of the local rows against those of all processes; their mean over all of them is the loss.

    Every process has as many rows. `left_out_BG`: pairs that take no part, never a row with itself.
    """
    if rule.gather == "published":
        rows = rows._replace(text_BD=_as_published(rows.text_BD), image_BD=_as_published(rows.image_BD))
    own_B = own_columns(len(rows.text_BD), rows.text_BD.device)
    found = likenesses(rows, dist.gather_with_grad(rows.text_BD), dist.gather_with_grad(rows.image_BD), left_out_BG)
    return LOSSES[rule.loss](found, own_B), found


def _as_published(x_BD: Tensor) -> Tensor:
    """The same values with 1 / number of processes of the gradient.

    VLMo computes the loss of the whole batch on every process and keeps the gradient of its own rows there: the true
    one of these rows. Averaged over processes, of which one alone has it, that is this share of it.
    """
    return _ScaledGradient.apply(x_BD, 1 / dist.world_size())


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, factor: float) -> Tensor:
        context.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(context: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad * context.factor, None
