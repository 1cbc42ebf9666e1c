"""A frozen image network whose patch features masked image modeling learns to predict.

Legend: B batch, C width of the network.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlbeit.config import foreign_tower
from vlbeit.errors import UsageError, UserError
from vlbeit.models.image_tower import ImageTower
from vlbeit.models.towers import image_network

_LIBRARIES = ("timm:", "open_clip:")
_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors", ".ckpt", ".npz")  # of weights; a tag of open_clip has none


class Teacher(nn.Module):
    """Pictures in [0, 1] to the last feature map of a network of timm or open_clip, or of a checkpoint of ours.

    Args:
        network: normalised pictures [B, 3, height, width] -> map [B, C, rows, columns].
        mean, std: how the network's pictures are normalised.
    """

    def __init__(self, network: nn.Module, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """[B, 3, height, width] in [0, 1] -> [B, C, rows, columns]."""
        return self.network((pixels_BCHW - self.mean) / self.std)

    def train(self, mode: bool = True) -> Teacher:
        """It stays in evaluation."""
        return super().train(False)

    def width(self, size: tuple[int, int]) -> int:
        """C, for pictures of a size. Raises UsageError for one that the network does not take."""
        try:
            return self(torch.zeros(1, 3, *size)).shape[1]
        except (RuntimeError, ValueError, AssertionError) as error:
            raise UsageError(f"it takes no pictures of {size[0]}x{size[1]} pixels: {_first_line(error)}") from error

    def fingerprint(self) -> str:
        """16 hexadecimal digits of its weights: a run that goes on knows by them that it is the same one."""
        digest = hashlib.sha256()
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]


class _OwnPatches(nn.Module):
    """The patch tokens of a tower of ours as a map; those without a final norm get one without scale and shift."""

    def __init__(self, tower: ImageTower) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, image_BCHW: Tensor) -> Tensor:
        encoder = self.tower.encoder
        tokens = encoder(encoder.embed_image(image_BCHW))
        grid = tokens.spans[0].grid
        assert grid is not None
        x_BND = tokens.x_BLD[:, 1:]
        x_BND = x_BND if encoder.spec.final_norm else F.layer_norm(x_BND, x_BND.shape[-1:], eps=1e-6)
        return x_BND.transpose(1, 2).unflatten(2, grid)


def with_whole_path(name: str) -> str:
    """timm:NAME@FILE, or open_clip:, with the absolute path of its file; all else as it is."""
    network, _, file = name.partition("@")
    return f"{network}@{Path(file).expanduser().absolute()}" if _names_file(name) else name


def _names_file(name: str) -> bool:
    file = name.partition("@")[2]
    return name.startswith(_LIBRARIES) and ("/" in file or Path(file).suffix in _SUFFIXES)


def read_teacher(name: str, size: tuple[int, int]) -> Teacher:
    """timm:NAME, open_clip:NAME@TAG, or a run or checkpoint, for pictures of `size` (height, width).

    Raises UsageError, which names the key stage.teacher, where it cannot be had or does not take that size.
    """
    try:
        teacher = _foreign(name, size) if name.startswith(_LIBRARIES) else _own(name, size)
        teacher.width(size)
    except (UserError, ValueError) as error:
        line = _first_line(error)
        raise UsageError(line if line.startswith("stage.teacher=") else f"stage.teacher={name}: {line}") from error
    return teacher


def _foreign(name: str, size: tuple[int, int]) -> Teacher:
    tower = foreign_tower(name)
    if tower is None or not tower.name or tower.weights == "none":
        raise UsageError(
            "it names no weights: timm:NAME, open_clip:NAME/TAG, with @FILE behind it where there is no network, or a "
            "run or checkpoint of ours"
        )
    if _names_file(name) and not Path(tower.weights).is_file():
        raise UsageError(f"{tower.weights} is not there: bring the file back, or name another one")
    network, facts = image_network(name, size, f"stage.teacher={name}")
    return Teacher(network, facts["mean"], facts["std"])


def _own(name: str, size: tuple[int, int]) -> Teacher:
    tower = ImageTower.from_run(name)
    if tower.encoder.spec.image_size != size:
        tower.set_input_size(size)
    return Teacher(_OwnPatches(tower), list(tower.mean), list(tower.std))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
