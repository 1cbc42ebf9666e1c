"""Keys that stages and tasks on pairs of picture and text share: how they are compared, how pictures are varied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vlbeit import dist
from vlbeit.config import RunConfig, Settings, key, one_of, require
from vlbeit.data.transforms import TrainImage
from vlbeit.objectives.contrastive import GATHERS, LOSSES, ContrastRule
from vlbeit.objectives.global_contrast import GlobalContrast
from vlbeit.objectives.matching import DRAWS


@dataclass
class PairSettings(Settings):
    """Defaults: VLMo's, but for captions of the same picture and the flip."""

    section: ClassVar[str]  # stage or task: what the keys begin with

    contrastive: str = key(
        "softmax", "softmax: each text among all pictures, as VLMo | sigmoid: pair by pair, as SigLIP"
    )
    gather: str = key(
        "gradient", "gradient: as one process with the whole batch | published: none through the gather, as VLMo"
    )
    negatives: str = key("sampled", "sampled: by their likelihood | hardest: always the likeliest")
    same_picture_negatives: bool = key(
        False, "whether other captions of a picture count as wrong ones in contrast and matching; VLMo: true"
    )
    cache_gradients: bool = key(
        False, "contrast and negatives over the whole global batch at any micro_batch_size, for one more forward pass"
    )
    min_scale: float = key(0.5, "smallest random crop as a share of the picture")
    hflip: float = key(0.0, "probability of a horizontal flip; differs from VLMo (0.5): it turns left into right")
    randaugment: bool = key(True, "RandAugment (2 operations, magnitude 7), as VLMo")

    def __post_init__(self) -> None:
        one_of(f"{self.section}.contrastive", self.contrastive, tuple(LOSSES))
        one_of(f"{self.section}.gather", self.gather, GATHERS)
        one_of(f"{self.section}.negatives", self.negatives, tuple(DRAWS))
        require(0 < self.min_scale <= 1, f"{self.section}.min_scale={self.min_scale} must lie in (0, 1]")
        require(0 <= self.hflip <= 1, f"{self.section}.hflip={self.hflip} must lie in [0, 1]")

    def contrast(self, *, matching: bool) -> GlobalContrast:
        """What is compared; with matching it draws negatives too."""
        rule = ContrastRule(self.contrastive, self.gather, self.same_picture_negatives)
        return GlobalContrast(rule, DRAWS[self.negatives] if matching else None, self.cache_gradients)

    def check_several(self, config: RunConfig) -> None:
        """UsageError where a single pair would be compared: there is nothing to learn from it."""
        whole = config.micro_batch_size == "auto" or self.cache_gradients
        compared = config.global_batch_size if whole else config.micro_batch_size * dist.world_size()
        require(
            compared > 1,
            f"{self.section}={self.name} needs a global_batch_size and a micro_batch_size of at least 2, not "
            f"{config.global_batch_size} and {config.micro_batch_size}: a pair is compared with others; with "
            f"{self.section}.cache_gradients=true they come from the whole batch",
        )

    def train_image(self, config: RunConfig) -> TrainImage:
        """The transform of training pictures."""
        mean, std = config.normalization
        return TrainImage(
            config.data.size,
            mean,
            std,
            min_scale=self.min_scale,
            hflip=self.hflip,
            randaugment=self.randaugment,
        )
