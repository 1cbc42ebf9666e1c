"""OK-VQA: questions on COCO's pictures of 2014 that need outside knowledge (okvqa.allenai.org; Marino et al. 2019)."""

from __future__ import annotations

from vlbeit.data.sources.question_files import EachPictureOnce, QuestionSource
from vlbeit.data.sources.vqa_v2 import vqa_table
from vlbeit.errors import DataError
from vlbeit.types import Records

_LAYOUT = (
    "okvqa reads ROOT/OpenEnded_mscoco_train2014_questions.json, ROOT/mscoco_train2014_annotations.json and the "
    "pictures in ROOT/train2014 (or data.images=DIR/train2014), and the same with val2014"
)


class OKVQA(QuestionSource):
    """OK-VQA in its official files, which have the form of VQA v2's; the split `val` is its test set.

    Its ten answers are those of five people, each twice, in stemmed form: `answer`, not `raw_answer`, as it is scored.
    """

    def records(self, kind: str, split: str) -> Records:
        if split not in ("train", "val"):
            raise DataError(f"okvqa has no split {split!r}; it has train, val; {_LAYOUT}")
        name = f"{split}2014"
        questions = self.root / f"OpenEnded_mscoco_{name}_questions.json"
        annotations = self.root / f"mscoco_{name}_annotations.json"
        images = self.picture_folder(name)
        for path in (questions, annotations, images):
            if not path.exists():
                raise DataError(f"{path} does not exist; {_LAYOUT}")
        table = vqa_table(questions, annotations, images, self.config.cache)
        return table if kind == "vqa" else EachPictureOnce(table)


SOURCE = OKVQA
