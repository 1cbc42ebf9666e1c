"""Samples to a batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vlbeit.types import Batch, Sample

PADDING = {"text_ids": 0, "text_keep": False, "text_segments": 0, "mlm_ids": 0, "mlm_labels": -100}
"""Fields [T] of a text and what fills them up. The id is arbitrary: `text_keep` says what is padding."""


def collate(samples: list[Sample]) -> Batch:
    """Pad texts to the longest of the batch, stack tensors and numbers, keep everything else as lists.

    The fields of `PADDING` are tensors or lists [T] and become [B, T]; `text_keep` is made from `text_ids` where it is
    absent. Other tensors and numpy arrays are stacked, bool, int and float become a tensor [B].
    """
    batch: Batch = {name: _join(name, [sample[name] for sample in samples]) for name in samples[0]}
    if "text_ids" in batch and "text_keep" not in batch:
        lengths_B = torch.tensor([len(sample["text_ids"]) for sample in samples])
        batch["text_keep"] = torch.arange(batch["text_ids"].shape[1]) < lengths_B[:, None]
    return batch


def _join(name: str, values: list[Any]) -> Any:
    first = values[0]
    if name in PADDING:
        return pad_sequence([torch.as_tensor(value) for value in values], batch_first=True, padding_value=PADDING[name])
    if isinstance(first, Tensor):
        return torch.stack(values)
    if hasattr(first, "__array__"):  # numpy arrays and numbers
        return torch.stack([torch.as_tensor(value) for value in values])
    if isinstance(first, bool | int | float):
        return torch.tensor(values)
    return values
