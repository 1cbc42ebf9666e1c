"""A run that was broken off, at whatever moment, ends with the very weights of the unbroken run: the real command line,
real objectives, the built-in data. `tests/engine/test_resume.py` holds the same for the engine alone."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vlbeit import chain, compose, launch
from vlbeit.cli import main
from vlbeit.engine.folder import RunFolder
from vlbeit.engine.loop import Engine

STEPS = 7
# 20 samples, 8 a step in two micro-batches: no epoch ends with a step; saved after 2, 4, 6, 7, evaluated after 3, 6, 7
SETTINGS = (
    "model.embed_dim=32",
    "model.depth=3",
    "model.num_heads=2",
    "model.fused_layers=1",
    "data.workers=0",
    "data.limit=20",
    "global_batch_size=8",
    "micro_batch_size=4",
    f"steps={STEPS}",
    "engine.log_every=1",
    "engine.save_every=2",
    "engine.evaluate_every=3",
)
CASES = {
    "mim": ("stage=mim", "stage.target=pixels"),
    "mim, 2 workers": ("stage=mim", "stage.tokenizer=whole/tokenizer", "data.workers=2", "model.drop_path=0.3"),
    "mlm": ("stage=mlm", "init=none"),
    "mlm, packed": ("stage=mlm", "init=none", "stage.pack=true", "data.limit=70", "data.workers=2"),
    "tokenizer": ("stage=tokenizer", "stage.vocab_size=32", "stage.hidden=8", "micro_batch_size=2"),
    "vl": ("stage=vl", "init=none", "model.drop_path=0.3"),
    "vqa, 2 workers": ("task=vqa", "stage=mim", "init=whole/mim", "task.min_count=1", "data.workers=2"),
    "probe": ("task=probe", "init=none", "data.cache=cache", "task.standardize=true"),
    "classification": ("task=classification", "init=none", "model.drop_path=0.3", "engine.ema_decay=0.5"),
}


@pytest.fixture(scope="module")
def folder(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where all runs of this file lie; the data is there under its default name."""
    root = tmp_path_factory.mktemp("resume")
    (root / "data").mkdir()
    (root / "data" / "scenes").symlink_to(scenes)
    before = os.getcwd()
    os.chdir(root)
    yield root
    os.chdir(before)


def command(case: str, run: str, *words: str) -> list[str]:
    """The words of a case; a later word takes the place of an earlier one."""
    kept = {word.partition("=")[0]: word for word in (*SETTINGS, *CASES[case], *words, f"run={run}")}
    return ["train", *kept.values()]


def results(run: str | Path) -> dict[str, object]:
    """Everything that must not depend on whether a run was broken off."""
    run = Path(run)
    step = json.loads((run / "last.json").read_text())["step"]
    state = run / "state" / f"step-{step:06d}"
    progress = torch.load(state / "progress.pt", weights_only=True)
    optimizer = progress["optimizer"]["state"]
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "step": step,
        "weights": load_file(state / "model.safetensors"),
        "average": load_file(state / "ema.safetensors") if (state / "ema.safetensors").exists() else {},
        "moments": {f"{i}.{k}": v for i, values in optimizer.items() for k, v in values.items()},
        "counters": progress["state"],
        "exported": load_file(run / "checkpoint" / "model.safetensors"),
        "evaluation": json.loads((run / "evaluation.json").read_text()),
        "metrics": [
            {k: v for k, v in line.items() if k not in ("time", "samples_per_second", "speed")} for line in metrics
        ],
        "states": sorted(path.name for path in (run / "state").glob("step-*"))[-2:],
    }


def assert_same(left: object, right: object, where: str = "") -> None:
    assert type(left) is type(right), where
    if isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for name in left:
            assert_same(left[name], right[name], f"{where}/{name}")
    elif isinstance(left, torch.Tensor):
        assert torch.equal(left, right), where
    else:
        assert left == right, where


@pytest.fixture(scope="module")
def unbroken(folder: Path) -> dict[str, dict[str, object]]:
    """Case -> results of the unbroken run, made when first asked for."""

    class Runs(dict):
        def __missing__(self, case: str) -> dict[str, object]:
            for word in CASES[case]:  # what it starts from
                if "=whole/" in word:
                    self[word.rpartition("/")[2]]
            run = f"whole/{case}"
            assert main(command(case, run)) == 0
            self[case] = results(run)
            return self[case]

    return Runs()


@contextmanager
def before_step(step: int, action: Callable[[], object]) -> Iterator[None]:
    """Do something as a step begins."""
    train_step = Engine.train_step

    def acting(self: Engine, micro_batches: list) -> None:
        if self.state.step == step:
            action()
        train_step(self, micro_batches)

    Engine.train_step = acting
    try:
        yield
    finally:
        Engine.train_step = train_step


def killed(words: list[str], step: int) -> None:
    """Run the command in a forked process that kills itself as a step begins."""
    child = os.fork()
    if child == 0:
        with before_step(step, lambda: os.kill(os.getpid(), signal.SIGKILL)):
            os._exit(main(words))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("case", CASES)
def test_killed_at_a_step(folder: Path, unbroken: dict, case: str) -> None:
    """First before anything is saved, then in the middle of the second epoch."""
    whole = unbroken[case]
    words = command(case, f"killed/{case}")
    killed(words, 1)
    assert not Path(f"killed/{case}/last.json").exists()
    killed(words, 5)
    assert json.loads(Path(f"killed/{case}/last.json").read_text())["step"] == 4
    assert main(words) == 0
    assert_same(results(f"killed/{case}"), whole)


def test_killed_at_any_file_operation(folder: Path) -> None:
    """What a kill leaves is what lies there before the next operation: so take a copy before each, and go on from it.

    Two states are saved, the weights for users are written twice.
    """
    words = command("mim", "run", "steps=3", "engine.evaluate_every=2", "data.limit=8", "model.depth=1")
    copies = snapshots(Path("run"), lambda: main(words))
    whole = results("run")
    assert len(copies) > 30 and [line["step"] for line in whole["metrics"] if "evaluation" in line] == [2, 3]
    config = compose.compose(words[1:]).config
    for copy in copies:
        shutil.rmtree("run")
        shutil.copytree(copy, "run")
        launch.train(config)
        assert_same(results("run"), whole, copy.name)
        assert RunFolder(copy).is_finished(3) or not list(Path("run").rglob(".tmp-*")), copy.name


def snapshots(run: Path, work: Callable[[], int]) -> list[Path]:
    """Copies of the run folder before each file operation in it, those that differ, in order."""
    taken: dict[str, Path] = {}
    recording = False

    def hook(event: str, arguments: tuple) -> None:
        nonlocal recording
        if not recording or event not in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"):
            return
        if not str(arguments[0]).startswith((str(run), str(run.absolute()))):
            return
        recording = False
        if run.exists() and (key := fingerprint(run)) not in taken:
            taken[key] = Path(shutil.copytree(run, f"copies-{run}/{len(taken):03d}-{event}"))
        recording = True

    sys.addaudithook(hook)  # cannot be taken away again: it sleeps
    recording = True
    try:
        assert work() == 0
    finally:
        recording = False
    return list(taken.values())


def fingerprint(folder: Path) -> str:
    """Hash of names and contents, but for what hangs on the clock."""
    digest = sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(re.sub(r"\.tmp-\w{8}$", ".tmp-", str(path)).encode() + b"\0")
        if path.is_file() and path.name != "environment.json":
            digest.update(path.read_bytes())
    return digest.hexdigest()


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_stopped(folder: Path, unbroken: dict, stop: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C: the step is finished and saved, the command that goes on is printed, `overwrite=true` is not in it."""
    run = f"stopped/{stop}"
    with before_step(4, lambda: os.kill(os.getpid(), stop)):
        assert main(command("classification", run, "overwrite=true")) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    said = re.fullmatch(rf"stopped after step 5 of 7, state saved in {run}; to go on: (vlbeit train .*)", last)
    assert said, last
    assert "overwrite" not in said[1]
    assert main(shlex.split(said[1])[1:]) == 0
    assert f"going on from step 5 of {run}" in capsys.readouterr().out
    different = {"states", "metrics"}  # step 5 was saved and logged too
    assert_same(without(results(run), different), without(unbroken["classification"], different))


def without(values: dict[str, object], names: set[str]) -> dict[str, object]:
    return {name: value for name, value in values.items() if name not in names}


def test_real_processes(folder: Path, unbroken: dict) -> None:
    """Ctrl-C in a terminal reaches the loader's workers too; kill -9 does not reach them. Neither leaves one behind."""
    assert unbroken["tokenizer"]  # what these runs start from
    words = {
        sign: command("mim, 2 workers", f"real/{sign.name}", "steps=50", "engine.evaluate_every=1000")
        for sign in (signal.SIGINT, signal.SIGKILL)
    }
    assert main([*words[signal.SIGINT][:-1], "run=real/whole"]) == 0
    runs = {
        sign: subprocess.Popen(
            [sys.executable, "-m", "vlbeit", *arguments], stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        for sign, arguments in words.items()
    }
    try:
        for sign, process in runs.items():
            wait_for(lambda: steps_of(f"real/{sign.name}") > 5, process)  # noqa: B023  (called at once)
            (os.killpg if sign == signal.SIGINT else os.kill)(process.pid, sign)
        said = {sign: process.communicate(timeout=60)[1] for sign, process in runs.items()}
    finally:
        for process in runs.values():
            process.kill()
    assert runs[signal.SIGINT].returncode == 130 and runs[signal.SIGKILL].returncode == -signal.SIGKILL
    assert "Traceback" not in said[signal.SIGINT]  # a worker may have one that was talking to the killed process
    go_on = said[signal.SIGINT].splitlines()[-1].partition("to go on: ")[2]
    assert main(shlex.split(go_on)[1:]) == 0
    assert main(words[signal.SIGKILL]) == 0  # at once: the lock has gone with its process, whatever the workers do
    whole = results("real/whole")
    assert_same(results("real/SIGKILL"), whole)
    assert_same(without(results("real/SIGINT"), {"states", "metrics"}), without(whole, {"states", "metrics"}))
    sessions = {process.pid for process in runs.values()}
    wait_for(lambda: not any(os.getsid(pid) in sessions for pid in living()))


def steps_of(run: str) -> int:
    """Steps that a run in another process has logged."""
    try:
        return Path(run, "metrics.jsonl").read_text().count('"losses"')
    except FileNotFoundError:
        return 0


def living() -> Iterator[int]:
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            try:
                os.getsid(int(path.name))
                zombie = (path / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            except (OSError, ProcessLookupError):
                continue
            if not zombie:
                yield int(path.name)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen | None = None, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


CONSTANT = ("optim.schedule=constant", "optim.warmup_steps=0")  # so that a run does not depend on how long it will be


@pytest.fixture(scope="module")
def short(folder: Path) -> str:
    """A finished run of 3 steps."""
    assert main(command("classification", "short", *CONSTANT, "steps=3")) == 0
    return "short"


@pytest.fixture(scope="module")
def long(folder: Path) -> dict[str, object]:
    """The unbroken run of 7 steps; what a run of 3 steps has evaluated and saved at its end is left out."""
    assert main(command("classification", "long", *CONSTANT)) == 0
    return trained("long")


def trained(run: str) -> dict[str, object]:
    found = results(run)
    return {name: found[name] for name in ("step", "weights", "average", "moments")}


def test_more_steps_go_on_from_a_finished_run(
    folder: Path, short: str, long: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(short, "longer")
    words = command("classification", "longer", *CONSTANT)
    assert main([*words, "steps=3", "data.workers=1"]) == 0
    assert "longer is finished: 3 steps. More steps= go on, overwrite=true starts anew" in capsys.readouterr().out
    assert main([*words, "data.workers=1"]) == 0
    said = capsys.readouterr().out
    assert "note: longer was made for 3 steps: the learning rate now follows the schedule of 7" in said
    assert "going on from step 3 of longer" in said
    assert_same(trained("longer"), long)


def test_fewer_steps_end_a_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Stopped after step 5, evaluated after 3: with `steps=5` it ends as a run of 5 steps, fit to start from."""
    words = command("mim", "runs/mim", *CONSTANT, "steps=5")
    assert main(words) == 0
    whole = results("runs/mim")
    with before_step(4, lambda: os.kill(os.getpid(), signal.SIGINT)):
        assert main([*command("mim", "runs/mim", *CONSTANT), "overwrite=true"]) == 130
    assert chain.has_checkpoint("runs/mim") and not chain._is_ready("runs/mim")
    assert main(words) == 0 and "wrote runs/mim" in capsys.readouterr().out
    assert chain._is_ready("runs/mim") and results("runs/mim")["evaluation"] == whole["evaluation"]
    assert_same(results("runs/mim")["exported"], whole["exported"])
    assert main(words) == 0 and "runs/mim is finished: 5 steps." in capsys.readouterr().out


def test_resume_fills_a_new_folder(folder: Path, short: str, long: dict, capsys: pytest.CaptureFixture[str]) -> None:
    before = fingerprint(Path(short))
    words = command("classification", "new", *CONSTANT, f"resume={short}")
    with before_step(4, lambda: os.kill(os.getpid(), signal.SIGINT)):
        assert main(words) == 130
    assert "going on from step 3 of short" in capsys.readouterr().out
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "going on from step 5 of new" in said and "was made for" not in said
    assert_same(trained("new"), long)
    assert fingerprint(Path(short)) == before
    assert main(words) == 0 and "new is finished" in capsys.readouterr().out


def test_killed_while_a_state_comes_over(folder: Path, short: str) -> None:
    words = command("classification", "taken", *CONSTANT, f"resume={short}", "steps=4")
    copies = snapshots(Path("taken"), lambda: main(words))
    whole = results("taken")
    assert len(copies) > 15
    for copy in copies:
        shutil.rmtree("taken")
        shutil.copytree(copy, "taken")
        assert main(words) == 0
        assert_same(results("taken"), whole, copy.name)


def test_overwrite_starts_anew(folder: Path, short: str, long: dict) -> None:
    shutil.copytree(short, "again")
    Path("again/notes.txt").write_text("mine")
    assert main(command("classification", "again", *CONSTANT, "seed=1", "overwrite=true")) == 0
    assert not torch.equal(*(trained(run)["weights"]["encoder.cls_token"] for run in ("again", "long")))
    assert main(command("classification", "again", *CONSTANT, "overwrite=true")) == 0
    assert_same(results("again"), results("long"))
    assert Path("again/notes.txt").read_text() == "mine"


def test_one_command_at_a_time(folder: Path, unbroken: dict, capfd: pytest.CaptureFixture[str]) -> None:
    """A second command on the same folder is refused, and the first one is not disturbed."""
    words = command("mim", "shared")

    def second() -> None:
        child = os.fork()
        if child == 0:
            code = main(words)
            sys.stderr.flush()
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1

    with before_step(3, second):
        assert main(words) == 0
    assert_same(results("shared"), unbroken["mim"])
    assert re.search(rf"\nerror: shared is in use: process {os.getpid()} trains there", capfd.readouterr().err)
