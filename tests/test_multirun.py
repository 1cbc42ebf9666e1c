"""`--multirun`: words for a queue, and jobs as submitit runs them (here in this process, by its debug executor)."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from vlbeit import launch, multirun
from vlbeit.cli import main
from vlbeit.errors import Interrupted, UsageError

WORDS = ("stage=mim", "stage.target=pixels", "optim.lr=1e-3,3e-4")
QUEUE = "hydra/launcher=submitit_slurm"


def test_words_without_a_queue():
    assert multirun.split(WORDS) == (multirun.Launcher("basic", {}), list(WORDS))
    assert multirun.split([*WORDS, "hydra/launcher=basic"])[1] == list(WORDS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["hydra/launcher=joblib"], "hydra/launcher=joblib is not one of basic, submitit_local, submitit_slurm"),
        (["hydra.launcher.partition=gpu"], "hydra.launcher.partition=gpu: settings of a launcher need hydra/launcher="),
    ],
)
def test_words_that_cannot_be(words, message):
    with pytest.raises(UsageError, match=message):
        multirun.split([*WORDS, *words])


def test_a_queue_needs_multirun(capsys):
    assert main(["train", QUEUE, "stage=mim"]) == 2
    assert "hydra/launcher=submitit_slurm: runs go into a queue with --multirun" in capsys.readouterr().err


@pytest.fixture
def submitit():
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason='needs pip install "vlbeit[slurm]"')
    return pytest.importorskip("submitit")


def test_settings_of_the_plug_in(submitit):
    given = [
        QUEUE,
        "hydra.launcher.partition=gpu",
        "hydra.launcher.timeout_min=90",
        "hydra.launcher.additional_parameters={mail-user:x}",
    ]
    launcher, rest = multirun.split([given[0], *WORDS, *given[1:]])
    assert rest == list(WORDS) and launcher.name == "submitit_slurm"
    found = launcher.settings
    assert (found["partition"], found["timeout_min"], found["tasks_per_node"]) == ("gpu", 90, 1)
    assert found["additional_parameters"] == {"mail-user": "x"} and found["submitit_folder"] == multirun.FOLDER
    assert found["max_num_timeout"] == multirun.OFTEN and "qos" not in found
    with pytest.raises(UsageError, match=r"did you mean hydra\.launcher\.partition"):
        multirun.split([QUEUE, "hydra.launcher.partitoin=gpu"])
    with pytest.raises(UsageError, match=r"hydra\.launcher\.timeout_min=soon: "):
        multirun.split([QUEUE, "hydra.launcher.timeout_min=soon"])


def test_no_slurm_here(submitit, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["train", "--multirun", QUEUE, *WORDS]) == 2
    assert "error: hydra/launcher=submitit_slurm: " in capsys.readouterr().err


@pytest.fixture
def trained(submitit, tmp_path, monkeypatch) -> list[tuple]:
    """What the jobs gave to `launch.train`; they run in this process."""
    seen: list[tuple] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(multirun, "_executor", lambda _: submitit.AutoExecutor(folder="jobs", cluster="debug"))
    monkeypatch.setattr(launch, "train", lambda config, *rest: seen.append((config, *rest)))
    monkeypatch.setattr(submitit, "JobEnvironment", Environment)
    return seen


def test_a_job_for_every_combination(trained, capsys):
    words = ["train", "--multirun", "--profile", "3", "hydra/launcher=submitit_local", *WORDS, "seed=0,1"]
    assert main(words) == 0
    runs = [(config.run, config.optim.lr, config.seed, profile) for config, _, _, profile in trained]
    assert [run[1:] for run in runs] == [(lr, seed, 3) for lr in (1e-3, 3e-4) for seed in (0, 1)]
    assert len({run for run, *_ in runs}) == 4
    assert next(command for _, command, _, _ in trained).endswith(f"run={runs[0][0]}")
    said = capsys.readouterr().out
    assert "trained 4 runs\nnext: vlbeit train stage=mlm init=runs/mim-" in said and f"{runs[0][0]}: job " in said


def test_a_job_that_fails(trained, capsys, monkeypatch):
    def failing(config, *_):
        if config.seed:
            raise UsageError("no such folder")

    monkeypatch.setattr(launch, "train", failing)
    assert main(["train", "--multirun", "hydra/launcher=submitit_local", *WORDS[:2], "seed=0,1"]) == 1
    assert "error: 1 of 2 jobs failed: runs/mim-seed1; their logs" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "queued"), [(signal.SIGUSR2, True), (signal.SIGTERM, False)])
def test_a_job_that_is_asked_to_leave(submitit, tmp_path, monkeypatch, number, queued):
    """Once the state is saved, submitit hears of its own signal, which queues the job again; of others it does not."""
    heard = []

    def stopped(*_):
        error = Interrupted("stopped after step 3 of 10")
        error.signal = number
        raise error

    monkeypatch.setattr(launch, "train", stopped)
    monkeypatch.setattr(submitit, "JobEnvironment", Environment)
    listening = signal.signal(signal.SIGUSR2, lambda number, frame: heard.append(number))
    try:
        with pytest.raises(Interrupted):
            multirun.Job(["stage=mim", "run=here"], str(tmp_path))()
    finally:
        signal.signal(signal.SIGUSR2, listening)
    assert heard == [signal.SIGUSR2] * queued
    again = multirun.Job(["stage=mim"], str(tmp_path)).checkpoint()
    assert again.function == multirun.Job(["stage=mim"], str(tmp_path))


class Environment:
    """One task."""

    num_tasks, global_rank = 1, 0

    @staticmethod
    def _usr_sig() -> int:
        return signal.SIGUSR2


@pytest.fixture(autouse=True)
def _same_folder(monkeypatch, tmp_path):
    """A job goes to its folder; the tests after it stay where they were."""
    before = Path.cwd()
    yield
    os.chdir(before)


def sweep(monkeypatch, words, reached):
    """`--multirun` with the words; `reached`: config -> the number of its run, None for one without."""

    def trained(config, *_, alone):
        assert not alone
        run = Path(config.run)
        run.mkdir(parents=True)
        (run / "config.yaml").write_text("stage: {name: vl}\n")
        if (value := reached(config)) is not None:
            (run / "evaluation.json").write_text(json.dumps({"total": value, "step": 2, "metric": "total"}))

    monkeypatch.setattr(launch, "train", trained)
    assert main(["train", "--multirun", *words]) == 0


def test_a_sweep_ends_with_what_each_run_reached(tmp_path, monkeypatch, capsys):
    """The number of a stage is a loss: the lowest is the best."""
    monkeypatch.chdir(tmp_path)
    sweep(monkeypatch, ["stage=vl", "seed=0,1,2"], lambda config: [2.0, 1.5, 3.0][config.seed])
    lines = capsys.readouterr().out.splitlines()
    assert [line[:4] for line in lines[-5:-2]] == ["    ", "best", "    "] and "total 1.5" in lines[-4]
    assert lines[-2] == "trained 3 runs" and lines[-1].startswith("next: ") and "init=runs/vl-seed1" in lines[-1]


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["stage=vl", "stage.mlm_weight=0.01,1"], "stage.mlm_weight"),
        (["stage=vl", "data.val_split=val,test"], "data.val_split"),
        (["stage=vl", "global_batch_size=16,32"], "global_batch_size"),
        (["stage=vl", "task=vqa", "data.root=data/a,data/b"], "data.root"),
    ],
)
def test_what_is_measured_differently_has_no_best(tmp_path, monkeypatch, capsys, words, key):
    monkeypatch.chdir(tmp_path)
    values = iter([1.0, 2.0])
    sweep(monkeypatch, words, lambda config: next(values))
    said = capsys.readouterr().out
    assert "best " not in said.replace("marked best", "") and f"by differs with {key}\n" in said


@pytest.mark.parametrize("words", [["stage=vl", "optim.lr=1e-3,1e-4"], ["task=vqa", "task.min_count=1,2"]])
def test_what_the_measure_does_not_hang_on_has_a_best(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    values = iter([1.0, 2.0])
    sweep(monkeypatch, words, lambda config: next(values))
    assert "\nbest " in capsys.readouterr().out


def test_without_all_numbers_the_last_run_is_followed(tmp_path, monkeypatch, capsys):
    """A run without a number is none to start from for that."""
    monkeypatch.chdir(tmp_path)
    sweep(monkeypatch, ["stage=vl", "seed=0,1,2"], lambda config: 1.0 if config.seed != 1 else None)
    said = capsys.readouterr().out
    assert "best" not in said and "init=runs/vl-seed2" in said.splitlines()[-1]
