import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """Indexes of a test go to a folder of its own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("VLBEIT_CACHE", str(folder))
    return folder


@pytest.fixture
def draw():
    """Writes a small image of noise, or of one colour."""

    def write(path: Path, color=None, size=(24, 16)) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        if color is None:
            pixels = np.random.default_rng(zlib.crc32(path.name.encode())).integers(0, 256, (size[1], size[0], 3))
            Image.fromarray(pixels.astype(np.uint8)).save(path)
        else:
            Image.new("RGB", size, color).save(path)
        return path

    return write


@pytest.fixture
def vqa_root(tmp_path, draw):
    """A tiny VQA v2 root: questions 10, 11, 20 (train), 30 (val), 40 and 41 (test; 41 in test-dev)."""
    root = tmp_path / "vqa"
    parts = {
        "train2014": [(10, 1), (11, 1), (20, 2)],
        "val2014": [(30, 3)],
        "test2015": [(40, 4), (41, 5)],
        "test-dev2015": [(41, 5)],
    }
    for part, rows in parts.items():
        questions = [{"question_id": q, "image_id": i, "question": f"what is in {i}?"} for q, i in rows]
        value = {"info": {}, "questions": questions, "data_subtype": part, "license": {"name": "x"}}
        _write(root / f"v2_OpenEnded_mscoco_{part}_questions.json", value)
        if part != "test-dev2015":
            for image in {i for _, i in rows}:
                draw(root / part / f"COCO_{part}_{image:012d}.jpg")
        if not part.startswith("test"):
            annotations = [
                {
                    "question_id": q,
                    "image_id": i,
                    "question_type": "what is",
                    "answer_type": "other",
                    "answers": [{"answer": f"a{q}", "answer_id": n, "answer_confidence": "yes"} for n in range(1, 11)],
                    "multiple_choice_answer": f"a{q}",
                }
                for q, i in rows
            ]
            _write(root / f"v2_mscoco_{part}_annotations.json", {"info": {}, "annotations": annotations})
    return root


@pytest.fixture
def genome_root(vqa_root, draw):
    """The same with Visual Genome: picture 7 is its own, 8 is COCO's 1 (train), 9 is COCO's 3 (val)."""
    asked = {7: [(70, "What color?", "Dark blue.")], 8: [(80, "How many?", "Two."), (81, "Why?", "No.")]}
    asked[9] = [(90, "What is in 3?", "A30.")]
    value = [
        {"id": image, "qas": [{"qa_id": n, "image_id": image, "question": q, "answer": a} for n, q, a in rows]}
        for image, rows in asked.items()
    ]
    _write(vqa_root / "question_answers.json", value)
    _write(vqa_root / "image_data.json", [{"image_id": i, "coco_id": c} for i, c in ((7, None), (8, 1), (9, 3))])
    for image in asked:
        draw(vqa_root / ("VG_100K" if image < 9 else "VG_100K_2") / f"{image}.jpg")
    return vqa_root


def _write(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
