"""Names of other DALL-E encoders' weights -> ours."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

_BLOCK = re.compile(r"blocks\.group_(\d+)\.group\.block_(\d+)\.(id_path|res_path\.path\.conv_(\d))\.(weight|bias)")


def load_flava_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State of `transformers.FlavaImageCodebook` -> state of `DVAEEncoder`; ValueError names a key it does not know."""
    return {_flava_name(name): value for name, value in state.items()}


def _flava_name(name: str) -> str:
    if match := _BLOCK.fullmatch(name):
        group, block, path, conv, kind = match.groups()
        inner = "skip" if path == "id_path" else f"residual.{2 * int(conv) - 1}"
        return f"groups.{int(group) - 1}.{int(block) - 1}.{inner}.{kind}"
    for prefix, ours in (("blocks.input.", "input."), ("blocks.output.conv.", "output.1.")):
        if name.startswith(prefix):
            return ours + name.removeprefix(prefix)
    raise ValueError(f"{name} is no weight of a FlavaImageCodebook")
