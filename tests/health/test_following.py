"""What `vlbeit inspect data` says to do next can be done, and nothing is said twice."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from PIL import Image

from vlbeit.cli import main
from vlbeit.compose import compose
from vlbeit.data.sources import open_records


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLBEIT_CACHE", str(tmp_path / "cache"))


def own_table(folder: Path, *, question: str = "question", lost: int = 0) -> Path:
    """24 questions about 12 pictures in `pictures`, of which `lost` are not there; an answer stands for 8 of them."""
    (folder / "pictures").mkdir()
    lines = [f"image,{question},answers"]
    for number in range(12):
        if number >= lost:
            Image.new("RGB", (32, 32), (number * 20, 0, 0)).save(folder / "pictures" / f"{number}.png")
        lines += [f"{number}.png,what is {part}?,{('red', 'green', 'blue')[number % 3]}" for part in ("it", "this")]
    (folder / "own.csv").write_text("\n".join(lines))
    return folder / "own.csv"


def test_the_next_command_is_one_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From an empty vocabulary to a training whose words are all known, with the options that were typed."""
    monkeypatch.chdir(tmp_path)
    own_table(tmp_path, question="Frage")
    words = ["own.csv", "--images", "pictures", "--columns", "question:Frage", "--strict", "--max-length", "30"]
    assert main(["inspect", "data", *words]) == 1
    again = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert again[:5] == ["next:", "vlbeit", "inspect", "data", "own.csv"] and "--min-count" in again
    assert again[-3:] == ["--max-length", "30", "--strict"]
    assert main(again[2:]) == 0
    found = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert found[:3] == ["next:", "vlbeit", "train"] and "run=runs/own-vqa" in found
    composed = compose(found[3:]).config
    assert composed.data.columns == ["question:Frage"] and composed.data.images == "pictures"
    assert composed.init == "vlmo_base_patch16_224" and 1 < composed.task.min_count <= 8
    assert len(open_records(composed.data, "vqa", "train"))


def test_pictures_alone_begin_with_a_tokenizer(scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = scenes / "imagefolder"
    assert main(["inspect", "data", str(root)]) == 0
    command = f"vlbeit train stage=tokenizer data=imagefolder data.root={root} run=runs/imagefolder-tokenizer"
    assert capsys.readouterr().out.splitlines()[-1] == f"next: {command}"


def test_what_is_refused_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    table = own_table(tmp_path, lost=2)
    assert main(["inspect", "data", str(table), "--images", str(tmp_path / "pictures"), "--min-count", "1"]) == 1
    printed = capsys.readouterr()
    assert (printed.out + printed.err + caplog.text).count("4 of 24 rows are no use") == 1
    assert "error: train, val: " in printed.out


def test_columns_are_named_by_the_option_of_this_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "data", str(own_table(tmp_path, question="Frage"))]) == 2
    error = capsys.readouterr().err
    assert "--columns question:COLUMN" in error and "data.columns" not in error


@pytest.mark.parametrize("data", ["vqa", "vqa_v2"])
def test_of_what_is_prepared_it_is_what_preparing_said(
    data: str, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "prepared"
    source = ["--root", str(scenes), "--min-count", "1"]
    if data == "vqa":
        source = ["--from", str(own_table(tmp_path)), "--images", str(tmp_path / "pictures"), "--held-out", "2"]
    assert main(["prepare", data, *source, "--out", str(out)]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith("next: vlbeit train ") and ("task.answers=" if data == "vqa_v2" else "min_count=") in said
    assert main(["inspect", "data", str(out), "--min-count", "1" if data == "vqa_v2" else "8"]) == 0
    again = capsys.readouterr().out.splitlines()[-1]
    assert set(shlex.split(again)) == set(shlex.split(said))


def test_questions_without_answers_are_answered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, folder = own_table(tmp_path), tmp_path / "tables"
    folder.mkdir()
    lines = [line.rpartition(",")[0] for line in table.read_text().splitlines()]
    for split, rows in (("train", lines[1:13]), ("val", lines[13:])):
        (folder / f"{split}.csv").write_text("\n".join([lines[0], *rows]))
    pictures = tmp_path / "pictures"
    assert main(["inspect", "data", str(folder), "--images", str(pictures)]) == 0
    words = f"data=vqa data.root={folder} data.images={pictures}"
    assert capsys.readouterr().out.splitlines()[-1] == f"next: vlbeit submit RUN --split train {words}"


def test_the_built_in_data_needs_no_weights(scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "data", str(scenes), "--min-count", "1"]) == 0
    command = f"next: vlbeit train stage=vl task=vqa data=scenes data.root={scenes}"
    assert capsys.readouterr().out.splitlines()[-1] == command
