"""`vlbeit prepare wiki`: WikiExtractor's files, plain text, tables; duplicates; splits by document."""

from __future__ import annotations

import bz2
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlbeit.cli import main
from vlbeit.config import DataConfig
from vlbeit.data.prepared import prepared_records
from vlbeit.data.sources import open_records
from vlbeit.data_prep import shards, wiki
from vlbeit.errors import DataError, UsageError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("VLBEIT_CACHE", str(tmp_path_factory.mktemp("cache")))


def prepare(out: Path, *sources: Any, **options: Any) -> tuple[dict[str, Any], list[str], str]:
    lines: list[str] = []
    usual = {"least": 5, "held_out": 0} | options
    following = wiki.prepare(out, from_=list(map(str, sources)), report=lines.append, **usual)
    return json.loads((out / "prepared.json").read_text()), lines, following


def article(number: int, text: str, title: str = "") -> str:
    url = f"https://en.wikipedia.org/wiki?curid={number}"
    return json.dumps({"id": str(number), "revid": "1", "url": url, "title": title or f"Title {number}", "text": text})


@pytest.fixture
def extracted(tmp_path) -> Path:
    root = tmp_path / "extracted"
    (root / "AA").mkdir(parents=True)
    (root / "AB").mkdir()
    first = [article(1, "First text.\n\n With two lines. "), article(2, ""), article(3, "A text that comes twice.")]
    second = [
        article(4, "A text  that comes\ntwice."),
        article(1, "A later version of it."),
        article(5, "Última línea."),
    ]
    (root / "AA/wiki_00").write_text("\n".join(first) + "\n")
    (root / "AB/wiki_00").write_text("\n".join(second) + "\n")
    (root / ".hidden").write_text("nothing")
    return root


def test_files_of_wikiextractor(tmp_path, extracted):
    facts, lines, following = prepare(tmp_path / "out", extracted)
    assert lines[0].startswith(
        "documents: 3 train, 1 too short, 1 the text came before, 1 another version of an article"
    )
    records = prepared_records(tmp_path / "out", "text", "train")
    assert [records[i] for i in range(len(records))] == [
        {"id": "AA/wiki_00:1", "text": "First text.\nWith two lines."},
        {"id": "AA/wiki_00:3", "text": "A text that comes twice."},
        {"id": "AB/wiki_00:3", "text": "Última línea."},
    ]
    table = pq.read_table(tmp_path / "out/train-00000.parquet")
    assert table.column_names == ["id", "text", "title"] and table["title"].to_pylist()[2] == "Title 5"
    assert pq.ParquetFile(tmp_path / "out/train-00000.parquet").metadata.row_group(0).column(1).compression == "ZSTD"
    assert facts["kind"] == "text" and facts["splits"]["train"]["records"] == 3
    words = "stage=mlm init=beit_base_patch16_224_pt22k stage.pack=true data=shards"
    assert following == f"vlbeit train {words} data.root={tmp_path / 'out'} run=runs/out-mlm"
    assert len(open_records(DataConfig(name="text", root=str(tmp_path / "out")), "text", "train")) == 3


def test_halves_of_letters_and_a_byte_order_mark(tmp_path):
    lines = [
        json.dumps({"title": "T\ud83d", "text": f"Text {i} of half \udc00 a letter.", "url": ""}) for i in range(2)
    ]
    (tmp_path / "in").mkdir()
    (tmp_path / "in/wiki_00").write_text("\n".join(lines), encoding="utf-8-sig")
    (tmp_path / "in/book.txt").write_text("One book.\n", encoding="utf-8-sig")
    prepare(tmp_path / "out", tmp_path / "in")
    records = prepared_records(tmp_path / "out", "text", "train")
    assert [records[i]["text"] for i in range(3)] == ["One book.", *(f"Text {i} of half ? a letter." for i in range(2))]


def test_no_val_is_said(tmp_path):
    (tmp_path / "a.txt").write_text("One text.\n\nAnother text.\n")
    _, lines, _ = prepare(tmp_path / "out", tmp_path / "a.txt", held_out=0.005)
    assert "no split val: by --held-out 0.005 none of so few documents falls to it; give a larger share" in lines


def test_packed_files_of_wikiextractor(tmp_path, extracted):
    path = extracted / "AA/wiki_00"
    (extracted / "AA/wiki_00.bz2").write_bytes(bz2.compress(path.read_bytes()))
    path.unlink()
    prepare(tmp_path / "out", extracted)
    assert prepared_records(tmp_path / "out", "text", "train")[0]["text"] == "First text.\nWith two lines."
    (extracted / "AA/wiki_00.bz2").write_bytes(bz2.compress(b"{}")[:-5])
    with pytest.raises(DataError, match=r"wiki_00\.bz2 cannot be read"):
        prepare(tmp_path / "other", extracted)


def test_plain_text_and_tables(tmp_path):
    (tmp_path / "books.txt").write_text("One book,\nline two.\n\n \nAnother book.\n")
    pq.write_table(pa.table({"text": ["In a table.", None], "title": ["T", "U"]}), tmp_path / "more.parquet")
    (tmp_path / "rows.jsonl").write_text('{"body": "Of a line."}\n')
    prepare(tmp_path / "out", tmp_path / "books.txt", tmp_path / "more.parquet")
    found = prepared_records(tmp_path / "out", "text", "train")
    assert [(found[i]["id"], found[i]["text"]) for i in range(3)] == [
        ("books.txt:1", "One book,\nline two."), ("books.txt:5", "Another book."), ("more.parquet:0", "In a table."),
    ]  # fmt: skip
    prepare(tmp_path / "rows", tmp_path / "rows.jsonl", text_column="body")
    with pytest.raises(UsageError, match=r"rows\.jsonl has no column 'text'; it has body: --text-column"):
        prepare(tmp_path / "wrong", tmp_path / "rows.jsonl")


def test_a_folder_in_the_layout_of_the_hub(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    pq.write_table(pa.table({"text": ["A first text.", "A second text."]}), folder / "train-00000-of-00001.parquet")
    prepare(tmp_path / "out", f"hub:{folder}")
    found = prepared_records(tmp_path / "out", "text", "train")
    assert found[1]["text"] == "A second text." and found[1]["id"].endswith("set/train:1")


def test_splits_hang_on_the_document_alone(tmp_path):
    texts = [f"Document number {number}." for number in range(400)]
    (tmp_path / "a.txt").write_text("\n\n".join(texts))
    (tmp_path / "b.txt").write_text("\n\n".join(reversed(texts[:300])))
    facts, _, _ = prepare(tmp_path / "a", tmp_path / "a.txt", held_out=0.1)
    prepare(tmp_path / "b", tmp_path / "b.txt", held_out=0.1)
    val, other = ({*prepared_records(tmp_path / name, "text", "val").column("text")} for name in "ab")
    assert 20 < len(val) < 60 and other == val & set(texts[:300])
    assert facts["splits"]["train"]["records"] + len(val) == 400
    train = {*prepared_records(tmp_path / "a", "text", "train").column("text")}
    assert not train & val


def test_a_stopped_preparation_goes_on(tmp_path, extracted, monkeypatch):
    prepare(tmp_path / "whole", extracted)
    monkeypatch.setattr(shards, "_ROWS", 1)
    add = shards._Shard.add

    def stop(self, item, finding):
        if item.record["id"] == "AB/wiki_00:3":
            raise KeyboardInterrupt
        return add(self, item, finding)

    monkeypatch.setattr(shards._Shard, "add", stop)
    with pytest.raises(Exception, match="holds 2 records in whole shards"):
        prepare(tmp_path / "out", extracted)
    monkeypatch.setattr(shards._Shard, "add", add)
    _, lines, _ = prepare(tmp_path / "out", extracted)
    assert "train: goes on behind 2 records" in lines
    found = [prepared_records(tmp_path / name, "text", "train") for name in ("whole", "out")]
    assert [found[0][i] for i in range(3)] == [found[1][i] for i in range(3)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("wiki_00", b'{"text": "whole"}\n{"te', r"wiki_00, line 2: JSONDecodeError: .*; is it of WikiExtractor"),
        ("wiki_00", b'{"title": "no text"}\n', r"wiki_00, line 1: KeyError: 'text'"),
        ("a.txt", b"\xff\xfe\xfa", r"a\.txt is not UTF-8 text"),
        ("a.txt", b"\n\n", r"no document that can be used is for train \(none\)"),
        ("dump.xml.bz2", b"BZh", r"dump\.xml\.bz2 is a dump; run: python -m wikiextractor\.WikiExtractor"),
    ],
)
def test_what_cannot_be_read(tmp_path, name, content, message):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(content)
    with pytest.raises((DataError, UsageError), match=message):
        prepare(tmp_path / "out", tmp_path / "in")


def test_on_the_command_line(tmp_path, extracted, capsys):
    words = ["prepare", "wiki", "--from", str(extracted), "--out", str(tmp_path / "out"), "--least", "5"]
    assert main([*words, "--held-out", "2"]) == 2
    assert "--held-out 2: give a share of the documents below 1, or 0" in capsys.readouterr().err
    assert main([*words, "--held-out", "0"]) == 0
    assert "next: vlbeit train stage=mlm init=beit_base_patch16_224_pt22k" in capsys.readouterr().out
