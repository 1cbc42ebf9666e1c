"""DALL-E's discrete VAE: `encoder.pkl` and `decoder.pkl` of openai/DALL-E, and `transformers.FlavaImageCodebook`.

Both name the layers alike; a FLAVA encoder has `.group` and `.path` in between and `weight`, `bias` for `w`, `b`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict

from torch import Tensor

from vlbeit.errors import DataError
from vlbeit.models.convert.image_tokenizer import count, settled, shape_of
from vlbeit.models.convert.layout import Converted, Hints, Layout, State
from vlbeit.models.dvae import DVAESpec

_FLAVA = "image_codebook."  # where a whole FLAVA model keeps it
_BLOCK = re.compile(
    r"blocks\.group_([1-4])\.(?:group\.)?block_(\d{1,3})\.(id_path|res_path\.(?:path\.)?conv_([1-4]))\.(w|b|weight|bias)"
)
_ENDS = re.compile(r"blocks\.(input|output\.conv)\.(w|b|weight|bias)")
_OURS = {"w": "weight", "b": "bias", "weight": "weight", "bias": "bias", "input": "input", "output.conv": "output.1"}


def layer_name(name: str) -> str | None:
    """A name in either of them -> that in `DVAEEncoder` or `DVAEDecoder`; None for what is no weight of theirs."""
    if match := _BLOCK.fullmatch(name):
        group, block, path, conv, kind = match.groups()
        inner = "skip" if path == "id_path" else f"residual.{2 * int(conv) - 1}"
        return f"groups.{int(group) - 1}.{int(block) - 1}.{inner}.{_OURS[kind]}"
    if match := _ENDS.fullmatch(name):
        return f"{_OURS[match[1]]}.{_OURS[match[2]]}"
    return None


def join_pair(encoder: State, decoder: State) -> State:
    """One state dict of the two files, which name their tensors alike: `encoder.*` and `decoder.*`."""
    return {
        f"{part}.{name}": v for part, state in (("encoder", encoder), ("decoder", decoder)) for name, v in state.items()
    }


def _matches_dalle(state: Mapping[str, Tensor]) -> bool:
    return "blocks.input.w" in state or "encoder.blocks.input.w" in state


def _convert_dalle(state: State, hints: Hints) -> Converted:
    """An encoder alone, or both as `join_pair` gives them. DataError for a decoder alone, which makes no tokens."""
    if "blocks.input.w" in state:
        if shape_of(state, "blocks.input.w", 4)[-1] == 1:
            raise DataError(
                "this is DALL-E's decoder, which makes no tokens: name the folder with encoder.pkl beside it"
            )
        return _convert("DALL-E encoder", state, "", "w")
    return _convert("DALL-E dVAE", state, "encoder.", "w")


def _matches_flava(state: Mapping[str, Tensor]) -> bool:
    return "blocks.input.weight" in state or f"{_FLAVA}blocks.input.weight" in state


def _convert_flava(state: State, hints: Hints) -> Converted:
    """The codebook alone, or that of a whole FLAVA model, whose other weights are left out."""
    if "blocks.input.weight" in state:
        return _convert("transformers FLAVA codebook", state, "", "weight")
    own = {name: value for name, value in state.items() if name.startswith(_FLAVA)}
    converted = _convert("transformers FLAVA codebook", own, _FLAVA, "weight")
    converted.dropped += [name for name in state if name not in own]
    return converted


def _convert(layout: str, state: State, prefix: str, weight: str) -> Converted:
    """`prefix` stands before the encoder's names; a decoder's have `decoder.`."""
    hidden, channels, _, _ = shape_of(state, f"{prefix}blocks.input.{weight}", 4)
    has_decoder = any(name.startswith("decoder.") for name in state)
    blocks = [match for name in state if (match := _BLOCK.fullmatch(name.removeprefix(prefix)))]
    spec = DVAESpec(
        vocab_size=shape_of(state, f"{prefix}blocks.output.conv.{weight}", 4)[0],
        hidden=_multiple_of_4(hidden),
        blocks_per_group=count((match[2] for match in blocks), "blocks in a group"),
        channels=channels,
        decoder_input=shape_of(state, "decoder.blocks.input.w", 4)[0] if has_decoder else DVAESpec.decoder_input,
        decoder=has_decoder,
    )

    def rename(name: str) -> str | None:
        part = "decoder" if name.startswith("decoder.") else "encoder"
        ours = layer_name(name.removeprefix("decoder." if part == "decoder" else prefix))
        return None if ours is None else f"{part}.{ours}"

    return settled(layout, "dvae", {**asdict(spec), "levels": []}, state, rename)


def _multiple_of_4(hidden: int) -> int:
    if hidden % 4:
        raise DataError(f"the first layer is {hidden} wide: a discrete VAE of DALL-E's structure has a multiple of 4")
    return hidden


DALLE = Layout("DALL-E dVAE", _matches_dalle, _convert_dalle)
FLAVA = Layout("transformers FLAVA codebook", _matches_flava, _convert_flava)
