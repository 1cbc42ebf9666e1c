"""The image pass of an encoder with the methods of a timm model.

Legend: B batch, N patches, L tokens (CLS + N), D width.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from timm.models._features import feature_take_indices
from torch import Tensor, nn

from vlbeit.config import DataConfig, RunConfig
from vlbeit.errors import DataError
from vlbeit.models.checkpoint import read_checkpoint, without_initial_values
from vlbeit.models.encoder import MoMEEncoder
from vlbeit.models.transfer import transfer

_HALF = (0.5, 0.5, 0.5)


class ImageTower(nn.Module):
    """An encoder for images alone, to be used wherever a timm model is: probes, detection, `timm.optim`, `timm.data`.

    What is pooled goes through `fc_norm` where the encoder has no final norm (a classification run), as timm's BEiT.

    Args:
        encoder: with an image expert. Its other experts are kept and never run; `from_run` leaves them out.
        num_classes: width of `head`; 0: none.
        global_pool: avg (of the patches) | token (CLS) | empty: all tokens.
        mean, std: how its pictures are normalised.

    Raises:
        ValueError: the encoder takes no images, or the pooling is unknown.
    """

    num_prefix_tokens = 1

    def __init__(
        self,
        encoder: MoMEEncoder,
        num_classes: int = 0,
        global_pool: str = "avg",
        mean: tuple[float, float, float] = _HALF,
        std: tuple[float, float, float] = _HALF,
    ) -> None:
        super().__init__()
        if encoder.spec.image_size is None:
            raise ValueError("this encoder was built for text alone: it has no image pass")
        self.encoder = encoder
        self.num_features = self.head_hidden_size = self.embed_dim = dim = encoder.spec.embed_dim
        self.global_pool = global_pool
        self.fc_norm = nn.Identity() if encoder.spec.final_norm else nn.LayerNorm(dim, eps=1e-6, **self._place())
        self.reset_classifier(num_classes, global_pool)
        self.mean, self.std = mean, std

    @property
    def default_cfg(self) -> dict[str, Any]:
        """What `timm.data.resolve_data_config` reads; crop as in BEiT: 0.875 below 384 pixels, else all."""
        size = self.encoder.spec.image_size
        assert size is not None
        return {
            "input_size": (3, *size),
            "mean": self.mean,
            "std": self.std,
            "interpolation": "bicubic",
            "crop_pct": 0.875 if max(size) < 384 else 1.0,
            "num_classes": self.num_classes,
            "classifier": "head",
        }

    pretrained_cfg = default_cfg

    @classmethod
    def from_run(cls, path: str | Path) -> ImageTower:
        """The image part of a run, or of any checkpoint, in evaluation mode; of a classifier with its classes.

        Raises DataError for a folder that cannot be read, ValueError for a run without images.
        """
        found = read_checkpoint(path)
        source = found.encoder_spec
        if source is None or source.image_size is None:
            raise ValueError(f"{path} has no image tower: it is a run of a tokenizer or of text alone")
        spec = source.image_alone()
        classes = found.description.get("heads", {}).get("classification", {}).get("num_classes", 0)
        pool = found.description.get("heads", {}).get("classification", {}).get("pool", "avg")
        mean, std = RunConfig(data=DataConfig(normalize=found.normalize)).normalization
        with without_initial_values(spec, found.report) as device:
            encoder = MoMEEncoder(spec)
        if device is not None:
            encoder.to_empty(device="cpu")
        tower = cls(encoder, classes, pool, mean=mean, std=std)
        names = {"heads.classification.fc.": "head.", "heads.classification.fc_norm.": "fc_norm."}
        state = found.state
        for theirs, ours in names.items():
            state = {f"{ours}{k.removeprefix(theirs)}" if k.startswith(theirs) else k: v for k, v in state.items()}
        report = transfer(tower, state, source, tower.encoder.spec)
        lost = [name for name in report.missing if name.startswith("encoder.") and name not in found.report.missing]
        if lost:
            raise DataError(f"{found.path}: lacks {lost[0]} ({len(lost)} tensors); copy it again")
        return tower.eval()

    def forward_features(self, x: Tensor) -> Tensor:
        """[B, 3, height, width] -> CLS + patches [B, 1+N, D] after the final norm."""
        return self.encoder(self.encoder.embed_image(x)).x_BLD

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """[B, 1+N, D] -> class logits, or with `pre_logits` (or without classes) what is pooled, [B, D]."""
        if self.global_pool:
            x = x[:, self.num_prefix_tokens :].mean(dim=1) if self.global_pool == "avg" else x[:, 0]
        x = self.fc_norm(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, height, width] -> [B, num_classes], or [B, D] without classes."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Outputs of blocks, as timm: (final tokens, list of maps), or with `intermediates_only` the list.

        Args:
            x: [B, 3, height, width].
            indices: blocks, negative from the end; a number: so many last ones; None: all.
            return_prefix_tokens: pair every map with its CLS token [B, 1, D].
            norm: final norm on every map.
            stop_early: run no block beyond the last one asked for; the final tokens are then its.
            output_fmt: NCHW [B, D, rows, columns] | NLC [B, N, D].
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt={output_fmt} is neither NCHW nor NLC")
        depth = self.encoder.spec.depth
        taken, last = feature_take_indices(depth, indices)
        last = last if stop_early or intermediates_only else depth - 1
        *taps, final = self.encoder.forward_intermediates(self.encoder.embed_image(x), [*sorted(taken), last])
        grid = final.spans[0].grid
        assert grid is not None
        maps = []
        for x_BLD in (self.encoder.norm(tap.x_BLD) if norm else tap.x_BLD for tap in taps):
            prefix, patches = x_BLD[:, : self.num_prefix_tokens], x_BLD[:, self.num_prefix_tokens :]
            if output_fmt == "NCHW":
                patches = patches.transpose(1, 2).unflatten(2, grid).contiguous()
            maps.append((patches, prefix) if return_prefix_tokens else patches)
        return maps if intermediates_only else (self.encoder.norm(final.x_BLD), maps)

    def get_classifier(self) -> nn.Module:
        """The last linear map, or an identity."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new `head`, or none for 0 classes; the norms stay where they are."""
        pool = self.global_pool if global_pool is None else global_pool
        if pool not in ("avg", "token", ""):
            raise ValueError(f"global_pool={pool!r} is not avg, token or empty")
        self.num_classes, self.global_pool = num_classes, pool
        self.head: nn.Linear | nn.Identity = nn.Identity()
        if num_classes:
            self.head = nn.Linear(self.embed_dim, num_classes, **self._place())
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Layers for timm's layer decay, the same as `vlbeit.models.groups.layer_id`; norms and head are the last."""
        shared = self.encoder.spec.positions == "shared"
        return {
            "stem": r"^encoder\.(?:cls_token|mask_token|pos_embed|patch_embed|text_embed|type_embed)\b",
            "blocks": r"^encoder\.blocks\.(\d+)" if shared else r"^encoder\.(?:blocks|rel_pos)\.(\d+)",
        }

    def no_weight_decay(self) -> set[str]:
        """What does not decay beside vectors, as `vlbeit.models.groups.beit_decays`; position tables do (BEiT)."""
        return {name for name, _ in self.named_parameters() if name.endswith(("cls_token", "pos_embed"))}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks' activations in the backward pass."""
        self.encoder.spec = replace(self.encoder.spec, grad_checkpointing=enable)

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Another picture size (height, width): positions are resized as between runs.

        The parameters are new ones: make the optimizer after this.
        """
        size = (img_size, img_size) if isinstance(img_size, int) else (img_size[0], img_size[1])
        old, state = self.encoder, self.state_dict()
        self.encoder = MoMEEncoder(replace(old.spec, image_size=size)).to(**self._place())
        transfer(self, state, old.spec, self.encoder.spec)
        self.encoder.train(old.training)
        for name, parameter in old.named_parameters():
            self.encoder.get_parameter(name).requires_grad_(parameter.requires_grad)

    def _place(self) -> dict[str, Any]:
        parameter = self.encoder.cls_token
        return {"device": parameter.device, "dtype": parameter.dtype}
