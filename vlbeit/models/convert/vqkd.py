"""The VQ-KD tokenizers of BEiT v2 (microsoft/unilm beit2, `vqkd_encoder_base_decoder_*`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict

from torch import Tensor

from vlbeit.config import DataConfig, RunConfig
from vlbeit.errors import DataError
from vlbeit.models.convert.image_tokenizer import count, settled, shape_of
from vlbeit.models.convert.layout import Converted, Hints, Layout, State
from vlbeit.models.convert.reading import absolute_grid, absolute_heads, mlp_ratio
from vlbeit.models.spec import EncoderSpec
from vlbeit.models.vqkd import VQKDSpec

NAME = "unilm VQ-KD"
HEADS = {768: 12, 1024: 16}  # of the published widths; absolute positions do not tell
_CODEBOOK = "quantize.embedding.weight"
_TRAINING = ("teacher", "scaling", "loss", "quantize.")  # the teacher, and what the codebook's averages need
_PARTS = (
    (_CODEBOOK, "codebook"),
    ("encode_task_layer.", "to_code."),
    ("decode_task_layer.", "to_teacher."),
)
_VIT = re.compile(r"(encoder|decoder)\.(.+)")
_BLOCK = re.compile(r"(encoder|decoder)\.blocks\.(\d{1,3})\.")


def matches(state: Mapping[str, Tensor]) -> bool:
    """A codebook, and the projection before it."""
    return _CODEBOOK in state and "encode_task_layer.0.weight" in state


def convert(state: State, hints: Hints) -> Converted:
    """A VQ-KD file in our terms; without decoder where the file has none.

    Raises:
        DataError: a tensor is missing or of a wrong shape, or the codebook was never filled.
        UsageError: the number of heads is not known: `num_heads=` is needed.
    """
    initialised = state.get("quantize.embedding.initted")
    if initialised is not None and not bool(initialised.any()):
        raise DataError("the codebook of this VQ-KD file was never filled: it is from before the first training step")
    vocab_size, code_dim = shape_of(state, _CODEBOOK, 2)
    encoder = _encoder(state, hints)
    mean, std = RunConfig(data=DataConfig(normalize=hints.normalize or "half")).normalization
    has_decoder = any(name.startswith("decoder.") for name in state)
    spec = VQKDSpec(
        encoder=encoder,
        decoder=_decoder(state, encoder) if has_decoder else None,
        vocab_size=vocab_size,
        code_dim=code_dim,
        teacher_dim=shape_of(state, "decode_task_layer.2.weight", 2)[0] if has_decoder else VQKDSpec.teacher_dim,
        mean=mean,
        std=std,
    )
    kept = {name: value for name, value in state.items() if name == _CODEBOOK or not name.startswith(_TRAINING)}
    converted = settled(NAME, "vqkd", asdict(spec), kept, _rename)
    converted.dropped += [name for name in state if name not in kept]
    return converted


VQKD = Layout(NAME, matches, convert)


def _rename(name: str) -> str | None:
    for theirs, ours in _PARTS:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    if match := _VIT.fullmatch(name):
        part, rest = match.groups()
        rest = re.sub(r"^(blocks\.\d+\.)mlp\.", r"\1experts.image.mlp.", rest)
        rest = re.sub(r"^(blocks\.\d+\.)norm2\.", r"\1experts.image.norm.", rest)
        # what normalises the mean of the patches in a classifier normalises every patch here
        return f"{part}.{re.sub(r'^fc_norm', 'norm', rest)}"
    return None


def _encoder(state: State, hints: Hints) -> EncoderSpec:
    dim, channels, patch, across = shape_of(state, "encoder.patch_embed.proj.weight", 4)
    if channels != 3 or patch != across:
        raise DataError(f"encoder.patch_embed.proj.weight is for {channels} colours and {patch}x{across} pixels, not 3")
    patches = shape_of(state, "encoder.pos_embed", 3)[1] - 1
    rows, columns = absolute_grid(patches, patch, hints, "encoder.pos_embed of this VQ-KD file")
    heads = absolute_heads(dim, HEADS.get(dim), hints, f"VQ-KD encoder is {dim} wide")
    return _vit(state, "encoder", heads, patch, (rows * patch, columns * patch))


def _decoder(state: State, encoder: EncoderSpec) -> EncoderSpec:
    """A ViT over the codes, whose heads are as wide as the encoder's."""
    assert encoder.grid is not None
    dim = shape_of(state, "decoder.patch_embed.proj.weight", 4)[0]
    head_width = encoder.embed_dim // encoder.num_heads
    if dim % head_width:
        raise DataError(f"the decoder's width {dim} is no multiple of {head_width}, the width of the encoder's heads")
    return _vit(state, "decoder", dim // head_width, 1, encoder.grid)


def _vit(state: State, part: str, heads: int, patch: int, size: tuple[int, int]) -> EncoderSpec:
    hidden, dim = shape_of(state, f"{part}.blocks.0.mlp.fc1.weight", 2)
    numbers = (match[2] for match in map(_BLOCK.match, state) if match and match[1] == part)
    return EncoderSpec(
        embed_dim=dim,
        depth=count(numbers, f"blocks of the {part}"),
        num_heads=heads,
        patch_size=patch,
        image_size=size,
        mlp_ratio=mlp_ratio(hidden, dim),
        layer_scale=0.0,
        positions="absolute",
    )
