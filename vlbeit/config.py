"""The config schema: every key of `vlbeit train`, its default and its meaning. No torch, no Hydra.

The settings of one stage or task live beside its class as a dataclass derived from `Settings`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from vlbeit.errors import UsageError


def key(default: Any, meaning: str) -> Any:
    """A dataclass field with its meaning, which `vlbeit train --help` prints."""
    if isinstance(default, list | dict):
        return field(default_factory=lambda: default.copy(), metadata={"help": meaning})
    return field(default=default, metadata={"help": meaning})


def require(condition: bool, message: str) -> None:
    """Raise `UsageError(message)` unless the condition holds; for `__post_init__` of settings."""
    if not condition:
        raise UsageError(message)


def one_of(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Raise `UsageError` naming the choices unless the value is among them."""
    require(value in choices, f"{name}={value} is not one of {', '.join(map(str, choices))}")


LIBRARIES = {"image": ("timm", "open_clip"), "text": ("transformers", "open_clip")}
"""Where foreign towers come from, by modality."""


class TowerName(NamedTuple):
    """A foreign tower as the user names it: LIBRARY:NAME[@WEIGHTS]."""

    library: str
    name: str
    weights: str  # empty: the library's own; none: random; else a tag or a file

    @property
    def network(self) -> str:
        """The name without the weights: what the architecture depends on."""
        return f"{self.library}:{self.name}"


def foreign_tower(value: str) -> TowerName | None:
    """`model.image_tower` or `model.text_tower` taken apart; None for `own`."""
    if value == "own":
        return None
    library, _, rest = value.partition(":")
    name, _, weights = rest.partition("@")
    return TowerName(library, name, weights)


def with_tag(value: str) -> str:
    """open_clip:NAME/TAG, as its users write it, as open_clip:NAME@TAG; all else as it is.

    NAME must be one of the models that open_clip ships: else it is a folder, or a repository of the hub.
    """
    library, _, rest = value.partition(":")
    name, slash, tag = rest.partition("/")
    if library != "open_clip" or not slash or "/" in tag or "@" in rest or not tag:
        return value
    spec = find_spec("open_clip")
    folders = spec.submodule_search_locations if spec is not None else None
    known = any(Path(folder, "model_configs", f"{name}.json").is_file() for folder in folders or ())
    return f"{library}:{name}@{tag}" if known else value


@dataclass
class Settings:
    """Base of the settings of a stage or a task."""

    name: str = key("", "name under which the stage or task is registered")

    @classmethod
    def upgraded(cls, stored: dict[str, Any]) -> dict[str, Any]:
        """The values that an older version stored, under the keys of this one."""
        return stored


@dataclass
class ModelConfig:
    """The encoder. The presets (`model=tiny|base|base_plus|large`) fill it."""

    name: str = key("base", "preset")
    patch_size: int = key(16, "side of a patch in pixels")
    embed_dim: int = key(768, "width D")
    depth: int = key(12, "number of blocks")
    num_heads: int = key(12, "attention heads H; must divide embed_dim")
    mlp_ratio: float = key(4.0, "hidden width of a feed-forward expert over D")
    layer_scale: float = key(0.1, "initial value of gamma_1 and gamma_2; 0 builds none")
    init_std: float = key(0.02, "standard deviation of the initial weights, cut at one deviation")
    drop_path: float = key(0.1, "stochastic depth of the last block, linear from 0 at the first")
    positions: str = key("relative", "relative | absolute")
    fused_layers: int = key(2, "top blocks that own a fused (vision-language) expert")
    experts: str = key("modality", "modality: a feed-forward expert for each | shared: one for all, VLMo's ablation")
    image_tower: str = key(
        "own",
        "own | timm:NAME | open_clip:NAME/TAG (or NAME@TAG): a pre-trained network before the blocks; "
        "@FILE takes its weights from a file, @none leaves them random",
    )
    text_tower: str = key(
        "own",
        "own | transformers:NAME (of the hub, or a folder) | open_clip:NAME/TAG, as above; text.tokenizer follows it",
    )
    train_towers: bool = key(
        True, "false: the networks before the blocks stay as they are; their adapters and the blocks are trained"
    )
    grad_checkpointing: bool = key(False, "recompute activations in the backward pass: less memory, more time")

    def __post_init__(self) -> None:
        for name in ("patch_size", "embed_dim", "depth", "num_heads"):
            require(getattr(self, name) > 0, f"model.{name}={getattr(self, name)} must be positive")
        require(self.mlp_ratio > 0, f"model.mlp_ratio={self.mlp_ratio} must be positive")
        require(self.layer_scale >= 0, f"model.layer_scale={self.layer_scale} must not be negative")
        require(
            self.embed_dim % self.num_heads == 0,
            f"model.embed_dim={self.embed_dim} is not a multiple of model.num_heads={self.num_heads}",
        )
        require(self.init_std > 0, f"model.init_std={self.init_std} must be positive")
        require(0 <= self.drop_path < 1, f"model.drop_path={self.drop_path} must lie in [0, 1)")
        require(
            0 <= self.fused_layers <= self.depth,
            f"model.fused_layers={self.fused_layers} must lie in 0..model.depth={self.depth}",
        )
        one_of("model.positions", self.positions, ("relative", "absolute"))
        one_of("model.experts", self.experts, ("modality", "shared"))
        for modality, libraries in LIBRARIES.items():
            value = with_tag(getattr(self, f"{modality}_tower"))
            setattr(self, f"{modality}_tower", value)
            tower = foreign_tower(value)
            require(
                tower is None or (tower.library in libraries and tower.name != ""),
                f"model.{modality}_tower={value} is not own or {' or '.join(f'{each}:NAME' for each in libraries)}",
            )
        require(
            self.train_towers or {self.image_tower, self.text_tower} != {"own"},
            "model.train_towers=false is for others' networks (model.image_tower, model.text_tower); here both are own",
        )


def share_or_number(held_out: float) -> bool:
    """Whether so many pictures can be held out: a share below 1, or a whole number of them; 0 is both."""
    return 0 <= held_out < 1 or (held_out >= 1 and float(held_out).is_integer())


@dataclass
class DataConfig:
    """Where the records come from and how they are read."""

    name: str = key("scenes", "data source")
    root: str = key("data/scenes", "folder (or file) of the data")
    image_size: Any = key(224, "side in pixels, or [height, width]; a multiple of the patch size")
    resize: str = key(
        "square",
        "square: every picture to image_size, whatever its aspect | pad: in its own aspect, filled up with the mean "
        "colour | native: in its own aspect, in batches of one size, image_size at most (pad, native: task=vqa alone)",
    )
    normalize: str = key("half", "half: mean and std 0.5 (BEiT v1 22k, VLMo) | imagenet: the ImageNet statistics")
    workers: int = key(2, "loader processes; 0 loads in the main process")
    max_bad_fraction: float = key(
        0.001, "share of samples without picture or caption that a process survives (named, counted, replaced)"
    )
    cache: str = key("", "folder of indexes; empty: $VLBEIT_CACHE, else ~/.cache/vlbeit")
    mix: list[str] = key(
        [],
        "members of data=mix, each a prepared folder's name, a path, an address or SOURCE:ROOT, with *WEIGHT for its "
        "passes an epoch: [coco,vg,sbu*2,cc3m*0.5]",
    )
    open_shards: int = key(16, "shards that a stream reads at a time (data=shards, data=mix)")
    shuffle_buffer: int = key(10_000, "samples of a stream that are permuted together")
    cache_gb: float | None = key(None, "room for copies of remote shards in data.cache, about; null: no bound")
    train_split: str = key("train", "split that is trained on")
    val_split: str = key("val", "split that is evaluated")
    limit: int | None = key(None, "use the first records only: for a quick try")
    columns: list[str] = key(
        [], "which columns of a table of your own mean what: [question:its_name,answers:its_name], for vqa"
    )
    images: str = key(
        "",
        "folder that paths of pictures are relative to (pairs, vqa and its relatives, nlvr2); empty: the table's",
    )
    split_seed: int = key(
        0, "seed of which images are held out, where we split a data set (vqa: val; vqa_v2: rest_val)"
    )
    held_out: float = key(
        0,
        "images held out there: a number, or a share below 1; 0: the source's own (vqa: a tenth; vqa_v2: 1000 or that; "
        "shards: the last one; always whole ones)",
    )

    def __post_init__(self) -> None:
        require(self.workers >= 0, f"data.workers={self.workers} must not be negative")
        require(0 <= self.max_bad_fraction <= 1, f"data.max_bad_fraction={self.max_bad_fraction} must lie in [0, 1]")
        require(self.limit is None or self.limit > 0, f"data.limit={self.limit} must be positive, or null for all")
        for name in ("open_shards", "shuffle_buffer"):
            require(getattr(self, name) > 0, f"data.{name}={getattr(self, name)} must be positive")
        require(
            self.cache_gb is None or self.cache_gb > 0,
            f"data.cache_gb={self.cache_gb} must be positive, or null for no bound",
        )
        require(
            not self.mix or self.name == "mix",
            f"data.mix= is for data=mix, not data={self.name}: leave one of them out",
        )
        one_of("data.resize", self.resize, ("square", "pad", "native"))
        require(
            share_or_number(self.held_out),
            f"data.held_out={self.held_out:g} must be a number of images, or a share below 1",
        )
        one_of("data.normalize", self.normalize, ("half", "imagenet"))
        sides = self.image_size if isinstance(self.image_size, list | tuple) else [self.image_size]
        require(
            len(sides) in (1, 2) and all(type(s) is int and s > 0 for s in sides),
            f"data.image_size={self.image_size} must be a positive number of pixels or [height, width]",
        )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        if isinstance(self.image_size, list | tuple):
            return (self.image_size[0], self.image_size[-1])
        return (self.image_size, self.image_size)


@dataclass
class TextConfig:
    """The tokenizer."""

    tokenizer: str = key(
        "wordpiece", "wordpiece: trained on the given text | clip | a run | a local folder | a hub name"
    )
    vocab_size: int = key(30522, "largest vocabulary that training a tokenizer may make")
    max_length: int = key(
        40,
        "longest text in tokens, [CLS] and [SEP] included; task=vqa with relative positions of its own reads questions "
        "up to text.positions",
    )
    positions: int = key(196, "longest text that the position table is built for; the same in every stage")

    def __post_init__(self) -> None:
        require(self.max_length >= 3, f"text.max_length={self.max_length} must be at least 3")
        require(
            self.positions >= self.max_length,
            f"text.max_length={self.max_length} is longer than text.positions={self.positions}",
        )


@dataclass
class OptimConfig:
    """The optimizer and its schedule. A schedule is a pure function of the step."""

    name: str = key("adamw", "any optimizer of timm.optim")
    lr: float = key(1e-3, "peak learning rate, absolute: never scaled with the batch")
    min_lr: float = key(0.0, "learning rate that cosine and poly end at")
    schedule: str = key("cosine", "cosine | linear | constant | poly")
    power: float = key(1.0, "exponent of schedule=poly; 1: a straight line")
    warmup_steps: float = key(
        0, "steps of linear warmup from 0 (poly: from a millionth of the rate); below 1 a share of all steps"
    )
    weight_decay: float = key(0.05, "decoupled weight decay")
    betas: list[float] = key([0.9, 0.999], "AdamW betas")
    eps: float = key(1e-8, "AdamW epsilon")
    clip_grad: float | None = key(None, "largest gradient norm; null: no clipping")
    layer_decay: float = key(1.0, "learning rate of a block over that of the block above it")
    head_lr_scale: float = key(1.0, "learning rate of the task's new head over optim.lr")

    def __post_init__(self) -> None:
        require(self.lr > 0, f"optim.lr={self.lr} must be positive")
        require(0 <= self.min_lr <= self.lr, f"optim.min_lr={self.min_lr} must lie in 0..optim.lr={self.lr}")
        require(self.power > 0, f"optim.power={self.power} must be positive")
        require(self.warmup_steps >= 0, f"optim.warmup_steps={self.warmup_steps} must not be negative")
        require(self.weight_decay >= 0, f"optim.weight_decay={self.weight_decay} must not be negative")
        require(self.eps >= 0, f"optim.eps={self.eps} must not be negative")
        require(self.head_lr_scale > 0, f"optim.head_lr_scale={self.head_lr_scale} must be positive")
        right = len(self.betas) >= 2 and all(0 <= beta < 1 for beta in self.betas)
        require(right, f"optim.betas={self.betas} must be two numbers in [0, 1)")
        require(0 < self.layer_decay <= 1, f"optim.layer_decay={self.layer_decay} must lie in (0, 1]")
        require(
            self.clip_grad is None or self.clip_grad > 0,
            f"optim.clip_grad={self.clip_grad} must be positive, or null for no clipping",
        )
        one_of("optim.schedule", self.schedule, ("cosine", "linear", "constant", "poly"))


@dataclass
class EngineConfig:
    """Clocks and outputs of the training loop."""

    evaluate_every: int = key(0, "steps between evaluations; 0: once at the end of every epoch")
    save_every: int = key(500, "steps between saved states")
    log_every: int = key(20, "steps between lines of metrics.jsonl")
    ema_decay: float = key(0.0, "decay of the averaged weights that are evaluated and kept; 0: off")
    trackers: list[str] = key([], "accelerate trackers, such as tensorboard, wandb or trackio")
    max_skipped: int = key(
        0, "steps in a row that are skipped where loss or gradient is not finite; 0: the first one ends the run"
    )
    checkpoint: str = key("auto", "saved states: whole | sharded, every process its part; auto: sharded under FSDP")
    async_save: bool = key(False, "go on training while a state is written")
    timeout: float = key(600.0, "seconds that a process waits for the others before it gives up")

    def __post_init__(self) -> None:
        require(0 <= self.ema_decay < 1, f"engine.ema_decay={self.ema_decay} must lie in [0, 1)")
        require(self.save_every > 0, f"engine.save_every={self.save_every} must be positive")
        require(self.log_every > 0, f"engine.log_every={self.log_every} must be positive")
        require(self.max_skipped >= 0, f"engine.max_skipped={self.max_skipped} must not be negative")
        require(self.evaluate_every >= 0, f"engine.evaluate_every={self.evaluate_every} must not be negative")
        require(self.timeout > 0, f"engine.timeout={self.timeout} must be positive")
        one_of("engine.checkpoint", self.checkpoint, ("auto", "whole", "sharded"))


@dataclass
class RunConfig:
    """One run of `vlbeit train`."""

    stage: Any = key(None, "tokenizer | mim | mlm | vl, or a plug-in's; with a task: the tower that is fine-tuned")
    task: Any = key(None, "one of `vlbeit tasks`; null: pre-train the stage itself")
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    text: TextConfig = field(default_factory=TextConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    run: str = key("", "folder of the run; empty: runs/STAGE or runs/STAGE-TASK")
    init: str = key("auto", "weights to start from: auto (the run before) | none | a run or checkpoint folder")
    resume: str | None = key(None, "start a new folder from the full state of another run")
    overwrite: bool = key(False, "start anew even if the run folder holds a run")
    seed: int = key(0, "the one seed of data order, augmentation, masks, drop path and initial weights")
    precision: str = key("fp32", "fp64 | fp32 | bf16 | fp16")
    compile: bool = key(False, "torch.compile the objective")
    device: str = key("auto", "auto | cpu | cuda | mps")
    epochs: float | None = key(None, "passes over the training split; or give steps")
    steps: int | None = key(None, "optimizer steps; wins over epochs")
    global_batch_size: int = key(64, "samples that one optimizer step sees, over all processes")
    micro_batch_size: Any = key("auto", "samples that one process forwards at a time; auto probes memory")

    def __post_init__(self) -> None:
        require(self.seed >= 0, f"seed={self.seed} must not be negative")
        one_of("precision", self.precision, ("fp64", "fp32", "bf16", "fp16"))
        require(self.global_batch_size > 0, f"global_batch_size={self.global_batch_size} must be positive")
        micro = self.micro_batch_size
        require(
            micro == "auto" or (type(micro) is int and micro > 0),
            f"micro_batch_size={micro} must be a positive number or auto",
        )
        self._check_patches()
        self._check_tokenizer()
        require(self.steps is None or self.steps > 0, f"steps={self.steps} must be positive")
        require(self.epochs is None or self.epochs > 0, f"epochs={self.epochs} must be positive")

    def _check_patches(self) -> None:
        """Our own patches fill the picture; another tower says itself which sizes it takes."""
        patch = self.model.patch_size
        for side in self.data.size if self.model.image_tower == "own" else ():
            require(
                side % patch == 0,
                f"data.image_size={self.data.image_size}: {side} is not a multiple of model.patch_size={patch}: "
                f"try {f'{below} or ' if (below := side // patch * patch) else ''}{(side // patch + 1) * patch}",
            )

    def _check_tokenizer(self) -> None:
        """A foreign text tower reads the words of its own tokenizer: it takes the place of the default."""
        tower = foreign_tower(self.model.text_tower)
        if tower is None:
            return
        wanted = "clip" if tower.library == "open_clip" else tower.name
        if self.text.tokenizer == TextConfig.tokenizer:
            self.text = replace(self.text, tokenizer=wanted)
        require(
            self.text.tokenizer == wanted,
            f"model.text_tower={self.model.text_tower} needs its own tokenizer: set text.tokenizer={wanted}, "
            f"not {self.text.tokenizer}",
        )

    @property
    def tower(self) -> str:
        """Name of the stage that builds or gives the tower."""
        return self.stage.name

    @property
    def title(self) -> str:
        """`stage` or `stage-task`: the default name of the run folder."""
        return self.tower if self.task is None else f"{self.tower}-{self.task.name}"

    @property
    def normalization(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Mean and standard deviation of the image channels."""
        if self.data.normalize == "imagenet":
            return (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
