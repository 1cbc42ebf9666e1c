"""The ledger: which folder a submission has, and how it is found again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from vlbeit import files, ledger
from vlbeit.errors import DataError, UsageError

ASKED = {"weights": "abc", "questions": "def", "config": {"data": {"image_size": 32}, "seed": 0}}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def finished(run: str, identity: dict = ASKED, content: str = "[]\n", **facts: str) -> ledger.Submission:
    submission = ledger.open_submission(run, identity)
    files.write_text(submission.answers_file, content)
    submission.write(identity=ledger.identity_hash(identity), sha256=files.sha256(submission.answers_file), **facts)
    return submission


def test_the_id_hangs_on_values_and_not_on_their_order(here: Path) -> None:
    turned = {"config": {"seed": 0, "data": {"image_size": 32}}, "questions": "def", "weights": "abc"}
    one, other = ledger.open_submission("runs/a", ASKED), ledger.open_submission("runs/a", turned)
    assert one.folder == other.folder == Path("runs/a/submissions") / one.id and len(one.id) == 8
    for changed in (ASKED | {"weights": "x"}, ASKED | {"questions": "x"}, ASKED | {"config": {}}, ASKED | {"new": 1}):
        assert ledger.open_submission("runs/a", changed).id != one.id
    assert not Path("runs").exists() and not one.is_finished


def test_facts_are_added_to_and_kept(here: Path) -> None:
    submission = ledger.open_submission("runs/a", ASKED)
    submission.write(identity=ledger.identity_hash(ASKED), split="test2015")
    created = submission.facts["created"]
    again = ledger.open_submission("runs/a", ASKED)
    again.write(sha256="0" * 64)
    facts = json.loads(Path(f"runs/a/submissions/{again.id}/submission.json").read_text())
    assert facts["created"] == created and facts["split"] == "test2015" and facts["id"] == again.id
    assert again.is_finished and again.sha256 == "0" * 64


def test_a_folder_of_another_identity_is_refused(here: Path) -> None:
    submission = finished("runs/a")
    submission.write(identity="of something else")
    with pytest.raises(DataError, match="is of other answers"):
        ledger.open_submission("runs/a", ASKED)


def test_found_by_file_copy_run_id_and_folder(here: Path) -> None:
    submission = finished("runs/a")
    shutil.copy(submission.answers_file, "copied.json")
    asked = (submission.answers_file, "copied.json", "runs/a", "a", submission.id, submission.folder, Path("runs/a"))
    assert {ledger.find(each).folder for each in asked} == {submission.folder}
    assert ledger.find("copied.json").file == submission.answers_file


@pytest.mark.parametrize("place", ["study/answers.json", "runs/study/answers.json", "answers.json"])
def test_a_copy_is_known_beside_its_run_and_from_where_runs_are(place: str, here: Path) -> None:
    submission = finished("study/a" if place.startswith("study") else "runs/study/a")
    shutil.copy(submission.answers_file, place)
    assert ledger.find(place).folder.resolve() == submission.folder.resolve()


def test_a_run_is_known_by_its_newest_finished_one(here: Path) -> None:
    old = finished("runs/a", created="2026-01-01T00:00:00+00:00")
    new = finished("runs/a", ASKED | {"weights": "x"}, created="2026-01-02T00:00:00+00:00")
    ledger.open_submission("runs/a", ASKED | {"weights": "y"}).write(created="2026-01-03T00:00:00+00:00")
    assert ledger.find("runs/a").id == new.id
    assert [each.id for each in ledger.submissions_of("runs/a")[1:]] == [new.id, old.id]


def test_a_file_of_another_program_gets_a_place_beside_it(here: Path) -> None:
    Path("theirs").mkdir()
    file = files.write_text("theirs/answers.json", "[]")
    submission = ledger.find(file)
    assert submission.folder == Path("theirs/submissions") / files.sha256(file)[:8] and submission.file == here / file
    assert ledger.read_receipt(submission) is None and not submission.folder.exists()
    ledger.write_receipt(submission, {"phase": "test-dev", "submission": 7})
    again = ledger.find(file)
    assert ledger.read_receipt(again) == {"phase": "test-dev", "submission": 7}
    assert again.facts["file"] == str(here / file) and again.sha256 == files.sha256(file)
    files.write_text(file, "[ ]")
    assert ledger.find(file).folder != submission.folder, "changed since: not what was sent"


def test_what_is_not_there_is_said(here: Path) -> None:
    Path("runs/a").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"runs/a has no submissions; `vlbeit submit runs/a --split"):
        ledger.find("runs/a")
    with pytest.raises(UsageError, match="12345678: no answer file, no run and no id"):
        ledger.find("12345678")
    ledger.open_submission("runs/a", ASKED).write()
    with pytest.raises(UsageError, match="is not finished"):
        ledger.find("runs/a")


def test_damaged_files_are_named(here: Path) -> None:
    submission = finished("runs/a")
    submission.receipt_file.write_text("{")
    with pytest.raises(DataError, match=r"receipt\.json cannot be read"):
        ledger.read_receipt(submission)
    submission.facts_file.write_text("[]")
    with pytest.raises(DataError, match=r"submission\.json holds no JSON object"):
        ledger.find("runs/a")


def test_all_of_a_run(here: Path) -> None:
    old = finished("runs/a", created="2026-01-01T00:00:00+00:00")
    new = finished("runs/a", ASKED | {"weights": "x"}, created="2026-01-02T00:00:00+00:00")
    assert [each.id for each in ledger.find_all("a")] == [new.id, old.id]
    assert [each.id for each in ledger.find_all(old.id)] == [old.id]
    Path("runs/b").mkdir()
    with pytest.raises(UsageError, match="runs/b has no submissions"):
        ledger.find_all("b")


def test_a_damaged_one_stands_in_the_way_of_its_own_run_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished("runs/bad").facts_file.write_text("{")
    (damaged,) = Path("runs/bad/submissions").iterdir()
    good = finished("runs/good", ASKED | {"weights": "x"}, content="[1]\n")
    shutil.copy(good.answers_file, "copied.json")
    assert [each.id for each in ledger.nearby()] == [good.id]
    assert ledger.find("copied.json").id == ledger.find(good.id).id == good.id
    assert f"note: left out: {damaged}/submission.json cannot be read" in capsys.readouterr().err
    for what in ("runs/bad", damaged.name, damaged / "answers.json"):
        with pytest.raises(DataError, match="cannot be read"):
            ledger.find(what)


def test_a_mistyped_file_is_not_taken_for_a_run(here: Path) -> None:
    with pytest.raises(UsageError, match=r"anwsers\.json: no answer file, .*look at the spelling"):
        ledger.find("anwsers.json")
