"""What a file cannot tell, said on the command line of `vlbeit convert`."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from vlbeit.cli import main
from vlbeit.models.checkpoint import read_checkpoint
from vlbeit.nn.relpos import image_rows


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    return ["convert", str(tmp_path / "a.safetensors"), str(tmp_path / "out"), "--overwrite"]


def described(state: dict[str, torch.Tensor], words: list[str], *options: str) -> dict[str, Any]:
    save_file(state, words[1])
    assert main([*words, *options]) == 0
    return read_checkpoint(words[2]).description


def test_size_and_normalisation(unilm: ModuleType, words: list[str]) -> None:
    found = described(unilm.beit(grid=(2, 3), classes=3), words, "--image-size", "32x48", "--normalize", "imagenet")
    assert found["encoder"]["image_size"] == [32, 48] and found["normalize"] == "imagenet"
    assert described(unilm.beit(grid=(2, 2)), words, "--image-size", "32")["encoder"]["image_size"] == [32, 32]


def test_early_layers(unilm: ModuleType, words: list[str]) -> None:
    heads = described(unilm.beit(positions="shared", mim=8, extra_layers=1), words, "--early-layers", "2")["heads"]
    assert heads["aggregation"]["early_layers"] == 2


def test_text_positions(unilm: ModuleType, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    state = unilm.vlmo(side=4)
    joint = next(name for name in state if name.endswith("relative_position_bias_table"))
    state[joint] = state[joint][: image_rows((4, 4)) + 2 + 2 * 40].clone()
    save_file(state, words[1])
    assert main(words) == 2 and "--text-positions 40" in capsys.readouterr().err  # what the message says, typed
    assert described(state, words, "--text-positions", "40")["encoder"]["text_positions"] == 40
