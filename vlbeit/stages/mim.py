"""Masked image modeling: BEiT pre-training of the image tower."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torchvision.transforms import InterpolationMode

from vlbeit.config import OptimConfig, RunConfig, Settings, key, one_of, require, with_tag
from vlbeit.data.collate import collate
from vlbeit.data.labelled import LabelledSample
from vlbeit.data.masking import BlockwiseMask, RandomMask
from vlbeit.data.randomness import drawn
from vlbeit.data.records import open_image
from vlbeit.data.sources import open_records, open_source
from vlbeit.data.transforms import ClassificationEval, TwoViews
from vlbeit.engine.randomness import preserved_generators
from vlbeit.errors import DataError, UsageError
from vlbeit.models.checkpoint import read_checkpoint, read_head
from vlbeit.models.encoder import MoMEEncoder
from vlbeit.models.groups import beit_decays, param_groups
from vlbeit.models.heads import Heads
from vlbeit.models.spec import encoder_spec
from vlbeit.models.teacher import Teacher, read_teacher, with_whole_path
from vlbeit.models.tokenizer_kinds import kind_of
from vlbeit.objectives.evaluation import MeanLogs
from vlbeit.objectives.mim import MIMObjective
from vlbeit.objectives.online_probe import Labelled, OnlineProbe, some_of
from vlbeit.objectives.targets import FeatureTarget, PixelTarget, Target, TokenTarget, build_target
from vlbeit.objectives.variational import VariationalTerms, left_out
from vlbeit.task import Stage
from vlbeit.types import DataSpec, Evaluator, Meta, Record, Records, Sample

if TYPE_CHECKING:
    from accelerate import Accelerator

log = logging.getLogger(__name__)


@dataclass
class MIMSettings(Settings):
    """Settings of masked image modeling; the defaults are BEiT's."""

    target: str = key(
        "dvae",
        "dvae: visual tokens, of whatever tokenizer | pixels: the paper's ablation | features: those of stage.teacher",
    )
    tokenizer: str = key(
        "runs/tokenizer",
        "what makes the visual tokens: a run of stage=tokenizer, or published weights of VQ-KD, DALL-E or FLAVA",
    )
    teacher: str = key(
        "",
        "frozen network whose patch features are predicted: timm:NAME | open_clip:NAME/TAG | a run or checkpoint; "
        "@FILE takes the weights from a file",
    )
    teacher_size: int = key(0, "pixels of a side that the teacher sees; 0: as many as the encoder (data.image_size)")
    masking: str = key("blockwise", "blockwise | random: single patches, the paper's ablation")
    mask_ratio: float = key(75 / 196, "share of patches that is masked")
    min_block: float = key(16 / 196, "blockwise: smallest masked block as a share of all patches")
    exact_count: bool = key(False, "mask exactly mask_ratio, as random always does; false: up to it, as BEiT v1 did")
    min_scale: float = key(0.08, "smallest random crop as a share of the picture")
    color_jitter: float = key(0.4, "strength of brightness, contrast and saturation jitter")
    hflip: float = key(0.5, "probability of a horizontal flip")
    probe: bool = key(False, "at every evaluation: effective rank of the features, accuracy of a classifier on them")
    probe_images: int = key(1000, "pictures of each split that stage.probe looks at, at most")

    def __post_init__(self) -> None:
        one_of("stage.target", self.target, ("dvae", "pixels", "features"))
        self.teacher = with_whole_path(with_tag(self.teacher))
        self._check_teacher()
        one_of("stage.masking", self.masking, ("blockwise", "random"))
        require(0 < self.mask_ratio < 1, f"stage.mask_ratio={self.mask_ratio} must lie between 0 and 1")
        require(0 < self.min_block < 1, f"stage.min_block={self.min_block} must lie between 0 and 1")
        require(
            self.masking == "blockwise" or self.min_block == MIMSettings.min_block,
            f"stage.masking={self.masking} masks single patches, no stage.min_block={self.min_block}: leave that out",
        )
        require(0 < self.min_scale <= 1, f"stage.min_scale={self.min_scale} must lie in (0, 1]")
        require(self.color_jitter >= 0, f"stage.color_jitter={self.color_jitter} must not be negative")
        require(0 <= self.hflip <= 1, f"stage.hflip={self.hflip} must lie in [0, 1]")
        require(self.probe_images > 1, f"stage.probe_images={self.probe_images} must be at least 2")

    def _check_teacher(self) -> None:
        wanted = self.target == "features"
        require(
            bool(self.teacher) == wanted,
            "stage.target=features needs stage.teacher: timm:NAME, open_clip:NAME/TAG, or a run or checkpoint of ours"
            if wanted
            else f"stage.teacher={self.teacher} is for stage.target=features, here it is {self.target}",
        )
        require(self.teacher_size >= 0, f"stage.teacher_size={self.teacher_size} must not be negative")
        require(wanted or not self.teacher_size, "stage.teacher_size is for stage.target=features: leave it out")


class MIM(Stage):
    """Pre-train the image tower: predict the visual tokens of masked patches (BEiT)."""

    Config = MIMSettings
    kind = "images"
    metric = "-mim"

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.settings: MIMSettings = config.stage
        self.spec = encoder_spec(config, shared_positions=True, mask_token=True)

    def needed_runs(self) -> dict[str, str]:
        return {self.settings.tokenizer: "tokenizer"} if self.settings.target == "dvae" else {}

    def meta(self, train: Records, inherited: Meta) -> Meta:
        """`target`: what the patches stand for."""
        if self.settings.target == "pixels":
            return {"target": PixelTarget(self.spec.patch_size).describe()}
        if self.settings.target == "features":
            facts = {"teacher": self.settings.teacher, "weights": self._teacher.fingerprint()}
            return {"target": FeatureTarget(self._teacher.width(self._seen), self._seen, facts).describe()}
        description = read_head(self.settings.tokenizer)["description"]
        kind = kind_of(description)
        if kind is None:
            raise UsageError(
                f"stage.tokenizer={self.settings.tokenizer} is no tokenizer: name a run of stage=tokenizer, or "
                "published weights of VQ-KD, DALL-E or FLAVA"
            )
        target = {"target": kind, kind: description[kind]}
        if missing := left_out(target):
            log.info("stage.tokenizer=%s has %s", self.settings.tokenizer, missing)
        return {"target": target}

    def objective(self, meta: Meta) -> MIMObjective:
        target = build_target(meta["target"])
        heads = Heads(
            {"masked_patch": {"kind": "masked_patch", "dim": self.spec.embed_dim, "dim_out": target.head_width}}
        )
        return MIMObjective(MoMEEncoder(self.spec), heads, target)

    def start(self, objective: MIMObjective) -> None:  # type: ignore[override]
        """The tokenizer's weights."""
        if isinstance(objective.target, TokenTarget):
            prefix = f"{objective.target.tokenizer_kind}."
            state = read_checkpoint(self.settings.tokenizer).state
            own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            objective.target.tokenizer.load_state_dict(own)

    def prepare(  # type: ignore[override]
        self, objective: MIMObjective, splits: Mapping[str, Records], accelerator: Accelerator
    ) -> None:
        """The teacher, which no checkpoint has. Raises UsageError where it is gone, DataError where it has changed."""
        target = objective.target
        if not isinstance(target, FeatureTarget):
            return
        if self._teacher.fingerprint() != target.facts["weights"]:
            raise DataError(
                f"stage.teacher={self.settings.teacher} has other weights than when this run began: bring them back, "
                f"or begin anew with overwrite=true"
            )
        target.teach(self._teacher.to(accelerator.device))

    @cached_property
    def _teacher(self) -> Teacher:
        with preserved_generators():  # networks are built with random weights first
            return read_teacher(self.settings.teacher, self._seen)

    @property
    def _seen(self) -> tuple[int, int]:
        """Height and width of the pictures that the teacher gets."""
        side = self.settings.teacher_size
        return (side, side) if side else self.config.data.size

    def data(self, records: Records, meta: Meta, *, train: bool) -> DataSpec:
        target = build_target(meta["target"])
        return DataSpec(records, MIMTransform(self, target, train), collate)

    def evaluators(self, records: Records, meta: Meta) -> Mapping[str, Evaluator]:
        evaluators: dict[str, Evaluator] = {"logs": MeanLogs()}
        if meta["target"]["target"] == "dvae":  # only it has a posterior
            evaluators["variational"] = VariationalTerms()
        if self.settings.probe:
            evaluators["probe"] = OnlineProbe(self.settings.probe_images, self._labelled)
        return evaluators

    def param_groups(self, objective: MIMObjective, optim: OptimConfig) -> list[dict[str, Any]]:  # type: ignore[override]
        return param_groups(objective, optim, beit_decays)

    @cached_property
    def _labelled(self) -> Labelled | None:
        """Labelled pictures of the run's own data for `stage.probe`; None, and said, where it has none."""
        data = replace(self.config.data, limit=None)  # the first records may all be of one class
        if "labelled" not in open_source(data).kinds:
            log.info("stage.probe: data=%s has no labelled pictures, so there is no `probe`", data.name)
            return None
        mean, std = self.config.normalization
        transform = LabelledSample(ClassificationEval(data.size, mean, std, crop_pct=1.0))
        try:
            train, val = (open_records(data, "labelled", split) for split in (data.train_split, data.val_split))
        except DataError as error:
            log.info("stage.probe: no `probe`: %s", error)
            return None
        return Labelled(
            *(
                some_of(
                    DataSpec(records, transform, collate),
                    self.settings.probe_images,
                    data.workers,
                    data.max_bad_fraction,
                )
                for records in (train, val)
            )
        )


class MIMTransform:
    """Record -> two views of one crop, and a mask of blocks."""

    def __init__(self, stage: MIM, target: Target, train: bool) -> None:
        settings, grid = stage.settings, stage.spec.grid
        assert grid is not None
        mean, std = stage.config.normalization
        self.views = TwoViews(
            size=stage.config.data.size,
            second_size=target.view(grid),
            mean=mean,
            std=std,
            train=train,
            min_scale=settings.min_scale,
            color_jitter=settings.color_jitter,
            hflip=settings.hflip,
        )
        if isinstance(target, TokenTarget):
            self.views.second_interpolation = InterpolationMode(target.tokenizer.interpolation)
        elif isinstance(target, FeatureTarget):
            self.views.second_interpolation = InterpolationMode.BICUBIC  # as pictures of any network
        patches = grid[0] * grid[1]
        masked = max(1, round(settings.mask_ratio * patches))
        self.mask: BlockwiseMask | RandomMask
        if settings.masking == "random":
            self.mask = RandomMask(grid, masked)
        else:
            least = max(1, round(settings.min_block * patches))
            self.mask = BlockwiseMask(grid, masked, min_block=least, exact=settings.exact_count)

    def __call__(self, record: Record) -> Sample:
        views = self.views(open_image(record["image"]))
        mask = torch.from_numpy(self.mask(drawn()))
        return {"sample_id": record["id"], **views, "mask": mask.flatten()}


RECIPE = MIM
