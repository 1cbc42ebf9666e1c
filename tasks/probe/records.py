"""Labelled records whose picture is replaced by its features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from vlbeit.data.records import ImageError
from vlbeit.types import Record, Records, Sample

from .cache import FeatureFolder


class FeatureRecords:
    """`id`, `label`, `features` [F] and `bad` of every picture; the features are there once the run is prepared."""

    def __init__(self, records: Records, folders: Mapping[str, FeatureFolder], split: str) -> None:
        self._records, self._folders, self._split = records, folders, split

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        folder = self._folders[self._split]
        features, bad = np.array(folder.row(index), dtype=np.float32), folder.is_bad(index)
        return {"id": self._ids[index], "label": int(self._labels[index]), "features": features, "bad": bad}

    def column(self, name: str) -> Sequence[Any]:
        return self._records.column(name)

    @cached_property
    def _ids(self) -> list[str]:
        return list(self._records.column("id"))

    @cached_property
    def _labels(self) -> np.ndarray:
        return np.asarray(self._records.column("label")[:])


def feature_sample(record: Record) -> Sample:
    """The sample of a feature record.

    Raises ImageError where its picture could not be read, so that the loaders treat it as they treat pictures: training
    takes another one, evaluation those of the grey one that took its place (the record then comes again, with `image`).
    """
    if record["bad"] and "image" not in record:
        raise ImageError(f"the picture of {record['id']} could not be read when its features were computed")
    features = torch.from_numpy(record["features"])
    return {"sample_id": record["id"], "features": features, "label": record["label"]}
