"""`vlbeit inspect data` on captions, documents, shards and downloads."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vlbeit.cli import main
from vlbeit.config import DataConfig
from vlbeit.data_prep import wiki
from vlbeit.errors import DataError, UsageError
from vlbeit.health.findings import Finding
from vlbeit.health.following import following
from vlbeit.health.report import Report, Wanted, inspect


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLBEIT_CACHE", str(tmp_path / "cache"))


def report(root: Path, name: str = "", **wanted: Any) -> Report:
    return inspect(Wanted(DataConfig(name=name, root=str(root)), **wanted))


def codes(found: Report) -> dict[str, Finding]:
    return {finding.code: finding for finding in found.findings}


def picture(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 20), (number * 20, 255 - number * 20, 40)).save(file, "PNG")
    return file.getvalue()


def pairs(root: Path, captions: dict[str, list[list[str]]]) -> Path:
    """JSON lines of a picture and its captions, for each split."""
    root.mkdir()
    number = 0
    for split, rows in captions.items():
        lines = []
        for texts in rows:
            (root / f"{number}.png").write_bytes(picture(number))
            lines.append(json.dumps({"image": f"{number}.png", "caption": texts}))
            number += 1
        (root / f"{split}.jsonl").write_text("\n".join(lines))
    return root


def tar(path: Path, numbers: range, broken: int = -1) -> None:
    with tarfile.open(path, "w") as file:
        for number in numbers:
            data = b"none" if number == broken else picture(number)
            for suffix, content in (("png", data), ("txt", f"a thing of colour {number}".encode())):
                member = tarfile.TarInfo(f"{number:03}.{suffix}")
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))


def test_pairs_are_told_by_their_rows_and_their_texts_counted(tmp_path: Path) -> None:
    rows = {"train": [["One thing.", "a red thing"], ["two  things"], ["THREE things"]], "val": [["a last thing"]]}
    found = report(pairs(tmp_path / "mine", rows))
    assert (found.wanted.data.name, found.findings) == ("pairs", [])
    train = found.tables["splits"]["train"]
    assert (train["pictures"], train["texts"], train["distinct_texts"], train["text_words"]["max"]) == (3, 4, 4, 3)
    assert "stage=vl " in following(found)


def test_captions_that_training_refuses_are_an_error(tmp_path: Path) -> None:
    """As training counts them: pictures and captions that are broken together, beyond 0.1 % of a split."""
    root = pairs(tmp_path / "mine", {"train": [["a"], [], ["c"]], "val": [["d"]]})
    found = codes(report(root))
    assert found["no-text"].severity == "error" and found["no-text"].ids == ["1.png#2.0"]
    rows = [{"image": "0.png", "caption": "a"}] * 2000 + [{"image": "0.png"}]
    (root / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert codes(report(root))["no-text"].severity == "warning"
    (root / "2.png").write_bytes(b"none")
    (root / "train.jsonl").write_text("\n".join(map(json.dumps, [*rows, {"image": "2.png", "caption": "b"}])))
    assert {codes(report(root))[code].severity for code in ("no-text", "broken-image")} == {"error"}


def test_tables_are_told_by_their_columns(tmp_path: Path) -> None:
    root = pairs(tmp_path / "mine", {"train": [["a"], ["b"]], "val": [["c"]]})
    assert report(root / "train.jsonl").wanted.data.name == "pairs"
    (tmp_path / "t.csv").write_text("image,caption\nmine/0.png,a\n")
    assert report(tmp_path / "t.csv").wanted.data.name == "pairs"
    (root / "train.jsonl").write_bytes(b"\xff\n")
    with pytest.raises(DataError, match=r"train\.jsonl, line 1: .* is not UTF-8"):
        report(root)
    (root / "train.jsonl").write_bytes(b"")
    with pytest.raises(DataError, match=r"train\.jsonl has no row"):
        report(root)


def test_patterns_are_read_and_mixes_refused(tmp_path: Path) -> None:
    tar(tmp_path / "train-0.tar", range(3))
    tar(tmp_path / "val-0.tar", range(3, 5))
    for pattern in ("*.tar", "{train,val}-0.tar"):
        found = report(tmp_path / pattern)
        assert found.wanted.data.name == "shards" and [*found.tables["splits"]] == ["train", "val"]
        assert found.tables["splits"]["train"]["pictures"] == 3
    with pytest.raises(UsageError, match="member by member"):
        report(Path("[a*2,b]"), name="mix")


def test_empty_long_and_repeated_captions(tmp_path: Path) -> None:
    rows = {"train": [["", "..."], ["word " * 9], ["No photo available."], ["no photo available"]], "val": [["a b"]]}
    found = codes(report(pairs(tmp_path / "mine", rows), max_length=8))
    assert found.keys() == {"empty-text", "long-caption", "mostly-one-text"}
    assert found["empty-text"].ids == ["0.png#1.0"] and found["empty-text"].severity == "warning"
    assert found["long-caption"].ids == ["1.png#2.0"] and found["long-caption"].severity == "note"
    assert "2 of 4 texts are 'No photo available.'" in found["mostly-one-text"].message


def test_documents_in_both_splits(tmp_path: Path) -> None:
    document = "A document that is long enough to be no accident."
    lines = [f"The document of the number {number} says so." for number in range(30)]
    (tmp_path / "train.txt").write_text("\n".join([*lines, document, "The end."]))
    (tmp_path / "val.txt").write_text("\n".join([f"Document number {n}." for n in range(9)] + [document, "The end."]))
    found = report(tmp_path)
    leaked = codes(found)["same-text-in-two-splits"]
    assert (found.wanted.data.name, leaked.ids, leaked.split) == ("text", ["val.txt:10"], "train, val")
    assert "pack=true" in following(found) and "pictures" not in following(found)


def test_what_was_prepared_from_documents(tmp_path: Path) -> None:
    documents = (" ".join(5 * [f"A sentence of the document {number}."]) for number in range(20))
    (tmp_path / "a.txt").write_text("\n\n".join(documents))
    wiki.prepare(tmp_path / "wiki", from_=[str(tmp_path / "a.txt")], held_out=0.2)
    found = report(tmp_path / "wiki")
    texts = [facts["texts"] for facts in found.tables["splits"].values()]
    assert (found.wanted.data.name, sum(texts), len(texts), found.findings) == ("text", 20, 2, [])


def test_shards_of_pictures_with_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tar(tmp_path / "00000.tar", range(6), broken=4)
    tar(tmp_path / "00001.tar", range(6, 9))
    found = report(tmp_path)
    broken = codes(found)["broken-image"]
    assert (found.wanted.data.name, broken.split, broken.ids) == ("shards", "train", ["00000/004"])
    assert [facts["texts"] for facts in found.tables["splits"].values()] == [6, 3]
    assert main(["inspect", "data", str(tmp_path)]) == 1
    assert "split  pictures  texts" in capsys.readouterr().out


def test_a_first_sample_without_a_picture_does_not_end_the_report(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "00000.tar", "w") as file:
        for name, content in (("0.txt", b"a text"), ("1.txt", b"another"), ("1.png", picture(1))):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    tar(tmp_path / "00001.tar", range(3))
    found = report(tmp_path)
    assert codes(found)["broken-image"].ids == ["00000/0"]
    assert found.tables["splits"]["train"]["image_sizes"]["readable"] == 1


def test_shards_of_pictures_or_of_texts_alone(tmp_path: Path) -> None:
    for name, column in (("pictures", {"image": [picture(n) for n in range(4)]}), ("texts", {"text": list("abcd")})):
        for split in ("train", "val"):
            (tmp_path / name / split).mkdir(parents=True)
            values = {key: [value + (b"" if name == "pictures" else split) for value in column[key]] for key in column}
            pq.write_table(pa.table(values), tmp_path / name / split / "0.parquet")
    pictures, texts = (report(tmp_path / name, "shards") for name in ("pictures", "texts"))
    assert "texts" not in pictures.tables["splits"]["train"] and pictures.tables["splits"]["train"]["pictures"] == 4
    assert texts.tables["splits"]["train"]["texts"] == 4 and not texts.unsafe
    assert "pack=true" in following(texts)


def test_rows_that_were_not_downloaded_are_told(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "val")):
        (tmp_path / split).mkdir()
        tar(tmp_path / split / "00000.tar", range(3 * number, 3 * number + 3))
    facts = {
        "train": {"rows": 7, "reasons": {"success": 3, "HTTP 404": 4}},
        "val": {"rows": 3, "reasons": {"success": 3}},
    }
    (tmp_path / "download.json").write_text(json.dumps({"splits": facts}))
    found = report(tmp_path)
    failed = codes(found)["failed-downloads"]
    assert (failed.split, failed.count, failed.severity) == ("train", 4, "note") and not found.unsafe
    assert "4 of 7 rows have no picture: HTTP 404 4" in failed.message
    (tmp_path / "download.json").write_text("{")
    assert main(["inspect", "data", str(tmp_path)]) == 1


def test_pairs_of_pictures(scenes: Path) -> None:
    found = report(scenes / "nlvr2", "nlvr2")
    facts = found.tables["splits"]["train"]
    assert facts["texts"] and 0 < facts["pictures"] <= 2 * facts["texts"] and "image_sizes" in facts
    assert "task=nlvr2" in following(found)
