"""What the shape of an encoder depends on. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from vlbeit.config import RunConfig, foreign_tower
from vlbeit.errors import UsageError
from vlbeit.types import Meta


@dataclass(frozen=True)
class EncoderSpec:
    """Everything that the shape of an encoder depends on; JSON values only, kept in checkpoint/config.json.

    `experts` are the modalities with an expert in every block; the top `fused_layers` blocks own a fused one too.
    With `shared_expert` the one of pictures serves every modality, alone or together: a plain transformer.
    `positions`: "per_layer" or "shared" relative tables, or "absolute" embeddings. `vocab_size` None: no text.
    `image_tower`, `text_tower`: own, or LIBRARY:NAME of the network that stands before the blocks, frozen unless
    `train_towers`; `towers` has, by modality, what `vlbeit.models.towers` builds them of, so that a checkpoint needs no
    other file.
    """

    embed_dim: int
    depth: int
    num_heads: int
    patch_size: int = 16
    image_size: tuple[int, int] | None = (224, 224)  # height, width
    mlp_ratio: float = 4.0
    layer_scale: float = 0.1
    init_std: float = 0.02
    drop_path: float = 0.0
    experts: tuple[str, ...] = ("image",)
    fused_layers: int = 0
    shared_expert: bool = False
    positions: str = "per_layer"
    vocab_size: int | None = None
    text_positions: int = 196
    token_types: int = 2  # text and picture; VLMo's NLVR2 has one more, for the second picture
    mask_token: bool = False
    final_norm: bool = True
    grad_checkpointing: bool = False
    image_tower: str = "own"
    text_tower: str = "own"
    towers: dict[str, dict[str, Any]] = field(default_factory=dict)
    train_towers: bool = True

    def __post_init__(self) -> None:
        if self.mask_token and self.image_tower != "own":
            raise UsageError(
                f"stage=mim masks patches of its own: set model.image_tower=own for it, not {self.image_tower}; "
                f"a stage or task with that tower begins with init=none, or init= of another run"
            )
        for side in (self.image_size or ()) if self.image_tower == "own" else ():
            if side % self.patch_size:
                height, width = self.image_size  # type: ignore[misc]
                below = side // self.patch_size * self.patch_size
                raise UsageError(
                    f"image size {height}x{width} is not a multiple of patch_size {self.patch_size}: "
                    f"try {below or self.patch_size} or {below + self.patch_size}"
                )
        if self.positions not in ("per_layer", "shared", "absolute"):
            raise ValueError(f"positions={self.positions!r} is not per_layer, shared or absolute")

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of patches; None without images. A foreign tower's is known once the encoder is built."""
        if self.image_size is None:
            return None
        if self.image_tower != "own":
            rows, columns = self.towers["image"]["grid"]
            return (rows, columns)
        return (self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size)

    @property
    def rates(self) -> list[float]:
        """Drop-path rate of every block: linear from 0 to `drop_path`."""
        return [self.drop_path * i / max(1, self.depth - 1) for i in range(self.depth)]

    def image_alone(self) -> EncoderSpec:
        """The spec of the image pass alone: no text, no fused experts, no mask token; a foreign image tower stays."""
        return replace(
            self,
            experts=("image",),
            fused_layers=0,
            shared_expert=False,
            vocab_size=None,
            mask_token=False,
            text_tower="own",
            towers={modality: facts for modality, facts in self.towers.items() if modality == "image"},
        )

    def with_tower(self, modality: str, facts: dict[str, Any]) -> EncoderSpec:
        """The spec with what its foreign tower turned out to be, so that it can be built again from this alone."""
        return replace(self, towers={**self.towers, modality: facts})

    def to_dict(self) -> dict[str, Any]:
        """JSON values; `EncoderSpec.from_dict` takes them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EncoderSpec:
        """The inverse of `to_dict`, lists made tuples again."""
        tuples: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**tuples)


def encoder_spec(
    config: RunConfig,
    *,
    experts: tuple[str, ...] = ("image",),
    fused: bool = False,
    vocab_size: int | None = None,
    shared_positions: bool = False,
    mask_token: bool = False,
    final_norm: bool = True,
    meta: Meta | None = None,
) -> EncoderSpec:
    """The encoder of a run: sizes from `model`, `data` and `text`, parts as the stage or task asks.

    `meta` of a run describes its foreign towers; without it their libraries are asked.
    Raises UsageError where the image size is not a multiple of the patch size.
    """
    model = config.model
    relative = "shared" if shared_positions else "per_layer"
    return EncoderSpec(
        embed_dim=model.embed_dim,
        depth=model.depth,
        num_heads=model.num_heads,
        patch_size=model.patch_size,
        image_size=config.data.size if "image" in experts else None,
        mlp_ratio=model.mlp_ratio,
        layer_scale=model.layer_scale,
        init_std=model.init_std,
        drop_path=model.drop_path,
        experts=experts,
        fused_layers=model.fused_layers if fused else 0,
        shared_expert=model.experts == "shared",
        positions=relative if model.positions == "relative" else "absolute",
        vocab_size=vocab_size,
        text_positions=config.text.positions,
        mask_token=mask_token,
        final_norm=final_norm,
        grad_checkpointing=model.grad_checkpointing,
        train_towers=model.train_towers,
        **_towers(config, "image" in experts, vocab_size is not None, meta or {}),
    )


def _towers(config: RunConfig, has_image: bool, has_text: bool, meta: Meta) -> dict[str, Any]:
    """`image_tower`, `text_tower` and `towers` of the spec."""
    known = meta.get("towers", {})
    image = foreign_tower(config.model.image_tower) if has_image else None
    text = foreign_tower(config.model.text_tower) if has_text else None
    towers = {}
    if image is not None:
        mean, std = config.normalization
        towers["image"] = {**known.get("image", {}), "input_mean": list(mean), "input_std": list(std)}
    if text is not None:
        towers["text"] = known.get("text", {})
    return {
        "image_tower": "own" if image is None else image.network,
        "text_tower": "own" if text is None else text.network,
        "towers": towers,
    }
