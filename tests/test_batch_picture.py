"""batch0.png: what it shows, and that drawing it changes nothing."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vlbeit import launch
from vlbeit.batch_picture import draw_batch
from vlbeit.cli import main
from vlbeit.compose import compose
from vlbeit.config import RunConfig
from vlbeit.data.drawing import palette
from vlbeit.data.text import train_wordpiece
from vlbeit.types import Batch

GREY = 128  # of a masked patch, of 0..255
LETTERS = 60  # pixels of smooth letters that may have any grey by chance


def config(*words: str) -> RunConfig:
    return compose(["stage=mim", "data.image_size=32", *words]).config


def flat(value: float, **more: Any) -> Batch:
    """Two pictures of 32x32 pixels of one colour, as normalised by half."""
    return {"sample_id": ["a", "b"], "image": torch.full((2, 3, 32, 32), 2 * value - 1), **more}


def drawn(batch: Batch, *words: str, **meta: Any) -> np.ndarray:
    image = draw_batch(batch, config(*words), meta)
    assert image is not None
    return np.asarray(image).astype(int)


def about(count: int) -> Any:
    return pytest.approx(count, abs=LETTERS)


def share(pixels: np.ndarray, color: tuple[int, int, int], within: int = 2) -> int:
    """Number of pixels of about this colour."""
    return int((np.abs(pixels - np.array(color)) <= within).all(-1).sum())


def test_pictures_are_brought_back_from_their_normalisation() -> None:
    assert share(drawn(flat(0.2)), (51, 51, 51), 0) == about(2 * 192 * 192)


def test_imagenet_statistics_are_undone_too() -> None:
    settings = config("data.normalize=imagenet")
    mean, std = (torch.tensor(values)[:, None, None] for values in settings.normalization)
    batch = flat(0) | {"image": ((torch.full((2, 3, 32, 32), 0.2) - mean) / std)}
    image = draw_batch(batch, settings, {})
    assert image is not None and share(np.asarray(image).astype(int), (51, 51, 51), 0) == about(2 * 192 * 192)


def test_masked_patches_are_grey_and_the_others_are_not() -> None:
    mask = torch.tensor([[True, False, False, False], [False, True, True, True]])
    pixels = drawn(flat(0.2, mask=mask))
    assert share(pixels, (GREY, GREY, GREY), 0) == about(4 * 96 * 96)
    assert share(pixels, (51, 51, 51), 0) == about(4 * 96 * 96)
    rows = np.flatnonzero((pixels == 51).all(-1).sum(1) > 90)  # of the patches, not of letters
    left = np.flatnonzero((pixels[rows[0]] == 51).all(-1))[0]
    assert pixels[rows[0], left - 1].tolist() == [GREY] * 3  # of the first picture the patch at the top left is masked


def test_the_other_view_of_a_crop_stands_beside_it() -> None:
    pixels = drawn(flat(0.2, pixels=torch.full((2, 3, 16, 16), 0.4)))
    assert share(pixels, (51, 51, 51), 0) == about(2 * 192 * 192)
    assert share(pixels, (102, 102, 102), 0) == about(2 * 192 * 192)


def test_a_mask_that_is_none_of_patches_is_left_out() -> None:
    assert share(drawn(flat(0.2, mask=torch.ones(2, 7, dtype=torch.bool))), (51, 51, 51), 0) == about(2 * 192 * 192)


def test_classes_are_shown_beside_the_picture_and_255_is_none() -> None:
    segments = torch.full((2, 32, 32), 255, dtype=torch.uint8)
    segments[0, :16] = 1
    pixels = drawn(flat(0.2, segments=segments), classes=["circle", "cross"])
    tint = tuple(round(0.4 * 51 + 0.6 * channel) for channel in palette(2)[1])
    assert share(pixels, tint) == about(96 * 192)
    assert share(pixels, (51, 51, 51), 0) == about(4 * 192 * 192 - 96 * 192)
    assert share(pixels, palette(2)[1]) > 40  # the colour's mark beside its name


def test_boxes_have_their_place_in_the_enlarged_picture() -> None:
    boxes = [torch.tensor([[8.0, 8.0, 24.0, 16.0]]), torch.zeros(0, 4)]
    labels = [torch.tensor([1]), torch.zeros(0, dtype=torch.long)]
    masks = [torch.zeros(1, 32, 32, dtype=torch.bool), torch.zeros(0, 32, 32, dtype=torch.bool)]
    masks[0][0, 8:16, 8:24] = True
    batch = flat(0.2, boxes=boxes, box_labels=labels, box_masks=masks)
    pixels = drawn(batch, classes=["circle", "cross"])
    edge = np.argwhere((np.abs(pixels - np.array(palette(2)[1])) <= 2).all(-1))
    assert np.ptp(edge[:, 0]) == 48 and np.ptp(edge[:, 1]) == 96  # 8 and 16 pixels, six times as large
    tint = tuple(round((51 + channel) / 2) for channel in palette(2)[1])
    assert share(pixels, tint) > 0.8 * 48 * 96


def words_under(monkeypatch: pytest.MonkeyPatch, batch: Batch, settings: RunConfig, **meta: Any) -> list[str]:
    """The lines of the figure."""
    lines: list[str] = []

    def keep(cells: Any, columns: int, head: Any = (), width: int = 0) -> Image.Image:
        lines.extend(line.text for line in head)
        lines.extend(line.text for cell in cells for line in cell.lines)
        return Image.new("RGB", (1, 1))

    monkeypatch.setattr("vlbeit.batch_picture.figure", keep)
    assert draw_batch(batch, settings, meta) is not None
    return lines


def test_labels_answers_and_texts_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = train_wordpiece(lambda: ["a red cross and a blue circle"] * 5, 100, 40)
    ids = tokenizer("a red cross")
    masked = [token if place != 2 else tokenizer.mask_id for place, token in enumerate(ids)]
    batch = flat(
        0.2,
        label=torch.tensor([1, 7]),
        target=torch.tensor([[0.0, 1.0, 0.3], [0.0, 0.0, 0.0]]),
        text_ids=torch.tensor([ids, ids]),
        text_keep=torch.ones(2, len(ids), dtype=torch.bool),
        mlm_ids=torch.tensor([masked, ids]),
    )
    meta = {"classes": ["circle", "cross"], "answers": ["no", "yes", "two"], "tokenizer": tokenizer.to_json()}
    lines = words_under(monkeypatch, batch, config(), **meta)
    assert "cross" in lines and "7" in lines
    assert "yes (1.0), two (0.3)" in lines and "no known answer" in lines
    assert lines.count("a red cross") == 2
    assert "masked: a [MASK] cross" in lines and "masked: a red cross" in lines


def test_what_it_cannot_show_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    task = compose(["task=classification", "stage=mim", "data.image_size=32", "task.mixup=0.8", "task.cutmix=0"]).config
    batch = flat(0.2, label=torch.tensor([0, 1]), bad=["broken.jpg"])
    lines = words_under(monkeypatch, batch, task, classes=["a", "b"])
    assert any("mixed labels are not shown" in line for line in lines)
    assert any("broken.jpg" in line for line in lines)
    plain = replace(task, task=replace(task.task, mixup=0.0))
    assert not any("mixed" in line for line in words_under(monkeypatch, batch, plain, classes=["a", "b"]))


@pytest.mark.parametrize("batch", [{"sample_id": ["a"]}, {"sample_id": ["a"], "image": torch.zeros(1, 6, 8, 8)}])
def test_nothing_to_draw_is_no_picture(batch: Batch) -> None:
    assert draw_batch(batch, config(), {}) is None


def test_at_most_sixteen_are_drawn() -> None:
    batch = {"sample_id": [str(n) for n in range(20)], "image": torch.full((20, 3, 32, 32), -0.6)}
    assert share(drawn(batch), (51, 51, 51), 0) == about(16 * 192 * 192)


def test_large_pictures_are_reduced() -> None:
    batch = {"sample_id": ["a"], "image": torch.full((1, 3, 600, 300), -0.6)}
    assert share(drawn(batch), (51, 51, 51), 0) == about(384 * 192)


def test_every_run_has_one(chain: Path) -> None:
    for name in ("tokenizer", "mim", "mlm", "vl", "vl-vqa", "mim-classification"):
        with Image.open(chain / "runs" / name / "batch0.png") as image:
            assert image.format == "PNG" and min(image.size) > 150, name
    with Image.open(chain / "runs/mim/batch0.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    # at 48 pixels up to 3 of 9 patches of 64x64 pixels are masked, in each of 8 pictures
    grey = share(pixels, (GREY, GREY, GREY), 0)
    patches = round(grey / 64**2)
    assert grey == about(patches * 64**2) and 8 <= patches <= 24


def digest(run: Path) -> str:
    return hashlib.sha256((run / "checkpoint/model.safetensors").read_bytes()).hexdigest()


@pytest.fixture
def mim_words(scenes: Path, chain: Path, again: dict[str, list[str]]) -> list[str]:
    return [*again["mim"], f"stage.tokenizer={chain}/runs/tokenizer"]


def test_drawing_changes_nothing_and_overwrite_draws_anew(
    chain: Path,
    mim_words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["train", *mim_words, f"run={tmp_path}/without"]
    monkeypatch.setattr(launch, "_draw_first_batch", lambda *parts: None)
    assert main(words) == 0
    assert "batch0.png" not in capsys.readouterr().out and not (tmp_path / "without/batch0.png").exists()
    assert digest(tmp_path / "without") == digest(chain / "runs/mim")
    monkeypatch.undo()
    assert main([*words, "overwrite=true"]) == 0
    assert "evaluation.json, batch0.png" in capsys.readouterr().out
    assert (tmp_path / "without/batch0.png").read_bytes() == (chain / "runs/mim/batch0.png").read_bytes()
    assert digest(tmp_path / "without") == digest(chain / "runs/mim")


def test_a_picture_that_cannot_be_drawn_is_one_line(
    mim_words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*parts: Any) -> None:
        raise RuntimeError("no\nfont")

    monkeypatch.setattr(launch, "draw_batch", fail)
    assert main(["train", *mim_words, f"run={tmp_path}/run"]) == 0
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if "batch0.png" in line]
    assert lines == [f"{tmp_path}/run/batch0.png is not drawn (RuntimeError: no font); the run goes on without it"]
    assert "Traceback" not in said.err and "batch0.png" not in said.out
    assert not list((tmp_path / "run").glob("*.png")) and not list((tmp_path / "run").glob(".tmp-*"))
