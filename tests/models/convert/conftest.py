"""Models of other libraries with nothing left at its initial value, and ours built of what was converted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vlbeit.models.convert.layout import Converted
from vlbeit.models.encoder import MoMEEncoder
from vlbeit.models.heads import Heads
from vlbeit.models.pyramid import taps, to_map
from vlbeit.models.spec import EncoderSpec

_NOISE = torch.randn(1 << 16, generator=torch.Generator().manual_seed(1)) * 0.05
_DRAWS = {torch.ops.aten.uniform_.default, torch.ops.aten.normal_.default, torch.ops.aten.erfinv_.default}


class Ours(nn.Module):
    """Encoder and heads of a conversion, as `vlbeit.load` builds them."""

    def __init__(self, converted: Converted) -> None:
        super().__init__()
        with torch.device("meta"):
            self.encoder = MoMEEncoder(EncoderSpec.from_dict(converted.description["encoder"]))
            self.heads = Heads(converted.description["heads"])
        self.load_state_dict(converted.state, assign=True)
        self.eval()

    def tokens(self, image: Tensor, mask_BN: Tensor | None = None) -> Tensor:
        return self.encoder(self.encoder.embed_image(image, mask_BN)).x_BLD

    def segmented(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the decoder and of the auxiliary head."""
        embedded = self.encoder.embed_image(image)
        indices = self.heads["necks"].taps or taps(self.encoder.spec.depth)
        pyramid = self.heads["necks"]([to_map(t) for t in self.encoder.forward_intermediates(embedded, indices)])
        return self.heads["segmentation"](pyramid), self.heads["auxiliary"](pyramid)

    def forward(self, image: Tensor) -> Tensor:
        return self.heads["classification"](self.tokens(image))


class _NoDraws(TorchDispatchMode):
    """Initial weights are not drawn: that takes most of the time of a large model."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in _DRAWS:
            return args[0].zero_()
        return function(*args, **(kwargs or {}))


@torch.no_grad()
def _shaken(module: nn.Module) -> nn.Module:
    for number, norm in enumerate(module.modules()):
        if isinstance(norm, nn.BatchNorm2d):  # as trained
            start = 89 * number % 4099
            norm.running_mean.add_(_NOISE[start : start + norm.num_features])  # type: ignore[union-attr]
            norm.running_var.mul_(torch.exp(10 * _NOISE[start : start + norm.num_features]))  # type: ignore[union-attr]
            norm.num_batches_tracked.add_(number)  # type: ignore[union-attr]
    for number, parameter in enumerate(module.parameters()):
        start = 97 * number % 4099
        parameter.add_(_NOISE[start:].repeat(parameter.numel() // 60000 + 1)[: parameter.numel()].view_as(parameter))
    return module.eval()


@pytest.fixture
def blank() -> Callable[[], Any]:
    """`with blank():` models are made without drawing their initial weights."""
    return _NoDraws


@pytest.fixture
def shaken() -> Callable[[nn.Module], nn.Module]:
    """Add noise to every parameter and running statistic: initial zeros and ones would hide what is left out."""
    return _shaken


@pytest.fixture
def ours() -> Callable[[Converted], Ours]:
    return Ours
