"""Masked image modeling with published tokenizers: from the command line, and as a run that is loaded again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from types import ModuleType

import pytest
import torch

import vlbeit
from vlbeit import compose
from vlbeit.cli import main
from vlbeit.inference import Trained
from vlbeit.models import checkpoint, foreign
from vlbeit.models.checkpoint import read_checkpoint, save_checkpoint
from vlbeit.models.dvae import DVAE
from vlbeit.models.tokenizer_kinds import build_tokenizer

GRID = 3  # patches of the built-in data's pictures a side: 48 pixels, patches of 16


ALL = {"elbo_reconstruction", "elbo_kl", "elbo_l1"}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def train(again: dict[str, list[str]], run: Path) -> Callable[[Path], int]:
    """Train `run` with a tokenizer; gives the exit code."""

    def exit_code(tokenizer: Path) -> int:
        with chdir(run.parent):
            return main(["train", *again["mim"], f"stage.tokenizer={tokenizer}", f"run={run}"])

    return exit_code


@pytest.mark.parametrize(
    ("make", "measured", "said"),
    [
        ("vqkd_file", set(), "leaves out every elbo_ number"),
        ("vqkd_checkpoint", set(), "leaves out every elbo_ number"),
        ("dalle_file", {"elbo_kl"}, "leaves out elbo_reconstruction and elbo_l1"),
        ("dalle_folder", ALL, ""),
        ("flava_folder", {"elbo_kl"}, "leaves out elbo_reconstruction and elbo_l1"),
    ],
)
def test_a_run_with_a_published_tokenizer(
    make: str,
    measured: set,
    said: str,
    train: Callable,
    run: Path,
    tokenizer_files: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    source = getattr(tokenizer_files, make)(tmp_path)
    found = read_checkpoint(source)
    assert train(source) == 0
    shown = capsys.readouterr()
    assert said in shown.out + shown.err and ("leaves out" in shown.out + shown.err) == bool(said)
    numbers = json.loads((run / "evaluation.json").read_text())
    assert {name for name in numbers if name.startswith("elbo")} == measured and 0 <= numbers["accuracy"] <= 1

    source.rename(tmp_path / "gone")  # the run carries its tokenizer along
    tokenizer = build_tokenizer(found.description)
    tokenizer.load_state_dict({name.partition(".")[2]: value for name, value in found.state.items()})
    tokenizer.eval()
    again, pixels_BCHW = vlbeit.load(run), torch.rand(2, 3, 24, 24)
    assert again.image_tokenizer is not None and again.image_tokenizer.describe() == tokenizer.describe()
    assert torch.equal(again.image_tokenizer.tokens(pixels_BCHW), tokenizer.tokens(pixels_BCHW))
    assert again.heads.specs["masked_patch"]["dim_out"] == tokenizer.spec.vocab_size
    assert again.encode(image=torch.rand(2, 3, 48, 48)).x_BLD.shape == (2, 1 + GRID**2, 32)
    target = Trained(run).objective.target
    assert torch.equal(target({"pixels": pixels_BCHW}, (GRID, GRID)), tokenizer.tokens(pixels_BCHW).flatten(1))


@pytest.mark.parametrize("make", ["vqkd_file", "vqkd_checkpoint", "dalle_folder"])
def test_the_tokenizer_s_weights_are_read_once(
    make: str, train: Callable, tokenizer_files: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Path] = []
    for module, name in ((foreign, "_weights"), (checkpoint, "load_file")):
        reader = getattr(module, name)
        monkeypatch.setattr(module, name, lambda path, *more, reader=reader: reads.append(path) or reader(path, *more))
    source = getattr(tokenizer_files, make)(tmp_path)
    assert train(source) == 0
    assert len([path for path in reads if path.is_relative_to(source)]) == 1 and not foreign._waiting


def test_the_stage_s_own_runs_load_as_before(in_chain: Path) -> None:
    for run in ("runs/tokenizer", "runs/mim"):
        assert isinstance(vlbeit.load(run).image_tokenizer, DVAE)
    assert vlbeit.load("runs/mlm").image_tokenizer is None


def test_view_is_resized_as_the_tokenizer_s_paper_has_it(
    in_chain: Path, train: Callable, run: Path, tokenizer_files: ModuleType, tmp_path: Path
) -> None:
    assert train(tokenizer_files.vqkd_file(tmp_path)) == 0
    for path, expected in (("runs/mim", "lanczos"), (run, "bicubic")):
        trained = Trained(path)
        views = trained.recipe.data([], trained.checkpoint.meta, train=True).transform.views
        assert views.second_interpolation.value == expected and views.second_size == (24, 24)


def test_a_grid_that_does_not_fit_is_refused_before_any_work(
    train: Callable, run: Path, tokenizer_files: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    torch.save(tokenizer_files.vqkd_weights(side=4), tmp_path / "vqkd.pth")
    assert train(tmp_path / "vqkd.pth") == 2
    assert "the VQ-KD tokenizer makes 4x4 tokens of 32x32 pixels, 3x3 of 24x24 are needed" in capsys.readouterr().err
    assert not run.exists()


@pytest.mark.parametrize(("side", "size"), [(3, "48"), (14, "224")])
def test_a_converted_tokenizer_comes_with_a_training_that_it_fits(
    tokenizer_files: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture, side: int, size: str
) -> None:
    torch.save(tokenizer_files.vqkd_weights(side=side), tmp_path / "vqkd.pth")
    assert main(["convert", str(tmp_path / "vqkd.pth"), str(tmp_path / "out")]) == 0
    words = shlex.split(capsys.readouterr().out.rpartition("next: ")[2])
    assert words[:2] == ["vlbeit", "train"] and f"data.image_size={size}" in words
    config = compose.compose(words[2:]).config
    tokenizer = build_tokenizer(read_checkpoint(tmp_path / "out").description)
    grid = tuple(pixels // config.model.patch_size for pixels in config.data.size)
    assert tokenizer.grid(*(patches * 8 for patches in grid)) == grid


def test_what_is_no_tokenizer_is_refused(
    in_chain: Path, train: Callable, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def refused(path: Path, code: int, message: str) -> None:
        assert train(path) == code and message in capsys.readouterr().err and not run.exists()

    mim = in_chain / "runs" / "mim"
    refused(mim, 2, "is a run of stage=mim; a run of stage=tokenizer is needed")
    refused(tmp_path / "missing.pth", 2, "missing.pth is missing")
    torch.save({"module.weight": torch.zeros(2)}, tmp_path / "other.pth")
    refused(tmp_path / "other.pth", 1, "not a BEiT, VLMo or image tokenizer checkpoint")
    encoder = read_checkpoint(mim)
    description = {name: encoder.description[name] for name in ("encoder", "heads")}
    save_checkpoint(tmp_path / "beit", encoder.state, description, {}, {})
    refused(tmp_path / "beit", 2, "is no tokenizer: name a run of stage=tokenizer, or published weights")
