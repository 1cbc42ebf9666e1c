"""From pictures to the features on disk: what they are keyed by, and who computes which of them."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from vlbeit import dist
from vlbeit.config import DataConfig
from vlbeit.data.collate import collate
from vlbeit.data.index import cache_folder
from vlbeit.data.loader import EvalLoader
from vlbeit.data.picture_facts import picture_facts
from vlbeit.data.records import ChosenRecords, open_image
from vlbeit.engine.device import batch_dtype, to_device
from vlbeit.models.features import digest
from vlbeit.types import DataSpec, Record, Records, Sample

from .cache import FeatureFolder, Part
from .objective import ProbeObjective

log = logging.getLogger(__name__)

_FORMAT = 1  # raise it when features of the same weights and pictures change
_BATCH = 64
_REPORT_EVERY = 10.0  # seconds


class Extraction:
    """Features of splits by one tower.

    Args:
        objective: on the accelerator's device, in evaluation mode.
        image: a PIL picture to a tensor.
        view: everything that `image` hangs on, as JSON values.
        data: `data` of the run.
        dtype: float16 | float32, of what is kept.
    """

    def __init__(
        self,
        objective: ProbeObjective,
        image: Callable[[Any], Tensor],
        view: dict[str, Any],
        data: DataConfig,
        dtype: str,
        accelerator: Accelerator,
    ) -> None:
        self.objective, self.image, self.data, self.dtype, self.accelerator = objective, image, data, dtype, accelerator
        others = [] if "contrast" not in objective.heads else [objective.heads["contrast"]]
        self.facts = {
            "format": _FORMAT,
            "weights": digest(objective.encoder, others),
            "view": view,
            "columns": [list(column) for column in objective.columns],
            "dtype": dtype,
            "precision": accelerator.mixed_precision,
        }

    def __call__(self, split: str, records: Records) -> FeatureFolder:
        """The features of all records: from the disk where they are there, else computed by all processes together."""
        pictures = dist.broadcast_object(pictures_digest(records) if dist.is_main() else "")
        facts = {**self.facts, "pictures": pictures}
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]
        root = cache_folder(self.data.cache) / "features"
        folder = FeatureFolder(root / key, len(records), self.objective.columns, self.dtype)
        if dist.broadcast_object(folder.is_complete()):
            _say(f"features of {split}: {len(records)} pictures from {folder.folder}")
            return folder
        if dist.is_main():
            folder.check_space()
        dist.barrier()
        _say(
            f"features of {split}: {len(records)} pictures, {folder.width} numbers each, {folder.bytes / 1e6:.1f} MB "
            f"in {folder.folder}"
        )
        shards = folder.missing()
        dist.barrier()  # nobody writes before all have seen what is missing
        rows = [row for shard in shards for row in folder.rows_of(shard)]
        if rows:
            self._report(split, len(rows), folder.fill(shards, self._parts(ChosenRecords(records, rows))))
        dist.barrier()
        if dist.is_main():
            folder.finish({"split": split, "source": self.data.name, "root": self.data.root, **facts})
        dist.barrier()
        return folder

    def _parts(self, records: Records) -> Iterator[Part]:
        """Features of the records in order, computed on this process alone."""
        loader = EvalLoader(
            DataSpec(records, _Pictures(self.image), collate),
            batch_size=_BATCH,
            workers=self.data.workers,
            max_bad_fraction=self.data.max_bad_fraction,
        )
        objective, dtype = self.objective, batch_dtype(self.objective)
        with dist.alone():
            for batch in loader:
                image = to_device({"image": batch["image"]}, self.accelerator.device, dtype)["image"]
                features_BF = objective.features(image).float().cpu().numpy()
                unreadable = set(batch["bad"])
                yield Part(features_BF, [sample_id in unreadable for sample_id in batch["sample_id"]])

    @staticmethod
    def _report(split: str, total: int, progress: Iterator[int]) -> None:
        """Run through, saying now and then how far it is; of several processes the first one speaks for its share."""
        began = said = time.monotonic()
        for done in progress:
            now = time.monotonic()
            if now - said > _REPORT_EVERY:
                said = now
                _say(f"features of {split}: {done} of {total}, {(now - began) / done * (total - done):.0f} s to go")


class _Pictures:
    """Record -> picture, nothing random; runs in the loader's workers."""

    def __init__(self, image: Callable[[Any], Tensor]) -> None:
        self.image = image

    def __call__(self, record: Record) -> Sample:
        return {"sample_id": record["id"], "image": self.image(open_image(record["image"]))}


def pictures_digest(records: Records) -> str:
    """SHA-256 of which pictures these are, in order: their ids and, of files, path, size and time of change.

    Of encoded pictures in a prepared folder the shard's and the place in it, of others the bytes themselves.
    """
    result = hashlib.sha256()
    for sample_id in records.column("id"):
        result.update(f"{sample_id}\n".encode())
    for fact in picture_facts(records):
        result.update(fact)
    return result.hexdigest()


def deviations(folder: FeatureFolder) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [F] over all pictures, found on the main process."""
    moments = dist.broadcast_object(folder.moments() if dist.is_main() else None)
    assert moments is not None
    mean, deviation = (torch.from_numpy(np.asarray(values, dtype=np.float32)) for values in moments)
    return mean, deviation


def _say(line: str) -> None:
    if dist.is_main():
        print(line, flush=True)
