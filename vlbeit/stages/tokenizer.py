"""The visual tokenizer: a discrete VAE whose tokens masked image modeling predicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlbeit.config import OptimConfig, RunConfig, Settings, key, one_of, require
from vlbeit.data.collate import collate
from vlbeit.data.records import open_image
from vlbeit.data.transforms import EvalImage, TrainImage
from vlbeit.models.dvae import DVAE, LIKELIHOODS, QUANTIZERS, DVAESpec
from vlbeit.models.groups import beit_decays, param_groups
from vlbeit.objectives.tokenizer import Annealing, CodebookUsage, TokenizerObjective
from vlbeit.task import Stage
from vlbeit.types import DataSpec, Evaluator, Meta, Record, Records, Sample

BLACK, ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)  # mean and std that leave pixels in [0, 1]


@dataclass
class TokenizerSettings(Settings):
    """Settings of the discrete VAE; the defaults are DALL-E's (Ramesh et al. 2021, appendix A)."""

    quantizer: str = key("gumbel", "gumbel: Gumbel-softmax | fsq: finite scalar quantization, which cannot collapse")
    vocab_size: int = key(8192, "number of visual tokens; fsq: at most, its true number is the product of its levels")
    levels: list[int] = key(
        [], "fsq: levels per channel; empty: 5 to 8 each, their product as near to vocab_size as can be"
    )
    straight_through: bool = key(False, "gumbel: the decoder sees one-hot codes in training, not soft ones")
    hidden: int = key(256, "width of the first group of blocks; every further group is twice as wide")
    num_groups: int = key(4, "groups of blocks; a token stands for a square of 2^(num_groups - 1) pixels a side")
    blocks_per_group: int = key(2, "residual blocks in a group")
    decoder_input: int = key(128, "width that codes are mapped to before the decoder's blocks")
    loss: str = key("logit_laplace", "reconstruction: logit_laplace | l1 | l2")
    kl_weight: float = key(6.6, "gumbel: weight of the KL to uniform tokens in the evidence lower bound")
    kl_steps: float = key(5000, "gumbel: steps over which kl_weight rises from 0; below 1: a share of all steps")
    diversity_weight: float = key(
        0.0, "gumbel: weight of a loss that keeps all tokens in use; differs from DALL-E above 0"
    )
    temperature_start: float = key(1.0, "gumbel: temperature of the relaxation at the first step")
    temperature_end: float = key(1 / 16, "gumbel: temperature after temperature_steps")
    temperature_steps: float = key(150_000, "gumbel: steps of its half cosine; below 1: a share of all steps")
    min_scale: float = key(0.5, "smallest random crop as a share of the picture")
    hflip: float = key(0.5, "probability of a horizontal flip")

    def __post_init__(self) -> None:
        one_of("stage.quantizer", self.quantizer, QUANTIZERS)
        one_of("stage.loss", self.loss, LIKELIHOODS)
        least = 5 if self.quantizer == "fsq" else 2
        require(self.vocab_size >= least, f"stage.vocab_size={self.vocab_size} must be at least {least}")
        require(not self.levels or self.quantizer == "fsq", "stage.levels= goes with stage.quantizer=fsq")
        require(all(level >= 2 for level in self.levels), f"stage.levels={list(self.levels)}: each must be at least 2")
        require(self.hidden > 0 and self.hidden % 4 == 0, f"stage.hidden={self.hidden} must be a multiple of 4")
        for name in ("num_groups", "blocks_per_group", "decoder_input"):
            require(getattr(self, name) > 0, f"stage.{name}={getattr(self, name)} must be positive")
        for name in ("kl_weight", "kl_steps", "diversity_weight", "temperature_steps"):
            require(getattr(self, name) >= 0, f"stage.{name}={getattr(self, name)} must not be negative")
        for name in ("temperature_start", "temperature_end"):
            require(getattr(self, name) > 0, f"stage.{name}={getattr(self, name)} must be positive")
        require(0 < self.min_scale <= 1, f"stage.min_scale={self.min_scale} must lie in (0, 1]")
        require(0 <= self.hflip <= 1, f"stage.hflip={self.hflip} must lie in [0, 1]")

    @property
    def spec(self) -> DVAESpec:
        """The model that the settings describe."""
        return DVAESpec(
            vocab_size=self.vocab_size,
            hidden=self.hidden,
            num_groups=self.num_groups,
            blocks_per_group=self.blocks_per_group,
            decoder_input=self.decoder_input,
            quantizer=self.quantizer,
            straight_through=self.straight_through,
            levels=tuple(self.levels),
            likelihood=self.loss,
        )

    def annealing(self, steps: int) -> Annealing:
        """The ramps of a run of so many steps."""
        return Annealing(
            temperature_start=self.temperature_start,
            temperature_end=self.temperature_end,
            temperature_steps=_steps(self.temperature_steps, steps),
            kl_weight=self.kl_weight,
            kl_steps=_steps(self.kl_steps, steps),
        )


def _steps(number: float, total: int) -> int:
    return round(number * total if number < 1 else number)


class Tokenizer(Stage):
    """Train the visual tokenizer: a discrete VAE (Gumbel-softmax or finite scalar quantization)."""

    Config = TokenizerSettings
    kind = "images"
    metric = "-l1"

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.settings: TokenizerSettings = config.stage
        self.spec = self.settings.spec
        height, width = config.data.size
        step = self.spec.downsample
        require(
            height % step == 0 and width % step == 0,
            f"data.image_size={height}x{width} must be a multiple of {step}: a token stands for {step}x{step} pixels",
        )

    def meta(self, train: Records, inherited: Meta) -> Meta:
        """`train_records`: their number, from which a run given in epochs knows its steps."""
        return {"train_records": len(train)}

    def objective(self, meta: Meta) -> TokenizerObjective:
        config = self.config
        steps = config.steps or int((config.epochs or 0) * meta["train_records"] / config.global_batch_size)
        return TokenizerObjective(DVAE(self.spec), self.settings.annealing(steps), self.settings.diversity_weight)

    def data(self, records: Records, meta: Meta, *, train: bool) -> DataSpec:
        size, settings = self.config.data.size, self.settings
        view = (
            TrainImage(size, BLACK, ONE, settings.min_scale, settings.hflip) if train else EvalImage(size, BLACK, ONE)
        )
        return DataSpec(records, TokenizerTransform(view), collate)

    def evaluators(self, records: Records, meta: Meta) -> Mapping[str, Evaluator]:
        return {"codebook": CodebookUsage(self.spec.vocab_size)}

    def param_groups(self, objective: TokenizerObjective, optim: OptimConfig) -> list[dict[str, Any]]:  # type: ignore[override]
        """Kernels decay, biases do not."""
        return param_groups(objective, optim, beit_decays)


class TokenizerTransform:
    """Record -> the tokenizer's view of its picture, in [0, 1]."""

    def __init__(self, view: TrainImage | EvalImage) -> None:
        self.view = view

    def __call__(self, record: Record) -> Sample:
        return {"sample_id": record["id"], "pixels": self.view(open_image(record["image"]))}


RECIPE = Tokenizer
