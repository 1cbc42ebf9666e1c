"""The chain of runs on the built-in data: what each stage trains, what goes from run to run, what a run gives."""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

import vlbeit
from vlbeit import chain as chaining
from vlbeit import compose, inference, launch
from vlbeit.cli import main
from vlbeit.config import RunConfig, Settings
from vlbeit.data.loader import EvalLoader, TrainLoader
from vlbeit.data.records import ListRecords
from vlbeit.data.sources import open_records
from vlbeit.engine.evaluate import run_evaluators
from vlbeit.engine.folder import RunFolder
from vlbeit.engine.optim import build_optimizer
from vlbeit.errors import UsageError
from vlbeit.inference import Trained
from vlbeit.models.checkpoint import read_checkpoint
from vlbeit.objectives.base import Objective
from vlbeit.types import DataSpec, Layout

RUNS = ("tokenizer", "mim", "mlm", "vl", "vl-vqa", "mim-classification")


def one_batch(run: Trained, size: int = 8) -> dict:
    """A training batch of the run's own data."""
    config, meta = run.config, run.checkpoint.meta
    spec = run.recipe.data(open_records(config.data, run.recipe.kind, "train"), meta, train=True)
    loader = TrainLoader(spec, seed=0, global_batch_size=size, micro_batch_size=size, workers=0, max_bad_fraction=0.0)
    return next(loader.steps(0, 1))[0]


def total(objective: Objective, batch: dict) -> torch.Tensor:
    torch.manual_seed(0)  # the same negatives and noise every time
    return torch.stack(list(objective(batch, objective.counts(batch)).losses.values())).sum()


@pytest.mark.parametrize("name", RUNS)
def test_every_trainable_parameter_gets_a_gradient(in_chain: Path, name: str) -> None:
    run = Trained(f"runs/{name}")
    total(run.objective.train(), one_batch(run)).backward()
    without = [n for n, p in run.objective.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    dead = [n for n, p in run.objective.named_parameters() if p.requires_grad and not p.grad.abs().sum() > 0]
    # position rows that no pass of this stage reads; a gradient of zero, so that DDP is content
    assert [n for n in dead if not n.startswith("encoder.rel_pos.")] == []


@pytest.mark.parametrize("name", RUNS)
def test_one_batch_is_learned(in_chain: Path, name: str) -> None:
    run = Trained(f"runs/{name}")
    objective, batch = run.objective.train(), one_batch(run, size=4)
    first = total(objective, batch).item()
    optim = compose.replace(run.config.optim, lr=3e-3, layer_decay=1.0, head_lr_scale=1.0)
    optimizer = build_optimizer(run.recipe.param_groups(objective, optim), optim)
    if name == "mim-classification":
        objective.mixup = None  # mixed pictures are new at every step
    for _ in range(120 if name == "vl" else 60):
        loss = total(objective, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < LEARNED[name] * first


LEARNED = {"tokenizer": 0.9, "mim": 0.3, "mlm": 0.5, "vl": 0.5, "vl-vqa": 0.3, "mim-classification": 0.8}


def test_image_pass_of_vl_at_step_0_is_the_mim_run(in_chain: Path) -> None:
    """mim -> vl adds text and fused experts and changes nothing of the image pass, to the bit."""
    from vlbeit.launch import _start

    mim = vlbeit.load("runs/mim")
    config = compose.override(Trained("runs/vl").config, ["init=runs/mim"])
    recipe = chaining.recipe_of(config)
    meta = read_checkpoint("runs/vl").meta
    objective = recipe.objective(meta).eval()
    _start(recipe, objective, read_checkpoint("runs/mim"), meta)
    image = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        vl = objective.encoder(objective.encoder.embed_image(image))
    assert torch.equal(vl.x_BLD, mim.encode(image=image).x_BLD)


def test_text_stage_leaves_the_image_pass_alone(in_chain: Path) -> None:
    mim, mlm = (load_file(f"runs/{name}/checkpoint/model.safetensors") for name in ("mim", "mlm"))
    for name, value in mim.items():
        if name.startswith("encoder.") and not name.startswith(("encoder.rel_pos", "encoder.norm", "encoder.mask")):
            assert torch.equal(value, mlm[name]), name
    for layer in range(3):
        assert torch.equal(mim["encoder.rel_pos.0.image"], mlm[f"encoder.rel_pos.{layer}.image"])


def test_tokenizer_travels(in_chain: Path) -> None:
    assert read_checkpoint("runs/mlm").meta["tokenizer"] == read_checkpoint("runs/vl-vqa").meta["tokenizer"]
    mim, tokenizer = (load_file(f"runs/{name}/checkpoint/model.safetensors") for name in ("mim", "tokenizer"))
    for name, value in tokenizer.items():
        if name.startswith("dvae."):
            assert torch.equal(value, mim[f"target.{name}"])


def test_load_and_encode(in_chain: Path) -> None:
    model = vlbeit.load("runs/vl-vqa")
    image, ids = torch.randn(2, 3, 48, 48), torch.randint(5, 20, (2, 6))
    assert [len(model.encode(**given).spans) for given in ({"image": image}, {"text_ids": ids})] == [1, 1]
    both = model.encode(image=image, text_ids=ids, text_keep=torch.ones(2, 6))
    assert [span.modality for span in both.spans] == ["text", "image"]
    assert set(model.heads) == {"pooler", "answer"} and model.meta["answers"]
    with pytest.raises(ValueError, match="needs an image"):
        model.encode()


@pytest.mark.parametrize(
    ("batch", "micro", "expected"),
    [(1024, "auto", 64), (1024, 64, 64), (1024, 32, 64), (16, 16, 16), (64, 2, 4), (64, 1, 2), (1, 1, 1)],
)
def test_evaluation_needs_no_more_memory_than_training(batch: int, micro: int | str, expected: int) -> None:
    def size(**task: Settings) -> int:
        stage = Settings(name="vl")
        config = RunConfig(stage=stage, **task, global_batch_size=batch, micro_batch_size=micro)
        return launch.eval_loader(config, DataSpec(ListRecords([]), dict, list)).batch_size

    assert size(task=Settings(name="vqa")) == expected
    assert size() == min(64, batch)  # contrast is measured within a batch: the same on every machine


def test_a_run_is_evaluated_in_batches_of_its_size(
    again: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In training by the micro-batch that was settled; later by the one that is typed."""
    sizes: list[int] = []

    def counting(model: Any, loader: EvalLoader, *others: Any) -> dict[str, float]:
        sizes.append(loader.batch_size)
        return run_evaluators(model, loader, *others)

    monkeypatch.setattr(launch, "run_evaluators", counting)
    monkeypatch.setattr(inference, "run_evaluators", counting)
    monkeypatch.setattr(launch, "probe_micro_batch", lambda *_: 2)
    words = [word for word in again["mim-classification"] if not word.startswith("micro_batch_size=")]
    with chdir(tmp_path):
        assert main(["train", *words, "init=none", "micro_batch_size=auto", "run=cut"]) == 0
        assert main(["evaluate", "cut"]) == 0
        assert main(["evaluate", "cut", "micro_batch_size=1"]) == 0
    assert sizes[-3:] == [4, 4, 2]


def test_evaluate(in_chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "runs/vl-vqa"]) == 0
    printed = capsys.readouterr().out
    assert "replaced" not in printed and "wrote runs/vl-vqa/evaluation.json, runs/vl-vqa/vqa_details.json\n" in printed
    numbers = json.loads(Path("runs/vl-vqa/evaluation.json").read_text())
    assert {"overall", "yes/no", "number", "other", "questions", "blind"} <= numbers.keys()
    assert numbers["questions"] == 24 and 0 < numbers["blind"] <= 100
    assert all(f"{name} " in printed for name in ("overall", "blind"))
    low, high = numbers["interval"]["overall"]
    assert low <= numbers["overall"] <= high and numbers["interval_over"] == "questions"
    found = numbers["breakdown"]
    assert sum(entry["questions"] for entry in found["question_type"].values()) == 24
    assert list(found["baselines"]) == ["majority", "question_only", "blank", "shuffled"]
    assert found["baselines"]["question_only"]["accuracy"] == numbers["blind"]
    assert numbers["perAnswerType"] == {name: entry["accuracy"] for name, entry in found["answer_type"].items()}
    assert all(f"\n{name} " in printed for name in ("answer type", "question type", "to compare with"))
    assert main(["evaluate", "runs/vl-vqa", "task.controls=false", "data.workers=1"]) == 0  # no other evaluation
    again = json.loads(Path("runs/vl-vqa/evaluation.json").read_text())
    assert list(again["breakdown"].pop("baselines")) == ["majority", "question_only"] != found.pop("baselines")
    assert again == numbers


def test_what_was_found_is_kept_when_a_control_is_stopped(
    in_chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree("runs/vl-vqa", tmp_path / "one")
    seen = []

    def stopped(*arguments: Any) -> dict[str, float]:
        seen.append(1)
        if len(seen) > 1:
            raise KeyboardInterrupt
        return run_evaluators(*arguments)

    monkeypatch.setattr(inference, "run_evaluators", stopped)
    assert main(["evaluate", str(tmp_path / "one")]) == 130
    numbers = json.loads((tmp_path / "one/evaluation.json").read_text())
    assert list(numbers["breakdown"]["baselines"]) == ["majority", "question_only"] and numbers["interval"]
    assert len(json.loads((tmp_path / "one/vqa_details.json").read_text())) == numbers["questions"]


def test_compare_and_runs(in_chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        shutil.copytree("runs/vl-vqa", tmp_path / "runs" / name)
    in_training = json.loads(Path("runs/vl-vqa/evaluation.json").read_text()) | {"step": 2}
    in_training.pop("interval", None)
    (tmp_path / "runs/two/evaluation.json").write_text(json.dumps(in_training))
    with chdir(tmp_path):
        assert main(["evaluate", "runs/one", "task.controls=false"]) == 0
        capsys.readouterr()
        assert main(["compare", "runs/one", "runs/two"]) == 1
        assert "runs/two/evaluation.json was written in training" in capsys.readouterr().err
        assert main(["evaluate", "runs/two", "task.controls=false", "data.limit=20"]) == 0
        capsys.readouterr()
        assert main(["compare", "runs/one", "runs/two/evaluation-scenes-val.json"]) == 2
        assert "different data (runs/one: 24 of scenes; runs/two" in capsys.readouterr().err
        assert main(["compare", "runs/one", "runs/one", "--json"]) == 0
        rows = json.loads(capsys.readouterr().out)["rows"]
        assert rows[0]["samples"] == rows[0]["equal"] == 24 and {row["of"] for row in rows} > {"all", "yes/no"}
        assert main(["runs", "--json"]) == 0
        one, two = json.loads(capsys.readouterr().out)
        assert one["metric"] == two["metric"] == "overall" and one["value"] == two["value"]
        assert one["interval"] and two["interval"] is None and (one["task"], one["tower"]) == ("vqa", "vl tiny")
        assert (one["step"], one["samples"], one["device"]) == (2, 16, "cpu") and one["seconds"] > 0


def test_evaluate_of_other_data_makes_none(in_chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = Path("runs/vl-vqa/evaluation.json").read_bytes()
    assert main(["evaluate", "runs/vl-vqa", f"data.root={tmp_path / 'typo'}"]) == 1
    assert f"data.root={tmp_path / 'typo'}" in capsys.readouterr().err and not (tmp_path / "typo").exists()
    assert main(["evaluate", "runs/vl-vqa", "data.val_split=train"]) == 0
    wrote = "wrote runs/vl-vqa/evaluation-scenes-train.json, runs/vl-vqa/vqa_details-scenes-train.json\n"
    assert wrote in capsys.readouterr().out
    assert main(["evaluate", "runs/vl-vqa", "task.targets=normalized"]) == 0
    assert "replaced" not in capsys.readouterr().out
    assert main(["evaluate", "runs/vl-vqa", "task.targets=normalized"]) == 0
    assert "wrote runs/vl-vqa/evaluation-changed.json (replaced), " in capsys.readouterr().out
    changed = json.loads(Path("runs/vl-vqa/evaluation-changed.json").read_text())
    assert changed["words"] == ["task.targets=normalized"]
    assert Path("runs/vl-vqa/evaluation.json").read_bytes() == before
    for suffix in ("-scenes-train", "-changed"):
        for name in ("evaluation", "vqa_details"):
            Path(f"runs/vl-vqa/{name}{suffix}.json").unlink()


def test_mim_reports_the_variational_terms(in_chain: Path) -> None:
    numbers = json.loads(Path("runs/mim/evaluation.json").read_text())
    assert {"mim", "accuracy", "elbo_reconstruction", "elbo_kl"} <= numbers.keys()
    assert numbers["elbo_kl"] > 0


def test_predict(in_chain: Path, scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = str(next((scenes / "val2014").glob("*.jpg")))
    capsys.readouterr()
    assert main(["predict", "runs/vl-vqa", picture, "how many red circles are there?", "--json", "--top", "3"]) == 0
    answers = json.loads(capsys.readouterr().out)
    assert len(answers) == 3 and answers == sorted(answers, key=lambda a: -a["probability"])
    assert (
        vlbeit.pipeline("runs/vl-vqa")(picture, "how many red circles are there?", top=1)[0][0] == answers[0]["answer"]
    )
    assert main(["predict", "runs/vl-vqa", picture]) == 2
    assert main(["predict", "runs/mim", picture]) == 2
    assert "train a task on it" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, expected",
    [
        (["stage=mim"], ["tokenizer", "mim"]),
        (["stage=vl", "task=vqa"], ["tokenizer", "mim", "mlm", "vl", "vl-vqa"]),
        (["stage=mim", "task=vqa"], ["tokenizer", "mim", "mim-vqa"]),
        (["stage=vl", "task=nlvr2"], ["tokenizer", "mim", "mlm", "vl", "vl-vqa", "vl-nlvr2"]),
        (["stage=mim", "task=nlvr2"], ["tokenizer", "mim", "mim-nlvr2"]),
        (["stage=vl", "task=classification"], ["tokenizer", "mim", "mlm", "vl", "vl-classification"]),
    ],
    ids=" ".join,
)
def test_a_command_alone_makes_what_is_missing(
    words: list[str], expected: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With the shipped recipes: data first, then every run in order, each with a config of its own."""
    monkeypatch.chdir(tmp_path)
    done: list[str] = []
    monkeypatch.setattr(launch, "_run", lambda config, *_: done.append(config.title))
    monkeypatch.setattr(chaining, "ensure_data", lambda config: done.append("data"))
    assert main(["train", *words]) == 0
    assert done == ["data", *expected]


@pytest.mark.parametrize(
    "words",
    [["task=segmentation"], ["stage=vl", "task=detection"], ["stage=vl", "task=vqa"], ["task=vqa", "recipe=none"]],
)
def test_runs_before_are_made_as_they_would_be_alone(
    words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What the recipe of the asked run brings, such as pictures of 96 pixels, is not for them."""
    monkeypatch.chdir(tmp_path)
    before = chaining.missing_runs(compose.compose(words).config, words)
    assert {"tokenizer", "mim"} <= {each.title for each in before}
    if "recipe=none" not in words:
        alone = [compose.compose([f"stage={each.title}"]).config for each in before]
        pairs = zip(before, alone, strict=True)
        assert [key for pair in pairs for key in compose.differing_keys(*pair, ignore=())] == []
    assert {each.data.image_size for each in before} == {48}


def test_typed_words_hold_for_the_runs_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["task=segmentation", "data.image_size=64", "data.workers=0", "seed=3", "device=cpu", "steps=7"]
    before = chaining.missing_runs(compose.compose(words).config, words)
    assert {(each.data.image_size, each.data.workers, each.seed, each.device) for each in before} == {(64, 0, 3, "cpu")}
    assert 7 not in {each.steps for each in before}


def test_auto_micro_batch_is_settled_once(in_chain: Path, again: dict, tmp_path: Path, monkeypatch) -> None:
    """Contrast sees a micro-batch of every process: `auto` keeps what the run was last trained with.

    A start with another size that was killed before its first step counts for nothing.
    """
    words = [word for word in again["tokenizer"] if not word.startswith("micro_batch_size")]
    run = RunFolder(tmp_path / "run")
    words = ["train", *words, "micro_batch_size=auto", f"run={run.path}"]
    assert main(words) == 0
    assert run.stored_config()["micro_batch_size"] == 8 and run.stored_split() == (1, 8)
    run.environment_file.write_text('{"processes": 2, "micro_batch_size": 1}')
    with monkeypatch.context() as killed, pytest.raises(SystemExit):
        killed.setattr(launch, "_draw_first_batch", lambda *_: sys.exit())
        main([*words, "micro_batch_size=4", "steps=3"])
    assert run.stored_config()["micro_batch_size"] == 4, "the start got as far as the folder"
    assert main([*words, "steps=3"]) == 0
    assert run.stored_split() == (1, 2)


@pytest.mark.parametrize("words", [["stage=vl"], ["task=retrieval", "stage=mim", "task.cache_gradients=false"]])
def test_a_micro_batch_of_one_pair_is_refused(words: list[str], again: dict, tmp_path: Path, capsys, monkeypatch):
    """`auto` may find that no more fits: what is compared is then told, before anything is written."""
    monkeypatch.setattr(launch, "probe_micro_batch", lambda *_: 1)
    small = [word for word in again["vl"] if not word.startswith(("stage=", "micro_batch_size="))]
    with chdir(tmp_path):
        assert main(["train", *words, *small, "init=none", "micro_batch_size=auto", "run=run"]) == 2
    said = capsys.readouterr().err
    assert "at least 2, not 8 and 1: " in said
    assert f"with {words[0].partition('=')[0]}.cache_gradients=true they come from" in said
    assert not (tmp_path / "run").exists()


GRIDS = DataSpec(ListRecords([]), dict, list, layout=Layout(grids=[(2, 3)]))


@pytest.mark.parametrize(("asked", "processes", "found"), [("auto", 1, 2), (2, 1, 2), ("auto", 2, 2), ("auto", 4, 2)])
def test_with_grids_the_micro_batch_stays(asked, processes, found, tmp_path: Path, monkeypatch, capsys) -> None:
    assert settled(tmp_path, monkeypatch, asked, processes) == found
    assert ("was trained with 2 x 2 samples at a time" in capsys.readouterr().out) is (processes != 2)


@pytest.mark.parametrize(("asked", "processes"), [(4, 1), (1, 1), ("auto", 8)])
def test_with_grids_another_micro_batch_is_refused(asked, processes, tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(UsageError, match=r"was trained with micro_batch_size=2, on which the order .* Give that one"):
        settled(tmp_path, monkeypatch, asked, processes)


def test_before_its_first_state_a_run_with_grids_may_change(tmp_path: Path, monkeypatch) -> None:
    assert settled(tmp_path, monkeypatch, 4, 1, state=False) == 4


def settled(path: Path, monkeypatch, asked: int | str, processes: int, *, state: bool = True) -> int:
    """The micro-batch of a run with pictures of many grids that two processes began with 2 samples at a time each."""
    run = RunFolder(path)
    run.environment_file.write_text('{"processes": 2, "micro_batch_size": 2}')
    if state:
        run.save_state(3, lambda folder: None)
    monkeypatch.setattr("vlbeit.dist.world_size", lambda: processes)
    config = RunConfig(stage=Settings(name="vl"), global_batch_size=8, micro_batch_size=asked)
    return launch._settle_micro_batch(config, run, GRIDS, None, Accelerator(cpu=True))


def test_finished_run_says_so(in_chain: Path, again: dict, capsys: pytest.CaptureFixture[str]) -> None:
    before = Path("runs/mlm/checkpoint/config.json").read_bytes()
    assert main(["train", *again["mlm"]]) == 0
    assert "runs/mlm is finished: 2 steps" in capsys.readouterr().out
    assert Path("runs/mlm/checkpoint/config.json").read_bytes() == before
