"""The smallest pre-training stage: say how bright each patch is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from vlbeit.config import OptimConfig, Settings, key, require
from vlbeit.data.collate import collate
from vlbeit.data.records import open_image
from vlbeit.data.transforms import EvalImage
from vlbeit.models.encoder import MoMEEncoder
from vlbeit.models.groups import beit_decays, param_groups
from vlbeit.models.heads import Heads
from vlbeit.models.spec import encoder_spec
from vlbeit.objectives.base import Objective
from vlbeit.objectives.evaluation import MeanLogs
from vlbeit.task import Stage
from vlbeit.types import Batch, DataSpec, Evaluator, Meta, Record, Records, Sample, StepOutput


class CopyObjective(Objective):
    """Squared error of the mean colour of every patch."""

    def __init__(self, encoder: MoMEEncoder, heads: Heads, weight: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = heads
        self.weight = weight

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {"copy": torch.tensor(len(batch["image"]))}

    def forward(self, batch: Batch, counts: dict[str, Tensor]) -> StepOutput:
        x_BLD = self.encoder(self.encoder.embed_image(batch["image"])).x_BLD
        target_BND = avg_pool2d(batch["image"], self.encoder.spec.patch_size).flatten(2).mT
        loss = ((self.heads["masked_patch"](x_BLD[:, 1:]) - target_BND) ** 2).mean((1, 2)).sum()
        return StepOutput({"copy": self.weight * loss / counts["copy"]}, {"copy": (loss.detach(), counts["copy"])})

    def describe(self) -> dict[str, Any]:
        return {"encoder": self.encoder.spec.to_dict(), "heads": self.heads.specs}


@dataclass
class CopySettings(Settings):
    """Settings of the copy stage."""

    weight: float = key(1.0, "weight of the loss")

    def __post_init__(self) -> None:
        require(self.weight > 0, f"stage.weight={self.weight} must be positive")


class Copy(Stage):
    """Say how bright each patch is: the smallest stage there is."""

    Config = CopySettings
    kind = "images"
    metric = "-copy"

    def meta(self, train: Records, inherited: Meta) -> Meta:
        return {}

    def objective(self, meta: Meta) -> CopyObjective:
        spec = encoder_spec(self.config)
        heads = Heads({"masked_patch": {"kind": "masked_patch", "dim": spec.embed_dim, "dim_out": 3}})
        return CopyObjective(MoMEEncoder(spec), heads, self.config.stage.weight)

    def data(self, records: Records, meta: Meta, *, train: bool) -> DataSpec:
        return DataSpec(records, Picture(EvalImage(self.config.data.size, *self.config.normalization)), collate)

    def evaluators(self, records: Records, meta: Meta) -> Mapping[str, Evaluator]:
        return {"logs": MeanLogs()}

    def param_groups(self, objective: Objective, optim: OptimConfig) -> list[dict[str, Any]]:
        return param_groups(objective, optim, beit_decays)


class Picture:
    """Record -> the picture, and its label where it has one."""

    def __init__(self, image: EvalImage) -> None:
        self.image = image

    def __call__(self, record: Record) -> Sample:
        label = {"label": record["label"]} if "label" in record else {}
        return {"sample_id": record["id"], "image": self.image(open_image(record["image"])), **label}
