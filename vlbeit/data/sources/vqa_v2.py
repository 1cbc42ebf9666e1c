"""VQA v2: the official question and annotation files and COCO image folders (visualqa.org), or a prepared folder."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

from vlbeit.data.index import cached_table
from vlbeit.data.prepared import prepared_arguments, prepared_records
from vlbeit.data.records import KINDS, ChosenRecords, JoinedRecords
from vlbeit.data.sources.base import DataSource
from vlbeit.data.sources.question_files import EachPictureOnce
from vlbeit.data.visual_genome import genome_files, genome_rows
from vlbeit.data.vqa_v2_files import SUBTYPES, QuestionFiles, official_files, question_rows
from vlbeit.data.vqa_v2_splits import GENOME, PARTS, held_out_images, split_parts
from vlbeit.errors import DataError
from vlbeit.types import Records

log = logging.getLogger(__name__)

STORED_SPLITS = "splits.json"  # of a prepared folder: seed, number of images, and those of rest_val


class VQAv2(DataSource):
    """VQA v2 in its official files: v2_*_questions.json, v2_*_annotations.json, images in train2014/, val2014/, ..."""

    kinds: ClassVar[tuple[str, ...]] = ("vqa", "images")

    def check(self) -> None:
        """Raise `DataError` unless the data is there, and that which a prepared folder was made of."""
        super().check()
        origin = (prepared_arguments(self.root) or {}).get("root")
        if origin is not None and not Path(origin).is_dir():
            raise DataError(
                f"{self.root} was prepared from {origin}, which is no longer there, and its images with it: prepare it "
                f"anew from where they lie now"
            )

    def records(self, kind: str, split: str) -> Records:
        parts = split_parts(split)
        found = {part: self._part(part, split) for part in parts if part != GENOME}
        if GENOME in parts:
            found[GENOME] = self._genome(found.values())
        tables = [found[part] for part in parts]
        records = tables[0] if len(tables) == 1 else JoinedRecords(tables)
        return EachPictureOnce(records) if kind == "images" else records

    def question_file(self, split: str) -> Path | None:
        """Of the splits that are one official file."""
        parts = split_parts(split)
        if len(parts) > 1 or parts[0] not in SUBTYPES:
            return None
        origin = (prepared_arguments(self.root) or {}).get("root", self.root)
        return official_files(Path(origin), parts[0]).questions

    def _part(self, part: str, split: str) -> Records:
        """A single split; of `trainable_val` and `rest_val` the rows of val whose images are on that side."""
        if part not in ("trainable_val", "rest_val"):
            return self._table(part, split)
        whole = self._table(PARTS[part], split)
        images = whole.column("image_id")[:]
        held_out = set(self._held_out(images))
        return ChosenRecords(
            whole, [row for row, image in enumerate(images) if (image in held_out) == (part == "rest_val")]
        )

    def _table(self, part: str, split: str) -> Records:
        """All of train, val, test, test-dev or vg: of a prepared folder, else of the official files."""
        prepared = prepared_records(self.root, "vqa", part, self.config.cache)
        if prepared is not None:
            return prepared
        genome = part == GENOME
        files = genome_files(self.root) if genome else official_files(self.root, part)
        for path in files.missing():
            raise DataError(f"{path} does not exist; the split {split!r} needs it: set data.root= or add the file")
        if isinstance(files, QuestionFiles):
            return _table(files, self.config.cache)
        sources = [files.questions, *files.folders, *([files.images] if files.images else [])]
        return cached_table(self.config.cache, "vqa_v2-vg", sources, KINDS["vqa"], lambda: genome_rows(files))

    def _held_out(self, images: Sequence[int]) -> Sequence[int]:
        """The images of `rest_val`: those that a prepared folder stores, else those of the seed."""
        stored, config = self.root / STORED_SPLITS, self.config
        if prepared_arguments(self.root) is None:
            return held_out_images(images, config.split_seed, config.held_out)
        try:
            facts = json.loads(stored.read_text(encoding="utf-8"))
            held_out, seed = [int(image) for image in facts["rest_val"]], facts["seed"]
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{stored} is missing or damaged ({error}); prepare the folder anew") from error
        typed = (config.split_seed, config.held_out)
        if any(typed) and held_out_images(images, *typed) != held_out:
            log.warning(
                "%s holds out %d images, drawn with seed %s: data.split_seed=%s data.held_out=%g have no say",
                stored, len(held_out), seed, *typed,
            )  # fmt: skip
        return held_out

    def _genome(self, others: Iterable[Records]) -> Records:
        """Visual Genome without the pictures that it shares with val and test, but for those of the other splits.

        About half of its pictures are COCO's: training on their answers would tell what val asks.
        """
        genome = self._table(GENOME, GENOME)
        images = genome.column("image_id")[:]
        if images and not any(image > 0 for image in images):
            log.warning(
                "%s: no picture of Visual Genome is known as one of COCO's, which image_data.json tells: where some "
                "are of val, they are trained on, and numbers on val say less",
                self.root,
            )
            return genome
        asked = {image for name in ("val", "test") for image in self._images_of(name)}
        allowed = {image for records in others for image in records.column("image_id")[:]}
        rows = [row for row, image in enumerate(images) if image not in asked or image in allowed]
        if len(rows) < len(images):
            log.info(
                "%d of %d questions of Visual Genome are left out: their pictures are COCO's of val or test",
                len(images) - len(rows), len(images),
            )  # fmt: skip
        return ChosenRecords(genome, rows)

    def _images_of(self, part: str) -> Iterable[int]:
        """Numbers of a split's images; none where the split is not at hand."""
        arguments = prepared_arguments(self.root)
        there = (
            not official_files(self.root, part).missing() if arguments is None else part in arguments.get("splits", ())
        )
        return self._table(part, part).column("image_id")[:] if there else ()


def vqa_table(questions: Path, annotations: Path | None, images: Path, cache: str | Path = "") -> Records:
    """`vqa` records of one question file in its order, with the images of a folder; answers [] without annotations.

    An image is found by the number at the end of its name: COCO_val2014_000000000042.jpg, 000000000042.jpg, 42.png.
    Raises `DataError` naming file, ids and remedy.
    """
    files = QuestionFiles(questions, annotations, images)
    for path in files.missing():
        raise DataError(f"{path} does not exist")
    return _table(files, cache)


def _table(files: QuestionFiles, cache: str | Path) -> Records:
    sources = [path for path in files if path is not None]
    return cached_table(cache, "vqa_v2-vqa", sources, KINDS["vqa"], lambda: question_rows(files))


SOURCE = VQAv2
