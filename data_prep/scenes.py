"""The built-in data: small drawn scenes, written in the file layouts of the real data sets.

`prepare(out)` writes, from a seed, into the folder `out` (NAME is `COCO_<part>_<image_id, 12 digits>`, part is
`train2014`, `val2014` or `test2015`; K is the number of shapes):

    train2014/ val2014/ test2015/               NAME.jpg, `size` x `size` pixels; no scene is in two parts
    v2_OpenEnded_mscoco_<part>_questions.json   VQA v2 questions of each part
    v2_mscoco_<part>_annotations.json           VQA v2 annotations, test2015 excepted: its answers are kept back
    captions_{train,val,test}.jsonl             {"image": "train2014/NAME.jpg", "caption": str, "image_id": int},
                                                two captions an image
    text_{train,val}.txt                        plain text about further scenes, none of val or test, a sentence a line
    annotations/<part>/NAME.png                 masks as in ADE20K: 0 = other, 1..K = shape
    classes.txt                                 names of 1..K, in the columns of ADE20K's objectInfo150.txt
    instances_{train2014,val2014}.json          COCO boxes and outlines, one category a shape
    imagefolder/{train,val}/CLASS/NAME.jpg      pictures of one dominant thing; CLASS is such as outlined_cross
    nlvr2/                                      statements about pairs of further scenes, as NLVR2: scene_nlvr2.py
    scenes.json                                 the arguments, written last

The same arguments give the same bytes (with the same versions of numpy and Pillow). All randomness is counter-based:
scene i of a part draws from (seed, part, i) alone. It is a smoke and teaching set: no evidence about natural images.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Annotated, Any

import numpy as np

from vlbeit.errors import DataError, UsageError
from vlbeit.files import write_json, write_text

from .partial import partial_folder
from .scene_answers import annotate
from .scene_captions import captions, sentences
from .scene_draw import STYLES, Drawing, draw, draw_single, jpeg, outline, png
from .scene_nlvr2 import FOLDER, write_nlvr2
from .scene_questions import ask
from .scene_world import SHAPES, Scene, make_scene

VERSION = 1
MARKER = "scenes.json"
PARTS = {"train": "train2014", "val": "val2014", "test": "test2015"}
BUCKETS = {"train": range(3, 10), "val": (0,), "test": (1,), "text-train": range(3, 10), "text-val": (2,)}
CLASSES = tuple(f"{style}_{shape}" for shape in SHAPES for style in STYLES)
INFO = {
    "year": 2014,
    "version": str(VERSION),
    "description": "Drawn scenes in the layout of VQA v2 and COCO; no natural images.",
    "contributor": "vlbeit",
    "url": "",
    "date_created": "2014-01-01 00:00:00",
}
LICENSE = {"name": "CC0 1.0", "url": "https://creativecommons.org/publicdomain/zero/1.0/"}
Report = Callable[[str], None]


def prepare(
    out: Annotated[Path, "folder to write"],
    *,
    images: Annotated[int, "pictures in all: a tenth each for val and test"] = 2000,
    size: Annotated[int, "pixels of a side"] = 48,
    seed: Annotated[int, "which scenes are drawn"] = 0,
    report: Report | None = None,
) -> None:
    """Write the built-in data into `out`; a folder with the same arguments is left as it is.

    `images` pictures in all: a tenth each for val and test, the rest for train. Everything is written beside `out`
    and renamed at the end, so that an interrupted preparation leaves no half folder. A folder of an older version gets
    what it lacks, nlvr2/, and nothing in it changes. UsageError: numbers out of range, or `out` holds something else.
    """
    say = report or (lambda message: None)
    arguments = {"version": VERSION, "images": images, "size": size, "seed": seed}
    _check_arguments(images, size, seed)
    out = Path(out)
    if _is_there(out, arguments):
        _extend(out, images, size, seed, say)
        return
    partial = partial_folder(out)
    try:
        counts = _write_all(partial, images, size, seed, say)
        write_json(partial / MARKER, arguments | counts, indent=1)
        if out.is_dir():  # empty, as _is_there found
            out.rmdir()
        os.rename(partial, out)
    except OSError as error:
        if _is_there(out, arguments):  # another process was faster
            return
        raise DataError(f"{out}: cannot write the scenes: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    say(f"{out}: {counts['questions']} questions about {images} pictures")


def _extend(out: Path, images: int, size: int, seed: int, say: Report) -> None:
    """What folders of older versions lack."""
    if (out / FOLDER).is_dir():
        say(f"{out}: already there")
        return
    try:
        found = write_nlvr2(out, _lengths(images), size, seed, BUCKETS)
    except OSError as error:
        if not (out / FOLDER).is_dir():  # else another process was faster
            raise DataError(f"{out}: cannot write {FOLDER}/: {error.strerror or error}") from error
        return
    say(f"{out}: added {FOLDER}/, {found} statements about pairs of pictures")


def _lengths(images: int) -> dict[str, int]:
    """Pictures of each split."""
    tenth = max(1, images // 10)
    return {"train": images - 2 * tenth, "val": tenth, "test": tenth}


def _check_arguments(images: int, size: int, seed: int) -> None:
    if images < 10:
        raise UsageError(f"images={images} is too small: each of train, val and test needs some; give 10 or more")
    if not 32 <= size <= 1024:
        raise UsageError(f"size={size} must lie in 32..1024 pixels")
    if seed < 0:
        raise UsageError(f"seed={seed} must not be negative")


def _is_there(out: Path, arguments: dict[str, int]) -> bool:
    """True: finished with these arguments; False: nothing there; UsageError: something else is there."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        found = json.loads((out / MARKER).read_text())
        differing = {name: found[name] for name, value in arguments.items() if found[name] != value}
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"{out} is there but holds no finished scenes; remove it or choose another folder") from None
    if differing:
        has = ", ".join(f"{name}={value}" for name, value in differing.items())
        wants = ", ".join(f"{name}={arguments[name]}" for name in differing)
        raise UsageError(f"{out} holds scenes with {has}, not {wants}; remove it or choose another folder")
    return True


def _write_all(folder: Path, images: int, size: int, seed: int, say: Report) -> dict[str, int]:
    lengths = _lengths(images)
    shape_pixels = {split: np.zeros(len(SHAPES) + 1, np.int64) for split in PARTS}
    first_id, questions = 1, 0
    for split, part in PARTS.items():
        say(f"drawing {lengths[split]} pictures of {part}")
        scenes = _scenes(seed, split, lengths[split])
        named = [(first_id + index, scene) for index, scene in enumerate(scenes)]
        first_id += len(named)
        shape_pixels[split] += _write_pictures(folder, part, named, size)
        _write_captions(folder, split, named, seed)
        questions += _write_questions(folder, part, named, seed)
    _write_classes(folder, shape_pixels)
    say("writing plain text and pictures of single things")
    _write_text(folder, {"train": 5 * images, "val": images // 2}, seed)
    _write_imagefolder(folder, {"train": 3 * images // 10, "val": images // 10}, size, seed)
    say("writing statements about pairs of pictures")
    write_nlvr2(folder, lengths, size, seed, BUCKETS)
    return {"questions": questions}


def _scenes(seed: int, stream: str, count: int) -> list[Scene]:
    """Scenes of the stream's buckets; scene i depends on (seed, stream, i) alone."""
    scenes = []
    for index in range(count):
        rng = Random(f"{seed}:{stream}:{index}")
        while (scene := make_scene(rng)).bucket() not in BUCKETS[stream]:
            pass
        scenes.append(scene)
    return scenes


def _file_name(part: str, image_id: int) -> str:
    return f"COCO_{part}_{image_id:012d}"


def _write_pictures(folder: Path, part: str, named: list[tuple[int, Scene]], size: int) -> np.ndarray:
    """Pictures, masks and COCO boxes of one part; returns the number of pixels per class (0 = other)."""
    (folder / part).mkdir()
    (folder / "annotations" / part).mkdir(parents=True)
    pixels = np.zeros(len(SHAPES) + 1, np.int64)
    instances: list[dict[str, Any]] = []
    for image_id, scene in named:
        drawing = draw(scene, size)
        labels = np.zeros((size, size), np.uint8)
        for thing, covered in zip(scene.things, drawing.things, strict=True):
            labels[covered] = SHAPES.index(thing.shape) + 1
        name = _file_name(part, image_id)
        (folder / part / f"{name}.jpg").write_bytes(jpeg(drawing.image))
        (folder / "annotations" / part / f"{name}.png").write_bytes(png(labels))
        pixels += np.bincount(labels.ravel(), minlength=len(pixels))
        instances += _instances(image_id, scene, drawing)
    if part != PARTS["test"]:
        _write_instances(folder, part, named, instances, size)
    return pixels


def _instances(image_id: int, scene: Scene, drawing: Drawing) -> Iterator[dict[str, Any]]:
    """COCO annotations of one picture: boxes [x, y, width, height] around the covered pixels."""
    side = len(drawing.image)
    for number, (thing, covered) in enumerate(zip(scene.things, drawing.things, strict=True), start=1):
        rows, columns = np.flatnonzero(covered.any(1)), np.flatnonzero(covered.any(0))
        top, left = int(rows[0]), int(columns[0])
        yield {
            "id": image_id * 10 + number,
            "image_id": image_id,
            "category_id": SHAPES.index(thing.shape) + 1,
            "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
            "area": int(covered.sum()),
            "iscrowd": 0,
            "segmentation": [[round(float(v), 2) for v in (outline(thing) * side).ravel()]],
        }


def _write_instances(
    folder: Path, part: str, named: list[tuple[int, Scene]], instances: list[dict[str, Any]], size: int
) -> None:
    pictures = [
        {"id": i, "file_name": f"{_file_name(part, i)}.jpg", "width": size, "height": size, "license": 1}
        for i, _ in named
    ]
    value = {
        "info": INFO,
        "licenses": [{"id": 1, **LICENSE}],
        "images": pictures,
        "annotations": instances,
        "categories": [{"id": i, "name": s, "supercategory": "shape"} for i, s in enumerate(SHAPES, start=1)],
    }
    write_json(folder / f"instances_{part}.json", value)


def _write_classes(folder: Path, pixels: dict[str, np.ndarray]) -> None:
    """`classes.txt`: index, share of the labelled pixels, pixels in train and in val, stuff or not, name."""
    lines = ["Idx\tRatio\tTrain\tVal\tStuff\tName"]
    train, val = pixels["train"], pixels["val"]
    for index, shape in enumerate(SHAPES, start=1):
        ratio = train[index] / train[1:].sum()
        lines.append(f"{index}\t{ratio:.4f}\t{train[index]}\t{val[index]}\t0\t{shape}")
    write_text(folder / "classes.txt", "\n".join(lines) + "\n")


def _write_captions(folder: Path, split: str, named: list[tuple[int, Scene]], seed: int) -> None:
    lines = []
    for image_id, scene in named:
        image = f"{PARTS[split]}/{_file_name(PARTS[split], image_id)}.jpg"
        for caption in captions(scene, Random(f"{seed}:captions:{image_id}")):
            lines.append(json.dumps({"image": image, "caption": caption, "image_id": image_id}))
    write_text(folder / f"captions_{split}.jsonl", "\n".join(lines) + "\n")


def _write_questions(folder: Path, part: str, named: list[tuple[int, Scene]], seed: int) -> int:
    """Questions and, but for the test part, annotations; returns the number of questions."""
    questions, annotations = [], []
    for image_id, scene in named:
        rng = Random(f"{seed}:questions:{image_id}")
        for number, question in enumerate(ask(scene, rng)):
            ids = {"image_id": image_id, "question_id": image_id * 1000 + number}
            questions.append({"image_id": image_id, "question": question.text, "question_id": ids["question_id"]})
            annotations.append(
                {
                    "question_type": question.question_type,
                    "multiple_choice_answer": question.answer,
                    "answers": annotate(question.answer, rng),
                    "image_id": image_id,
                    "answer_type": question.answer_type,
                    "question_id": ids["question_id"],
                }
            )
    kind = {"info": INFO, "data_type": "mscoco", "data_subtype": part, "license": LICENSE}
    asked = kind | {"task_type": "Open-Ended", "questions": questions}
    write_json(folder / f"v2_OpenEnded_mscoco_{part}_questions.json", asked)
    if part != PARTS["test"]:
        write_json(folder / f"v2_mscoco_{part}_annotations.json", kind | {"annotations": annotations})
    return len(questions)


def _write_text(folder: Path, lengths: dict[str, int], seed: int) -> None:
    for split, length in lengths.items():
        stream = f"text-{split}"
        lines: list[str] = []
        for index, scene in enumerate(_scenes(seed, stream, -(-length // 5))):
            lines += sentences(scene, Random(f"{seed}:{stream}-words:{index}"))
        write_text(folder / f"text_{split}.txt", "\n".join(lines[:length]) + "\n")


def _write_imagefolder(folder: Path, lengths: dict[str, int], size: int, seed: int) -> None:
    for split, length in lengths.items():
        for name in CLASSES:
            (folder / "imagefolder" / split / name).mkdir(parents=True)
        for index in range(max(length, len(CLASSES))):
            name = CLASSES[index % len(CLASSES)]
            style, shape = name.split("_")
            image = draw_single(shape, style, Random(f"{seed}:single-{split}:{index}"), size)
            (folder / "imagefolder" / split / name / f"{name}_{index:06d}.jpg").write_bytes(jpeg(image))
