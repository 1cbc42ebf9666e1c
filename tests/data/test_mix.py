import json

import pytest

from vlbeit import compose
from vlbeit.config import DataConfig
from vlbeit.data import text as text_module
from vlbeit.data.collate import collate
from vlbeit.data.loader import EvalLoader, TrainLoader
from vlbeit.data.mix import MixedRecords, Part, parsed
from vlbeit.data.order import epoch_length
from vlbeit.data.records import ListRecords
from vlbeit.data.sources import open_records, open_source
from vlbeit.data.text import choose_tokenizer
from vlbeit.errors import DataError, UsageError
from vlbeit.types import DataSpec


class Look:
    """A sample of the number that a picture holds, and a random one."""

    def __init__(self, number_in):
        self.number_in = number_in

    def __call__(self, record):
        import torch

        return {"sample_id": record["id"], "number": self.number_in(record["image"]), "drawn": float(torch.rand(()))}


@pytest.fixture
def data(tmp_path, made, draw):
    """data/sbu: 3 shards of 10 (the last held out), data/cc3m: Parquet, 20 and 5; data/mine: JSON lines, 6 and none."""
    made.write_tars(tmp_path / "sbu", [10, 10, 10])
    made.write_parquet(tmp_path / "cc3m" / "train-0.parquet", range(100, 120), group=5)
    made.write_parquet(tmp_path / "cc3m" / "val-0.parquet", range(200, 205))
    lines = []
    for number in range(6):
        (tmp_path / "mine").mkdir(exist_ok=True)
        (tmp_path / "mine" / f"{number}.png").write_bytes(made.picture(300 + number))
        lines.append(json.dumps({"image": f"{number}.png", "caption": f"text {300 + number}"}))
    (tmp_path / "mine" / "train.jsonl").write_text("\n".join(lines))
    return tmp_path


def config(data, *mix, **changes):
    options = {"open_shards": 2, "shuffle_buffer": 16, "cache": str(data / "cache")} | changes
    return DataConfig(name="mix", root=str(data), mix=list(mix), **options)


def loader(records, made, monkeypatch=None, world=(0, 1), workers=0, **changes):
    if monkeypatch is not None:
        monkeypatch.setattr("vlbeit.dist.rank", lambda: world[0])
        monkeypatch.setattr("vlbeit.dist.world_size", lambda: world[1])
    options = {"seed": 3, "global_batch_size": 12, "micro_batch_size": 3, "max_bad_fraction": 0.5} | changes
    return TrainLoader(DataSpec(records, Look(made.number_in), collate), workers=workers, **options)


def seen(loader, start, stop):
    """For every step the samples: id, number, what was drawn."""
    steps = []
    for micro_batches in loader.steps(start, stop):
        rows = [zip(b["sample_id"], b["number"].tolist(), b["drawn"].tolist(), strict=True) for b in micro_batches]
        steps.append([row for each in rows for row in each])
    return steps


def test_entries():
    assert parsed("coco") == ("coco", 1.0) and parsed("sbu*2") == ("sbu", 2.0) and parsed("cc3m*.5") == ("cc3m", 0.5)
    assert parsed("s3://b/{00..12}.tar*0.25") == ("s3://b/{00..12}.tar", 0.25)
    assert parsed("s3://b/cc3m/").name == "cc3m" and parsed("pairs:/mnt/mine").name == "mine"
    for wrong in ("sbu*0", "", "*2"):
        with pytest.raises(UsageError, match=r"data\.mix"):
            parsed(wrong)


def test_an_epoch_of_a_mix_is_every_member_by_its_weight(data, made):
    records = open_records(config(data, "sbu", "cc3m*0.5", f"pairs:{data}/mine*2"), "pairs", "train")
    assert len(records) == 20 + 20 + 6 and epoch_length(records) == 20 + 10 + 12
    rows = [row for step in seen(loader(records, made, global_batch_size=42), 0, 2) for row in step]
    first, second = rows[:42], rows[42:]
    for epoch in (first, second):
        assert sorted(n for _, n, _ in epoch if n < 100) == list(range(20))
        assert sorted(n for _, n, _ in epoch if n >= 300) == sorted([*range(300, 306)] * 2)
        assert len({drawn for _, n, drawn in epoch if n >= 300}) == 12, "augmented anew at each visit"
    assert sorted(n for _, n, _ in rows if 100 <= n < 200) == list(range(100, 120)), "half of them, then the others"
    assert {name.partition(":")[0] for name, _, _ in first} == {"sbu", "cc3m", "mine"}


def test_any_number_of_processes_workers_and_micro_batches_sees_the_same(data, made, monkeypatch):
    records = open_records(config(data, "sbu", "cc3m", f"pairs:{data}/mine"), "pairs", "train")
    whole = seen(loader(records, made), 0, 6)
    assert seen(loader(records, made, workers=2, micro_batch_size=6), 0, 6) == whole
    fresh = open_records(config(data, "sbu", "cc3m", f"pairs:{data}/mine"), "pairs", "train")
    assert seen(loader(fresh, made), 3, 6) == whole[3:], "a start in the middle"
    parts = [seen(loader(fresh, made, monkeypatch, (rank, 4)), 2, 6) for rank in range(4)]
    joined = [[row for part in parts for row in part[step]] for step in range(4)]
    assert joined == whole[2:], "gone on at four processes"


def test_names_are_read_without_the_pictures(data, made, monkeypatch):
    records = open_records(config(data, "sbu", "cc3m", f"pairs:{data}/mine"), "pairs", "train")
    rows = [records[n] for n in range(46)]
    monkeypatch.setattr("vlbeit.data.shards.ShardRecords._image", None)
    for name in ("id", "picture"):
        column = records.column(name)
        assert list(column) == [row[name] for row in rows] == [column[n] for n in range(46)]
        assert column[18:43] == [row[name] for row in rows[18:43]] and column[::-9] == list(column)[::-9]
    assert records.column("id")[45] == "mine:5.png#6.0"


def test_validation_takes_the_members_that_have_some(data, made, caplog):
    caplog.set_level("INFO")
    records = open_records(config(data, "sbu*2", "cc3m", f"pairs:{data}/mine"), "pairs", "val")
    assert "data.mix: mine has no split 'val': left out" in caplog.text
    spec = DataSpec(records, Look(made.number_in), collate)
    batches = list(EvalLoader(spec, batch_size=4, workers=0, max_bad_fraction=0))
    assert [n for batch in batches for n in batch["number"].tolist()] == [*range(20, 30), *range(200, 205)]
    with pytest.raises(DataError, match="no member has a split"):
        open_records(config(data, f"pairs:{data}/mine"), "pairs", "val")


def test_a_limit_is_shared_among_the_members(data, made):
    records = open_records(config(data, "sbu", "cc3m", limit=10), "pairs", "train")
    assert [made.number_in(records[n]["image"]) for n in range(len(records))] == [*range(5), *range(100, 105)]


@pytest.mark.parametrize(
    ("entry", "kind", "message"),
    [
        ("coco", DataError, r"coco_captions does not exist; .vlbeit prepare coco_captions --out"),
        ("nothing", UsageError, r"nothing does not exist; .* has .*data\.mix=\[coco"),
        ("./elsewhere", DataError, r"elsewhere does not exist"),
    ],
)
def test_a_member_that_is_not_there_is_named(data, entry, kind, message, monkeypatch):
    from vlbeit import registry

    names = registry.names
    monkeypatch.setattr(registry, "names", lambda group: names(group) | {"coco_captions": ""})
    with pytest.raises(kind, match=message):
        open_source(config(data, entry)).check()


def test_a_member_of_another_kind_is_refused(data):
    with pytest.raises(UsageError, match="gives vqa"):
        open_records(config(data, f"vqa:{data}/mine"), "pairs", "train")


def test_bad_samples_are_counted_by_reason_and_replaced_from_the_same_shard(data, made, caplog):
    members = made.pair_members(range(20)) | {
        "x.jpg": b"no picture",
        "x.txt": "x",
        "y.txt": "y",
        "z.jpg": made.picture(1),
    }
    made.write_tar(data / "web" / "0.tar", members)
    made.write_tar(data / "web" / "val.tar", made.pair_members([50]))
    records = open_records(config(data, "web", "sbu"), "pairs", "train")
    spec_loader = loader(records, made, global_batch_size=43, micro_batch_size=43)
    spec_loader.spec = spec_loader.spec._replace(transform=Decoded())
    (first,) = spec_loader.steps(0, 1)
    assert set(first[0]["bad"]) == {"web:0/x", "web:0/y", "web:0/z"}
    assert sum(name.startswith("web:") for name in first[0]["sample_id"]) == 23
    list(spec_loader.steps(0, 1))
    assert sorted(spec_loader.unusable().partition(": ")[2].split(", ")) == [
        "1 no caption", "1 no picture", "1 unreadable picture",
    ]  # fmt: skip
    evaluation = EvalLoader(spec_loader.spec, batch_size=50, workers=0, max_bad_fraction=0.5)
    (batch,) = list(evaluation)
    assert len(batch["sample_id"]) == 43 and set(batch["bad"]) == set(first[0]["bad"])
    bounded = loader(records, made, global_batch_size=43, micro_batch_size=43, max_bad_fraction=0.05)
    bounded.spec = spec_loader.spec
    with pytest.raises(DataError, match="3 of 43 samples cannot be used"):
        list(bounded.steps(0, 1))


class Decoded:
    def __call__(self, record):
        from vlbeit.data.records import open_image

        return {"sample_id": record["id"], "pixels": open_image(record["image"]).width, "text": record["text"]}


def test_a_tokenizer_is_trained_on_a_part_of_a_long_stream(data, monkeypatch, caplog):
    records = open_records(config(data, "sbu", "cc3m", f"pairs:{data}/mine"), "pairs", "train")
    texts = records.column("text")
    whole = [f"text {n}" for n in [*range(20), *range(100, 120), *range(300, 306)]]
    assert list(texts) == whole == [texts[n] for n in range(46)]
    for start, stop, step in ((18, 42, 1), (0, 3, 1), (41, 46, 1), (0, 46, 5), (45, 3, -7)):
        assert texts[start:stop:step] == whole[start:stop:step]
    read = []
    monkeypatch.setattr(text_module, "_MOST_TEXTS", 23)
    monkeypatch.setattr(text_module, "train_wordpiece", lambda texts, *_: read.extend(texts()))
    caplog.set_level("INFO")
    choose_tokenizer(compose.compose(["stage=vl"]).config.text, lambda: records.column("text"))
    assert read == [*whole[:10], *whole[20:30], *whole[40:43]]
    assert "the vocabulary is made of 23 of the 46 texts" in caplog.text


def test_the_words_of_the_command_line():
    composed = compose.compose(
        ["stage=vl", "data.mix=[coco,sbu*2,/mnt/{00..03}.tar]", "data.open_shards=4"]
    ).config.data
    assert (composed.name, composed.root) == ("mix", "data")
    assert composed.mix == ["coco", "sbu*2", "/mnt/{00..03}.tar"]
    stored = compose.compose(["stage=vl", "data=pairs", "data.root=x"]).config
    changed = compose.override(stored, ["data.mix=[coco]"])
    assert (changed.data.name, changed.data.root, changed.data.mix) == ("mix", "data", ["coco"])
    assert compose.override(changed, ["data=pairs"]).data.mix == []
    with pytest.raises(UsageError, match="is for data=mix"):
        compose.compose(["stage=vl", "data=pairs", "data.mix=[coco]"])
    with pytest.raises(UsageError, match="needs its members"):
        open_source(DataConfig(name="mix", root="data"))


def test_row_groups_bound_the_window(made, data, monkeypatch):
    from vlbeit.data.shards import ShardRecords

    monkeypatch.setattr(ShardRecords, "near_samples", lambda self: 4)
    shards = open_records(config(data, "cc3m"), "pairs", "train")._parts[0].records
    mixed = MixedRecords([Part("a", shards), Part("b", ListRecords([{"id": "1"}] * 60))], 2, 10_000)
    assert mixed.order._windows == 5, "16 samples, 4 of them of the shards"


def test_a_weight_below_zero_and_the_name_of_a_pattern():
    with pytest.raises(UsageError, match="weight above 0"):
        parsed("/x/shards*-1")
    assert [parsed(entry).name for entry in ("/x/wds/*.tar*2", "s3://b/cc12m/{0..3}.tar")] == ["wds", "cc12m"]
