"""From a CSV to a predictor through the command line: the table itself, and the folder that `prepare vqa` makes."""

from __future__ import annotations

import csv
import json
from contextlib import chdir
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import vlbeit
from vlbeit.cli import main

SMALL = (
    "model=tiny", "model.embed_dim=32", "model.num_heads=2", "data.image_size=32", "data.workers=0", "init=none",
    "global_batch_size=8", "micro_batch_size=4", "epochs=null", "steps=2", "text.max_length=12",
)  # fmt: skip
COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """own.csv, semicolons between its cells, with two questions about each of 20 pictures in pictures/."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "pictures").mkdir()
    with open(folder / "own.csv", "w", newline="", encoding="utf-8-sig") as file:
        table = csv.writer(file, delimiter=";")
        table.writerow(("file", "question", "answer"))
        for number in range(20):
            name = list(COLOURS)[number % 2]
            Image.new("RGB", (40 + number, 32), COLOURS[name]).save(folder / f"pictures/{number}.png")
            table.writerow((f"{number}.png", "what colour is it?", name.title()))
            table.writerow((f"{number}.png", "is it red?", "yes" if name == "red" else "no"))
    return folder


@pytest.fixture(autouse=True)
def there(folder, monkeypatch, tmp_path_factory):
    monkeypatch.setenv("VLBEIT_CACHE", str(tmp_path_factory.mktemp("cache")))
    with chdir(folder):
        yield


def test_from_a_table_to_an_answer(folder, capsys):
    words = ["data=vqa", "data.root=own.csv", "data.images=pictures", "data.columns=[image:file]", "task.min_count=2"]
    assert main(["train", "task=vqa", "run=runs/table", *words, *SMALL]) == 0
    assert json.loads((folder / "runs/table/checkpoint/answers.json").read_text()) == ["red", "yes", "green", "no"]
    capsys.readouterr()
    assert main(["evaluate", "runs/table"]) == 0
    assert json.loads((folder / "runs/table/evaluation.json").read_text())["questions"] == 4
    assert main(["predict", "runs/table", "pictures/1.png", "is it red?", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {row["answer"] for row in rows} == {"red", "green", "yes", "no"}
    assert vlbeit.pipeline("runs/table")(folder / "pictures/2.png", "is it red?")[0][0] in ("red", "green", "yes", "no")


def test_the_proposed_command_trains_on_a_prepared_folder(folder, capsys):
    prepare = ["prepare", "vqa", "--from", "own.csv", "--images", "pictures", "--columns", "image:file"]
    assert main([*prepare, "--out", "data/own"]) == 0
    following = capsys.readouterr().out.splitlines()[-1].removeprefix("next: vlbeit ").split()
    assert following[0] == "train" and "data=vqa" in following
    assert main([*(word for word in following if not word.startswith("init=")), *SMALL]) == 0
    assert json.loads((folder / "runs/own-vqa/evaluation.json").read_text())["questions"] == 4


def test_a_data_set_of_the_hub_with_its_pictures(folder, capsys):
    with open(folder / "own.csv", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file, delimiter=";"))
    pictures = [{"bytes": (folder / "pictures" / row["file"]).read_bytes(), "path": None} for row in rows]
    columns = {"image": pictures, **{name: [row[name] for row in rows] for name in ("question", "answer")}}
    (folder / "set").mkdir()
    pq.write_table(pa.table(columns), folder / "set/train-00000-of-00001.parquet")
    words = ["data=vqa", f"data.root=hub:{folder / 'set'}", "task.min_count=1", "run=runs/hub"]
    assert main(["train", "task=vqa", *words, *SMALL]) == 0
    assert json.loads((folder / "runs/hub/evaluation.json").read_text())["questions"] == 4
    assert main(["evaluate", "runs/hub", "data.val_split=test"]) == 1
    assert "has no split 'test'; it has train" in capsys.readouterr().err


def test_a_perfect_answer_scores_a_hundred(folder):
    """One answer a question, in capitals: ten in the official form, or the official rule could never reach 100."""
    from vlbeit.config import DataConfig
    from vlbeit.data.sources import open_records
    from vlbeit.tasks.vqa.answers import AnswerVocabulary
    from vlbeit.tasks.vqa.rules import answer_score

    config = DataConfig(name="vqa", root="own.csv", images="pictures", columns=["image:file"])
    records = open_records(config, "vqa", "train")
    vocabulary = AnswerVocabulary(["red", "yes", "green", "no"])
    for record in (records[row] for row in range(len(records))):
        [(index, target)] = vocabulary.soft_scores(record["answers"]).items()
        assert target == 1 and answer_score(vocabulary.answers[index], record["answers"]) == 1
