"""Tables of a user's own, in every shape that spreadsheets and programs write them in."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlbeit.data.row_files import open_table
from vlbeit.errors import DataError


def rows(path, *columns):
    table = open_table(path)
    return [(row.place, *(row.values.get(name) for name in columns), row.fault) for row in table.read(list(columns))]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("plain.csv", b"image,question\na.jpg,what?\n"),
        ("marked.csv", b"\xef\xbb\xbfimage,question\r\na.jpg,what?\r\n"),
        ("semicolon.csv", b"image;question\na.jpg;what?\n"),
        ("tab.csv", b"image\tquestion\na.jpg\twhat?\n"),
        ("table.tsv", b"image\tquestion\na.jpg\twhat?\n"),
        ("excel.csv", "image\tquestion\r\na.jpg\twhat?\r\n".encode("utf-16")),
        ("quoted.csv", b'"image";"question"\n"a.jpg";"what?"'),
        ("blank.csv", b"\n image , question \n\na.jpg,what?\n,\n"),
        ("index.csv", b",image,question\n0,a.jpg,what?\n"),
        ("lines.jsonl", b'\xef\xbb\xbf{"image": "a.jpg", "question": "what?"}\n\n'),
        ("list.json", b'[{"image": "a.jpg", "question": "what?"}]'),
        ("lines.json", b'{"image": "a.jpg", "question": "what?"}'),
    ],
)
def test_every_shape_gives_the_same_row(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data)
    assert open_table(path).columns == ["image", "question"]
    [(_, *values)] = rows(path, "image", "question")
    assert values == ["a.jpg", "what?", ""]


def test_lines_are_those_at_which_records_begin(tmp_path):
    path = tmp_path / "my.csv"
    path.write_text('question,answer\n"two\nlines, ""so""",a\n\nnext,b\none,two,three\nlast,\n')
    assert rows(path, "answer", "question") == [
        ("line 2", "a", 'two\nlines, "so"', ""),
        ("line 5", "b", "next", ""),
        ("line 6", None, None, "3 cells under 2 columns (is there a ',' that needs quotes?)"),
        ("line 7", "", "last", ""),
    ]


def test_lines_of_json_that_are_none_are_faults_of_their_rows(tmp_path):
    path = tmp_path / "my.jsonl"
    path.write_text('{"a": 1}\n{"a": 2\n[3]\n{"b": 4}\n')
    assert open_table(path).columns == ["a", "b"]
    found = rows(path, "a")
    assert [(place, value) for place, value, _ in found] == [
        ("line 1", 1), ("line 2", None), ("line 3", None), ("line 4", None),
    ]  # fmt: skip
    assert found[1][2].startswith("not JSON: ") and found[2][2] == "no JSON object but [3]" and found[3][2] == ""


def test_parquet_is_read_in_pieces_and_by_columns(tmp_path):
    path = tmp_path / "my.parquet"
    image = {"bytes": b"x", "path": None}
    pq.write_table(pa.table({"n": range(200), "image": [image] * 200, "more": range(200)}), path)
    table = open_table(path)
    assert table.columns == ["n", "image", "more"]
    found = list(table.read(["n", "image"]))
    assert found[199].place == "row 200" and found[199].values == {"n": 199, "image": image}
    assert next(table.read(["n"])).values == {"n": 0}  # as often as one likes


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("my.csv", b"", r"my.csv is empty; its first line must name the columns"),
        ("my.csv", b"a,b\n1,\xe9t\xe9\n", r"my.csv, line 2: b'\\xe9' is not UTF-8; save the file as UTF-8"),
        ("my.csv", b"a,b,a\n", r"two columns have the name 'a'; rename one"),
        ("my.csv", b'a,b\n1,2\n"open,3\n4,5\n', r"my.csv, line 3: .* is a quote opened there that is never closed\?"),
        ("my.txt", b"a", r"my.txt does not end in .csv, .tsv"),
        ("my.json", b"[1, 2", r"my.json is not JSON: .*; it must hold one list of objects"),
        ("my.jsonl", b"nothing\n", r"my.jsonl has no row; it must hold one JSON object a line"),
        ("my.parquet", b"nothing", r"my.parquet is no Parquet file that can be read"),
    ],
)
def test_files_that_are_no_tables_are_named(tmp_path, name, data, message):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError, match=message):
        list(open_table(path).read([]))
    with pytest.raises(DataError, match="cannot be read: No such file"):
        open_table(tmp_path / "nowhere.csv")


def test_a_long_file_is_never_held(tmp_path):
    path = tmp_path / "my.jsonl"
    with open(path, "w") as file:
        for number in range(30_000):
            file.write(json.dumps({"n": number, "text": "x" * 100}) + "\n")
    import tracemalloc

    table = open_table(path)
    tracemalloc.start()
    assert sum(row.values["n"] for row in table.read(["n"])) == sum(range(30_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000 < path.stat().st_size


@pytest.mark.parametrize("data", ["a;b\n1;2\n".encode("utf-16")[:-1], b"\xff\xfea\x00\x00\xdcb\x00"])
def test_damaged_utf16_is_named(tmp_path, data):
    (tmp_path / "my.csv").write_bytes(data)
    with pytest.raises(DataError, match=r"my\.csv is cut off or damaged UTF-16"):
        rows(tmp_path / "my.csv")
