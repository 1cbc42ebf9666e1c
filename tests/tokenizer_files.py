"""Tokenizer files as others publish them: random weights under the official names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from vlbeit.models.checkpoint import save_checkpoint
from vlbeit.models.convert import convert
from vlbeit.models.spec import EncoderSpec
from vlbeit.models.vqkd import VQKD, VQKDSpec

HIDDEN, VOCABULARY, START = 16, 300, 8
State = dict[str, Tensor]


def layers(widths: tuple[int, ...], kernels: tuple[int, ...], ends: tuple[int, int, int, int]) -> Iterator[tuple]:
    """Name, outputs, inputs and kernel of every convolution of one half, named as openai/DALL-E names them.

    ends: inputs and kernel of the first layer, inputs and outputs of the last.
    """
    yield "blocks.input", widths[0], ends[0], ends[1]
    for group, (before, after) in enumerate(pairwise(widths), 1):
        for block, inputs in enumerate((before, after), 1):
            name, inner = f"blocks.group_{group}.block_{block}", after // 4
            if inputs != after:
                yield f"{name}.id_path", after, inputs, 1
            sizes = ((inner, inputs), (inner, inner), (inner, inner), (after, inner))
            for conv, ((out, into), kernel) in enumerate(zip(sizes, kernels, strict=True), 1):
                yield f"{name}.res_path.conv_{conv}", out, into, kernel
    yield "blocks.output.conv", ends[3], ends[2], 1


def weights(seed: int, described: Iterator[tuple]) -> State:
    """Random `w` and `b` that keep the size of what goes through."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, out, into, kernel in described:
        scale = (2 / (into * kernel**2)) ** 0.5
        state[f"{name}.w"] = scale * torch.randn(out, into, kernel, kernel, generator=generator)
        state[f"{name}.b"] = 0.1 * torch.randn(out, generator=generator)
    return state


def encoder_weights() -> State:
    widths = (HIDDEN, HIDDEN, 2 * HIDDEN, 4 * HIDDEN, 8 * HIDDEN)
    return weights(0, layers(widths, (3, 3, 3, 1), (3, 7, 8 * HIDDEN, VOCABULARY)))


def decoder_weights() -> State:
    widths = (START, 8 * HIDDEN, 4 * HIDDEN, 2 * HIDDEN, HIDDEN)
    return weights(1, layers(widths, (1, 3, 3, 3), (VOCABULARY, 1, HIDDEN, 6)))


def flava_names(state: State) -> State:
    """DALL-E's names as FLAVA writes them."""
    renamed = {}
    for name, value in state.items():
        name = name.replace(".block_", ".group.block_").replace("res_path.", "res_path.path.")
        renamed[name.removesuffix(".w").removesuffix(".b") + (".weight" if name.endswith(".w") else ".bias")] = value
    return renamed


def official(model: VQKD) -> State:
    """The weights of a tokenizer under unilm's names."""
    parts = {
        "codebook": "quantize.embedding.weight",
        "to_code.": "encode_task_layer.",
        "to_teacher.": "decode_task_layer.",
        "experts.image.mlp.": "mlp.",
        "experts.image.norm.": "norm2.",
        "coder.norm.": "coder.fc_norm.",
    }
    state = {}
    for name, value in model.state_dict().items():
        for ours, theirs in parts.items():
            name = name.replace(ours, theirs)
        state[name] = value
    return state


def vqkd_weights(side: int = 3) -> State:
    """A VQ-KD file of the published width, with little else."""
    torch.manual_seed(0)
    encoder = EncoderSpec(
        768, 1, 12, 8, image_size=(8 * side, 8 * side), mlp_ratio=0.125, layer_scale=0.0, positions="absolute"
    )
    decoder = replace(encoder, patch_size=1, image_size=(side, side))
    return official(VQKD(VQKDSpec(encoder, decoder, vocab_size=64, code_dim=4, teacher_dim=6)))


def vqkd_file(folder: Path) -> Path:
    torch.save({"model": vqkd_weights(), "epoch": 1}, folder / "vqkd.pth")
    return folder / "vqkd.pth"


def vqkd_checkpoint(folder: Path) -> Path:
    found = convert(vqkd_weights())
    return save_checkpoint(folder / "converted", found.state, found.description, {}, {})


def dalle_file(folder: Path) -> Path:
    torch.save(encoder_weights(), folder / "encoder.pth")
    return folder / "encoder.pth"


def dalle_folder(folder: Path) -> Path:
    (folder / "dalle").mkdir()
    torch.save(encoder_weights(), folder / "dalle" / "encoder.pkl")
    torch.save(decoder_weights(), folder / "dalle" / "decoder.pkl")
    return folder / "dalle"


def flava_folder(folder: Path) -> Path:
    from transformers import FlavaImageCodebook, FlavaImageCodebookConfig

    codebook = FlavaImageCodebook(FlavaImageCodebookConfig(hidden_size=16, vocab_size=300, num_blocks_per_group=2))
    codebook.load_state_dict(flava_names(encoder_weights()))
    codebook.save_pretrained(folder / "flava")
    return folder / "flava"
