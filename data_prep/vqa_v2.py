"""VQA v2 (visualqa.org) for data=vqa_v2: its official files verified and indexed, where they lie.

`prepare` writes into its folder (SPLIT is train, val, test, test-dev or vg, those that are there):

    SPLIT-00000.parquet  the records in the order of the question file, with the paths of their images
    answers.json         the vocabulary by the published rule, in its order
    splits.json          the images of val that `rest_val` has and `trainable_val` has not, and the seed
    bad.jsonl            images that cannot be read or are odd, by `--check header`
    summary.json         counts, hashes of the JSON files, what the vocabulary covers
    prepared.json        written last
"""

from __future__ import annotations

import json
import os
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow.parquet as pq

from vlbeit.config import share_or_number
from vlbeit.data.answers import Coverage, build_vocabulary, counted_answers, coverage
from vlbeit.data.following import VLMO, next_command
from vlbeit.data.records import PREPARED
from vlbeit.data.vqa_v2_splits import held_out_images
from vlbeit.errors import DataError, Interrupted, UsageError, some
from vlbeit.files import write_json, write_text

from .journal import JOURNAL, begin, note
from .pictures import examine_picture
from .preparation import Out, Threads, alone
from .progress import Report, counted
from .shards import BAD, VERSION, Item
from .vqa_v2_parts import Part, described, is_published, parts_of

_CHUNK = 2000  # images examined between two lines of the journal


def prepare(
    out: Out,
    *,
    root: Annotated[Path, "folder with the official files, unpacked"],
    check: Annotated[Literal["list", "header"], "list: images are there; header opens each"] = "list",
    min_count: Annotated[int, "questions of train and val that an answer of the vocabulary stands for"] = 9,
    held_out: Annotated[float, "images of val, or a share, for rest_val; 0: 1,000, or a tenth of a small val"] = 0,
    seed: Annotated[int, "which images of val are held out"] = 0,
    official: Annotated[bool, "refuse files with other numbers than the published ones"] = False,
    threads: Threads = 0,
    report: Report | None = None,
) -> str:
    """Verify the official files of VQA v2 and index them for data=vqa_v2; images stay where they are.

    --root holds v2_OpenEnded_mscoco_*_questions.json, v2_mscoco_*_annotations.json and train2014/, val2014/,
    test2015/; and, if you like, question_answers.json, image_data.json, VG_100K/ and VG_100K_2/ of Visual Genome. Ids
    must fit each other, and each question its image; numbers are compared with the published ones. The same command
    after an interruption goes on where it stopped.
    """
    say = report or (lambda line: None)
    root, out = Path(root).expanduser().absolute(), Path(out)
    if not root.is_dir():
        raise DataError(f"--root {root} is no folder: give the one with the official files of VQA v2")
    if min_count < 1 or threads < 0 or not share_or_number(held_out):
        raise UsageError(
            f"--min-count {min_count}, --threads {threads}, --held-out {held_out:g}: give 1 or more, 0 or more, and a "
            f"number of images or a share below 1"
        )
    parts = parts_of(root, say)
    tables = {table.name: table.stat().st_size for part in parts for table in part.tables}
    arguments = {"root": str(root), "splits": [part.name for part in parts], "check": check, "min_count": min_count}
    arguments |= {"held_out": held_out, "seed": seed, **tables}
    out.mkdir(parents=True, exist_ok=True)
    with alone(out):
        work = _Preparation(out, parts, arguments, say)
        if work.done:
            say(f"{out}: already there")
        else:
            try:
                work.run(threads or min(8, os.cpu_count() or 1), only_official=official)
            except KeyboardInterrupt:
                raise Interrupted(f"stopped; the same command goes on behind what {out} holds") from None
        summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    for line in _summary(out, summary):
        say(line)
    if official and not summary["official"]:
        raise DataError(f"{root} does not hold the official files of VQA v2, which --official asks for")
    answers = shlex.quote(str(out / "answers.json"))
    return next_command(f"stage=vl task=vqa init={VLMO} data=vqa_v2 task.answers={answers}", out, "vqa")


class _Preparation:
    """A folder in the making: its steps in their order, each of which is noted when it is whole."""

    def __init__(self, out: Path, parts: Sequence[Part], arguments: dict[str, Any], say: Report) -> None:
        self.out, self.parts, self.arguments, self.say = out, parts, arguments, say
        self.lines, lost = begin(out, {"kind": "vqa", "format": "index", **arguments})
        if lost:
            say(f"{lost} is missing or damaged: it and what follows are written again")

    @property
    def done(self) -> bool:
        return (self.out / PREPARED).is_file()

    def run(self, threads: int, *, only_official: bool) -> None:
        """Whatever is not done yet. Raises `DataError` for files that do not fit, before the vocabulary is made."""
        for part in self.parts:
            if part.name in self._indexes():
                self.say(f"{part.name}: already indexed")
                continue
            self.say(f"reading {part.name}: {', '.join(table.name for table in part.tables)}")
            self._note(part.write(self.out, self.say))
            if only_official and not is_published(self.lines[-1]) and part.name != "vg":
                raise DataError(f"{described(self.lines[-1])}, which --official asks for")
        self._check_splits()
        if self.arguments["check"] == "header":
            for part in self.parts:
                if part.name != "test-dev" or "test" not in self._indexes():  # whose images those of test-dev are
                    self._examine(part, threads)
        self._finish()

    def _indexes(self) -> dict[str, dict[str, Any]]:
        """Split -> the line of its index."""
        return {line["split"]: line for line in self.lines if "file" in line}

    def _note(self, line: dict[str, Any]) -> None:
        note(self.out, line)
        self.lines.append(line)

    def _column(self, split: str, name: str) -> list[Any]:
        return _Indexes(self.out, [self._indexes()[split]]).column(name)

    def _check_splits(self) -> None:
        """No image is in two of train, val and test; test-dev is a part of test."""
        there = [name for name in ("train", "val", "test") if name in self._indexes()]
        images = {name: set(self._column(name, "image_id")) for name in there}
        for place, one in enumerate(there):
            for other in there[place + 1 :]:
                if both := sorted(images[one] & images[other]):
                    raise DataError(f"images of {one} are in {other} too: {some(both)}; take the official files")
        if {"test", "test-dev"} <= self._indexes().keys():
            foreign = sorted({*self._column("test-dev", "question_id")} - {*self._column("test", "question_id")})
            if foreign:
                raise DataError(f"questions of test-dev that test has not: {some(foreign)}; take the official files")

    def _examine(self, part: Part, threads: int) -> None:
        """Open every image of a split, and note after each chunk how far it came and what is wrong."""
        images = list(dict.fromkeys(self._column(part.name, "image")))
        before = [line["pictures"] for line in self.lines if line["split"] == part.name and "pictures" in line]
        done = before[-1] if before else 0
        self.say(f"{part.name}: opening {len(images) - done:,} images" + (f", {done:,} are done" if done else ""))
        with ThreadPoolExecutor(threads) as pool:
            for start in range(done, len(images), _CHUNK):
                chunk = images[start : start + _CHUNK]
                found = pool.map(_faults, chunk)
                what = f"{part.name}: {{}} images opened since {start:,}"
                bad = [entry for entries in counted(found, what, self.say) for entry in entries]
                self._note({"split": part.name, "pictures": start + len(chunk), "bad": bad})

    def _finish(self) -> None:
        """Vocabulary, splits, summary; then prepared.json, and the journal goes."""
        indexes = self._indexes()
        known = {name: indexes[name] for name in ("train", "val") if name in indexes}
        whole = _Indexes(self.out, list(known.values()))
        answers = build_vocabulary(counted_answers(whole), self.arguments["min_count"])
        if not answers:
            raise UsageError(
                f"no answer stands for {self.arguments['min_count']} questions of train and val: remove {self.out} and "
                f"lower --min-count"
            )
        covered = {name: coverage(_Indexes(self.out, [line]), answers)._asdict() for name, line in known.items()}
        write_json(self.out / "answers.json", answers, indent=0)
        splits = self._splits() if "val" in indexes else {}
        if splits:
            write_json(self.out / "splits.json", splits)
        bad = [{"split": line["split"], **entry} for line in self.lines for entry in line.get("bad", [])]
        write_text(self.out / BAD, "".join(json.dumps(entry) + "\n" for entry in bad))
        official = all(is_published(line) for line in indexes.values() if line["split"] != "vg") and "val" in indexes
        summary = {
            "root": self.arguments["root"], "official": official, "splits": list(indexes.values()),
            "answers": len(answers), "min_count": self.arguments["min_count"], "coverage": covered,
            "held_out": len(splits.get("rest_val", [])), "seed": self.arguments["seed"],
            "checked": self.arguments["check"], "bad": Counter(entry["what"].partition(":")[0] for entry in bad),
        }  # fmt: skip
        write_json(self.out / "summary.json", summary, indent=1)
        write_json(self.out / PREPARED, self._facts(indexes), indent=1)
        (self.out / JOURNAL).unlink()

    def _splits(self) -> dict[str, Any]:
        images, seed = self._column("val", "image_id"), self.arguments["seed"]
        return {
            "seed": seed,
            "images": len(set(images)),
            "rest_val": held_out_images(images, seed, self.arguments["held_out"]),
        }

    def _facts(self, indexes: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """What vlbeit.data.prepared reads."""
        splits = {
            name: {"records": line["rows"], "shards": [{key: line[key] for key in ("file", "rows", "size")}]}
            for name, line in indexes.items()
        }
        return {
            "version": VERSION, "kind": "vqa", "format": "index", "classes": [], "splits": splits,
            "arguments": self.arguments,
        }  # fmt: skip


class _Indexes:
    """The records of some indexes, of which single columns are read."""

    def __init__(self, out: Path, lines: Sequence[dict[str, Any]]) -> None:
        self.out, self.lines = out, lines

    def column(self, name: str) -> list[Any]:
        """All values of one field, index after index."""
        tables = (pq.read_table(self.out / line["file"], columns=[name]) for line in self.lines)
        return [value for table in tables for value in table[name].to_pylist()]


def _faults(image: str) -> list[dict[str, Any]]:
    """What is wrong with an image, as lines of bad.jsonl. Its questions stay: a score counts all of them."""
    name = Path(image).name
    found = examine_picture(Item((), {"id": name, "image": Path(image)}), "header")
    return [{"id": name, "what": fault.what, "left_out": False} for fault in found.faults]


def _summary(out: Path, facts: dict[str, Any]) -> Iterator[str]:
    """The lines printed at the end."""
    yield from map(described, facts["splits"])
    if not facts["official"]:
        yield "these are not the official files of VQA v2: scores on them do not compare with published ones"
    rule = f"the answers of at least {facts['min_count']} questions of train and val"
    yield f"answers.json: {facts['answers']:,} answers, {rule}"
    for name, numbers in facts["coverage"].items():
        found = Coverage(**numbers)
        share, raw, normalized = (
            100 * n / max(found.questions, 1) for n in (found.majority, found.raw, found.normalized)
        )
        yield (
            f"  {name}: the majority answer of {share:.2f} % of the questions; targets for {raw:.2f} % matched raw, as "
            f"published, {normalized:.2f} % normalized"
        )
    if facts["held_out"]:
        held_out = f"{facts['held_out']:,} images of val (seed {facts['seed']})"
        yield f"splits.json: rest_val has {held_out}, trainable_val the others"
    if facts["bad"]:
        kinds = ", ".join(f"{what} {count:,}" for what, count in facts["bad"].items())
        yield f"images, each named in {out / BAD}: {kinds}; their questions stay"
    yield f"wrote {out / PREPARED}, summary.json (hashes of the JSON files; no published hash is known)"
