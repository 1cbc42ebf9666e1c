"""Vision-language pre-training: VLMo's last stage, image and text through fused experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlbeit.config import OptimConfig, RunConfig, key, require
from vlbeit.data.collate import collate
from vlbeit.data.masked_text import MaskedText
from vlbeit.data.picture_names import number_of
from vlbeit.data.records import check_several_pictures, open_image, spread
from vlbeit.data.text import Tokenizer, choose_tokenizer
from vlbeit.data.transforms import EvalImage, TrainImage
from vlbeit.models.encoder import MoMEEncoder
from vlbeit.models.groups import param_groups, vlmo_decays
from vlbeit.models.heads import Heads
from vlbeit.models.spec import encoder_spec
from vlbeit.objectives.contrastive import LEARNED, contrast_head
from vlbeit.objectives.evaluation import MeanLogs
from vlbeit.objectives.pair_settings import PairSettings
from vlbeit.objectives.vl import VLObjective
from vlbeit.task import Stage
from vlbeit.types import DataSpec, Evaluator, Meta, Record, Records, Sample

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass
class VLSettings(PairSettings):
    """Settings of vision-language pre-training; the defaults are VLMo's."""

    section = "stage"

    mlm_weight: float = key(0.25, "weight of the masked-word loss beside contrast and matching")
    mlm_probability: float = key(0.15, "share of words that is masked")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.mlm_weight >= 0, f"stage.mlm_weight={self.mlm_weight} must not be negative")
        require(0 < self.mlm_probability < 1, f"stage.mlm_probability={self.mlm_probability} must lie in (0, 1)")

    @classmethod
    def upgraded(cls, stored: dict[str, Any]) -> dict[str, Any]:
        """Runs from before `same_picture_negatives` took every other pair for a negative."""
        return {"same_picture_negatives": True, **stored}


class VL(Stage):
    """Join image and text: contrast, matching with hard negatives and masked words (VLMo)."""

    Config = VLSettings
    kind = "pairs"
    metric = "-total"
    previous = "mlm"

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.settings: VLSettings = config.stage
        require(config.model.fused_layers > 0, "stage=vl needs model.fused_layers of at least 1")

    def check(self) -> None:
        """UsageError where a single pair would be compared."""
        self.settings.check_several(self.config)

    def meta(self, train: Records, inherited: Meta) -> Meta:
        """`tokenizer`."""
        tokenizer = choose_tokenizer(self.config.text, lambda: train.column("text"), inherited.get("tokenizer"))
        return {"tokenizer": tokenizer.to_json()}

    def objective(self, meta: Meta) -> VLObjective:
        vocab_size = Tokenizer.from_json(meta["tokenizer"], self.config.text.max_length).vocab_size
        spec = encoder_spec(self.config, experts=("image", "text"), fused=True, vocab_size=vocab_size, meta=meta)
        encoder = MoMEEncoder(spec)  # first: what is drawn for it and for the heads hangs on the order
        heads = vl_heads(spec.embed_dim, vocab_size, self.settings.contrastive)
        return VLObjective(encoder, heads, self.settings.mlm_weight, self.settings.contrast(matching=True))

    def prepare(  # type: ignore[override]
        self, objective: VLObjective, splits: Mapping[str, Records], accelerator: Accelerator
    ) -> None:
        """Raises DataError where a single picture is to be trained on."""
        if "train" in splits and not self.settings.same_picture_negatives:
            check_several_pictures(splits["train"])

    def data(self, records: Records, meta: Meta, *, train: bool) -> DataSpec:
        tokenizer = Tokenizer.from_json(meta["tokenizer"], self.config.text.max_length)
        masked = MaskedText(tokenizer, self.settings.mlm_probability)
        image = (
            self.settings.train_image(self.config)
            if train
            else EvalImage(self.config.data.size, *self.config.normalization)
        )
        return DataSpec(records if train else spread(records), PairTransform(image, masked), collate)

    def evaluators(self, records: Records, meta: Meta) -> Mapping[str, Evaluator]:
        return {"logs": MeanLogs({"itc": 1.0, "itm": 1.0, "mlm": self.settings.mlm_weight}, LEARNED)}

    def param_groups(self, objective: VLObjective, optim: OptimConfig) -> list[dict[str, Any]]:  # type: ignore[override]
        return param_groups(objective, optim, vlmo_decays)


def vl_heads(dim: int, vocab_size: int, contrastive: str = "softmax") -> Heads:
    """The five heads of the three losses."""
    return Heads(
        {
            "contrast": contrast_head(dim, contrastive),
            "contrast_fused": contrast_head(dim, contrastive),
            "pooler": {"kind": "pooler", "dim": dim},
            "match": {"kind": "match", "dim": dim},
            "mlm": {"kind": "mlm", "dim": dim, "vocab_size": vocab_size},
        }
    )


class PairTransform:
    """Record -> picture, what names it, token ids, and the same ids with some words masked."""

    def __init__(self, image: TrainImage | EvalImage, masked: MaskedText) -> None:
        self.image = image
        self.masked = masked

    def __call__(self, record: Record) -> Sample:
        return {
            "sample_id": record["id"],
            "image": self.image(open_image(record["image"])),
            "picture": number_of(record["picture"]),
            **self.masked(record["text"]),
        }


RECIPE = VL
