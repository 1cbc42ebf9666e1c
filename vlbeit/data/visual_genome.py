"""Visual Genome's questions (v1.2, visualgenome.org) as records: an extra source of training for VQA v2.

Files of `data.root`: `question_answers.json`, a list of {"id": image, "qas": [{"qa_id", "image_id", "question",
"answer"}]} (older releases say "id" for "qa_id"), pictures `VG_100K/ID.jpg` and `VG_100K_2/ID.jpg`, and, if it is
there, `image_data.json`, which says for every picture whether it is one of COCO's (`coco_id`).

Each question has one answer, written as a sentence ("Blue."). As in the published use of it (Anderson et al. 2018; BAN,
Kim et al. 2018), it is brought into the official normal form, and counts as a target of 1 where the vocabulary has it.
Plain Python, which data preparation shares.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from vlbeit.data.answers import normalize_answer
from vlbeit.data.json_file import json_list
from vlbeit.data.vqa_v2_files import image_files, refuse, typed_rows
from vlbeit.types import Record

_COPIES = 10  # of the one answer: as many as VQA v2 has, so that it is a soft target of 1
_FOLDERS = ("VG_100K", "VG_100K_2")


class GenomeFiles(NamedTuple):
    """The questions, the folders of images, and what says which images are COCO's (None where it is not there)."""

    questions: Path
    folders: tuple[Path, ...]
    images: Path | None

    def missing(self) -> list[Path]:
        """Which of them are not there: one folder of images is enough."""
        lacking = [] if self.questions.exists() else [self.questions]
        return lacking if any(folder.is_dir() for folder in self.folders) else [*lacking, self.folders[0]]


def genome_files(root: Path) -> GenomeFiles:
    """The files of Visual Genome in a folder."""
    images = root / "image_data.json"
    folders = tuple(folder for folder in (root / name for name in _FOLDERS) if folder.is_dir())
    return GenomeFiles(
        root / "question_answers.json", folders or (root / _FOLDERS[0],), images if images.exists() else None
    )


def genome_rows(files: GenomeFiles) -> Iterator[Record]:
    """Its `vqa` records, in the order of the file.

    Numbers are made such that none is one of VQA v2: `question_id` is minus the number of the question; `image_id` is
    COCO's number where `image_data.json` knows the picture as COCO's, else minus Visual Genome's.
    Raises `DataError` for question numbers that come twice and for questions without image.
    """
    pictures, of_coco = image_files(files.folders), _coco_numbers(files.images)
    seen: set[int] = set()
    twice, lost = [], []
    for row in typed_rows(files.questions, "item", json_list(files.questions), _picture):
        path = pictures.get(row["id"])
        for number, question, answer in row["qas"]:
            if number in seen:
                twice.append(number)
            elif path is None:
                lost.append(number)
            elif not (twice or lost):
                yield _record(number, question, normalize_answer(answer), path, of_coco.get(row["id"], -row["id"]))
            seen.add(number)
    refuse(twice, f"{files.questions}: qa_id used twice", "remove the copies")
    folders = " or ".join(map(str, files.folders))
    refuse(lost, f"{files.questions}: questions whose image is not in {folders}", "complete the folders")


def _record(number: int, question: str, answer: str, path: str, image: int) -> Record:
    kind = "yes/no" if answer in ("yes", "no") else "number" if answer.isdigit() else "other"
    return {
        "id": f"vg-{number}", "image": path, "question": question, "question_id": -number, "image_id": image,
        "question_type": "none of the above", "answer_type": kind, "answers": [answer] * _COPIES,
        "multiple_choice_answer": answer,
    }  # fmt: skip


def _picture(row: dict[str, Any]) -> Record:
    return {
        "id": int(row["id"]),
        "qas": [
            (int(qa["qa_id"] if "qa_id" in qa else qa["id"]), str(qa["question"]), str(qa["answer"]))
            for qa in row["qas"]
        ],
    }


def _coco_numbers(path: Path | None) -> dict[int, int]:
    """Visual Genome's number -> COCO's, of the pictures that COCO has too."""
    if path is None:
        return {}

    def convert(row: dict[str, Any]) -> Record:
        number = row["image_id"] if "image_id" in row else row["id"]
        return {"id": int(number), "coco": None if row["coco_id"] is None else int(row["coco_id"])}

    rows = typed_rows(path, "item", json_list(path), convert)
    return {row["id"]: row["coco"] for row in rows if row["coco"] is not None}
