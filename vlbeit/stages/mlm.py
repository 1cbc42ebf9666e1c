"""Masked language modeling: VLMo's text stage, the text experts on frozen attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlbeit.config import OptimConfig, RunConfig, Settings, key, one_of, require
from vlbeit.data.collate import collate
from vlbeit.data.masked_text import MaskedText
from vlbeit.data.packing import PackedTransform, packed
from vlbeit.data.text import Tokenizer, choose_tokenizer
from vlbeit.models.encoder import MoMEEncoder
from vlbeit.models.groups import param_groups, vlmo_decays
from vlbeit.models.heads import Heads
from vlbeit.models.spec import encoder_spec
from vlbeit.objectives.evaluation import MeanLogs
from vlbeit.objectives.mlm import MLMObjective
from vlbeit.task import Stage
from vlbeit.types import DataSpec, Evaluator, Meta, Record, Records, Sample


@dataclass
class MLMSettings(Settings):
    """Settings of masked language modeling; the defaults are VLMo's."""

    probability: float = key(0.15, "share of words that is masked")
    pack: bool = key(
        False, "training texts packed into full sequences, without attention between them; false: one a row (VLMo)"
    )
    freeze: str = key("auto", "auto: with init, attention and image parts are frozen (VLMo) | never: train all")

    def __post_init__(self) -> None:
        require(0 < self.probability < 1, f"stage.probability={self.probability} must lie between 0 and 1")
        one_of("stage.freeze", self.freeze, ("auto", "never"))


class MLM(Stage):
    """Teach the tower words: masked language modeling on text alone (VLMo)."""

    Config = MLMSettings
    kind = "text"
    metric = "-mlm"
    previous = "mim"

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.settings: MLMSettings = config.stage
        require(
            not self.settings.pack or config.model.text_tower == "own",
            f"stage.pack=true packs texts for our own text tower: model.text_tower={config.model.text_tower} would let "
            f"them see each other; leave one of the two",
        )

    @property
    def on_tower(self) -> bool:
        """Whether an image tower is carried along; from scratch there is none, and all of the encoder trains."""
        return self.config.init != "none"

    def meta(self, train: Records, inherited: Meta) -> Meta:
        """`tokenizer`."""
        tokenizer = choose_tokenizer(self.config.text, lambda: train.column("text"), inherited.get("tokenizer"))
        return {"tokenizer": tokenizer.to_json()}

    def objective(self, meta: Meta) -> MLMObjective:
        vocab_size = Tokenizer.from_json(meta["tokenizer"], self.config.text.max_length).vocab_size
        experts = ("image", "text") if self.on_tower else ("text",)
        spec = encoder_spec(self.config, experts=experts, vocab_size=vocab_size, meta=meta)
        heads = Heads({"mlm": {"kind": "mlm", "dim": spec.embed_dim, "vocab_size": vocab_size}})
        objective = MLMObjective(MoMEEncoder(spec), heads)
        if self.on_tower:
            freeze_tower(objective.encoder, attention=self.settings.freeze == "auto")
        return objective

    def data(self, records: Records, meta: Meta, *, train: bool) -> DataSpec:
        tokenizer = Tokenizer.from_json(meta["tokenizer"], self.config.text.max_length)
        masked = MaskedText(tokenizer, self.settings.probability)
        if train and self.settings.pack:
            return DataSpec(packed(records, tokenizer, self.config.data.cache), PackedTransform(masked), collate)
        # evaluated one text a row, packed or not: the numbers of both are of the same words
        return DataSpec(records, MLMTransform(masked), collate)

    def evaluators(self, records: Records, meta: Meta) -> Mapping[str, Evaluator]:
        return {"logs": MeanLogs()}

    def param_groups(self, objective: MLMObjective, optim: OptimConfig) -> list[dict[str, Any]]:  # type: ignore[override]
        return param_groups(objective, optim, vlmo_decays)


def freeze_tower(encoder: MoMEEncoder, *, attention: bool) -> None:
    """Freeze what a text pass does not reach; with `attention` also attention, its norm and the layer scales.

    The `image` and `cross` rows of the position tables are parameters of their own, so they keep their values.
    """
    for name, parameter in encoder.named_parameters():
        part = name.split(".")
        unreached = part[0] in ("cls_token", "pos_embed", "patch_embed") or "image" in part or part[-1] == "cross"
        shared = part[0] == "blocks" and part[2] in ("norm1", "attn", "gamma_1", "gamma_2")
        if unreached or (attention and shared):
            parameter.requires_grad_(False)


class MLMTransform:
    """Record -> token ids, some words masked."""

    def __init__(self, masked: MaskedText) -> None:
        self.masked = masked

    def __call__(self, record: Record) -> Sample:
        return {"sample_id": record["id"], **self.masked(record["text"])}


RECIPE = MLM
