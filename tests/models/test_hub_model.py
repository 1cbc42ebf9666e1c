"""A model saved, loaded and pushed: the same to the bit, and a card that says what is recorded and no more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.hf_api import RepoUrl

import vlbeit
from vlbeit.errors import DataError
from vlbeit.models.checkpoint import Model, read_checkpoint, save_checkpoint
from vlbeit.models.dvae import DVAE, DVAESpec
from vlbeit.models.encoder import MoMEEncoder
from vlbeit.models.heads import Heads
from vlbeit.models.spec import EncoderSpec

CONFIG: dict[str, Any] = {
    "stage": {"name": "mim"},
    "task": {"name": "classification", "smoothing": 0.1},
    "model": {"name": "tiny"},
    "data": {"name": "imagefolder", "root": "/home/me/secret", "image_size": 32, "val_split": "val", "limit": None},
    "optim": {"name": "adamw", "lr": 0.001},
    "run": "/home/me/runs/x",
    "epochs": 3,
    "global_batch_size": 64,
    "seed": 7,
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A classification run with its numbers."""
    spec = EncoderSpec(32, 2, 4, image_size=(32, 32), final_norm=False)
    heads = {"classification": {"kind": "classification", "dim": 32, "num_classes": 2}}
    parts = torch.nn.ModuleDict({"encoder": MoMEEncoder(spec), "heads": Heads(heads)})
    description = {"encoder": spec.to_dict(), "heads": heads}
    folder = tmp_path / "runs/x"
    save_checkpoint(folder / "checkpoint", parts.state_dict(), description, CONFIG, {"classes": ["cat", "dog"]})
    (folder / "evaluation.json").write_text(json.dumps({"top1": 0.8125, "top5": None, "split": "val"}))
    return folder


def test_round_trip_is_exact(run: Path, tmp_path: Path) -> None:
    model = vlbeit.load(run)
    assert model.save_pretrained(tmp_path / "shared") == tmp_path / "shared"
    first, again = read_checkpoint(run), read_checkpoint(tmp_path / "shared")
    assert first.state.keys() == again.state.keys()
    assert all(torch.equal(value, again.state[name]) for name, value in first.state.items())
    assert (again.description, again.config, again.meta) == (first.description, first.config, first.meta)
    loaded = Model.from_pretrained(tmp_path / "shared")
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(loaded.encode(image=x).x_BLD, model.encode(image=x).x_BLD)
    assert loaded.evaluation() == {"top1": 0.8125, "top5": None, "split": "val"}


def test_a_tokenizer_that_a_run_carries_is_kept(tmp_path: Path) -> None:
    spec = EncoderSpec(32, 2, 4, image_size=(32, 32), mask_token=True, positions="shared")
    dvae = DVAE(DVAESpec(vocab_size=16, hidden=8))
    heads = {"masked_patch": {"kind": "masked_patch", "dim": 32, "dim_out": 16}}
    parts = {"encoder": MoMEEncoder(spec), "heads": Heads(heads), "target": torch.nn.ModuleDict({"dvae": dvae})}
    target = {"target": "dvae", "dvae": dvae.describe()}
    description = {"encoder": spec.to_dict(), "heads": heads, "target": target}
    save_checkpoint(tmp_path / "run", torch.nn.ModuleDict(parts).state_dict(), description, {}, {"target": target})
    vlbeit.load(tmp_path / "run").save_pretrained(tmp_path / "shared")
    first, again = read_checkpoint(tmp_path / "run"), read_checkpoint(tmp_path / "shared")
    assert (again.description, again.meta) == (first.description, first.meta)
    assert first.state.keys() == again.state.keys()
    assert all(torch.equal(value, again.state[name]) for name, value in first.state.items())


def test_a_changed_model_is_saved_as_it_is(run: Path, tmp_path: Path) -> None:
    model = vlbeit.load(run)
    with torch.no_grad():
        model.encoder.cls_token.fill_(2.5)  # type: ignore[union-attr]
    model.save_pretrained(tmp_path / "shared")
    assert (read_checkpoint(tmp_path / "shared").state["encoder.cls_token"] == 2.5).all()


def test_card_says_what_is_recorded(run: Path, tmp_path: Path) -> None:
    vlbeit.load(run).save_pretrained(tmp_path / "shared")
    card = ModelCard.load(tmp_path / "shared/README.md")
    assert card.data.library_name == "vlbeit" and card.data.pipeline_tag == "image-classification"
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("top1", 0.8125, "imagefolder")
    for line in ("| top1 | 0.8125 |", "| optim.lr | 0.001 |", "| epochs | 3 |", "| task.smoothing | 0.1 |"):
        assert line in card.text
    assert "secret" not in card.content and "/home" not in card.content, "paths stay at home"
    assert "top5" not in card.content and "licen" not in card.content.lower(), "not recorded"


def test_card_without_a_run_invents_nothing(run: Path, tmp_path: Path) -> None:
    found = read_checkpoint(run)
    save_checkpoint(tmp_path / "bare", found.state, found.description, {}, {})
    vlbeit.load(tmp_path / "bare").save_pretrained(tmp_path / "shared")
    card = ModelCard.load(tmp_path / "shared/README.md")
    assert card.data.eval_results is None and card.data.pipeline_tag is None
    assert not any(f"## {title}" in card.text for title in ("Data", "Recipe", "Evaluation"))
    assert not (tmp_path / "shared/evaluation.json").exists()


def test_a_card_that_is_there_stays(run: Path, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/README.md").write_text("mine")
    vlbeit.load(run).save_pretrained(tmp_path / "shared")
    assert (tmp_path / "shared/README.md").read_text() == "mine"


def test_push_uploads_what_loads_again(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded = tmp_path / "uploaded"

    def create(self: HfApi, repo_id: str, **options: Any) -> RepoUrl:
        return RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload(self: HfApi, *, repo_id: str, folder_path: Path, **options: Any) -> str:
        Path(folder_path).rename(uploaded)
        return f"https://huggingface.co/{repo_id}/commit/1"

    monkeypatch.setattr(HfApi, "create_repo", create)
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    url = vlbeit.load(run).push_to_hub("me/beit-tiny")
    assert url == "https://huggingface.co/me/beit-tiny/commit/1"
    assert 'vlbeit.load("me/beit-tiny")' in (uploaded / "README.md").read_text()
    assert Model.from_pretrained(uploaded).meta == {"classes": ["cat", "dog"]}


def test_a_name_that_is_nowhere_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="no folder here"):
        Model.from_pretrained("nobody/nothing", cache_dir=tmp_path, local_files_only=True)
    with pytest.raises(DataError, match="no folder here"):
        Model.from_pretrained("no//name", cache_dir=tmp_path)
