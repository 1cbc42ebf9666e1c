"""`vlbeit inspect data`: planted faults are found and named, and sound data passes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlbeit.cli import main
from vlbeit.config import DataConfig
from vlbeit.data.sources import open_records
from vlbeit.health import pictures
from vlbeit.health.findings import Finding
from vlbeit.health.report import Report, Wanted, inspect

TRAIN, VAL = "train2014", "val2014"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLBEIT_CACHE", str(tmp_path / "cache"))


def by_code(report: Report) -> dict[str, Finding]:
    """One finding for each code; of several splits the first."""
    return {finding.code: finding for finding in reversed(report.findings)}


def test_sound_data_is_safe(scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "data", str(scenes), "--json", "--thorough", "--min-count", "1"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert out["safe"] and out["unsafe_because"] == [] and out["data"] == "scenes"
    assert out["findings"] == []
    assert set(out["tables"]["splits"]) == {TRAIN, VAL, "test2015"}


def test_every_planted_fault_is_found_and_named(copy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    expected = plant(copy)
    assert len(expected) >= 12
    assert main(["inspect", "data", str(copy.root), "--json", "--min-count", "1"]) == 1
    out = json.loads(capsys.readouterr().out)
    found = {(item["code"], item["split"]): item["ids"] for item in out["findings"]}
    assert {key: found.get(key) for key in expected} == expected
    assert set(found) == set(expected)  # and nothing else is said to be wrong
    assert not out["safe"] and "missing-image" in out["unsafe_because"]
    for item in out["findings"]:
        each = 2 if item["code"].startswith("same-picture") else 1  # both of a pair
        assert item["count"] * each == len(item["ids"]) and item["message"] and item["remedy"]


def plant(copy: Any) -> dict[tuple[str, str], list[Any]]:
    """Damage the copy; returns the ids of each fault by code and split."""
    asked, said = copy.questions(TRAIN), copy.annotations(TRAIN)
    by_image: dict[int, list[int]] = {}
    for row in copy.rows(asked):
        by_image.setdefault(row["image_id"], []).append(row["question_id"])
    images = [image for image, ids in by_image.items() if len(ids) >= 3]
    one = [by_image[image][0] for image in images]  # a question of each picture, so that faults do not meet
    two = [by_image[image][1] for image in images]
    foreign = copy.rows(copy.questions(VAL))[0]

    copy.picture(TRAIN, images[0]).unlink()
    cut = copy.picture(TRAIN, images[1])
    cut.write_bytes(cut.read_bytes()[:-200])
    copy.picture(TRAIN, images[2]).write_text("<html>404</html>")
    leaked = copy.picture(VAL, foreign["image_id"])
    shutil.copy(leaked, copy.picture(TRAIN, images[3]))

    def damage_questions(rows: list[dict[str, Any]]) -> None:
        row = {item["question_id"]: item for item in rows}
        rows.append(dict(row[one[4]]))
        row[one[5]]["question"] = " ?"
        row[one[6]]["question"] = "is there " + "really " * 40 + "a circle?"
        row[two[7]]["question"] = row[one[7]]["question"].upper().rstrip("?") + " ?"
        row[one[8]]["image_id"] = 987654321
        row[one[9]]["image_id"] = images[20]
        rows.append({"question_id": 999_000, "image_id": images[10], "question": "who wrote this?"})
        rows.append(dict(foreign, question_id=999_001))
        shutil.copy(leaked, copy.picture(TRAIN, foreign["image_id"]))

    def damage_annotations(rows: list[dict[str, Any]]) -> None:
        row = {item["question_id"]: item for item in rows}
        rows.append(dict(row[one[12]], question_id=888_000))
        rows.append(dict(row[one[11]]))
        row[one[13]]["answers"] = []
        row[one[14]]["answers"][3]["answer"] = ""
        del row[one[15]]["answers"][9]
        row[one[16]]["answers"][1]["answer_id"] = 1
        last = [number for image in images[17:] for number in by_image[image][1:]]
        kinds = {kind: [k for k in last if row[k]["answer_type"] == kind] for kind in ("yes/no", "other")}
        nonlocal wrong, literal
        wrong, literal = kinds["yes/no"][0], kinds["other"][0]
        answer(row[wrong], "red")
        answer(row[literal], "T-shirt")
        rows.append(dict(row[one[0]], question_id=999_001, image_id=foreign["image_id"]))

    wrong = literal = 0
    copy.edit(asked, damage_questions)
    copy.edit(said, damage_annotations)
    between = f"{TRAIN}, {VAL}"
    return {
        ("missing-image", TRAIN): [images[0]],
        ("broken-image", TRAIN): [images[1], images[2]],
        ("same-picture-in-two-splits", between): [images[3], foreign["image_id"]],
        ("image-in-two-splits", between): [foreign["image_id"]],
        ("same-picture-in-one-split", TRAIN): [images[3], foreign["image_id"]],
        ("duplicate-question-id", TRAIN): [one[4]],
        ("empty-question", TRAIN): [one[5]],
        ("long-question", TRAIN): [one[6]],
        ("near-duplicate-question", TRAIN): [two[7]],
        ("dangling-image-id", TRAIN): [one[8]],
        ("image-id-mismatch", TRAIN): [one[8], one[9]],
        ("question-without-annotation", TRAIN): [999_000],
        ("annotation-without-question", TRAIN): [888_000],
        ("duplicate-annotation", TRAIN): [one[11]],
        ("no-answers", TRAIN): [one[13]],
        ("empty-answer", TRAIN): [one[14]],
        ("not-ten-answers", TRAIN): [one[15]],
        ("duplicate-answer-id", TRAIN): [one[16]],
        ("answer-type-contradiction", TRAIN): [wrong],
        ("literal-answers", TRAIN): [literal],
        ("upper-case-answer", TRAIN): [literal],
    }


def answer(row: dict[str, Any], text: str) -> None:
    """All humans, and the data set, say this."""
    row["multiple_choice_answer"] = text
    for item in row["answers"]:
        item["answer"] = text


def test_a_file_that_is_cut_off_is_read_up_to_there(copy: Any) -> None:
    path = copy.annotations(TRAIN)
    text = path.read_text()
    path.write_text(text[: len(text) // 2])
    report = copy.report()
    damaged = by_code(report)["damaged-file"]
    assert damaged.ids == [path.name] and "line 1 column" in damaged.message
    assert "question-without-annotation" not in by_code(report)  # they lie behind the damage
    count = report.tables["splits"][TRAIN]["annotations"]
    assert 0 < count < len(copy.rows(copy.questions(TRAIN))) and f"{count:,} annotations" in damaged.message


def test_a_file_that_is_no_text_or_no_such_json(copy: Any) -> None:
    copy.questions(TRAIN).write_bytes(b"\xff\xfe\x00")
    copy.annotations(VAL).write_text('{"questions": []}')
    damaged = {finding.split: finding for finding in copy.report().findings if finding.code == "damaged-file"}
    assert "not UTF-8" in damaged[TRAIN].message and "no 'annotations'" in damaged[VAL].message


def test_files_of_another_split(copy: Any) -> None:
    shutil.copy(copy.annotations(VAL), copy.annotations(TRAIN))
    finding = by_code(copy.report())["wrong-split-file"]
    assert finding.ids == [copy.annotations(TRAIN).name] and "'val2014'" in finding.message


def test_rows_that_are_not_as_they_should_be(copy: Any) -> None:
    def damage(rows: list[Any]) -> None:
        rows[2] = "a text"
        del rows[4]["image_id"]
        rows[5]["question"] = None

    number = copy.rows(copy.questions(VAL))[5]["question_id"]
    copy.edit(copy.questions(VAL), damage)
    copy.edit(copy.annotations(TRAIN), lambda rows: rows.insert(0, 5))
    copy.edit(copy.annotations(TRAIN), lambda rows: rows[1].update(image_id=10**30))
    copy.edit(copy.annotations(TRAIN), lambda rows: rows[2]["answers"].insert(0, "a text"))
    report = copy.report()
    found = by_code(report)
    wrong = {finding.split: finding.ids for finding in report.findings if finding.code == "malformed-row"}
    assert wrong == {TRAIN: [f"annotations[{place}]" for place in range(3)], VAL: ["questions[2]", "questions[4]"]}
    assert found["empty-question"].ids == [number]


@pytest.mark.parametrize("wrong", ["12", 12.5, True, None])
@pytest.mark.parametrize("field", ["question_id", "image_id"])
def test_an_id_that_is_no_integer(copy: Any, field: str, wrong: object) -> None:
    copy.edit(copy.questions(TRAIN), lambda rows: rows[3].update({field: wrong}))
    copy.edit(copy.annotations(VAL), lambda rows: rows[2].update({field: wrong}))
    report = copy.report()
    found = {(each.code, each.split): each for each in report.findings}
    assert {code for code, _ in found} == {"malformed-row"}
    assert found["malformed-row", TRAIN].ids == ["questions[3]"]
    assert f"{field} is {wrong!r}, no integer" in found["malformed-row", VAL].message


@pytest.mark.parametrize(("wrong", "taken"), [(2, "2"), (None, "None"), (["red"], "['red']")])
def test_an_answer_that_is_no_text(copy: Any, wrong: object, taken: str) -> None:
    """It is not empty: training takes what Python makes of it."""
    copy.edit(copy.annotations(TRAIN), lambda rows: rows[3]["answers"][0].update(answer=wrong))
    report = copy.report()
    found = by_code(report)
    assert found["malformed-row"].ids == ["annotations[3]"] and "empty-answer" not in found
    assert f"the answer {wrong!r} is no text: training takes it as {taken!r}" in found["malformed-row"].message
    records = open_records(DataConfig(name="vqa_v2", root=str(copy.root)), "vqa", "train")
    number = copy.rows(copy.annotations(TRAIN))[3]["question_id"]
    (row,) = [row for row in records if row["question_id"] == number]
    assert row["answers"][0] == taken


def test_missing_files_and_folders(copy: Any) -> None:
    copy.annotations(VAL).unlink()
    shutil.rmtree(copy.root / TRAIN)
    missing = [finding for finding in copy.report().findings if finding.code == "missing-file"]
    assert {finding.split for finding in missing} == {TRAIN, VAL}
    assert "missing-image" not in by_code(copy.report())  # said once, not for every picture


def test_one_answer_for_everything(copy: Any) -> None:
    copy.edit(copy.annotations(TRAIN), lambda rows: [answer(row, "yes") for row in rows])
    report = copy.report()
    assert by_code(report)["one-answer-everywhere"].ids == ["yes"]
    assert report.unsafe


def test_a_vocabulary_without_answers_and_one_with_few(copy: Any) -> None:
    assert "lower task.min_count" in by_code(copy.report(min_count=10_000))["empty-vocabulary"].to_json()["remedy"]
    assert by_code(copy.report(min_count=60))["low-ceiling"].severity == "warning"


def test_strict_makes_warnings_fail(copy: Any) -> None:
    number = copy.rows(copy.questions(TRAIN))[0]["question_id"]
    copy.edit(copy.questions(TRAIN), lambda rows: rows[0].update(question=""))
    arguments = ["inspect", "data", str(copy.root), "--min-count", "1"]
    assert main(arguments) == 0
    assert main([*arguments, "--strict"]) == 1
    assert by_code(copy.report())["empty-question"].ids == [number]


def test_damage_in_the_middle_is_seen_when_everything_is_decoded(copy: Any) -> None:
    number = copy.rows(copy.questions(VAL))[0]["image_id"]
    path = copy.picture(VAL, number)
    Image.effect_noise((64, 64), 90).save(path, format="PNG")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)  # its end is whole
    path.write_bytes(data)
    assert "broken-image" not in by_code(copy.report())
    assert by_code(copy.report(thorough=True))["broken-image"].ids == [number]


def test_a_copy_of_another_quality_is_a_near_copy(copy: Any) -> None:
    here, there = (copy.rows(copy.questions(name))[0]["image_id"] for name in (TRAIN, VAL))
    with Image.open(copy.picture(VAL, there)) as image:
        image.resize((56, 56)).save(copy.picture(TRAIN, here), quality=70)
    assert by_code(copy.report(thorough=True))["near-copy-in-two-splits"].ids == [here, there]


def test_pictures_that_were_not_all_compared_are_counted(copy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    look = np.arange(256, dtype=np.uint8).reshape(16, 16)
    same = [pictures.Picture("train", number, "", 1, (16, 16), "PNG", "", look) for number in range(5)]
    likeness = pictures.Likeness(same)
    assert len(list(likeness.pairs())) == 10 and likeness.crowded == []
    monkeypatch.setattr(pictures, "_CROWD", 2)
    likeness = pictures.Likeness(same)
    assert len(list(likeness.pairs())) == 7 and [each.image_id for each in likeness.crowded] == [3, 4]
    first, *others = dict.fromkeys(row["image_id"] for row in copy.rows(copy.questions(TRAIN)))
    for quality, number in enumerate(others[:4], 90):
        with Image.open(copy.picture(TRAIN, first)) as image:
            image.save(copy.picture(TRAIN, number), quality=quality)
    crowded = by_code(copy.report(thorough=True))["crowded-look"]
    assert (crowded.severity, crowded.split) == ("note", TRAIN) and "may have been missed" in crowded.message
    assert {others[2], others[3]} <= set(crowded.ids)  # of five copies the fourth and the fifth


def test_tables(copy: Any) -> None:
    tables = copy.report().tables
    train, val = tables["splits"][TRAIN], tables["splits"][VAL]
    assert train["questions"] == len(copy.rows(copy.questions(TRAIN))) == sum(train["answer_types"].values())
    assert train["answers"] == 10 * train["questions"] and train["answers_per_question"] == {"10": train["questions"]}
    assert train["image_sizes"]["width"] == {"min": 48, "median": 48, "max": 48}
    assert sum(val["question_types"].values()) == val["questions"]
    assert 0 < tables["vocabulary"]["splits"][TRAIN]["ceiling"] <= 100
    assert tables["blind"]["question_only"]["questions"] == val["questions"]
    assert tables["blind"]["majority"]["overall"] <= tables["blind"]["question_only"]["overall"]
    assert "annotations" not in tables["splits"]["test2015"]


@pytest.mark.parametrize("prepared", [False, True])
def test_joined_splits_are_those_of_training(
    prepared: bool, copy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the published recipes train: on train and most of val, scored on the pictures that are held out of it."""
    root = tmp_path / "prepared" if prepared else copy.root
    if prepared:
        assert main(["prepare", "vqa_v2", "--root", str(copy.root), "--out", str(root), "--seed", "3"]) == 0
    config = DataConfig(name="vqa_v2", root=str(root), train_split="train+trainable_val", val_split="rest_val")
    report = inspect(Wanted(config, min_count=1))
    assert report.findings == []
    found = report.tables["vocabulary"]["splits"]
    for split in (config.train_split, config.val_split):
        assert found[split]["questions"] == len(open_records(config, "vqa", split))
    assert report.tables["blind"]["scored"] == "rest_val"
    words = ["--data", "vqa_v2", "--train-split", "train+trainable_val", "--val-split", "rest_val", "--min-count", "1"]
    capsys.readouterr()
    assert main(["inspect", "data", str(root), *words]) == 0
    trained = f"stage=vl task=vqa init=vlmo_base_patch16_224 data=vqa_v2 data.root={root} run=runs/{root.name}-vqa"
    trained += f" task.answers={root}/answers.json" if prepared else ""
    splits = "data.train_split=train+trainable_val data.val_split=rest_val"
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1].startswith(f"next: vlbeit train {trained} {splits}")
    assert ("task.min_count=1" in printed[-1]) == (not prepared)
    assert printed[0] == printed[-2] and printed[0].startswith("safe to train on ("), "the verdict, also first"


def test_splits_that_are_not_there_are_named(copy: Any) -> None:
    for path in (copy.questions(VAL), copy.annotations(VAL)):
        path.unlink()
    shutil.rmtree(copy.root / VAL)
    for split, code, said in (
        ("train+trainable_val", "missing-file", "no split trainable_val to train on"),
        ("train+vall", "refused", "no split 'vall'"),
        ("train+train", "refused", "twice"),
    ):
        report = inspect(Wanted(DataConfig(name="vqa_v2", root=str(copy.root), train_split=split), min_count=1))
        assert [finding.code for finding in report.findings] == [code] and said in report.findings[0].message


def test_the_report_in_words(copy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    picture = copy.picture(TRAIN, copy.rows(copy.questions(TRAIN))[0]["image_id"])
    picture.write_bytes(b"")
    assert main(["inspect", "data", str(copy.root), "--min-count", "1"]) == 1
    captured = capsys.readouterr()
    assert f"{picture.name}: it is empty: 0 bytes" in captured.out
    assert "not safe to train on (1 error, 0 warnings, 0 notes): broken-image" in captured.out
    assert "next: " in captured.out and "blind baselines" in captured.out
    assert f"{TRAIN}: " in captured.err  # progress


def test_folders_of_pictures(scenes: Path, tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    shutil.copytree(scenes / "imagefolder", root)
    assert main(["inspect", "data", str(root)]) == 0
    here, there = (sorted((root / split).rglob("*.jpg"))[0] for split in ("train", "val"))
    shutil.copy(there, here)
    assert main(["inspect", "data", str(root)]) == 1


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "data", str(tmp_path / "nowhere")]) == 1
    assert "does not exist" in capsys.readouterr().err
    assert main(["inspect", "data", str(tmp_path)]) == 2
    assert "--data" in capsys.readouterr().err
    assert main(["inspect", "data", str(tmp_path), "--data", "text"]) == 1
    assert "no file for the split 'train'" in capsys.readouterr().out


def test_a_table_of_ones_own_and_what_is_prepared_from_it(copy: Any, tmp_path: Path) -> None:
    table = own_table(copy, tmp_path / "mine.csv")
    out = tmp_path / "mine"
    assert main(["prepare", "vqa", "--from", str(table), "--out", str(out)]) == 0
    for path in (table, out):
        report = inspect_path(path)
        assert report.wanted.data.name == "vqa" and not report.unsafe, report.findings
        counts = [facts["questions"] for facts in report.tables["splits"].values()]
        assert sum(counts) == len(copy.rows(copy.questions(TRAIN))) and len(counts) == 2
    copy.picture(TRAIN, copy.rows(copy.questions(TRAIN))[0]["image_id"]).write_bytes(b"nothing")
    assert "broken-image" in by_code(inspect_path(table))


def test_a_table_with_rows_that_are_refused_is_checked_all_the_same(copy: Any, tmp_path: Path) -> None:
    table = own_table(copy, tmp_path / "mine.csv")
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines, "nowhere.jpg,who is it?,me", f"{lines[1].split(',')[0]},,me"]) + "\n")
    report = inspect_path(table)
    refused = by_code(report)["refused"]
    assert "picture is missing" in refused.message and "question is empty" in refused.message
    assert report.unsafe and report.tables["splits"]["train"]["questions"] > 0


def test_a_prepared_folder_of_official_files(copy: Any, tmp_path: Path) -> None:
    out = tmp_path / "prepared"
    assert main(["prepare", "vqa_v2", "--root", str(copy.root), "--out", str(out)]) == 0
    report = inspect_path(out)
    assert report.wanted.data.name == "vqa_v2" and not report.unsafe, report.findings
    assert set(report.tables["splits"]) == {"train", "val", "test"}
    gone = copy.picture(VAL, copy.rows(copy.questions(VAL))[0]["image_id"])
    gone.unlink()
    assert by_code(inspect_path(out))["missing-image"].ids == [str(gone)]


def test_files_of_ok_vqa(copy: Any) -> None:
    for path in copy.root.glob("v2_*.json"):
        path.rename(path.with_name(path.name.removeprefix("v2_")))
    report = copy.report()
    assert report.wanted.data.name == "okvqa" and not report.unsafe


def test_a_relative_counts_its_splits_anew(copy: Any, tmp_path: Path) -> None:
    """VizWiz: train_0.jpg and val_0.jpg are two pictures and two questions."""
    root = tmp_path / "vizwiz"
    (root / "Annotations").mkdir(parents=True)
    for split, subtype in (("train", TRAIN), ("val", VAL)):
        (root / split).mkdir()
        items = []
        for number, path in enumerate(sorted((copy.root / subtype).glob("*.jpg"))):
            shutil.copy(path, root / split / f"{split}_{number}.jpg")
            said = [{"answer": f"thing {number % 3}"}] * 10
            items.append({"image": f"{split}_{number}.jpg", "question": "what is it?", "answers": said})
        (root / f"Annotations/{split}.json").write_text(json.dumps(items))
    report = inspect_path(root)
    assert report.wanted.data.name == "vizwiz" and report.findings == []
    (root / "train/train_3.jpg").unlink()
    assert "train_3.jpg" in by_code(inspect_path(root))["refused"].message


def own_table(copy: Any, path: Path) -> Path:
    """The training questions as a CSV file."""
    said = {row["question_id"]: row["multiple_choice_answer"] for row in copy.rows(copy.annotations(TRAIN))}
    lines = ["image,question,answers"]
    for row in copy.rows(copy.questions(TRAIN)):
        lines.append(f'{copy.picture(TRAIN, row["image_id"])},"{row["question"]}",{said[row["question_id"]]}')
    path.write_text("\n".join(lines) + "\n")
    return path


def inspect_path(path: Path) -> Report:
    return inspect(Wanted(DataConfig(name="", root=str(path)), min_count=1))


def test_what_no_terminal_can_print_is_written_in_escapes(copy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    copy.edit(copy.annotations(TRAIN), lambda rows: [answer(row, "a \ud800 \n" + "b" * 300) for row in rows[:40]])
    copy.edit(copy.annotations(VAL), lambda rows: rows[0].update(answer_type="\ud800"))
    copy.edit(copy.questions(TRAIN), lambda rows: rows[0].update(question_id=float("inf")))
    for extra in ([], ["--json"]):
        assert main(["inspect", "data", str(copy.root), "--min-count", "1", *extra]) == 1
    out = capsys.readouterr().out
    out.encode()
    assert "malformed-row" in out and "\\ud800" in out and "b" * 200 not in out.partition("{")[0]


def test_few_broken_pictures_of_many_are_a_warning(copy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    number = copy.rows(copy.questions(TRAIN))[0]["image_id"]
    copy.picture(TRAIN, number).write_bytes(b"nothing")
    monkeypatch.setattr("vlbeit.health.report.TOLERATED", 0.1)
    report = copy.report()
    assert by_code(report)["broken-image"].severity == "warning" and not report.unsafe


def test_splits_that_share_pictures_by_design_do_not_leak(copy: Any) -> None:
    """test-dev is a part of test."""
    part = copy.root / "v2_OpenEnded_mscoco_test-dev2015_questions.json"
    shutil.copy(copy.questions("test2015"), part)
    part.write_text(part.read_text().replace('"data_subtype": "test2015"', '"data_subtype": "test-dev2015"'))
    assert copy.report().findings == []
