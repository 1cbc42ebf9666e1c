"""`vlbeit prepare vqa`: tables of every sort into a checked folder that data=vqa reads."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlbeit.cli import main
from vlbeit.config import DataConfig
from vlbeit.data.prepared import prepared_records
from vlbeit.data.records import KINDS, open_image
from vlbeit.data.sources import open_records
from vlbeit.data_prep import shards, vqa
from vlbeit.errors import DataError, UsageError

PICTURES = 30
ANSWERS = ("red", "Blue", "2", "yes", "a dog|cats", "no")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("VLBEIT_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def folder(tmp_path, make_picture) -> Path:
    """pictures/0.jpg ... and my.csv with three questions about each."""
    (tmp_path / "pictures").mkdir()
    for number in range(PICTURES):
        (tmp_path / f"pictures/{number}.jpg").write_bytes(make_picture(number))
    write(tmp_path / "my.csv", questions())
    return tmp_path


def questions(numbers=range(PICTURES), answers=ANSWERS):
    rows = [{"image": f"{n}.jpg", "question": f"what is it {i}?", "answers": answers[n % len(answers)]}
            for n in numbers for i in range(3)]  # fmt: skip
    return rows


def write(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def prepare(folder, out="out", *, source="my.csv", **options):
    """The lines that are said, the last being the next command."""
    lines: list[str] = []
    options = {"images": str(folder / "pictures"), **options}
    lines.append(vqa.prepare(folder / out, from_=[str(folder / source)], report=lines.append, **options))
    return lines


def bad(folder, out="out"):
    return [json.loads(line) for line in (folder / out / "bad.jsonl").read_text().splitlines()]


def records(folder, split="train", kind="vqa", out="out"):
    return open_records(DataConfig(name="vqa", root=str(folder / out)), kind, split)


def test_a_table_becomes_a_folder_that_data_vqa_reads(folder):
    lines = prepare(folder)
    train, val = records(folder), records(folder, "val")
    assert (len(train), len(val)) == (81, 9) and set(train[0]) == set(KINDS["vqa"])
    assert not {*train.column("image")} & {*val.column("image")} and not {*train.column("id")} & {*val.column("id")}
    assert {*train.column("image_id")} | {*val.column("image_id")} == {*range(1, PICTURES + 1)}
    assert records(folder, "val", "images")[0].keys() == {"id", "image"} and len(records(folder, "val", "images")) == 3
    assert all(len(answers) == 10 for answers in train.column("answers")) and "Blue" not in str(
        train.column("answers")[:]
    )
    assert open_image(train[0]["image"]).size == (24, 16)
    assert any(line.startswith("train: 81 records") for line in lines) and bad(folder) == []
    assert f"data=vqa data.root={folder / 'out'} run=runs/out-vqa" in lines[-1] and "stage=vl task=vqa" in lines[-1]


def test_the_same_split_as_the_source_makes_of_the_table(folder):
    prepare(folder, seed=3, held_out=5)
    keys = {"split_seed": 3, "held_out": 5, "images": str(folder / "pictures")}
    own = open_records(DataConfig(name="vqa", root=str(folder / "my.csv"), **keys), "vqa", "val")
    found = records(folder, "val")
    assert [found[row] for row in range(len(found))] == [own[row] for row in range(len(own))] and len(own) == 15


def test_the_proposed_min_count_suits_the_answers(folder):
    rare = [f"rare {number}" for number in range(PICTURES)]
    answers = [rare[n] if n % 6 == 0 else ("red", "blue")[n % 2] for n in range(PICTURES)]
    write(folder / "my.csv", questions(answers=answers))
    lines = prepare(folder, held_out=1)
    found = [line for line in lines if line.startswith("answers: ")]
    train = records(folder)
    kept = sum({"red", "blue"} & {*humans} != set() for humans in train.column("answers"))
    assert f"task.min_count=9 keeps 2 of {len({*map(tuple, train.column('answers'))})}; " in found[0]
    assert f"they cover {100 * kept / len(train):.1f} % of train" in found[0]
    assert found[1].startswith("answers: task.min_count=3 keeps ") and "cover 100.0 % of train" in found[1]
    assert lines[-1].endswith(" task.min_count=3")


def test_nothing_is_proposed_where_the_default_will_do(folder):
    write(folder / "my.csv", questions(answers=("yes", "no")))
    lines = prepare(folder)
    assert sum(line.startswith("answers: ") for line in lines) == 1 and "min_count" not in lines[-1]


FAULTS = (
    ({"image": "99.jpg"}, "picture is missing", "{pictures}/99.jpg (my.csv, line 92)"),
    ({"image": ""}, "picture is not named", "my.csv, line 92"),
    ({"image": "http://x.org/a.jpg"}, "picture is an address", "http://x.org/a.jpg, download it first"),
    ({"question": "  "}, "question is empty", "my.csv, line 92"),
    ({"answers": ""}, "answers are empty", "my.csv, line 92"),
    ({"answers": "?"}, "answers are empty in the official form", "'?' is an article or marks alone"),
    ({"image": "broken.jpg"}, "cannot be read", "not an image in a known format (my.csv, line 92: broken.jpg)"),
)  # fmt: skip


@pytest.mark.parametrize(("change", "what", "detail"), FAULTS)
def test_rows_that_are_no_use_are_named_and_counted(folder, change, what, detail):
    (folder / "pictures/broken.jpg").write_bytes(b"no picture")
    write(folder / "my.csv", [*questions(), {"image": "1.jpg", "question": "is it?", "answers": "no", **change}])
    lines = prepare(folder)
    [entry] = bad(folder)
    assert entry["id"] == "91" and entry["left_out"] and entry["what"].startswith(f"{what}: ")
    assert detail.format(pictures=folder / "pictures") in entry["what"] and f"  {what}: 1" in lines
    assert len(records(folder)) + len(records(folder, "val")) == 90


def test_a_picture_is_opened_once_and_named_for_each_of_its_questions(folder, monkeypatch):
    (folder / "pictures/3.jpg").write_bytes((folder / "pictures/3.jpg").read_bytes()[:400])  # cut off
    opened = []
    monkeypatch.setattr(vqa, "examine_picture", lambda *a: (opened.append(a), examine(*a))[1])
    prepare(folder, check="full", threads=1)
    assert len(opened) == PICTURES
    assert [entry["what"].partition(":")[0] for entry in bad(folder)] == ["cannot be read"] * 3
    places = [entry["what"].rpartition("(")[2] for entry in bad(folder)]
    assert places == [f"my.csv, line {number}: 3.jpg)" for number in (11, 12, 13)]


examine = vqa.examine_picture


def test_most_rows_being_no_use_is_refused_before_anything_is_written(folder):
    with pytest.raises(DataError, match=r"90 of 90 rows are no use: picture is missing: 90 \(my.csv, line 2: "):
        prepare(folder, images=str(folder))
    assert not (folder / "out").exists()
    with pytest.raises(DataError, match=r"--images .*nowhere is no folder"):
        prepare(folder, images=str(folder / "nowhere"))
    with pytest.raises(DataError, match=r"nowhere.csv does not exist; give a table"):
        prepare(folder, source="nowhere.csv")
    for held_out in (0, -1, 1.5, float("nan"), float("inf")):
        with pytest.raises(UsageError, match=f"--held-out {held_out:g}: give a share"):
            prepare(folder, held_out=held_out)
    with pytest.raises(UsageError, match=r"did you mean 'question'.*--columns question:question"):
        prepare(folder, columns=["question:quesion"])


def test_pictures_inside_a_table_are_written_once_each(folder, monkeypatch):
    rows = questions()
    data = [{"bytes": (folder / "pictures" / row["image"]).read_bytes(), "path": "same.jpg"} for row in rows]
    table = {"image": data, "question": [row["question"] for row in rows], "answers": [["red", "blue"]] * len(rows)}
    pq.write_table(pa.table(table), folder / "my.parquet")
    writes = []
    monkeypatch.setattr(shards.os, "replace", lambda a, b: (writes.append(b), replace(a, b))[1])
    lines = prepare(folder, source="my.parquet", images="")
    written = [path for path in writes if path.suffix == ".jpg"]
    assert len(written) == len({*written}) == PICTURES == len(list((folder / "out/images").iterdir()))
    train = records(folder)
    assert len(train) == 81 and open_image(train[80]["image"]).size == (24, 16)
    assert len({*train.column("image")}) == 27 == len({*train.column("image_id")})
    total = sum((folder / "pictures" / f"{n}.jpg").stat().st_size for n in range(PICTURES))
    facts = json.loads((folder / "out/prepared.json").read_text())
    assert facts["format"] == "folder" and sum(split["bytes"] for split in facts["splits"].values()) == total
    assert any(line.startswith("answers: task.min_count=9 keeps 1 of 1; they cover 100.0 % of train") for line in lines)
    moved = (folder / "out").rename(folder / "moved")
    assert Path(records(folder, out="moved")[0]["image"]).parent == moved / "images"
    with pytest.raises(UsageError, match="--format index needs pictures that are files"):
        prepare(folder, "other", source="my.parquet", images="", format="index")


replace = shards.os.replace


def test_pictures_of_a_folder_are_copied_if_asked(folder):
    prepare(folder, format="folder")
    assert len(list((folder / "out/images").iterdir())) == PICTURES
    assert records(folder)[0]["image"].startswith(str(folder / "out/images"))


def test_a_data_set_of_the_hub(folder):
    home = folder / "set/data"
    home.mkdir(parents=True)
    for split, numbers in (("train", range(20)), ("validation", range(18, 24)), ("test", range(24, 30))):
        rows = questions(numbers)
        images = [{"bytes": (folder / "pictures" / row["image"]).read_bytes(), "path": None} for row in rows]
        answers = [[] if split == "test" else ["red"]] * len(rows)
        table = {"image": images, "question": [row["question"] for row in rows], "question_id": range(len(rows)),
                 "answers": pa.array(answers, pa.list_(pa.string()))}  # fmt: skip
        pq.write_table(pa.table(table), home / f"{split}-00000-of-00001.parquet")
    lines: list[str] = []
    vqa.prepare(folder / "out", from_=[f"hub:{folder / 'set'}"], report=lines.append)
    assert [len(records(folder, split)) for split in ("train", "val", "test")] == [54, 18, 18]
    leaks = [entry["what"] for entry in bad(folder)]  # pictures 18 and 19 of train are in validation too
    assert len(leaks) == 6 and leaks[0].startswith("picture is in val too: ") and "train, row 55" in leaks[0]
    assert records(folder, "test")[0]["answers"] == []


def test_neither_the_hub_nor_a_table_needs_torch(folder):
    """A process of its own: here torch is loaded long since."""
    home = folder / "set"
    home.mkdir()
    rows = questions()
    data = [{"bytes": (folder / "pictures" / row["image"]).read_bytes(), "path": None} for row in rows]
    table = {"image": data, "question": [row["question"] for row in rows], "answers": [row["answers"] for row in rows]}
    pq.write_table(pa.table(table), home / "train.parquet")
    code = (
        "import sys; from pathlib import Path; from vlbeit.data_prep import vqa; "
        f"vqa.prepare(Path({str(folder / 'out')!r}), from_=['hub:{home}']); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "False" and len(records(folder)) == 81


def test_several_tables_and_a_folder_of_them(folder):
    write(folder / "train.csv", questions(range(20)))
    write(folder / "val.csv", questions(range(20, 30)))
    both = [str(folder / "train.csv"), str(folder / "val.csv")]
    vqa.prepare(folder / "one", from_=[",".join(both)], images=str(folder / "pictures"))
    (folder / "my.csv").unlink()
    vqa.prepare(folder / "two", from_=[str(folder)], images=str(folder / "pictures"))
    for out in ("one", "two"):
        assert [len(records(folder, split, out=out)) for split in ("train", "val")] == [60, 30]
    with pytest.raises(UsageError, match="one: of several tables each is named after its split"):
        vqa.prepare(folder / "three", from_=[both[0], str(folder / "one")])


def test_questions_alone(folder):
    write(folder / "my.csv", [{"image": "1.jpg", "question": "what?"}, {"image": "2.jpg", "question": "who?"}])
    lines = prepare(folder)
    assert len(records(folder, "test")) == 2 and "there are no answers: nothing to train on" in lines[-2]
    assert lines[-1] == f"vlbeit submit RUN --split test --out answers.json data=vqa data.root={folder / 'out'}"
    write(folder / "my.csv", [{**row, "split": "val"} for row in questions(range(3))])
    assert prepare(folder, "val")[-1] == f"vlbeit evaluate RUN data=vqa data.root={folder / 'val'} data.val_split=val"


class Killed(BaseException):
    pass


def test_it_goes_on_where_it_was_stopped(folder, monkeypatch):
    prepare(folder, "whole")
    monkeypatch.setattr(shards, "_ROWS", 20)
    items = vqa._items

    def dying(*arguments):
        def some(after):
            for count, item in enumerate(items(*arguments)(after)):
                if count == 50:
                    raise Killed
                yield item

        return some

    monkeypatch.setattr(shards, "_LOOKAHEAD", 1)
    monkeypatch.setattr(vqa, "_items", dying)
    with pytest.raises(Killed):
        prepare(folder)
    assert len(list((folder / "out").glob("train-*.parquet"))) == 2
    monkeypatch.setattr(vqa, "_items", items)
    assert any(line.startswith("train: goes on behind 40 records") for line in prepare(folder))
    assert bad(folder) == []
    for split in ("train", "val"):
        whole, found = (prepared_records(folder / out, "vqa", split) for out in ("whole", "out"))
        assert [found[row] for row in range(len(found))] == [whole[row] for row in range(len(whole))]
    lines = prepare(folder)
    assert f"{folder / 'out'}: already there" in lines and "task=vqa" in lines[-1]
    with pytest.raises(UsageError, match=r"was prepared with .*seed=0.*, not .*seed=1"):
        prepare(folder, seed=1)


def test_through_the_command_line(folder, capsys):
    words = ["prepare", "vqa", "--from", str(folder / "my.csv"), "--images", str(folder / "pictures")]
    assert main([*words, "--out", str(folder / "out"), "--held-out", "0.2", "--columns", "answers:answers"]) == 0
    assert "next: vlbeit train stage=vl task=vqa" in capsys.readouterr().out and len(records(folder, "val")) == 18
    assert main([*words, "--out", str(folder / "other"), "--columns", "question:q"]) == 2
    assert "my.csv has no column q: it has image, question, answers; name it with --columns" in capsys.readouterr().err


def test_semicolons_in_answers_are_noted(folder):
    write(folder / "my.csv", questions(answers=("red; blue", "red|a;b", '["x;y"]', "blue")))
    notes = [line for line in prepare(folder) if "';'" in line]
    assert notes == [
        "24 answers contain ';' (first my.csv, line 2): it is left out like other marks; did you mean '|', which parts "
        "several answers?"
    ]
    write(folder / "my.csv", questions())
    assert not any("';'" in line for line in prepare(folder, "other"))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (b"0.jpg,what \xdcber?,red\n", "{}, line 2: b'\\xdc' is not UTF-8; save the file as UTF-8"),
        (b"", "--from {}: the table has no row below its heading"),
        (
            b"0.jpg,what?,red\n",
            "--from {}: 1 pictures are too few to hold out 1 for 'val': hold out fewer, or name the splits in a column "
            "(--held-out, --columns)",
        ),
    ],
)
def test_errors_name_the_table_once_and_only_options_that_help(folder, rows, said):
    (folder / "my.csv").write_bytes(b"image,question,answers\n" + rows)
    with pytest.raises(DataError) as error:
        prepare(folder)
    assert str(error.value) == said.format(folder / "my.csv")


def test_what_is_odd_is_said_where_there_is_something(folder):
    lines = prepare(folder)
    assert any(re.fullmatch(r"train: 81 records, .* pixels; 0 left out", line) for line in lines)
    assert f"wrote {folder / 'out/prepared.json'}" in lines
    (folder / "pictures/0.jpg").write_bytes(b"no picture")
    lines = prepare(folder, "other")
    assert f"{folder / 'other/bad.jsonl'} names each of these" in lines
    assert f"wrote {folder / 'other/prepared.json'}" in lines


def test_what_no_table_can_hold_is_named(folder):
    rows = [{"id": f"q{number}", **row} for number, row in enumerate(questions())]
    for row, change in zip(rows, ({"question": "what \ud83d?"}, {"image": "a\0.jpg"}, {"id": "\udc80"}), strict=False):
        row |= change
    (folder / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare(folder, source="my.jsonl")
    half, missing, name = bad(folder)
    assert half["what"].startswith("text has half a letter: what \\ud83d? ")
    assert missing["what"] == "picture is missing: a\\0.jpg (my.jsonl, line 2)"
    assert name["what"] == "text has half a letter: \\udc80 (my.jsonl, line 3)"
