from __future__ import annotations

import errno
import json
import socket

import pytest

from vlbeit import evaluation_file
from vlbeit.engine import folder as folder_module
from vlbeit.engine.folder import RunFolder, write_errors
from vlbeit.errors import DataError


def save(run: RunFolder, step: int) -> None:
    run.save_state(step, lambda folder: (folder / "file").write_text(str(step)))


@pytest.fixture
def run(tmp_path) -> RunFolder:
    return RunFolder(tmp_path / "runs" / "mim")


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_new_folder(run):
    assert not run.exists() and run.stored_config() is None and run.last_state() is None
    assert not run.is_finished(1)
    run.write_config({"optim": {"lr": 1e-5}, "run": "runs/mim", "steps": None})
    assert run.exists() and run.stored_config() == {"optim": {"lr": 1e-5}, "run": "runs/mim", "steps": None}


def test_two_newest_states_stay(run):
    for step in (9, 10, 999_999, 1_000_000):
        save(run, step)
    assert names(run.states) == ["step-1000000", "step-999999"]
    assert (run.last_state() / "file").read_text() == "1000000"


def test_finished(run):
    """So many steps, weights for users besides the files of meta, and no evaluation owed."""
    save(run, 10)
    run.checkpoint.mkdir()
    (run.checkpoint / "vocab.json").write_text("{}")
    assert not run.is_finished(10)
    (run.checkpoint / "model.safetensors").write_text("")
    assert (run.is_finished(10), run.is_finished(11)) == (True, False)
    run.save_state(11, lambda folder: None, owes_evaluation=True)
    assert not run.is_finished(11)
    run.pay_evaluation()
    assert run.is_finished(11) and run.last_step() == 11
    run.write_config({"steps": 12})
    assert not run.is_finished(11)  # it was to make more


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("[enforce fail at inline_container.cc:862] . unexpected pos 64 vs 0"), True),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), True),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
    ],
)
def test_a_bug_is_no_failed_write(run, error, told):
    with pytest.raises(DataError if told else RuntimeError) as raised, write_errors(run.path):
        raise error
    assert (raised.value is error) != told


def test_what_last_json_does_not_name_counts_for_nothing(run):
    save(run, 5), save(run, 10)
    run.last_file.write_text('{"step": 5}')
    (run.states / ".tmp-step-000015").mkdir()
    (run.path / ".tmp-abc").write_text("")
    run.clean()
    assert names(run.states) == ["step-000005"] and names(run.path) == ["last.json", "state"]
    run.last_file.unlink()
    run.clean()
    assert names(run.states) == []


def test_same_step_again(run):
    """A run killed between the rename and last.json comes to the same step once more."""
    save(run, 5)
    run.last_file.unlink()
    save(run, 5)
    assert run.last_step() == 5 and names(run.states) == ["step-000005"]


def test_failed_write_leaves_nothing(run):
    save(run, 5)

    def fail(folder):
        (folder / "half").write_text("")
        raise PermissionError(13, "Permission denied", "x")

    with pytest.raises(DataError, match=r"cannot write .*step-000006: .*Permission denied.*saved before is intact"):
        run.save_state(6, fail)
    assert names(run.states) == ["step-000005"] and run.last_step() == 5


def test_damage_is_named(run):
    save(run, 5)
    run.last_file.write_text("{")
    with pytest.raises(DataError, match=r"last.json is damaged"):
        run.last_step()
    run.last_file.write_text('{"step": 7}')
    with pytest.raises(DataError, match=r"last.json names .*step-000007, which is missing"):
        run.last_state()
    run.config_file.write_text("a: [")
    with pytest.raises(DataError, match=r"config.yaml is not YAML"):
        run.stored_config()


def test_metrics_cut_at_a_step(run):
    run.path.mkdir(parents=True)
    lines = [json.dumps({"step": step}) for step in (1, 2, 2, 3)]
    run.metrics_file.write_text("\n".join(lines) + '\n{"step": 1, "to')
    run.cut_metrics(2)
    assert run.metrics_file.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 2}\n'
    run.metrics_file.write_text('{"step": 2}\n{"step": 2, "evaluation": {}}\n')
    run.cut_metrics(2)
    assert "evaluation" in run.metrics_file.read_text()
    run.cut_metrics(2, owes_evaluation=True)
    assert run.metrics_file.read_text() == '{"step": 2}\n'
    run.cut_metrics(0)
    assert run.metrics_file.read_text() == ""


def test_fill_from_another_run(run, tmp_path):
    other = RunFolder(tmp_path / "other")
    with pytest.raises(DataError, match=r"resume=.*other: no saved state there"):
        run.fill_from(other)
    save(other, 5)
    other.metrics_file.write_text('{"step": 5}\n')
    other.environment_file.write_text('{"processes": 2, "micro_batch_size": 4}')
    other.checkpoint.mkdir()
    (other.checkpoint / "config.json").write_text("{}")
    other.pay_evaluation()
    run.fill_from(other)
    assert run.is_paid() and (run.last_state() / "file").read_text() == "5"
    assert (run.checkpoint / "config.json").exists()
    assert run.metrics_file.read_text() == '{"step": 5}\n' and run.stored_split() == (2, 4)


@pytest.mark.parametrize("text", [None, "\0", "[]", '{"processes": 2}', '{"processes": 2, "micro_batch_size": null}'])
def test_a_split_that_is_not_known(run, text):
    run.path.mkdir(parents=True, exist_ok=True)
    if text is not None:
        run.environment_file.write_text(text)
    assert run.stored_split() == (0, 0)


def test_clear_removes_the_run_only(run):
    save(run, 5)
    run.write_config({})
    for name in ("notes.txt", "details.json", "evaluation.md"):
        (run.path / name).write_text("mine")
    for suffix in ("", "-coco-test", "-changed"):
        evaluation_file.write(run.path, suffix, {"overall": 1.0}, evaluation_file.Findings({}, {"vqa": []}, []))
    for watched in ("profile", "trackers"):
        (run.path / watched).mkdir()
        (run.path / watched / "of-the-run-before").write_text("")
    run.clear()
    assert names(run.path) == ["details.json", "evaluation.md", "notes.txt"] and not run.exists()


def test_a_lock_of_another_machine_names_it(tmp_path, monkeypatch):
    """On NFS the holder may be one of another machine: its process id alone would mislead."""
    monkeypatch.setattr(folder_module, "_lock", lambda file: False)
    (tmp_path / ".lock").write_text("4242 node7\n")
    with pytest.raises(DataError, match=r"is in use: process 4242 of node7 trains there"), RunFolder(tmp_path).locked():
        pass
    (tmp_path / ".lock").write_text(f"4242 {socket.gethostname()}\n")
    with pytest.raises(DataError, match=r"is in use: process 4242 trains there"), RunFolder(tmp_path).locked():
        pass


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(folder_module.fcntl, "lockf", refuse)
    with caplog.at_level("WARNING"), RunFolder(tmp_path).locked():
        assert "this file system has no locks: nothing keeps two runs apart there" in caplog.text
