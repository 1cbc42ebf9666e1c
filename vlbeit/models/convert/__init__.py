"""Foreign checkpoints: recognised by the names of their tensors, and brought under ours."""

from __future__ import annotations

from vlbeit.errors import DataError
from vlbeit.models.convert.beit import BEIT, UPERNET
from vlbeit.models.convert.dvae import DALLE, FLAVA
from vlbeit.models.convert.layout import Converted, Hints, Layout, State
from vlbeit.models.convert.timm import TIMM
from vlbeit.models.convert.transformers import TRANSFORMERS
from vlbeit.models.convert.vlmo import VLMO
from vlbeit.models.convert.vqkd import VQKD

# in the order in which they are tried: the first that matches wins (timm before unilm, whose names it took over)
LAYOUTS: tuple[Layout, ...] = (TIMM, TRANSFORMERS, VLMO, BEIT, UPERNET, VQKD, DALLE, FLAVA)


def recognise(state: State) -> Layout:
    """The layout of a state dict; DataError, with some of its names, where it is none that we know."""
    for layout in LAYOUTS:
        if layout.matches(state):
            return layout
    some = ", ".join(sorted(state)[:3])
    raise DataError(
        f"{len(state)} tensors named {some}, ...: not a BEiT, VLMo or image tokenizer checkpoint in a known layout "
        f"({', '.join(layout.name for layout in LAYOUTS)})"
    )


def convert(state: State, hints: Hints | None = None) -> Converted:
    """A foreign state dict in our terms. Raises DataError, naming the tensor, where it does not hold together."""
    return recognise(state).convert(state, hints or Hints())
