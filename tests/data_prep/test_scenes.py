"""The built-in data: same seed, same bytes; official layouts; no scene in two parts; words alone do not answer."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from vlbeit.data_prep import scenes
from vlbeit.data_prep.scene_answers import OTHER_WORDS, annotate
from vlbeit.data_prep.scene_draw import RGB, draw
from vlbeit.data_prep.scene_questions import ask
from vlbeit.data_prep.scene_world import SHAPES, make_scene, stands
from vlbeit.data_prep.scenes import CLASSES, PARTS, prepare
from vlbeit.errors import UsageError

QUESTIONS = "v2_OpenEnded_mscoco_{}_questions.json"
ANNOTATIONS = "v2_mscoco_{}_annotations.json"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "scenes"
    prepare(out, images=20)
    return out


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "scenes"
    prepare(out, images=300, size=32)
    return out


def _digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _asked(folder: Path, part: str) -> list[tuple[dict, dict]]:
    questions = json.loads((folder / QUESTIONS.format(part)).read_text())["questions"]
    annotations = json.loads((folder / ANNOTATIONS.format(part)).read_text())["annotations"]
    by_id = {q["question_id"]: q for q in questions}
    assert len(by_id) == len(questions) == len(annotations)
    return [(by_id[a["question_id"]], a) for a in annotations]


def test_same_seed_same_bytes(small: Path, tmp_path: Path) -> None:
    prepare(tmp_path / "again", images=20)
    assert _digests(tmp_path / "again") == _digests(small)
    prepare(tmp_path / "other", images=20, seed=1)
    assert _digests(tmp_path / "other").keys() == _digests(small).keys()
    same = {name for name, digest in _digests(tmp_path / "other").items() if digest == _digests(small)[name]}
    assert not [name for name in same if name.endswith((".jpg", ".jsonl", "questions.json"))]


def test_bytes_do_not_depend_on_hash_seed(small: Path, tmp_path: Path) -> None:
    code = "import sys; from vlbeit.data_prep.scenes import prepare; prepare(sys.argv[1], images=20)"
    again = tmp_path / "again"
    subprocess.run([sys.executable, "-c", code, str(again)], check=True, env=os.environ | {"PYTHONHASHSEED": "7"})
    assert _digests(again) == _digests(small)


def test_no_torch_is_imported() -> None:
    code = "import sys, vlbeit.data_prep.scenes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_official_fields(small: Path) -> None:
    for part in PARTS.values():
        file = json.loads((small / QUESTIONS.format(part)).read_text())
        assert file.keys() == {"info", "task_type", "data_type", "data_subtype", "questions", "license"}
        assert file["data_subtype"] == part
        assert all(q.keys() == {"question_id", "image_id", "question"} for q in file["questions"])
    assert not (small / ANNOTATIONS.format(PARTS["test"])).exists()
    file = json.loads((small / ANNOTATIONS.format("train2014")).read_text())
    assert file.keys() == {"info", "data_type", "data_subtype", "license", "annotations"}
    for annotation in file["annotations"]:
        fields = {"question_id", "image_id", "question_type", "answer_type", "answers", "multiple_choice_answer"}
        assert annotation.keys() == fields
        assert [a["answer_id"] for a in annotation["answers"]] == list(range(1, 11))
        assert all(a.keys() == {"answer_id", "answer", "answer_confidence"} for a in annotation["answers"])
        assert {a["answer_confidence"] for a in annotation["answers"]} <= {"yes", "maybe", "no"}
        said = Counter(a["answer"] for a in annotation["answers"]).most_common(1)[0]
        assert said[0] == annotation["multiple_choice_answer"] and said[1] >= 6
        assert all(a["answer"] == a["answer"].lower() for a in annotation["answers"])


def test_question_type_is_a_prefix_of_the_question(small: Path) -> None:
    for question, annotation in _asked(small, "train2014"):
        kind = annotation["question_type"]
        assert kind == "none of the above" or question["question"].startswith(kind + " ")


def test_all_referenced_images_exist_and_have_the_size(small: Path) -> None:
    for split, part in PARTS.items():
        ids = {q["image_id"] for q in json.loads((small / QUESTIONS.format(part)).read_text())["questions"]}
        files = {f"COCO_{part}_{image_id:012d}.jpg" for image_id in ids}
        assert {p.name for p in (small / part).iterdir()} == files
        lines = [json.loads(line) for line in (small / f"captions_{split}.jsonl").read_text().splitlines()]
        assert Counter(line["image_id"] for line in lines) == dict.fromkeys(ids, 2)
        assert all((small / line["image"]).is_file() for line in lines)
        for name in files:
            with Image.open(small / part / name) as image:
                assert image.size == (48, 48) and image.mode == "RGB" and image.format == "JPEG"


def test_parts_share_no_scene() -> None:
    parts = {stream: {s.signature() for s in scenes._scenes(0, stream, 300)} for stream in scenes.BUCKETS}
    for stream, others in {"val": ("train", "text-train", "test", "text-val"), "test": ("train", "text-train")}.items():
        assert all(not parts[stream] & parts[other] for other in others)


def test_pictures_are_distinct_and_ids_too(large: Path) -> None:
    files = [p for part in PARTS.values() for p in (large / part).iterdir()]
    assert len({p.read_bytes() for p in files}) == len({p.stem.split("_")[-1] for p in files}) == len(files) == 300


def test_masks_and_boxes_agree_with_the_drawing(small: Path) -> None:
    file = json.loads((small / "instances_train2014.json").read_text())
    names = {c["id"]: c["name"] for c in file["categories"]}
    assert tuple(names.values()) == SHAPES
    for picture in file["images"]:
        stem = Path(picture["file_name"]).stem
        labels = np.asarray(Image.open(small / "annotations" / "train2014" / f"{stem}.png"))
        boxes = [a for a in file["annotations"] if a["image_id"] == picture["id"]]
        inside = np.zeros(labels.shape, bool)
        for box in boxes:
            x, y, width, height = box["bbox"]
            window = labels[y : y + height, x : x + width]
            assert (window == box["category_id"]).any(0).all() and (window == box["category_id"]).any(1).all()
            assert (window == box["category_id"]).sum() >= box["area"] > 0
            inside[y : y + height, x : x + width] = True
        assert not labels[~inside].any()
        assert (labels > 0).sum() == sum(box["area"] for box in boxes)


def test_things_have_the_colour_that_is_said() -> None:
    for index in range(20):
        scene = make_scene(Random(index))
        drawing = draw(scene, 64)
        for thing, covered in zip(scene.things, drawing.things, strict=True):
            middle = np.median(drawing.image[covered], axis=0)
            nearest = min(RGB, key=lambda name: float(np.abs(middle - np.array(RGB[name])).sum()))
            assert nearest == thing.color


def test_answers_fit_the_scene() -> None:
    """Counts, existence and colours are recomputed from the things by reading the question's words."""
    asked: Counter[str] = Counter()
    for index in range(200):
        scene = make_scene(Random(index))
        for question in ask(scene, Random(-index)):
            words = question.text.rstrip("?").split()
            shape = next((s for s in SHAPES for w in words if w in (s, s + "s", s + "es")), None)
            color = next((c for c in RGB if c in words), None)
            fitting = [t for t in scene.things if shape in (None, t.shape) and color in (None, t.color)]
            if question.answer_type == "number":
                assert question.answer == str(len(fitting)), question
            elif question.text.startswith(("is there", "are there", "do you see")):
                assert question.answer == ("yes" if fitting else "no"), question
            elif question.question_type.startswith("what color is the") and question.text.count(" the ") == 1:
                assert question.answer in {t.color for t in fitting}, question
            else:
                continue
            asked[question.answer_type] += 1
    assert min(asked[kind] for kind in ("number", "yes/no", "other")) > 30


def test_relations_are_opposites() -> None:
    for index in range(50):
        things = make_scene(Random(index)).things
        for first in things:
            for second in things:
                if first is not second:
                    assert stands(first, "left of", second) == stands(second, "right of", first)
                    assert stands(first, "above", second) == stands(second, "below", first)


def test_answer_types_have_sensible_shares(large: Path) -> None:
    kinds = Counter(a["answer_type"] for _, a in _asked(large, "train2014"))
    shares = {kind: count / kinds.total() for kind, count in kinds.items()}
    assert 0.30 < shares["yes/no"] < 0.40 and 0.20 < shares["number"] < 0.30 and 0.34 < shares["other"] < 0.46


def test_words_alone_do_not_tell_the_answer(large: Path) -> None:
    by_text, by_kind = defaultdict(Counter), defaultdict(Counter)
    for question, annotation in _asked(large, "train2014"):
        by_text[question["question"]][annotation["multiple_choice_answer"]] += 1
        by_kind[annotation["question_type"]][annotation["multiple_choice_answer"]] += 1
    scores = []
    for question, annotation in _asked(large, "val2014"):
        known = by_text[question["question"]] or by_kind[annotation["question_type"]]
        guess = known.most_common(1)[0][0]
        said = Counter(a["answer"] for a in annotation["answers"])[guess]
        scores.append((0, 0.3, 0.6, 0.9)[said] if said < 4 else 1)
    assert sum(scores) / len(scores) < 0.5


def test_annotators_mostly_agree() -> None:
    majorities = [
        Counter(a["answer"] for a in annotate(answer, Random(f"{answer}{i}")))[answer]
        for answer in (*OTHER_WORDS, "0", "1", "2", "3", "4")
        for i in range(40)
    ]
    assert min(majorities) >= 6
    assert 0.6 < sum(m >= 9 for m in majorities) / len(majorities) < 0.9
    assert any(m == 6 for m in majorities)


def test_classes_are_balanced(large: Path) -> None:
    for split in ("train", "val"):
        counts = {c.name: len(list(c.iterdir())) for c in (large / "imagefolder" / split).iterdir()}
        assert set(counts) == set(CLASSES) and max(counts.values()) - min(counts.values()) <= 1


def test_text_is_lower_case_sentences(small: Path) -> None:
    lines = (small / "text_train.txt").read_text().splitlines()
    assert len(lines) == 100 and all(line and line == line.lower() for line in lines)


def test_finished_folder_is_left_as_it_is(small: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in small.rglob("*")}
    said: list[str] = []
    prepare(small, images=20, report=said.append)
    assert said == [f"{small}: already there"]
    assert {p: p.stat().st_mtime_ns for p in small.rglob("*")} == before


def test_other_arguments_are_refused(small: Path) -> None:
    with pytest.raises(UsageError, match=r"seed=0, not seed=3.*remove it"):
        prepare(small, images=20, seed=3)


def test_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UsageError, match="no finished scenes"):
        prepare(tmp_path, images=20)
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_interrupted_preparation_is_done_again(tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "scenes"
    with monkeypatch.context() as patch:
        patch.setattr(scenes, "_write_text", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare(out, images=20)
    assert list(tmp_path.iterdir()) == []
    prepare(out, images=20)
    assert _digests(out) == _digests(small)


@pytest.mark.parametrize(("key", "value"), [("images", 5), ("size", 8), ("seed", -1)])
def test_bad_numbers_are_refused(tmp_path: Path, key: str, value: int) -> None:
    with pytest.raises(UsageError, match=f"{key}={value}"):
        prepare(tmp_path / "x", **{key: value})
    assert list(tmp_path.iterdir()) == []
