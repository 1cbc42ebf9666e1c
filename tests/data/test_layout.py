"""Batches of one grid and of one length: every sample once, whatever the workers, the processes and the first step."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import pytest
import torch
from PIL import Image

from vlbeit import dist
from vlbeit.data import picture_sizes
from vlbeit.data.collate import collate
from vlbeit.data.layout import PICTURES, NativeGrids, evaluation_windows, in_turn
from vlbeit.data.loader import EvalLoader, TrainLoader
from vlbeit.data.picture_sizes import picture_size
from vlbeit.data.recent import Recent
from vlbeit.data.records import ListRecords, open_image
from vlbeit.errors import DataError
from vlbeit.types import DataSpec, Layout

SHAPES = ((4, 3), (4, 2), (3, 4), (4, 4), (1, 4))


class Drawn:
    """What the generators give, in the grid of the record."""

    def __call__(self, record):
        return {"sample_id": record["id"], "grid": record["grid"], "image": torch.rand(3, *record["grid"])}


def spec(count, shapes=SHAPES):
    grids = [shapes[number**3 % len(shapes)] for number in range(count)]
    records = ListRecords([{"id": str(number)} for number in range(count)])
    return DataSpec(records, Drawn(), collate, layout=Layout(grids))


def train(count, workers=0, **changes):
    options = {"seed": 3, "global_batch_size": 8, "micro_batch_size": 4, "max_bad_fraction": 0.0} | changes
    return TrainLoader(spec(count), workers=workers, **options)


def seen(steps):
    return [[(*batch["sample_id"], batch["image"].sum().item()) for batch in step] for step in steps]


@pytest.mark.parametrize("count", [3, 8, 41, 64])
def test_every_sample_once_an_epoch_and_every_micro_batch_of_one_grid(count):
    batches = [batch for step in train(count).steps(0, math.ceil(3 * count / 8)) for batch in step]
    ids = [name for batch in batches for name in batch["sample_id"]]
    for epoch in range(3):
        assert sorted(map(int, ids[epoch * count : (epoch + 1) * count])) == list(range(count))
    assert all(len(set(batch["grid"])) == 1 and len(batch["sample_id"]) == 4 for batch in batches)


def test_few_pictures_get_the_grid_of_others():
    own, count = spec(400).layout.grids, 400
    batches = [batch for step in train(count).steps(0, 50) for batch in step]
    pairs = [
        (own[int(name)], grid)
        for batch in batches
        for name, grid in zip(batch["sample_id"], batch["grid"], strict=True)
    ]
    others = Counter(pair for pair in pairs if pair[0] != pair[1])
    assert sum(others.values()) <= 4 * len(set(own)), "at most a micro-batch at each border of two grids"
    order = sorted(set(own), key=lambda grid: grid[0] / grid[1])
    assert all(abs(order.index(mine) - order.index(given)) == 1 for mine, given in others)
    assert batches[0]["grid"][0] != batches[1]["grid"][0] or batches[1]["grid"][0] != batches[2]["grid"][0]
    runs = sum(one["grid"][0] != two["grid"][0] for one, two in pairwise(batches))
    assert runs > len(set(own)), "micro-batches are shuffled, not sorted by grid"


def test_epochs_differ():
    batches = [name for step in train(40).steps(0, 10) for batch in step for name in batch["sample_id"]]
    assert batches[:40] != batches[40:] and sorted(batches[:40]) == sorted(batches[40:])


def test_any_first_step_and_any_number_of_workers_give_the_same():
    whole = seen(train(41).steps(0, 14))
    assert seen(train(41, workers=2).steps(0, 14)) == whole
    for start in (1, 5, 6, 13):
        assert seen(train(41).steps(start, 14)) == whole[start:]


def test_any_number_of_processes_gives_the_same(monkeypatch):
    whole = seen(train(41).steps(0, 12))
    monkeypatch.setattr(dist, "world_size", lambda: 2)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(dist, "rank", lambda rank=rank: rank)
        parts.append(seen(train(41).steps(0, 12)))
    assert [one + two for one, two in zip(*parts, strict=True)] == whole


def test_memory_is_probed_with_the_largest_grid():
    batch = train(41).heaviest()
    assert batch["image"].shape == (4, 3, 4, 4)
    first = train(41).first(6)
    assert len(first["sample_id"]) == 4, "a micro-batch: two may be of two grids"
    assert first["sample_id"] == next(train(41).steps(0, 1))[0]["sample_id"]


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("world", [1, 3])
def test_evaluation_sees_every_sample_once_in_batches_of_one_grid(workers, world, monkeypatch):
    monkeypatch.setattr(dist, "world_size", lambda: world)
    names = []
    for rank in range(world):
        monkeypatch.setattr(dist, "rank", lambda rank=rank: rank)
        loader = EvalLoader(spec(57), batch_size=4, workers=workers, max_bad_fraction=0)
        batches = list(loader)
        assert len(batches) == len(loader)
        assert all(len(set(batch["grid"])) == 1 for batch in batches)
        names += [name for batch in batches for name in batch["sample_id"]]
    assert sorted(map(int, names)) == list(range(57))
    assert all(spec(57).layout.grids[int(name)] == grid for batch in batches for name, grid in zip(
        batch["sample_id"], batch["grid"], strict=True
    ))  # fmt: skip


def test_evaluation_puts_lengths_together_and_keeps_pictures_near():
    pictures = [number % 30 for number in range(90)]  # the questions of a picture are 30 apart
    lengths = [5 + 7 * number % 11 for number in range(90)]
    windows = evaluation_windows(Layout(lengths=lengths, pictures=pictures), 90, 5)
    assert sorted(index for window in windows for batch in window for index in batch) == list(range(90))
    assert [len(window) for window in windows] == [4, 4, 4, 4, 2]
    for window in windows:
        rows = [index for batch in window for index in batch]
        assert [lengths[index] for index in rows] == sorted(lengths[index] for index in rows)
    places = {picture: [n for n, w in enumerate(windows) for b in w for i in b if pictures[i] == picture]
              for picture in range(30)}  # fmt: skip
    assert all(max(found) - min(found) <= 1 for found in places.values())
    padded = sum(max(lengths[i] for i in b) * len(b) for w in windows for b in w)
    in_order = sum(max(lengths[start : start + 5]) * 5 for start in range(0, 90, 5))
    assert sum(lengths) <= padded < in_order


@pytest.mark.parametrize("size", [16, 64])
def test_evaluation_reads_a_picture_once_for_few_questions_too(size):
    """What the transform keeps is enough for a window, whatever the order of its questions."""
    count, readers = 3000, 2
    pictures = [number * 2 // 5 for number in range(count)]  # two or three questions each
    lengths = [number * 7919 % 23 for number in range(count)]
    order = in_turn(evaluation_windows(Layout(lengths=lengths, pictures=pictures), count, size), readers)
    made: list[int] = []
    for reader in range(readers):
        recent: Recent[int] = Recent(PICTURES)
        for picture in (pictures[index] for batch in order[reader::readers] for index in batch):
            recent.get(picture, lambda picture=picture: made.append(picture) or picture)
    assert len(made) <= 1.05 * len(set(pictures))


@pytest.mark.parametrize(("count", "size", "world"), [(1000, 32, 3), (1000, 32, 8), (20000, 32, 3), (50, 32, 4)])
def test_processes_evaluate_about_as_much(count, size, world):
    layout = Layout(lengths=[number * 7919 % 23 for number in range(count)], pictures=[n // 5 for n in range(count)])
    windows = evaluation_windows(layout, count, size, world)
    parts = [sum(len(batch) for window in windows[rank::world] for batch in window) for rank in range(world)]
    assert sum(parts) == count and max(parts) - min(parts) <= max(size, count / world / 7)


def test_each_reader_gets_whole_windows():
    windows = [[[10 * window + batch] for batch in range(4)] for window in range(5)]
    order = in_turn(windows, 2)
    assert sorted(batch[0] for batch in order) == sorted(b[0] for window in windows for b in window)
    assert [batch[0] // 10 for batch in order[0:16:2]] == [0] * 4 + [2] * 4
    assert [batch[0] // 10 for batch in order[1:16:2]] == [1] * 4 + [3] * 4


@pytest.mark.parametrize(
    ("size", "grid"),
    [((480, 640), (22, 30)), ((640, 480), (30, 22)), ((100, 100), (30, 30)), ((10, 5000), (1, 30)), ((3, 2), (30, 20))],
)
def test_native_grids_keep_the_aspect_and_lie_within(size, grid):
    grids = NativeGrids(16, (30, 30))
    assert grids.grid(size) == grid
    assert grids.pixels(grid) == (16 * grid[0], 16 * grid[1])


def test_few_native_grids():
    grids = NativeGrids(16, (30, 20))
    found = {grids.grid((height, width)) for height in range(1, 400, 7) for width in range(1, 400, 3)}
    assert all(rows <= 30 and columns <= 20 and (rows == 30 or columns == 20) for rows, columns in found)
    assert len(found) <= 49


def test_sizes_of_records_are_those_that_people_see(tmp_path):
    Image.new("RGB", (80, 40)).save(tmp_path / "wide.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (80, 40)).save(tmp_path / "turned.jpg", exif=turned)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    for name in ("wide.png", "turned.jpg"):
        picture = open_image(tmp_path / name)
        assert picture_size(str(tmp_path / name)) == (picture.height, picture.width)
    stored = (tmp_path / "wide.png").read_bytes()
    values = [str(tmp_path / name) for name in ("turned.jpg", "wide.png", "broken.png", "gone.png")]
    for kinds in ([*values, stored], [stored, *values]):
        records = shown(*kinds, kinds[0])
        expected = {**dict.fromkeys(values, (4, 4)), values[0]: (4, 2), values[1]: (2, 4), stored: (2, 4)}
        assert NativeGrids(8, (4, 4)).of(records, tmp_path / "cache") == [expected[kind] for kind in [*kinds, kinds[0]]]
    assert NativeGrids(8, (4, 4)).of(shown(open_image(stored)), tmp_path / "cache") == [(2, 4)]


def shown(*images):
    """Records about these pictures; equal ones are one."""
    rows = enumerate(images)
    return ListRecords([{"id": str(row), "image": image, "image_id": images.index(image)} for row, image in rows])


def test_sizes_are_read_once_until_a_picture_changes(tmp_path, monkeypatch):
    read, original = [], picture_sizes.picture_size
    monkeypatch.setattr(picture_sizes, "picture_size", lambda value: read.append(value) or original(value))
    path, grids = str(tmp_path / "a.png"), NativeGrids(8, (4, 4))
    Image.new("RGB", (80, 40)).save(path)
    for _ in range(2):
        assert grids.of(shown(path, path), tmp_path / "cache") == [(2, 4), (2, 4)]
    assert read == [path]
    Image.new("RGB", (40, 80)).save(path)
    assert grids.of(shown(path, path), tmp_path / "cache") == [(4, 2), (4, 2)]
    assert read == [path, path]


def test_recent_keeps_the_last_ones():
    made = []
    recent: Recent[int] = Recent(2)
    for key in "aabacaba":
        assert recent.get(key, lambda key=key: made.append(key) or ord(key)) == ord(key)
    assert made == ["a", "b", "c", "b"]


def test_what_cannot_be_made_is_not_kept():
    recent: Recent[int] = Recent(2)
    for _ in range(2):
        with pytest.raises(DataError):
            recent.get("a", lambda: (_ for _ in ()).throw(DataError("broken")))
    assert recent.get("a", lambda: 1) == 1
