"""Answers on their way: whatever a kill leaves of a file, no whole line is lost and no torn one counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlbeit.answer_parts import PartWriter, read_parts

ROWS = {"1": "yes", "2": 'a "b" {c}', "3": "“oui”", "four": "2"}


def test_every_place_of_a_kill(tmp_path: Path) -> None:
    with PartWriter(tmp_path, 0) as part:
        for sample_id, answer in ROWS.items():
            part.add({sample_id: answer}, unreadable={"3"})
    whole = (tmp_path / "rank-0.jsonl").read_bytes()
    assert read_parts(tmp_path) == (ROWS, {"3"})
    for cut in range(len(whole)):
        (tmp_path / "rank-0.jsonl").write_bytes(whole[:cut])
        kept = read_parts(tmp_path).answers
        assert list(kept.items()) == list(ROWS.items())[: len(kept)] and len(kept) >= whole[:cut].count(b"\n")
        left = {sample_id: answer for sample_id, answer in ROWS.items() if sample_id not in kept}
        with PartWriter(tmp_path, 0) as part:
            part.add(left)
        assert read_parts(tmp_path).answers == ROWS, cut


def test_any_number_of_processes_goes_on(tmp_path: Path) -> None:
    for rank, rows in enumerate(({"1": "yes"}, {"2": "no"}, {"3": "2"})):
        with PartWriter(tmp_path, rank) as part:
            part.add(rows)
    with PartWriter(tmp_path, 0) as part:
        part.add({"4": "red"})
    assert read_parts(tmp_path).answers == {"1": "yes", "2": "no", "3": "2", "4": "red"}


def test_a_kept_answer_is_there_before_the_writer_is_closed(tmp_path: Path) -> None:
    with PartWriter(tmp_path, 0) as part:
        part.add({"1": "yes", "2": "no"})
        assert len(read_parts(tmp_path).answers) == 2


@pytest.mark.parametrize("line", ["", "\0\0\0\0", "[]", "7", '{"id": 1, "answer": "a"}', '{"id": "1"}', "\xff"])
def test_lines_that_are_none_are_left_aside(tmp_path: Path, line: str) -> None:
    text = f'{{"id": "1", "answer": "yes"}}\n{line}\n{{"id": "1", "answer": "no"}}\n{{"id": "2", "answer": "no"}}\n'
    (tmp_path / "rank-0.jsonl").write_bytes(text.encode("latin-1"))
    assert read_parts(tmp_path).answers == {"1": "yes", "2": "no"}
    assert read_parts(tmp_path / "none").answers == {}
