"""The number behind the maps: best-head Jaccard over a data set with masks, beside towers to compare with.

Legend: B batch, H heads, N patches, S samples (pictures).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from vlbeit import files
from vlbeit.attention.maps import grid_of, open_tower, patch_attention, read_layer
from vlbeit.attention.overlap import MASS, Thing, ceiling, coverage, discs, jaccard, kept_patches, things
from vlbeit.config import DataConfig
from vlbeit.data.segments import open_pair
from vlbeit.data.sources import open_records, open_source
from vlbeit.data.transforms import EvalImage
from vlbeit.engine.device import choose_device
from vlbeit.engine.randomness import preserved_generators, seed_generators
from vlbeit.errors import DataError, UsageError
from vlbeit.models.checkpoint import read_head
from vlbeit.models.encoder import MoMEEncoder
from vlbeit.models.image_tower import ImageTower

RANDOM = "random initialisation"
_FILE = "attention.json"
_SEEDS = 3  # random initialisations whose mean is taken
_BYTES = 2**28  # of attention probabilities that are held at once
_Z = 1.96  # of a normal 95 % interval


class Estimate(NamedTuple):
    """A mean over pictures and its normal 95 % interval; of one picture the interval has no ends (nan)."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values_S: Tensor) -> Estimate:
        mean = values_S.mean().item()
        half = _Z * values_S.std().item() / math.sqrt(len(values_S)) if len(values_S) > 1 else math.nan
        return cls(mean, mean - half, mean + half)

    def __str__(self) -> str:
        return f"{self.mean:.3f} ({self.low:.3f} to {self.high:.3f})"


class Overlap(NamedTuple):
    """How well a tower's heads cover the objects."""

    name: str
    best_S: Tensor  # of each picture the mean over its objects of the best head's Jaccard index
    heads_SH: Tensor  # the same, head by head

    def to_json(self, run: Overlap) -> dict[str, Any]:
        """Estimates as plain values; `difference`: the run's best head less this one's, picture by picture."""
        heads_H = self.heads_SH.mean(0)
        of_run = {} if self is run else {"difference": Estimate.of(run.best_S - self.best_S)._asdict()}
        return {
            "name": self.name,
            "best_head": Estimate.of(self.best_S)._asdict(),
            "heads": heads_H.tolist(),
            "one_head": int(heads_H.argmax()),
            **of_run,
        }


class Measured(NamedTuple):
    """The comparison: the run first."""

    overlaps: list[Overlap]
    facts: dict[str, Any]
    file: Path

    def rows(self) -> list[tuple[str, str, str, str]]:
        """For a table: weights, best head, the one head that is best on average, the run's lead."""
        run, rows = self.overlaps[0], []
        for each in self.overlaps:
            heads_H = each.heads_SH.mean(0)
            one = f"{heads_H.max().item():.3f}" + ("" if each.name == RANDOM else f" (head {int(heads_H.argmax())})")
            lead = "" if each is run else str(Estimate.of(run.best_S - each.best_S))
            rows.append((each.name, str(Estimate.of(each.best_S)), one, lead))
        return rows

    def to_json(self) -> dict[str, Any]:
        """What `attention.json` holds."""
        return {**self.facts, "overlaps": [each.to_json(self.overlaps[0]) for each in self.overlaps]}


def measure(
    path: str,
    data: DataConfig,
    *,
    against: Sequence[str] = (),
    layer: int = -1,
    image_size: tuple[int, int] | None = None,
    reduce_zero_label: bool = True,
    out: Path | None = None,
) -> Measured:
    """Best-head Jaccard of the objects of a split, for a run, its random initialisation and the runs `against`.

    Every connected region of a class, if it is as large as a quarter of a patch, is an object with one reference point
    on it. All towers see pictures of the run's size, or of `image_size`. Writes `out`, or attention.json in the run.

    Raises UsageError for a layer, size or data that do not fit; DataError where no picture has an object.
    """
    scores = _Scores(_towers(path, against, image_size, layer))
    run = scores.of(path)
    records = open_records(data, "masks", data.val_split)
    classes = len(open_source(data).classes("masks"))
    pairs = (open_pair(records[index], classes, reduce_zero_label) for index in range(len(records)))
    samples = _samples(pairs, run.size, run.patch_pixels // 4)
    while part := list(islice(samples, scores.step)):  # so that a large split is never held whole
        scores.add(part, path)
    if not scores.objects:
        raise DataError(f"data={data.name}: none of {len(records)} pictures of {data.val_split} has an object")
    facts = {"run": path, "data": data.name, "root": data.root, "split": data.val_split}
    counts = {"pictures": len(scores.ceilings), "without_objects": len(records) - len(scores.ceilings)}
    measured = Measured(scores.overlaps(), facts | counts | scores.facts(path), out or folder_of(path) / _FILE)
    files.write_json(measured.file, measured.to_json(), indent=1)
    return measured


def _towers(
    path: str, against: Sequence[str], image_size: tuple[int, int] | None, layer: int
) -> dict[str, list[_Scored]]:
    """The towers to measure, by what they are called: the run, its random initialisations, the others; of one size."""
    run = open_tower(path, image_size)
    found = {path: [run], RANDOM: [_untrained(run, seed) for seed in range(_SEEDS)]}
    for other in against:
        if other in found:
            raise UsageError(f"--against {other}: it is there already; name another run")
        found[other] = [open_tower(other, run.encoder.spec.image_size)]
    layers = {name: read_layer(layer, group[0], name) for name, group in found.items()}
    return {name: [_Scored(tower, layers[name], name) for tower in group] for name, group in found.items()}


def data_config(path: str, name: str, *, root: str | None, split: str, limit: int | None) -> DataConfig:
    """The data that is measured on; without a root that of the run, where it was trained on the same source."""
    own = read_head(path)["config"].get("data") or {}
    found = root or (own.get("root") if own.get("name") == name else None) or f"data/{name}"
    return DataConfig(name=name, root=found, val_split=split, limit=limit)


def folder_of(path: str) -> Path:
    """Where numbers and figures of a run go: into its folder; those of other weights into the folder that we are in."""
    place = Path(path)
    if (place / "checkpoint" / "config.json").is_file():
        return place
    inside = place.name == "checkpoint" and (place / "config.json").is_file()
    return place.parent if inside else Path()


def _untrained(tower: ImageTower, seed: int) -> ImageTower:
    """A tower of the same shape as it was before any training."""
    with preserved_generators():
        seed_generators(seed, "attention")
        encoder = MoMEEncoder(tower.encoder.spec)
    return ImageTower(encoder, mean=tower.mean, std=tower.std).eval()


Sample = tuple[Image.Image, list[Thing]]


def _samples(pairs: Iterator[tuple[Image.Image, Tensor]], size: tuple[int, int], least: int) -> Iterator[Sample]:
    """Pictures with objects, and these at the size of the tower's input; a mask is resized without mixing classes."""
    for picture, segments_HW in pairs:
        resized = F.resize(segments_HW[None], list(size), InterpolationMode.NEAREST_EXACT)[0]
        if found := list(things(resized, max(1, least))):
            yield picture, found


class _Scored:
    """A tower that is measured. Raises UsageError where its patches do not tile the picture."""

    def __init__(self, tower: ImageTower, layer: int, name: str) -> None:
        size, self.grid = tower.encoder.spec.image_size, grid_of(tower)
        assert size is not None
        self.size = size
        if size[0] % self.grid[0] or size[1] % self.grid[1]:
            raise UsageError(
                f"{name}: {self.grid[0]}x{self.grid[1]} patches do not tile {size[0]}x{size[1]} pixels: "
                "set --image-size"
            )
        self.patch_pixels = (size[0] // self.grid[0]) * (size[1] // self.grid[1])
        self.tower, self.layer, self.device = tower, layer, choose_device("auto")
        self.transform = EvalImage(size, tower.mean, tower.std)

    @property
    def step(self) -> int:
        """Pictures whose attention is held at once."""
        tokens = self.grid[0] * self.grid[1] + self.tower.num_prefix_tokens
        return max(1, min(64, _BYTES // (4 * self.tower.encoder.spec.num_heads * tokens**2)))

    def __call__(self, samples: list[Sample]) -> list[Tensor]:
        """Of every picture the Jaccard index of each object and head, [objects, H]."""
        image_BCHW = torch.stack([self.transform(picture) for picture, _ in samples]).to(self.device)
        attention_BHNN = patch_attention(self.tower.to(self.device), image_BCHW, self.layer)
        return [
            torch.stack([self._of(thing, attention_HNN) for thing in found])
            for attention_HNN, (_, found) in zip(attention_BHNN, samples, strict=True)
        ]

    def _of(self, thing: Thing, attention_HNN: Tensor) -> Tensor:
        row, column = thing.point.cell(self.grid)
        map_HN = attention_HNN[:, row * self.grid[1] + column].cpu().double()
        return jaccard(kept_patches(map_HN), coverage(thing.mask_HW, self.grid), self.patch_pixels)


class _Scores:
    """What has been measured so far, of groups of towers: a run is a group of one."""

    def __init__(self, groups: dict[str, list[_Scored]]) -> None:
        self.groups = groups
        self.found: dict[str, list[list[Tensor]]] = {name: [[] for _ in group] for name, group in groups.items()}
        self.step = min(each.step for group in groups.values() for each in group)
        self.ceilings: list[float] = []  # by picture: the mean over its objects
        self.discs: list[Tensor] = []  # by picture: the same for discs of every radius
        self.objects = 0

    def of(self, name: str) -> _Scored:
        """The first tower of a group."""
        return self.groups[name][0]

    def add(self, samples: list[Sample], run: str) -> None:
        """Measure every tower on more pictures; ceiling and discs are those of the grid of `run`."""
        for name, group in self.groups.items():
            for scored, found in zip(group, self.found[name], strict=True):
                found += scored(samples)
        own = self.of(run)
        for _, found_there in samples:
            covered = [coverage(thing.mask_HW, own.grid) for thing in found_there]
            self.ceilings.append(sum(ceiling(each, own.patch_pixels) for each in covered) / len(covered))
            blind = [
                jaccard(discs(thing.point, own.grid), each, own.patch_pixels)
                for thing, each in zip(found_there, covered, strict=True)
            ]
            self.discs.append(torch.stack(blind).mean(0))
            self.objects += len(covered)

    def facts(self, run: str) -> dict[str, Any]:
        """How it was measured, and what bounds the grid of `run` sets; once there are objects."""
        own = self.of(run)
        return {
            "objects": self.objects,
            "image_size": list(own.size),
            "grid": list(own.grid),
            "layer": own.layer,
            "mass": MASS,
            "ceiling": sum(self.ceilings) / len(self.ceilings),
            "disc": torch.stack(self.discs).mean(0).max().item(),
        }

    def overlaps(self) -> list[Overlap]:
        """Of each group the mean over its towers."""
        return [_overlap(name, parts) for name, parts in self.found.items()]


def _overlap(name: str, parts: list[list[Tensor]]) -> Overlap:
    """The mean over towers, each with its own best heads. The heads of several are ranked: they share no order."""
    best_S = torch.stack([torch.stack([found.max(1).values.mean() for found in part]) for part in parts]).mean(0)
    heads = [torch.stack([found.mean(0) for found in part]) for part in parts]
    ranked = [each[:, each.mean(0).argsort(descending=True)] for each in heads]
    return Overlap(name, best_S, heads[0] if len(heads) == 1 else torch.stack(ranked).mean(0))
