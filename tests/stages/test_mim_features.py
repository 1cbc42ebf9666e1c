"""Masked image modeling of a frozen teacher's features: the target, and runs that begin, stop and go on."""

from __future__ import annotations

import json
import shutil
from contextlib import chdir
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from vlbeit.cli import main
from vlbeit.errors import UsageError
from vlbeit.models.checkpoint import read_checkpoint
from vlbeit.models.image_tower import ImageTower
from vlbeit.models.teacher import Teacher, read_teacher
from vlbeit.objectives.targets import FeatureTarget, build_target
from vlbeit.stages.mim import MIMSettings


class Means(nn.Module):
    """Means of patches of 8 pixels, by channel."""

    def forward(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(image_BCHW, 8)


def taught(size: tuple[int, int]) -> FeatureTarget:
    target = FeatureTarget(3, size, {"teacher": "timm:x", "weights": "0"})
    target.teach(Teacher(Means(), [0.5, 0.5, 0.5], [0.25, 0.5, 1.0]))
    return target


def test_features_row_by_row_normalised_as_the_teacher_s_pictures() -> None:
    pixels = torch.rand(2, 3, 16, 24)
    features_BNP = taught((16, 24))({"pixels": pixels}, (2, 3))
    own = (pixels - 0.5) / torch.tensor([0.25, 0.5, 1.0])[:, None, None]
    torch.testing.assert_close(features_BNP[1, 4], own[1, :, 8:, 8:16].mean((1, 2)))
    assert features_BNP.shape == (2, 6, 3)


@pytest.mark.parametrize("grid", [(4, 6), (1, 2), (3, 3)])
def test_another_grid_is_resampled(grid: tuple[int, int]) -> None:
    pixels = torch.ones(1, 3, 16, 24) * torch.linspace(0, 1, 24)
    features = taught((16, 24))({"pixels": pixels}, grid)[0].unflatten(0, grid)
    assert features.shape == (*grid, 3) and (features.diff(dim=1) > 0).all(), "brighter to the right, as the picture"
    torch.testing.assert_close(features[0], features[-1])


def test_the_loss_is_the_angle() -> None:
    target = taught((16, 24))
    prediction = torch.tensor([[1.0, 0, 0], [0, 2, 0], [-3, 0, 0]])
    torch.testing.assert_close(target.terms(prediction, torch.tensor([[5.0, 0, 0]] * 3)), torch.tensor([0.0, 1, 2]))
    assert target.correct(prediction, prediction) is None


def test_the_teacher_is_no_part_of_it() -> None:
    target = taught((16, 24))
    assert not target.state_dict() and not list(target.parameters()) and target.view((5, 5)) == (16, 24)
    again = build_target(json.loads(json.dumps(target.describe())))
    assert isinstance(again, FeatureTarget) and again.describe() == target.describe() and again.head_width == 3
    teacher = Teacher(nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(3)), [0.5] * 3, [0.5] * 3).train()
    assert not teacher.network.training and not any(p.requires_grad for p in teacher.parameters())


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    file = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), file)
    return file


def test_features_are_those_of_the_library(weights: Path) -> None:
    teacher = read_teacher(f"timm:test_vit@{weights}", (160, 160))
    network = timm.create_model("test_vit", img_size=160).eval()
    network.load_state_dict(load_file(weights))
    pixels = torch.rand(1, 3, 160, 160)
    facts = network.pretrained_cfg
    own = (pixels - torch.tensor(facts["mean"])[:, None, None]) / torch.tensor(facts["std"])[:, None, None]
    expected = network.forward_features(own)[:, network.num_prefix_tokens :].transpose(1, 2).unflatten(2, (10, 10))
    torch.testing.assert_close(teacher(pixels), expected.detach(), rtol=1e-4, atol=1e-5)


def test_a_run_of_ours_as_teacher(in_chain: Path) -> None:
    teacher = read_teacher("runs/mim", (48, 48))
    tower = ImageTower.from_run("runs/mim")
    pixels = torch.rand(1, 3, 48, 48)
    expected = tower.forward_features((pixels - 0.5) / 0.5)[:, 1:]
    torch.testing.assert_close(teacher(pixels).flatten(2).transpose(1, 2), expected.detach())
    assert read_teacher("runs/mim", (96, 64))(torch.rand(1, 3, 96, 64)).shape[2:] == (6, 4)
    with pytest.raises(UsageError, match=r"stage\.teacher=runs/tokenizer: .*has no image tower"):
        read_teacher("runs/tokenizer", (48, 48))
    with pytest.raises(UsageError, match=r"stage\.teacher=runs/mim: image size 40x48 is not a multiple"):
        read_teacher("runs/mim", (40, 48))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"target": "features"}, "stage.target=features needs stage.teacher"),
        ({"teacher": "timm:test_vit"}, "stage.teacher=timm:test_vit is for stage.target=features, here it is dvae"),
        ({"teacher_size": 96}, "stage.teacher_size is for stage.target=features"),
        ({"target": "clip"}, "is not one of dvae, pixels, features"),
    ],
)
def test_settings_are_checked(settings: dict, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        MIMSettings(name="mim", **settings)


def test_a_tag_may_stand_behind_a_slash() -> None:
    settings = MIMSettings(name="mim", target="features", teacher="open_clip:ViT-B-32/openai")
    assert settings.teacher == "open_clip:ViT-B-32@openai"


def test_a_file_of_weights_is_known_by_its_whole_path_and_named_where_it_is_gone(tmp_path: Path) -> None:
    with chdir(tmp_path):
        settings = MIMSettings(name="mim", target="features", teacher="timm:test_vit@weights.pth")
    assert settings.teacher == f"timm:test_vit@{tmp_path / 'weights.pth'}"
    with pytest.raises(UsageError, match=r"weights\.pth is not there: bring the file back"):
        read_teacher(settings.teacher, (48, 48))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("timm:test_vit@none", "names no weights"),
        ("timm:", "names no weights"),
        ("timm:test_vot@x", "timm has no model test_vot"),
        ("runs/nothing", "runs/nothing: no such run or checkpoint"),
    ],
)
def test_teachers_that_cannot_be_had(name: str, said: str, tmp_path: Path) -> None:
    with chdir(tmp_path), pytest.raises(UsageError, match=said) as told:
        read_teacher(name, (48, 48))
    assert str(told.value).count(f"stage.teacher={name}") == 1


def test_a_run_that_is_broken_off_goes_on_and_ends_the_same(
    again: dict[str, list[str]], weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = shutil.copy(weights, tmp_path / "vit.safetensors")
    common = [*again["mim"], "stage.target=features", f"stage.teacher=timm:test_vit@{file}", "stage.teacher_size=64"]

    def train(run: str, *words: str) -> int:
        return main(["train", *common, f"run={run}", *words])

    with chdir(tmp_path):
        assert train("whole", "steps=3") == 0
        state = read_checkpoint("whole").state
        assert not [name for name in state if "teacher" in name or "network" in name]
        assert not [name for name in load_names("whole") if "teacher" in name or "network" in name]
        assert "mim" in json.loads(Path("whole/evaluation.json").read_text())
        assert train("broken", "steps=2", "optim.schedule=constant") == 0
        assert train("straight", "steps=3", "optim.schedule=constant") == 0
        assert train("broken", "steps=3", "optim.schedule=constant") == 0
        ends = [read_checkpoint(run).state for run in ("broken", "straight")]
        assert ends[0].keys() == ends[1].keys() and all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
        assert main(["evaluate", "whole"]) == 0
        torch.manual_seed(4)
        save_file(timm.create_model("test_vit").state_dict(), file)
        capsys.readouterr()
        assert train("broken", "steps=4", "optim.schedule=constant") == 1
        assert "has other weights than when this run began" in capsys.readouterr().err
        Path(file).unlink()
        assert train("broken", "steps=4", "optim.schedule=constant") == 2
        assert f"stage.teacher=timm:test_vit@{file}: " in capsys.readouterr().err
        assert main(["train", *again["mim-classification"], "init=whole", "run=fine"]) == 0, "the teacher is not needed"


def load_names(run: str) -> list[str]:
    """Names of all tensors that a run's saved states hold."""
    found: list[str] = []
    for file in Path(run, "state").rglob("*.safetensors"):
        found += load_file(file).keys()
    assert found
    return found
