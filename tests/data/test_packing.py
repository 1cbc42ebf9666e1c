"""Texts in full sequences: what stands in them, how they are kept, what is masked."""

from __future__ import annotations

import json
import logging
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlbeit.config import DataConfig
from vlbeit.data import packing
from vlbeit.data.collate import collate
from vlbeit.data.loader import TrainLoader
from vlbeit.data.masked_text import MaskedText
from vlbeit.data.packing import PackedTransform, count_rows, packed
from vlbeit.data.randomness import seeded
from vlbeit.data.records import ListRecords, take
from vlbeit.data.sources import open_records
from vlbeit.data.text import train_wordpiece
from vlbeit.errors import DataError
from vlbeit.types import DataSpec

WORDS = ["the", "quick", "brown", "foxes", "jumped", "over", "seventeen", "lazy", "sleeping", "dogs"]
TEXTS = [" ".join(WORDS[start : start + 1 + start * 7 % 10]) for start in range(10)] * 3 + ["", " ".join(WORDS * 6)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_wordpiece(lambda: TEXTS, 60, 16)


@pytest.fixture
def records():
    return ListRecords([{"id": str(number), "text": text} for number, text in enumerate(TEXTS)])


def test_all_tokens_once_and_no_padding_but_at_the_end(records, tokenizer, tmp_path):
    found = packed(records, tokenizer, tmp_path)
    sequences = [found[index]["ids"] for index in range(len(found))]
    assert {len(ids) for ids in sequences[:-1]} == {16} and len(sequences[-1]) <= 16
    stream = [token for text in TEXTS if text for token in (2, *tokenizer._encode(text), 3)]
    assert [2, *(token for ids in sequences for token in ids[1:])] == stream
    assert all(ids[0] == tokenizer.cls_id for ids in sequences)
    with pytest.raises(IndexError):
        found[len(found)]
    assert found.column("ids")[1:3] == sequences[1:3]


def test_texts_are_numbered_and_words_masked_within_them(records, tokenizer, tmp_path):
    found, transform = packed(records, tokenizer, tmp_path), PackedTransform(MaskedText(tokenizer, 0.3))
    masked_words = 0
    for index in range(len(found)):
        with seeded(0, index):
            sample = transform(found[index])
        ids, segments = np.array(sample["text_ids"]), np.array(sample["text_segments"])
        assert segments[0] == 1 and set(np.diff(segments)) <= {0, 1}
        assert ((np.diff(segments, prepend=0) == 1) == (ids == tokenizer.cls_id)).all()
        words, chosen = tokenizer.words(ids.tolist()), np.array(sample["mlm_labels"]) != -100
        assert not chosen[(ids == tokenizer.cls_id) | (ids == tokenizer.sep_id)].any()
        for word in {each for each in words if each is not None}:
            places = [place for place, each in enumerate(words) if each == word]
            assert len(set(segments[places])) == 1, "a word is of one text"
            assert len(set(chosen[places])) == 1, "whole words"
            masked_words += chosen[places[0]]
    assert masked_words > 20
    batch = collate([transform(found[0]), transform(found[len(found) - 1])])
    assert (batch["text_segments"] > 0).equal(batch["text_keep"])


def test_the_stream_is_made_once_and_goes_on_where_it_was_broken_off(records, tokenizer, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(packing, "_CHUNK", 4)
    monkeypatch.setattr(packing, "_KEPT_EVERY", -1)
    whole = packed(records, tokenizer, tmp_path / "whole")
    encoded, calls = type(tokenizer).encoded, []

    def broken(self, texts):
        calls.append(len(texts))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return encoded(self, texts)

    monkeypatch.setattr(type(tokenizer), "encoded", broken)
    with pytest.raises(KeyboardInterrupt):
        packed(records, tokenizer, tmp_path / "cut")
    temporary = next((tmp_path / "cut").glob(".tmp-*.bin"))
    with open(temporary, "ab") as file:
        file.write(b"\xff" * 7)  # written, but not noted
    with caplog.at_level(logging.INFO):
        again = packed(records, tokenizer, tmp_path / "cut")
    assert "going on after 12 of 32" in caplog.text and sum(calls[4:]) == len(TEXTS) - 12
    assert again.column("ids")[:] == whole.column("ids")[:]
    calls.clear()
    packed(records, tokenizer, tmp_path / "cut")
    assert not calls and not list((tmp_path / "cut").glob(".tmp-*"))


def test_other_texts_or_another_tokenizer_make_another_stream(records, tokenizer, tmp_path):
    packed(records, tokenizer, tmp_path)
    other = ListRecords([{"id": "a", "text": text} for text in [*TEXTS[:-1], "the dogs"]])
    assert len(packed(other, tokenizer, tmp_path)) < len(packed(records, tokenizer, tmp_path))
    packed(records, train_wordpiece(lambda: TEXTS, 58, 16), tmp_path)
    assert len(list(tmp_path.glob("packed-*.bin"))) == 3


def test_a_file_of_text_is_known_by_its_index_not_by_its_lines(tokenizer, tmp_path):
    (tmp_path / "train.txt").write_text("\n".join(TEXTS))
    config = DataConfig(name="text", root=str(tmp_path), cache=str(tmp_path / "cache"))
    table = open_records(config, "text", "train")
    first = packing._key(table, tokenizer)
    assert table.identity and packing._key(open_records(config, "text", "train"), tokenizer) == first
    assert packing._key(take(table, 5), tokenizer) != first
    (tmp_path / "train.txt").write_text("\n".join([*TEXTS, "the lazy dogs"]))
    os.utime(tmp_path / "train.txt", (1, 1))
    assert packing._key(open_records(config, "text", "train"), tokenizer) != first


def test_rows_are_counted_without_packing(records, tokenizer, tmp_path, monkeypatch):
    found = packed(records, tokenizer, tmp_path)
    assert count_rows(records, tokenizer) == len(found) > 1
    monkeypatch.setattr(packing, "SAMPLED", 3)
    alike = ListRecords([{"id": str(number), "text": TEXTS[0]} for number in range(10)])
    assert count_rows(alike, tokenizer) == len(packed(alike, tokenizer, tmp_path))


def test_what_cannot_be_packed_is_named(records, tokenizer, tmp_path):
    with pytest.raises(DataError, match="no text to pack"):
        packed(ListRecords([{"id": "a", "text": ""}]), tokenizer, tmp_path / "empty")
    found = packed(records, tokenizer, tmp_path)
    (stream,) = tmp_path.glob("packed-*.bin")
    assert json.loads(stream.with_suffix(".json").read_text())["dtype"] == "uint16"
    stream.write_bytes(stream.read_bytes()[:20])
    with pytest.raises(DataError, match="cut off"):
        found[1]
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write the packed text .* data.cache=DIR"):
        packed(records, tokenizer, tmp_path / "file")


def test_the_loader_shuffles_sequences_and_takes_up_any_step(records, tokenizer, tmp_path):
    spec = DataSpec(packed(records, tokenizer, tmp_path), PackedTransform(MaskedText(tokenizer)), collate)
    steps = {"global_batch_size": 2, "micro_batch_size": 2, "workers": 0, "max_bad_fraction": 0.0}
    loader = TrainLoader(spec, seed=3, **steps)
    batches = [batch for (batch,) in loader.steps(0, 6)]
    (late,) = next(iter(TrainLoader(spec, seed=3, **steps).steps(4, 5)))
    assert late["mlm_ids"].equal(batches[4]["mlm_ids"])
    epochs = [name for (batch,) in loader.steps(0, len(spec.records)) for name in batch["sample_id"]]
    first, second = epochs[: len(spec.records)], epochs[len(spec.records) :]
    assert sorted(first) == sorted(second) == sorted(spec.records.column("id")) and first != second


def test_streamed_documents_are_packed_as_tables_are(records, tokenizer, tmp_path):
    parts = {"train-00000": TEXTS[:16], "train-00001": TEXTS[16:], "val-00000": TEXTS[:2]}
    for name, texts in parts.items():
        pq.write_table(pa.table({"text": texts}), tmp_path / f"{name}.parquet", row_group_size=5)
    config = DataConfig(name="shards", root=str(tmp_path), cache=str(tmp_path / "cache"))
    streamed = open_records(config, "text", "train")
    found = packed(streamed, tokenizer, tmp_path / "cache")
    assert found.column("ids")[:] == packed(records, tokenizer, tmp_path / "other").column("ids")[:]
    assert packing._key(open_records(config, "text", "train"), tokenizer) == packing._key(streamed, tokenizer)
