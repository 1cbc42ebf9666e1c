"""vlbeit inspect attention: points, maps, the number on objects, and what it says to wrong words."""

from __future__ import annotations

import json
import math
import shlex
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vlbeit.attention import measure
from vlbeit.attention.figure import heat, inspect_picture
from vlbeit.attention.maps import Point, maps_at, open_tower, patch_attention, read_points, spread_points
from vlbeit.attention.measure import Estimate
from vlbeit.attention.overlap import RADII, ceiling, coverage, discs, jaccard, kept_patches, things
from vlbeit.cli import main
from vlbeit.data.records import ListRecords
from vlbeit.errors import UsageError

PATCH = 16


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """60 x 40 pixels, the left half red."""
    image = Image.new("RGB", (60, 40), (20, 20, 90))
    image.paste((200, 30, 30), (0, 0, 30, 40))
    image.save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def test_chosen_points_begin_in_the_middle_and_lie_apart() -> None:
    points = spread_points(6)
    assert points[0] == Point(0.5, 0.5) and read_points("3") == points[:3]
    assert all(0.1 <= share <= 0.9 for point in points for share in point)
    apart = [math.dist(one, two) for number, one in enumerate(points) for two in points[:number]]
    assert min(apart) > 0.2


def test_points_may_be_given() -> None:
    assert read_points("0.3,0.5; 0.7,1") == [Point(0.3, 0.5), Point(0.7, 1.0)]
    assert Point(0.7, 1.0).cell((3, 4)) == (2, 2) and Point(0.24, 0.0).cell((3, 4)) == (0, 0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0", "between 1 and 16 points"),
        ("17", "between 1 and 16 points"),
        ("many", "'many' is not x,y"),
        ("0.3,0.5;4", "'4' is not x,y"),
        ("0.3,0.5,0.1", "is not x,y"),
        ("0.3,1.5", "lies outside the picture"),
        ("nan,0.5", "lies outside the picture"),
        (";", "not 0"),
    ],
)
def test_wrong_points_are_named(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read_points(text)


@pytest.mark.parametrize("run", ["mim", "vl", "mim-classification", "vl-vqa"])
def test_maps_of_every_kind_of_run_sum_to_one(in_chain: Path, picture: Path, tmp_path: Path, run: str) -> None:
    found = inspect_picture(f"runs/{run}", picture, tmp_path / "maps.png", points="4")
    assert found.grid == (3, 3) and found.layer == 2 and found.maps_PHhw.shape == (4, 2, 3, 3)
    assert torch.allclose(found.maps_PHhw.sum((2, 3)), torch.ones(4, 2))
    with Image.open(tmp_path / "maps.png") as image:
        assert image.width > 4 * 192 and image.height > 4 * 128  # two heads, their mean and the picture; four points


def test_a_map_is_the_row_of_its_patch_without_cls(in_chain: Path) -> None:
    tower = open_tower("runs/mim")
    image = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        whole_HLL = tower.encoder.attention(tower.encoder.embed_image(image), 1)[0]
    found_Hhw = maps_at(patch_attention(tower, image, 1)[0], [Point(0.9, 0.4)], (3, 3))[0]  # row 1, column 2
    row_HN = whole_HLL[:, 1 + 5, 1:]
    assert torch.allclose(found_Hhw.flatten(1), row_HN / row_HN.sum(-1, keepdim=True), atol=1e-6)


def test_of_a_vl_run_it_is_the_image_pass(in_chain: Path) -> None:
    import vlbeit

    image = torch.randn(1, 3, 48, 48)
    model = vlbeit.load("runs/vl")
    assert model.encoder is not None
    with torch.no_grad():
        whole = model.encoder.attention(model.encoder.embed_image(image), 2)[:, :, 1:, 1:]
    expected = whole / whole.sum(-1, keepdim=True)
    assert torch.allclose(patch_attention(open_tower("runs/vl"), image, 2), expected, atol=1e-6)


def test_a_larger_picture_has_a_finer_grid(in_chain: Path, picture: Path, tmp_path: Path) -> None:
    found = inspect_picture("runs/mim", picture, tmp_path / "a.png", image_size=(96, 144), heads="1", layer=0)
    assert found.grid == (6, 9) and found.heads == [1] and found.maps_PHhw.shape == (3, 1, 6, 9)


def test_an_official_file_is_looked_into(in_chain: Path, picture: Path, tmp_path: Path) -> None:
    file = tmp_path / "official.pth"
    assert main(["convert", "runs/mim", str(file), "--to", "unilm"]) == 0
    own = inspect_picture("runs/mim", picture, tmp_path / "own.png")
    theirs = inspect_picture(str(file), picture, tmp_path / "theirs.png")
    assert torch.allclose(own.maps_PHhw, theirs.maps_PHhw, atol=1e-6)


def test_the_brightest_patch_is_the_one_that_is_looked_at_most() -> None:
    map_hw = torch.full((3, 3), 0.05)
    map_hw[2, 1] = 0.6
    light = np.asarray(heat(Image.new("RGB", (90, 90), (128, 128, 128)), map_hw)).astype(int).sum(-1)
    patches = light.reshape(3, 30, 3, 30).mean((1, 3))
    assert patches.argmax() == 2 * 3 + 1 and np.allclose(np.delete(patches, 7), patches[0, 0])


def test_the_command_prints_what_it_drew(in_chain: Path, picture: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "maps.png"
    assert main(["inspect", "attention", "runs/mim", str(picture), "--points", "0.1,0.9", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "0.1, 0.9  2, 0" in said and f"wrote {out}" in said and "block 2, heads 0, 1, 3x3 patches" in said
    assert main(["inspect", "attention", "runs/mim", str(picture), "--out", str(out), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["layer"] == 2 and np.allclose(np.sum(values["maps"], (2, 3)), 1)
    assert not list(tmp_path.glob(".tmp-*"))


def test_without_a_name_the_figure_goes_into_the_run(in_chain: Path, picture: Path, capsys: Any) -> None:
    assert main(["inspect", "attention", "runs/mim", str(picture)]) == 0
    said = capsys.readouterr().out
    assert "wrote runs/mim/attention.png" in said and not Path("attention.png").exists()
    Path("runs/mim/attention.png").unlink()
    hint = shlex.split(said.splitlines()[-1])  # as a shell reads it
    assert hint[hint.index("--points") + 1] == "0.3,0.5;0.7,0.2"


def test_the_picture_is_not_replaced_by_its_maps(in_chain: Path, tmp_path: Path, picture: Path, capsys: Any) -> None:
    own = tmp_path / "own.png"
    own.write_bytes(picture.read_bytes())
    (tmp_path / "link.png").symlink_to(own)
    assert main(["inspect", "attention", "runs/mim", str(own), "--out", str(tmp_path / "link.png")]) == 2
    assert "which is read and would be replaced; name another file" in capsys.readouterr().err
    assert own.read_bytes() == picture.read_bytes() and (tmp_path / "link.png").is_symlink()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["runs/mim", "none.png"], 1, "none.png does not exist; give the path of a picture"),
        (["runs/mim"], 2, "name a picture to draw maps of, or --data NAME"),
        (["runs/mim", "PICTURE", "--data", "scenes"], 2, "one of the two"),
        (["runs/mim", "PICTURE", "--layer", "3"], 2, "--layer 3: runs/mim has the blocks 0 to 2, or -1 for the last"),
        (["runs/mim", "PICTURE", "--layer", "-4"], 2, "blocks 0 to 2"),
        (["runs/mim", "PICTURE", "--heads", "0,2"], 2, "runs/mim has the heads 0 to 1, not 2"),
        (["runs/mim", "PICTURE", "--heads", "first"], 2, "--heads first: write all, or numbers"),
        (["runs/mim", "PICTURE", "--image-size", "50"], 2, "not a multiple of patch_size 16: try 48 or 64"),
        (["runs/mim", "PICTURE", "--out", "maps.txt"], 2, "end it in .png, .jpg or .webp"),
        (["runs/mim", "PICTURE", "--against", "runs/vl"], 2, "--against goes with --data NAME"),
        (["runs/mim", "PICTURE", "--split", "val"], 2, "--split goes with --data NAME"),
        (["runs/mim", "PICTURE", "--no-reduce-zero-label"], 2, "--no-reduce-zero-label goes with --data NAME"),
        (["runs/mim", "--data", "scenes", "--points", "3"], 2, "--points goes with a picture"),
        (["runs/tokenizer", "PICTURE"], 2, "has no image tower"),
        (["runs/nothing", "PICTURE"], 1, "no such run or checkpoint"),
        (["runs/mim", "--data", "imagefolder"], 2, "not masks"),
    ],
)
def test_wrong_words_are_one_line(
    in_chain: Path, picture: Path, tmp_path: Path, capsys: Any, words: list[str], code: int, said: str
) -> None:
    words = [str(picture) if word == "PICTURE" else word for word in words]
    out = [] if "--out" in words else ["--out", str(tmp_path / "maps.png")]
    assert main(["inspect", "attention", *words, *out]) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error
    assert not list(tmp_path.glob("maps*"))


def plain_jaccard(map_hw: np.ndarray, mask_HW: np.ndarray, mass: float = 0.6) -> float:
    """The definition, pixel by pixel: take patches from the largest on until they hold the mass."""
    rows, columns = map_hw.shape
    kept, held = np.zeros_like(map_hw, dtype=bool), 0.0
    for index in sorted(range(map_hw.size), key=lambda n: -map_hw.flat[n]):
        if held >= mass * map_hw.sum():
            break
        kept.flat[index] = True
        held += map_hw.flat[index]
    wide = np.kron(kept, np.ones((mask_HW.shape[0] // rows, mask_HW.shape[1] // columns), dtype=bool)).astype(bool)
    return (wide & mask_HW).sum() / (wide | mask_HW).sum()


def test_jaccard_of_a_case_made_by_hand() -> None:
    mask_HW = torch.zeros(4, 6, dtype=torch.bool)
    mask_HW[:3, :2] = True  # the top left patch of 2x2 pixels whole, the one below it half
    map_HN = torch.tensor([[0.5, 0.2, 0.0, 0.2, 0.1, 0.0]])  # 2 x 3 patches: 0.5 + 0.2 hold 60 %
    kept_HN = kept_patches(map_HN)
    assert kept_HN.tolist() == [[True, True, False, False, False, False]]
    covered_N = coverage(mask_HW, (2, 3))
    assert covered_N.tolist() == [4, 0, 0, 2, 0, 0]
    assert jaccard(kept_HN, covered_N, 4).tolist() == [4 / 10]  # shared 4 pixels, 8 + 6 - 4 in either
    assert ceiling(covered_N, 4) == 6 / 8  # both patches


def test_jaccard_equals_a_plain_computation() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        maps = rng.dirichlet(np.full(20, 0.3), 3).reshape(3, 4, 5)
        mask = rng.random((4 * 3, 5 * 2)) < 0.4
        map_HN = torch.from_numpy(maps).flatten(1)
        found = jaccard(kept_patches(map_HN), coverage(torch.from_numpy(mask), (4, 5)), 6)
        assert np.allclose(found, [plain_jaccard(each, mask) for each in maps])
        assert found.max() <= ceiling(coverage(torch.from_numpy(mask), (4, 5)), 6)


def test_the_ceiling_is_the_best_of_all_sets() -> None:
    mask = torch.from_numpy(np.random.default_rng(1).random((6, 6)) < 0.5)
    sets = torch.tensor([[bool(number >> bit & 1) for bit in range(9)] for number in range(1, 512)])
    assert ceiling(coverage(mask, (3, 3)), 4) == pytest.approx(jaccard(sets, coverage(mask, (3, 3)), 4).max().item())


def test_a_disc_is_what_lies_around_the_point() -> None:
    found = discs(Point(0.5, 0.9), (4, 5)).reshape(len(RADII), 4, 5)  # row 3, column 2
    assert found[0].nonzero().tolist() == [[3, 2]]
    assert found[1].nonzero().tolist() == [[2, 2], [3, 1], [3, 2], [3, 3]]
    assert found[2].sum() == 6 and found[-1].all()


def test_objects_are_regions_of_one_class_with_a_point_on_them() -> None:
    segments = torch.full((12, 12), 255)
    segments[1:4, 1:4] = 0
    segments[6:9, 1:4] = 0  # the same class elsewhere
    segments[1:4, 4:7] = 1  # touches the first, of another class
    segments[8:11, 8:11] = 2
    segments[9, 9] = 255  # a ring: its centre is not on it
    segments[11, 0] = 3  # too small
    found = list(things(segments, least=2))
    assert sorted(thing.label for thing in found) == [0, 0, 1, 2]
    assert [int(thing.mask_HW.sum()) for thing in found] == [9, 9, 9, 8]
    for thing in found:
        row, column = thing.point.cell((12, 12))
        assert thing.mask_HW[row, column]
    assert found[0].point.cell((12, 12)) in ((2, 2), (7, 2))


def test_diagonal_neighbours_are_two_objects() -> None:
    segments = torch.full((4, 4), 255)
    segments[0, 0] = segments[1, 1] = 0
    assert len(list(things(segments))) == 2


def flooded(segments: np.ndarray) -> set[tuple[int, frozenset[tuple[int, int]]]]:
    """Label and pixels of every region, by walking from neighbour to neighbour."""
    open_ = {(y, x) for y, x in np.argwhere(segments != 255).tolist()}
    found = set()
    while open_:
        region, waiting = set(), [open_.pop()]
        label = segments[waiting[0]]
        while waiting:
            y, x = waiting.pop()
            region.add((y, x))
            near = {(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)} & open_
            same = {place for place in near if segments[place] == label}
            open_ -= same
            waiting += same
        found.add((int(label), frozenset(region)))
    return found


@pytest.mark.parametrize("seed", range(4))
def test_regions_are_those_of_walking_from_pixel_to_pixel(seed: int) -> None:
    noise = np.random.default_rng(seed).choice([0, 0, 1, 7, 255], (17, 23))
    noise[3:9, 3:9] = np.indices((6, 6)).sum(0) % 2  # a chess board
    found = list(things(torch.from_numpy(noise)))
    pixels = {(t.label, frozenset(map(tuple, t.mask_HW.nonzero().tolist()))) for t in found}
    assert pixels == flooded(noise) and len(found) == len(pixels)
    assert [thing.label for thing in found] == sorted(thing.label for thing in found)
    assert [t.label for t in things(torch.from_numpy(noise), 5)] == [t.label for t in found if t.mask_HW.sum() >= 5]


def test_a_large_picture_is_taken_apart_at_once() -> None:
    one = torch.zeros(512, 512)
    snake = torch.full((512, 512), 255)
    snake[::2] = 0
    snake[1::4, -1] = snake[3::4, 0] = 0  # one region of 131,000 steps
    noise = torch.randint(0, 200, (512, 512), generator=torch.Generator().manual_seed(0))
    before = time.process_time()
    assert [len(list(things(segments, 64))) for segments in (one, snake, noise)] == [1, 1, 0]
    assert time.process_time() - before < 5


def test_an_interval_is_that_of_the_normal_law() -> None:
    values = torch.tensor([0.1, 0.2, 0.3, 0.4])
    found = Estimate.of(values)
    half = 1.96 * np.std([0.1, 0.2, 0.3, 0.4], ddof=1) / 2
    assert found == pytest.approx((0.25, 0.25 - half, 0.25 + half))
    assert math.isnan(Estimate.of(values[:1]).low)


class Squares:
    """A data source of two squares a picture, on request without any."""

    def __init__(self, folder: Path, empty: bool = False) -> None:
        rows = []
        for number in range(4):
            pixels, labels = np.full((48, 48, 3), 30, np.uint8), np.zeros((48, 48), np.uint8)
            for label, place in ((1, 2 + number), (2, 30)):
                pixels[place : place + 14, place : place + 14] = (220, 60 * label, 40)
                labels[place : place + 14, place : place + 14] = 0 if empty else label
            Image.fromarray(pixels).save(folder / f"{number}.png")
            Image.fromarray(labels).save(folder / f"{number}-mask.png")
            rows.append({"id": str(number), "image": f"{folder}/{number}.png", "mask": f"{folder}/{number}-mask.png"})
        self.rows = ListRecords(rows)

    def classes(self, kind: str) -> list[str]:
        assert kind == "masks"
        return ["low", "high"]


@pytest.fixture
def squares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Squares:
    found = Squares(tmp_path)
    monkeypatch.setattr(measure, "open_records", lambda data, kind, split: found.rows)
    monkeypatch.setattr(measure, "open_source", lambda data: found)
    return found


def test_the_number_is_written_beside_towers_to_compare_with(
    in_chain: Path, squares: Squares, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "attention.json"
    words = ["inspect", "attention", "runs/mim", "--data", "scenes", "--image-size", "96", "--out", str(out)]
    assert main([*words, "--against", "runs/mim-classification"]) == 0
    said = capsys.readouterr().out
    assert [line.split("  ")[0] for line in said.splitlines()[1:4]] == [
        "runs/mim",
        "random initialisation",
        "runs/mim-classification",
    ]
    values = json.loads(out.read_text())
    assert values["grid"] == [6, 6] and values["pictures"] == 4 and values["objects"] == 8
    run, random, _ = values["overlaps"]
    assert 0 < run["best_head"]["mean"] <= values["ceiling"] <= 1 and len(run["heads"]) == 2
    assert 0 < values["disc"] <= values["ceiling"]
    assert max(run["heads"]) <= run["best_head"]["mean"]
    lead = run["best_head"]["mean"] - random["best_head"]["mean"]
    assert random["difference"]["mean"] == pytest.approx(lead) and "difference" not in run
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["overlaps"][0] == run


def test_the_number_is_the_plain_one(in_chain: Path, squares: Squares, tmp_path: Path) -> None:
    data = measure.data_config("runs/mim", "scenes", root=None, split="val", limit=None)
    found = measure.measure("runs/mim", data, layer=1, out=tmp_path / "a.json")
    tower = open_tower("runs/mim")
    transform = measure.EvalImage((48, 48), tower.mean, tower.std)
    best = []
    for number in range(4):
        image = Image.open(tmp_path / f"{number}.png")
        labels = np.asarray(Image.open(tmp_path / f"{number}-mask.png"))
        attention_HNN = patch_attention(tower, transform(image)[None], 1)[0].double().numpy()
        scores = []
        for label in (1, 2):
            y, x = np.argwhere(labels == label).mean(0).astype(int)
            maps = attention_HNN[:, (y // PATCH) * 3 + x // PATCH].reshape(-1, 3, 3)
            scores.append(max(plain_jaccard(each, labels == label) for each in maps))
        best.append(np.mean(scores))
    assert found.overlaps[0].best_S.tolist() == pytest.approx(best)


def test_it_is_written_into_the_run_and_the_root_is_that_of_the_run(in_chain: Path, tmp_path: Path) -> None:
    assert measure.folder_of("runs/mim") == measure.folder_of("runs/mim/checkpoint") == Path("runs/mim")
    assert measure.folder_of(str(tmp_path / "weights.pth")) == Path()
    stored = json.loads(Path("runs/mim/checkpoint/config.json").read_text())["config"]["data"]["root"]
    assert measure.data_config("runs/mim", "scenes", root=None, split="val", limit=3).root == stored
    assert measure.data_config("runs/mim", "ade20k", root=None, split="val", limit=3).root == "data/ade20k"


def test_data_without_objects_is_refused(in_chain: Path, squares: Squares, tmp_path: Path, capsys: Any) -> None:
    squares.rows = Squares(tmp_path, empty=True).rows
    assert main(["inspect", "attention", "runs/mim", "--data", "scenes", "--out", str(tmp_path / "a.json")]) == 1
    assert "none of 4 pictures of val has an object" in capsys.readouterr().err


def test_label_0_may_be_a_class(in_chain: Path, squares: Squares, tmp_path: Path, capsys: Any) -> None:
    words = ["inspect", "attention", "runs/mim", "--data", "scenes", "--out", str(tmp_path / "a.json")]
    assert main([*words, "--no-reduce-zero-label"]) == 1  # 0, 1, 2 are three then
    assert "0..1" in capsys.readouterr().err
    squares.classes = lambda kind: ["ground", "low", "high"]
    assert main([*words, "--no-reduce-zero-label"]) == 0
    assert json.loads((tmp_path / "a.json").read_text())["objects"] == 12


def test_a_twin_may_not_be_named_twice(in_chain: Path, squares: Squares, capsys: Any) -> None:
    assert main(["inspect", "attention", "runs/mim", "--data", "scenes", "--against", "runs/mim"]) == 2
    assert "it is there already" in capsys.readouterr().err


def test_measuring_leaves_the_generators_alone(in_chain: Path, squares: Squares, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    data = measure.data_config("runs/mim", "scenes", root=None, split="val", limit=None)
    first, second = (measure.measure("runs/mim", data, out=tmp_path / "a.json") for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first.overlaps[1].best_S, second.overlaps[1].best_S)
