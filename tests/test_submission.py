"""`vlbeit submit RUN`: each question once, at any number of processes, whatever kills them and wherever."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import chdir
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from vlbeit import files, ledger, submission
from vlbeit.cli import main
from vlbeit.tasks.vqa.submit import AnswerSheet

QUESTIONS = "v2_OpenEnded_mscoco_test2015_questions.json"
COUNT = 36  # of the test part of the scenes
POINTS = ("in a batch", "in answers.json", "before submission.json", "before the parts go")


def killed_at(point: str, words: list[str]) -> None:
    """Run the command line in this process until the point, and be killed there; "never" keeps the parts."""
    if point == "in a batch":
        submission.PartWriter.add = _torn_second_batch
    if point == "in answers.json":
        real = os.replace
        os.replace = lambda source, target: _die() if str(target).endswith("answers.json") else real(source, target)
    if point == "before submission.json":
        add = ledger.Submission.write
        ledger.Submission.write = lambda self, **facts: _die() if facts.get("sha256") else add(self, **facts)
    if point in ("before the parts go", "never"):
        submission.shutil.rmtree = _die if point != "never" else lambda *_, **__: None
    sys.exit(main(words))


def _die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _torn_second_batch(self: Any, answers: Any, unreadable: Any, add: Any = submission.PartWriter.add) -> None:
    if self._file.tell() > 1:
        self._file.write(b'{"id": "55')
        self._file.flush()
        _die()
    add(self, answers, unreadable)


@pytest.fixture
def place(chain: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run of its own, runs/vqa, whose batches are of four questions."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(chain / "runs/vl-vqa/checkpoint", "runs/vqa/checkpoint")
    shutil.copy(chain / "runs/vl-vqa/config.yaml", "runs/vqa")
    return tmp_path


@pytest.fixture(scope="module")
def whole(chain: Path, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The answer file of a command that nobody disturbs."""
    with chdir(tmp_path_factory.mktemp("whole")):
        shutil.copytree(chain / "runs/vl-vqa/checkpoint", "runs/vqa/checkpoint")
        assert main(command(scenes)) == 0
        return only().answers_file.read_bytes()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The samples that this process has answered."""
    found: list[str] = []
    real = AnswerSheet.answer

    def answer(self: AnswerSheet, objective: Any, batch: Any) -> dict[str, str]:
        found.extend(batch["sample_id"])
        return real(self, objective, batch)

    monkeypatch.setattr(AnswerSheet, "answer", answer)
    return found


def command(scenes: Path, *more: str) -> list[str]:
    files_of = ["--questions", str(scenes / QUESTIONS), "--images", str(scenes / "test2015")]
    return ["submit", "runs/vqa", *files_of, "micro_batch_size=2", *more]


def only(run: str = "runs/vqa") -> ledger.Submission:
    (submission,) = ledger.submissions_of(run)
    return submission


def texts(file: Path) -> dict[int, str]:
    return {entry["question_id"]: entry["answer"] for entry in json.loads(file.read_text())}


def test_every_question_once_in_a_folder_of_its_own(
    place: Path, scenes: Path, asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(scenes, "--out", "out/answers.json")) == 0
    wanted = sorted(row["question_id"] for row in json.loads((scenes / QUESTIONS).read_text())["questions"])
    entries = json.loads(Path("out/answers.json").read_text())
    assert [entry["question_id"] for entry in entries] == wanted and len(wanted) == len(asked) == COUNT
    assert {type(entry["answer"]) for entry in entries} == {str}
    submission = only()
    assert submission.answers_file.read_bytes() == Path("out/answers.json").read_bytes()
    assert not submission.parts.exists() and submission.is_finished
    facts = submission.facts
    assert facts["sha256"] == files.sha256("out/answers.json") and facts["count"] == COUNT
    assert facts["questions"]["sha256"] == files.sha256(scenes / QUESTIONS)
    assert facts["questions"]["subset"] == "test2015" and facts["words"] == ["micro_batch_size=2"]
    assert facts["weights"] == files.sha256("runs/vqa/checkpoint/model.safetensors")
    assert facts["unreadable"] == {"questions": 0, "pictures": 0, "which": []}
    assert ledger.find("out/answers.json").folder == submission.folder
    printed = capsys.readouterr().out
    assert f"wrote {submission.folder}: answers.json (36 answers" in printed and "wrote out/answers.json\n" in printed
    assert "next: vlbeit submit upload out/answers.json --phase test-dev --method NAME\n" in printed
    assert main(["submit", "check", "out/answers.json", "--questions", str(scenes / QUESTIONS)]) == 0


def test_a_finished_one_is_not_asked_again(
    place: Path, scenes: Path, asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(scenes)) == 0
    before = only().facts_file.read_bytes(), list(asked)
    assert sorted(path.name for path in place.iterdir()) == ["runs"], "no file but in the run"
    capsys.readouterr()
    assert main([*command(scenes, "data.workers=0", "micro_batch_size=4"), "--out", "again.json"]) == 0
    assert "was finished before, nothing is asked again" in capsys.readouterr().out
    assert (only().facts_file.read_bytes(), asked) == before
    assert Path("again.json").read_bytes() == only().answers_file.read_bytes()
    only().answers_file.write_text("[]")
    assert main(command(scenes)) == 1
    assert "was changed since it was written" in capsys.readouterr().err
    only().answers_file.unlink()
    assert main(command(scenes)) == 0 and len(asked) == 2 * COUNT, "its removal asks for a new one"


def test_a_split_of_the_data_of_the_run(place: Path, scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(scenes)) == 0
    by_file = texts(only().answers_file)
    assert main(["submit", "runs/vqa", "--split", "test2015"]) == 0
    assert "next: vlbeit submit upload" in capsys.readouterr().out
    newest = ledger.find("runs/vqa")
    assert newest.facts["questions"]["split"] == "test2015" and newest.facts["questions"]["count"] == COUNT
    assert newest.facts["questions"]["file"] == str(scenes / QUESTIONS), "the run's data.limit=24 is not for it"
    assert texts(newest.answers_file) == by_file
    assert main(["submit", "runs/vqa", "--split", "test2015", "data.limit=10"]) == 0
    said = capsys.readouterr().out
    assert "data.limit leaves 10 of 36 questions" in said and f"submit check {place}" not in said
    assert "next: vlbeit submit check" in said


def test_other_weights_questions_and_keys_never_meet(
    place: Path, scenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = json.loads((scenes / QUESTIONS).read_text())
    Path("fewer.json").write_text(json.dumps({**first, "questions": first["questions"][:5]}))
    assert main(command(scenes)) == 0
    assert main(command(scenes, "precision=fp64")) == 0
    assert main(["submit", "runs/vqa", "--questions", "fewer.json", "--images", str(scenes / "test2015")]) == 0
    weights = Path("runs/vqa/checkpoint/model.safetensors")
    state = load_file(weights)
    save_file({name: value + 0.01 * value.is_floating_point() for name, value in state.items()}, weights)
    head = json.loads(Path("runs/vqa/checkpoint/config.json").read_text())
    Path("runs/vqa/checkpoint/config.json").write_text(json.dumps({**head, "sha256": files.sha256(weights)}))
    assert main(command(scenes)) == 0
    found = ledger.submissions_of("runs/vqa")
    assert len({each.id for each in found}) == 4 and sorted(each.facts["count"] for each in found) == [5, 36, 36, 36]


def test_other_spellings_of_the_same_data_are_not_asked_again(place: Path, scenes: Path, asked: list[str]) -> None:
    """Nor keys of training that change no answer."""
    Path("here").symlink_to(scenes)
    Path("folder").mkdir()
    training = ["optim.lr=0.1", "engine.evaluate_every=3", "data.train_split=val", "data.split_seed=7"]
    for words in (["data.root=here"], [f"data.root={place}/folder/../here"], [f"data.root={scenes}", *training]):
        assert main(["submit", "runs/vqa", "--split", "test2015", "micro_batch_size=2", *words]) == 0
        assert len(asked) == COUNT and only().facts["count"] == COUNT
    assert main(["submit", "runs/vqa", "--split", "val", "micro_batch_size=2", f"data.root={scenes}"]) == 0
    assert len(ledger.submissions_of("runs/vqa")) == 2


@pytest.mark.parametrize("point", POINTS)
def test_killed_anywhere_it_goes_on(point: str, place: Path, scenes: Path, whole: bytes, asked: list[str]) -> None:
    killed = get_context("fork").Process(target=killed_at, args=(point, command(scenes)))
    killed.start()
    killed.join(60)
    assert killed.exitcode == -signal.SIGKILL
    kept = set(_kept(only()))
    assert len(kept) == (4 if point == "in a batch" else COUNT)
    assert main(command(scenes)) == 0
    assert len(asked) == len(set(asked)) == COUNT - len(kept) and not kept & set(asked)
    assert only().answers_file.read_bytes() == whole and not only().parts.exists()
    assert not list(only().folder.glob(".tmp-*")), "what the kill left of a file"


def _kept(submission: ledger.Submission) -> list[str]:
    lines = [line for path in submission.parts.glob("*.jsonl") for line in path.read_text().splitlines()]
    return [json.loads(line)["id"] for line in lines if line.endswith("}")]


def test_ctrl_c_keeps_what_was_answered(
    place: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, seen = AnswerSheet.answer, []

    def answer(self: AnswerSheet, objective: Any, batch: Any) -> dict[str, str]:
        seen.append(len(batch["sample_id"]))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(self, objective, batch)

    monkeypatch.setattr(AnswerSheet, "answer", answer)
    assert main(command(scenes)) == 130
    assert "what was answered is kept" in capsys.readouterr().err and len(_kept(only())) == 8
    assert main(command(scenes, "precision=fp64")) == 0
    assert "is not finished; it is of other keys, and left as it is" in capsys.readouterr().out
    seen[:] = [0] * 10
    assert main(command(scenes)) == 0 and sum(seen) == COUNT - 8
    assert "answering 36 questions into" in (said := capsys.readouterr().out) and "8 of them are answered" in said


def test_unreadable_pictures_are_named_and_counted(
    place: Path, scenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(scenes / "test2015", "pictures")
    broken = place / "pictures" / "COCO_test2015_000000000060.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    words = ["submit", "runs/vqa", "--questions", str(scenes / QUESTIONS), "--images", "pictures", "micro_batch_size=2"]
    assert main(words) == 1
    assert "more than data.max_bad_fraction=0" in capsys.readouterr().err
    kept = len(_kept(only()))
    assert 0 < kept < COUNT and not only().is_finished, "what comes before it is kept"
    assert main([*words, "data.max_bad_fraction=1"]) == 0
    said = capsys.readouterr().out
    assert f"{kept} of them are answered already" in said and f"cannot be read: 1 ({broken})" in said
    unreadable = only().facts["unreadable"]
    questions = json.loads((scenes / QUESTIONS).read_text())["questions"]
    wanted = [str(row["question_id"]) for row in questions if row["image_id"] == 60]
    assert unreadable["pictures"] == 1 and unreadable["questions"] == len(wanted) > 1
    assert unreadable["which"] == [{"id": each, "picture": str(broken)} for each in wanted]
    assert len(texts(only().answers_file)) == COUNT, "answered all the same, as by the evaluator"
    assert main(words) == 0 and "cannot be read: 1" in capsys.readouterr().out


def test_two_commands_at_once(place: Path, scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(scenes)) == 0
    only().answers_file.unlink()
    code = (
        "import fcntl, sys; f = open(sys.argv[1], 'a+'); fcntl.lockf(f, fcntl.LOCK_EX); print(1, flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(only().folder / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == b"1\n"
        assert main(command(scenes)) == 1
        assert "answers these questions; wait for it" in capsys.readouterr().err
        other.communicate(b"\n")
    assert main(command(scenes)) == 0


def _processes(words: list[str], count: int, point: str) -> list[int | None]:
    """Exit codes of the command line on so many gloo processes, all of which are killed at the point."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count)}
    ranks = [get_context("fork").Process(target=_rank, args=(rank, group, point, words)) for rank in range(count)]
    try:
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(120)
    finally:
        for rank in ranks:
            rank.kill()
    return [rank.exitcode for rank in ranks]


def _rank(rank: int, group: dict[str, str], point: str, words: list[str]) -> None:
    os.environ.update({**group, "RANK": str(rank), "LOCAL_RANK": str(rank)})
    killed_at(point, words)


def test_two_processes_killed_three_go_on(place: Path, scenes: Path, whole: bytes) -> None:
    assert _processes(command(scenes), 2, "in a batch") == [-signal.SIGKILL] * 2
    kept = _kept(only())
    assert len(kept) == len(set(kept)) == 8 and len(list(only().parts.iterdir())) == 2, "a batch of each"
    assert _processes(command(scenes), 3, "never") == [0, 0, 0]
    kept = _kept(only())
    assert len(kept) == len(set(kept)) == COUNT and len(list(only().parts.iterdir())) == 3, "none twice"
    assert only().answers_file.read_bytes() == whole
    assert main(command(scenes)) == 0 and not only().parts.exists()


def test_what_cannot_be_answered(place: Path, chain: Path, scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions, images = command(scenes)[2:4], command(scenes)[4:6]
    for words in ([], questions, images, ["--split", "test", *questions, *images], ["--split", "test", *images]):
        assert main(["submit", "runs/vqa", *words]) == 2
        assert "name --split test2015 of the run's data, or --questions FILE" in capsys.readouterr().err
    assert main(["submit", str(chain / "runs/mim-classification"), *questions, *images]) == 2
    assert "has no leaderboard file" in capsys.readouterr().err
    assert main(["submit", "runs/vqa", "--split", "tset"]) == 1
    assert "has no split 'tset'" in capsys.readouterr().err
    assert main(["submit"]) == 0 and "check" in capsys.readouterr().out
    assert not Path("runs/vqa/submissions").exists()


def test_a_full_disk(
    place: Path, scenes: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = submission.PartWriter.add

    def add(self: Any, answers: Any, unreadable: Any) -> None:
        if len(asked) > 8:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(self, answers, unreadable)

    with monkeypatch.context() as full:
        full.setattr(submission.PartWriter, "add", add)
        assert main(command(scenes)) == 1
    assert "the disk is full: free space and run the same command again" in capsys.readouterr().err
    assert len(_kept(only())) == 8
    asked.clear()
    assert main(command(scenes)) == 0 and len(asked) == COUNT - 8


def test_what_the_main_process_refuses_ends_all(place: Path, scenes: Path) -> None:
    assert main(command(scenes)) == 0
    only().answers_file.write_text("[]")
    assert _processes(command(scenes), 2, "never") == [1, 1]
