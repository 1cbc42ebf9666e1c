"""The smallest task: is the picture dark or bright?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vlbeit.config import OptimConfig
from vlbeit.data.collate import collate
from vlbeit.data.records import open_image
from vlbeit.data.transforms import EvalImage
from vlbeit.models.encoder import MoMEEncoder
from vlbeit.models.groups import beit_decays, param_groups
from vlbeit.models.heads import Heads
from vlbeit.models.spec import encoder_spec
from vlbeit.objectives.base import Objective
from vlbeit.objectives.evaluation import MeanLogs
from vlbeit.task import Task
from vlbeit.types import Batch, DataSpec, Evaluator, Exportable, Meta, Predictor, Records, StepOutput

from .stage import Picture


class BrightnessObjective(Objective):
    """Cross-entropy of a head of the plug-in's own on the CLS token."""

    def __init__(self, encoder: MoMEEncoder, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = Heads({})
        self.heads["brightness"] = nn.Linear(encoder.spec.embed_dim, classes)

    def logits(self, image_BCHW: Tensor) -> Tensor:
        return self.heads["brightness"](self.encoder(self.encoder.embed_image(image_BCHW)).x_BLD[:, 0])

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {"brightness": torch.tensor(len(batch["image"]))}

    def forward(self, batch: Batch, counts: dict[str, Tensor]) -> StepOutput:
        logits_BV = self.logits(batch["image"])
        loss = nn.functional.cross_entropy(logits_BV, batch["label"], reduction="sum")
        hits = (logits_BV.argmax(1) == batch["label"]).sum()
        number = torch.tensor(len(logits_BV))
        return StepOutput({"brightness": loss / counts["brightness"]}, {"accuracy": (hits, number)})

    def describe(self) -> dict[str, Any]:
        return {"encoder": self.encoder.spec.to_dict(), "heads": self.heads.specs}


class Brightness(Task):
    """Tell dark pictures from bright ones."""

    kind = "labelled"
    metric = "accuracy"
    stages = ("copy", "mim")

    def meta(self, train: Records, inherited: Meta) -> Meta:
        return {"classes": ["dark", "bright"]}

    def objective(self, meta: Meta) -> BrightnessObjective:
        return BrightnessObjective(MoMEEncoder(encoder_spec(self.config)), len(meta["classes"]))

    def data(self, records: Records, meta: Meta, *, train: bool) -> DataSpec:
        return DataSpec(records, Picture(self._image()), collate)

    def evaluators(self, records: Records, meta: Meta) -> Mapping[str, Evaluator]:
        return {"logs": MeanLogs()}

    def param_groups(self, objective: Objective, optim: OptimConfig) -> list[dict[str, Any]]:
        return param_groups(objective, optim, beit_decays, scaled_head="brightness")

    def predictor(self, objective: Objective, meta: Meta) -> Predictor:
        return BrightnessPredictor(objective, self._image(), meta["classes"])

    def exported(self, objective: BrightnessObjective, meta: Meta) -> Exportable:  # type: ignore[override]
        height, width = self.config.data.size
        return Exportable(
            call=lambda batch: objective.logits(batch["image"]),
            example=lambda sizes: {"image": torch.rand(sizes["batch"], 3, height, width)},
            axes={"image": {0: "batch"}},
            sizes={"batch": (1, 3)},
            output="brightness",
            facts={"classes": meta["classes"]},
        )

    def _image(self) -> EvalImage:
        return EvalImage(self.config.data.size, *self.config.normalization)


class BrightnessPredictor:
    """Dark or bright, with probabilities."""

    def __init__(self, objective: Any, image: EvalImage, classes: list[str]) -> None:
        self.objective, self.image, self.classes = objective.eval(), image, classes

    @torch.inference_mode()
    def __call__(self, image: Any, text: str | None = None, *, top: int = 5) -> list[tuple[str, float]]:
        probability_V = self.objective.logits(self.image(open_image(image))[None])[0].softmax(0)
        return sorted(zip(self.classes, probability_V.tolist(), strict=True), key=lambda pair: -pair[1])[:top]
