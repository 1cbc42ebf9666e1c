"""Text networks of transformers.

Legend: B batch, T text tokens, C width of the network.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from vlbeit.errors import UsageError


class TextNetwork(nn.Module):
    """The last hidden states of a text encoder; of an encoder-decoder the encoder alone."""

    def __init__(self, name: str, facts: dict[str, Any], vocab_size: int, weights: str = "none") -> None:
        super().__init__()
        if weights == "none":
            network = AutoModel.from_config(AutoConfig.for_model(**facts["config"]))
        elif weights:
            raise UsageError(f"@{weights} is not taken: give the folder as NAME")
        else:
            network = AutoModel.from_pretrained(_expanded(name))
        network = network.get_encoder() if network.config.is_encoder_decoder else network
        if vocab_size > network.get_input_embeddings().num_embeddings:  # the tokenizer has a [MASK] of its own
            network.resize_token_embeddings(vocab_size, mean_resizing=False)
        self.network = network.float()

    @staticmethod
    def describe(name: str, weights: str) -> dict[str, Any]:
        """`config` of the network, `longest` text that it takes (null: any)."""
        config = AutoConfig.from_pretrained(_expanded(name))
        values = json.loads(config.to_json_string(use_diff=False))
        return {"config": values, "longest": getattr(config, "max_position_embeddings", None)}

    def forward(self, ids_BT: Tensor, keep_BT: Tensor | None = None) -> Tensor:
        """[B, T] -> [B, T, C]; False in `keep_BT` marks padding."""
        mask = None if keep_BT is None else keep_BT.long()
        return self.network(input_ids=ids_BT, attention_mask=mask).last_hidden_state


def _expanded(name: str) -> str:
    return str(Path(name).expanduser())
