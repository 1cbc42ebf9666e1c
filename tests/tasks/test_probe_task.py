"""The probe on a handful of made-up pictures: features, cache, classifiers, k-NN, zero-shot, predictor."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from datasets import Dataset
from PIL import Image
from safetensors.torch import load_file, save_file

from vlbeit.cli import main
from vlbeit.config import DataConfig, OptimConfig, RunConfig, Settings, TextConfig
from vlbeit.data.loader import EvalLoader, TrainLoader
from vlbeit.data.prepared import prepared_records
from vlbeit.data.records import ListRecords, TableRecords
from vlbeit.data.text import train_wordpiece
from vlbeit.data_prep.shards import Finding, Folder, Item, Layout
from vlbeit.engine.device import make_accelerator
from vlbeit.engine.evaluate import run_evaluators
from vlbeit.engine.optim import build_optimizer, check_coverage
from vlbeit.errors import DataError, UsageError
from vlbeit.models.encoder import MoMEEncoder
from vlbeit.models.heads import Heads
from vlbeit.models.presets import PRESETS
from vlbeit.models.spec import encoder_spec
from vlbeit.models.towers import load_pretrained, tower_meta
from vlbeit.models.transfer import transfer
from vlbeit.tasks.probe import RECIPE as Probe
from vlbeit.tasks.probe import extraction
from vlbeit.tasks.probe.cache import FeatureFolder, Part
from vlbeit.tasks.probe.evaluator import ProbeEvaluator, Rivals
from vlbeit.tasks.probe.neighbours import nearest, vote
from vlbeit.tasks.probe.task import ProbeSettings
from vlbeit.tasks.probe.zero_shot import class_names

CLASSES = ["dark_red", "green", "blue"]
COLOURS = [(220, 30, 30), (30, 200, 30), (30, 30, 220)]
TINY = replace(PRESETS["tiny"], embed_dim=32, depth=2, num_heads=2)


class Colours:
    """A data source with these classes."""

    def classes(self):
        return CLASSES


@pytest.fixture(scope="module", autouse=True)
def source():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vlbeit.tasks.probe.task.open_source", lambda data: Colours())
        yield


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder, rows = tmp_path_factory.mktemp("pictures"), []
    for i in range(12):
        path = folder / f"{i}.png"
        Image.new("RGB", (40, 30), tuple(max(0, c - 3 * i) for c in COLOURS[i % 3])).save(path)
        rows.append({"id": str(i), "image": str(path), "label": i % 3})
    return ListRecords(rows)


def built(cache, stage="mim", model=TINY, meta=None, **task):
    run = RunConfig(
        stage=Settings(name=stage),
        task=ProbeSettings(name="probe", **task),
        model=model,
        data=DataConfig(image_size=32, workers=0, cache=str(cache)),
        text=TextConfig(max_length=12, positions=12),
        init="none" if stage == "vl" and model.image_tower != "own" else "auto",
    )
    recipe, meta = Probe(run), {"classes": CLASSES, **(meta or {})}
    torch.manual_seed(0)
    return recipe, meta, recipe.objective(meta)


def cpu():
    return make_accelerator("cpu")


def prepared(cache, records, **task):
    recipe, meta, objective = built(cache, **task)
    recipe.prepare(objective, {"train": records, "val": records}, cpu())
    return recipe, meta, objective


def trained(recipe, meta, objective, records, steps=60):
    """The first and the last loss of some steps on all records."""
    losses = []
    spec = recipe.data(records, meta, train=True)
    groups = recipe.param_groups(objective, OptimConfig(weight_decay=1e-4))
    optimizer = build_optimizer(groups, OptimConfig(lr=4e-2))
    check_coverage(objective, optimizer)
    loader = TrainLoader(spec, seed=0, global_batch_size=6, micro_batch_size=6, workers=0, max_bad_fraction=0.0)
    for (batch,) in loader.steps(0, steps):
        loss = objective(batch, objective.counts(batch)).losses["probe"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[0], losses[-1]


def numbers_of(recipe, meta, objective, records):
    spec = recipe.data(records, meta, train=False)
    loader = EvalLoader(spec, batch_size=4, workers=0, max_bad_fraction=1.0)
    evaluators = recipe.evaluators(records, meta)
    return run_evaluators(objective, loader, evaluators, cpu(), len(records)), evaluators["probe"]


def test_overfits_and_leaves_the_tower_alone(tmp_path, records):
    recipe, meta, objective = prepared(tmp_path, records, standardize=True)
    before = {name: value.clone() for name, value in objective.encoder.state_dict().items()}
    first, last = trained(recipe, meta, objective, records)
    numbers, evaluator = numbers_of(recipe, meta, objective, records)
    assert first > 2 and last < 0.3 and numbers["linear"] == 100.0, "of two layers, log 3 each"
    assert set(numbers) == {"linear_layer_1", "linear_layer_2", "linear", "knn", "majority", "images"}
    assert numbers["linear"] == max(numbers["linear_layer_1"], numbers["linear_layer_2"]) and numbers["images"] == 12
    assert numbers["majority"] == pytest.approx(100 / 3) and recipe.metric in numbers
    assert all(torch.equal(value, before[name]) for name, value in objective.encoder.state_dict().items())
    assert not [p for p in objective.encoder.parameters() if p.requires_grad or p.grad is not None]
    assert all(p.grad is not None for p in objective.parameters() if p.requires_grad)
    assert evaluator.details()[0] == {"sample_id": "0", "score": 1.0, "knn": 1.0}
    intervals = evaluator.intervals()
    assert set(intervals) == {"linear", "knn"} and intervals["linear"] == (100, 100)
    assert intervals["knn"][0] <= numbers["knn"] <= intervals["knn"][1]
    predict = recipe.predictor(objective, meta)
    found = predict(records[2]["image"], top=2)
    assert found[0][0] == "blue" and len(found) == 2
    with pytest.raises(UsageError, match="no contrastive head"):
        predict(records[2]["image"], "a cat, a dog")


def test_classifiers_learn_at_the_rate_of_new_heads(tmp_path):
    recipe, _, objective = built(tmp_path)
    groups = recipe.param_groups(objective, OptimConfig(head_lr_scale=10))
    assert groups and all(group["lr_scale"] == 10 for group in groups)


def test_layers_do_not_touch_each_other(tmp_path, records):
    """Trained beside others or alone, a layer's classifier is the same."""
    both, alone = (prepared(tmp_path / name, records, layers=layers) for name, layers in (("a", [1, 2]), ("b", [2])))
    alone[2].heads["layer_2"].load_state_dict(both[2].heads["layer_2"].state_dict())
    for recipe, meta, objective in (both, alone):
        trained(recipe, meta, objective, records, steps=5)
    for name, value in alone[2].heads["layer_2"].state_dict().items():
        torch.testing.assert_close(both[2].heads["layer_2"].state_dict()[name], value)


def test_features_are_cls_beside_the_mean_patch_of_every_layer(tmp_path, records):
    recipe, meta, objective = prepared(tmp_path, records, dtype="float32")
    sample = recipe.data(records, meta, train=True)
    features = torch.stack([sample.transform(sample.records[i])["features"] for i in range(12)])
    image = torch.stack([recipe._image()(Image.open(records[i]["image"])) for i in range(12)])
    objective.eval()
    with torch.no_grad():
        for layer in (1, 2):
            x = objective.encoder(objective.encoder.embed_image(image), stop=layer, norm=False).x_BLD
            found = features[:, 64 * (layer - 1) : 64 * layer]
            torch.testing.assert_close(found, torch.cat([x[:, 0], x[:, 1:].mean(1)], 1), rtol=1e-5, atol=1e-5)
    pickle.dumps(sample)
    moments = FeatureFolder(recipe._folders["train"].folder, 12, objective.columns, "float32").moments()
    np.testing.assert_allclose(moments[0], features.numpy().mean(0), atol=1e-6)
    np.testing.assert_allclose(moments[1], features.numpy().std(0), atol=1e-6)


def counted(monkeypatch):
    """How many pictures go through the tower."""
    seen, features = [], extraction.ProbeObjective.features
    monkeypatch.setattr(
        extraction.ProbeObjective, "features", lambda self, image: seen.append(len(image)) or features(self, image)
    )
    return seen


def test_cache_is_used_again_unless_anything_changed(tmp_path, records, monkeypatch):
    seen = counted(monkeypatch)
    prepared(tmp_path, records)
    assert sum(seen) == 12, "train and val are the same pictures here"
    prepared(tmp_path, records)
    prepared(tmp_path, records, k=3, temperature=0.1, standardize=True)
    assert sum(seen) == 12
    prepared(tmp_path, records, crop_pct=1.0)
    prepared(tmp_path, records, layers=[2])
    prepared(tmp_path, records, dtype="float32")
    assert sum(seen) == 4 * 12
    recipe, _, objective = built(tmp_path)
    with torch.no_grad():
        objective.encoder.blocks[0].attn.proj.weight[0, 0] += 1e-3
    recipe.prepare(objective, {"val": ListRecords([records[i] for i in range(12)])}, cpu())
    assert sum(seen) == 5 * 12, "other weights"
    recipe, _, objective = built(tmp_path)
    recipe.prepare(objective, {"train": ListRecords([records[11 - i] for i in range(12)]), "val": records}, cpu())
    assert sum(seen) == 6 * 12, "another order of pictures"


def test_a_changed_picture_is_computed_again(tmp_path, monkeypatch):
    path = tmp_path / "one.png"
    Image.new("RGB", (40, 40), COLOURS[0]).save(path)
    own = ListRecords([{"id": "0", "image": str(path), "label": 0}])
    seen = counted(monkeypatch)
    prepared(tmp_path, own)
    Image.new("RGB", (40, 44), COLOURS[1]).save(path)
    prepared(tmp_path, own)
    assert seen == [1, 1]


def test_encoded_pictures_are_known_by_more_than_their_ids(tmp_path, records, monkeypatch):
    """Two prepared folders with the same names, and pictures that only a plug-in knows where to find."""
    roots = []
    for number in range(2):
        folder = Folder(tmp_path / f"root{number}", Layout("labelled", "parquet", {}), shard_bytes=10**9)
        rows = [{**records[i], "image": Path(records[i - number]["image"]).read_bytes()} for i in range(6)]
        items = [Item((i,), row, {"image": f"{i}.png"}) for i, row in enumerate(rows)]
        list(folder.write("train", items, lambda item: Finding(), 2))
        folder.finish(CLASSES)
        roots.append(prepared_records(tmp_path / f"root{number}", "labelled", "train", tmp_path))
        roots.append(ListRecords(rows))
    seen = counted(monkeypatch)
    for each in (*roots, *roots):
        prepared(tmp_path / "cache", each)
    assert seen == [6] * 4
    prepared(tmp_path / "cache", TableRecords(Dataset.from_list(rows)))
    assert seen == [6] * 4, "the same bytes in a table of another kind"


def test_computing_goes_on_where_it_was_broken_off(tmp_path, records, monkeypatch):
    monkeypatch.setattr("vlbeit.tasks.probe.cache._SHARD_ROWS", 3)
    whole = prepared(tmp_path / "whole", records)[0]._folders["val"]
    assert whole.shards == 4
    monkeypatch.setattr(extraction, "_BATCH", 2)
    seen, features = [], extraction.ProbeObjective.features

    def breaking(self, image):
        if len(seen) == 4:
            raise KeyboardInterrupt
        seen.append(len(image))
        return features(self, image)

    monkeypatch.setattr(extraction.ProbeObjective, "features", breaking)
    with pytest.raises(KeyboardInterrupt):
        prepared(tmp_path / "broken", records)
    (folder,) = (tmp_path / "broken" / "features").iterdir()
    assert sorted(file.name for file in folder.iterdir()) == ["shard-00000.npy", "shard-00001.npy"]
    seen.clear()
    monkeypatch.setattr(extraction.ProbeObjective, "features", features)
    again = counted(monkeypatch)
    found = prepared(tmp_path / "broken", records)[0]._folders["val"]
    assert sum(again) == 6
    np.testing.assert_array_equal(np.concatenate([*found.blocks()]), np.concatenate([*whole.blocks()]))


def test_processes_share_the_shards(tmp_path, monkeypatch):
    monkeypatch.setattr("vlbeit.tasks.probe.cache._SHARD_ROWS", 4)
    folder = FeatureFolder(tmp_path, 18, [("layer_1", 2)], "float32")
    rows = np.arange(36, dtype=np.float32).reshape(18, 2)
    monkeypatch.setattr("vlbeit.dist.world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr("vlbeit.dist.rank", lambda rank=rank: rank)
        shares.append(folder.missing())
    assert shares == [[0, 2, 4], [1, 3]]
    for share in shares:
        own = [row for shard in share for row in folder.rows_of(shard)]
        parts = [Part(rows[own[i : i + 3]], [j == 9 for j in own[i : i + 3]]) for i in range(0, len(own), 3)]
        assert [*folder.fill(share, iter(parts))][-1] == len(own)
    np.testing.assert_array_equal(np.concatenate([*folder.blocks()]), rows)
    assert [i for i in range(18) if folder.is_bad(i)] == [9] and folder.row(17).tolist() == [34, 35]


def test_what_cannot_be_kept(tmp_path, monkeypatch):
    folder = FeatureFolder(tmp_path, 1, [("layer_1", 2)], "float16")
    with pytest.raises(DataError, match=r"do not fit float16 .* task\.dtype=float32"):
        list(folder.fill([0], [Part(np.array([[1e6, 0]], dtype=np.float32), [False])]))
    huge = FeatureFolder(tmp_path, 10**14, [("layer_1", 2)], "float16")
    with pytest.raises(DataError, match=r"needs 400000.0 GB for features and the disk has .* set data\.cache=DIR"):
        huge.check_space()
    (tmp_path / "shard-00000.npy").write_bytes(b"torn")
    with pytest.raises(DataError, match=r"shard-00000\.npy cannot be read .*remove"):
        folder.row(0)


def test_unreadable_pictures_count_as_they_do_elsewhere(tmp_path, records):
    """Training takes others, evaluation a grey one, both are named; too many are an error."""
    broken = ListRecords([{**records[i], **({"image": "gone.png"} if i == 4 else {})} for i in range(12)])
    recipe, meta, objective = built(tmp_path)
    with pytest.raises(DataError, match=r"1 of 12 samples cannot be used"):
        recipe.prepare(objective, {"train": broken, "val": broken}, cpu())
    recipe.config.data.max_bad_fraction = 0.5
    recipe.prepare(objective, {"train": broken, "val": broken}, cpu())
    assert numbers_of(recipe, meta, objective, broken)[0]["unreadable"] == 1
    spec = recipe.data(broken, meta, train=True)
    loader = TrainLoader(spec, seed=0, global_batch_size=12, micro_batch_size=12, workers=0, max_bad_fraction=0.5)
    (batch,) = next(loader.steps(0, 1))
    assert batch["bad"] == ["4"] and "4" not in batch["sample_id"] and len(batch["label"]) == 12


def test_unreadable_pictures_of_training_have_no_say(tmp_path, records):
    """Neither as neighbours nor as labels nor in the mean: the numbers are those of the split without them."""
    missing = [{"id": f"gone{i}", "image": str(tmp_path / f"none{i}.png"), "label": 2} for i in range(5)]
    own = [records[i] for i in range(12)]
    split = ListRecords([*missing[:2], *own[:9], *missing[2:]])  # readable: three of each class
    grey = tmp_path / "grey.png"  # what stands for an unreadable picture
    Image.new("RGB", (40, 30), (128, 128, 128)).save(grey)
    val = ListRecords([*own[9:], {"id": "grey", "image": str(grey), "label": 0}])
    found = []
    for train in (split, ListRecords(own[:9])):
        recipe, meta, objective = built(tmp_path, standardize=True, k=5, dtype="float32")
        recipe.config.data.max_bad_fraction = 0.9
        recipe.prepare(objective, {"train": train, "val": val}, cpu())
        commonest = recipe.evaluators(val, meta)["probe"].rivals.commonest
        found.append((recipe._neighbours(), objective.heads["layer_2"].mean, commonest))
    assert found[0][0] == found[1][0] and found[0][2] == found[1][2] == 0
    torch.testing.assert_close(found[0][1], found[1][1])


def test_neighbours_are_those_of_plain_numpy():
    rng = np.random.default_rng(0)
    bank, query = rng.normal(size=(50, 7)), rng.normal(size=(9, 7))
    labels = rng.integers(4, size=50)
    unit = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in (query, bank)]
    cosines = unit[0] @ unit[1].T
    expected = []
    for row in cosines:
        votes = np.zeros(4)
        for index in np.argsort(-row)[:5]:
            votes[labels[index]] += np.exp(row[index] / 0.07)
        expected.append(int(votes.argmax()))
    found, rows = nearest(torch.from_numpy(query), [torch.from_numpy(p) for p in np.split(bank, [13, 14, 40])], 5)
    np.testing.assert_array_equal(rows.numpy(), np.argsort(-cosines, axis=1)[:, :5])
    assert vote(found, torch.from_numpy(labels)[rows], 4, 0.07).tolist() == expected
    assert len(Counter(expected)) > 1
    assert nearest(torch.from_numpy(query), [torch.from_numpy(bank[:3])], 5)[1].shape == (9, 3)
    tiny = vote(torch.tensor([[1.0, 0.9]]), torch.tensor([[1, 0]]), 2, 1e-4)
    assert tiny.tolist() == [1], "no temperature overflows"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_comparisons_do_not_hang_on_the_precision(precision):
    """Of features that share most of their length, as those of towers do, half precision knows no nearest one."""
    generator = torch.Generator().manual_seed(0)
    centre = torch.randn(50, 64, generator=generator)
    bank, query = (30 * torch.ones(64) + centre + 0.1 * torch.randn(50, 64, generator=generator) for _ in range(2))
    label = torch.arange(50)

    def votes():
        cosines, rows = nearest(query, [bank[:20], bank[20:]], 1)
        return {str(i): int(guess) for i, guess in enumerate(vote(cosines, label[rows], 50, 0.07))}

    stub = Stub()
    stub.probed, stub.columns = ["layer_1"], [("image_embedding", 64)]
    stub.logits = lambda features: [torch.zeros(len(features), 50)]
    unit = [part / part.norm(dim=1, keepdim=True) for part in (query, bank)]
    batch = {"features": unit[0], "label": label, "sample_id": [str(i) for i in label.tolist()]}
    evaluator = ProbeEvaluator(Rivals(votes, unit[1]))
    numbers = run_evaluators(stub, [batch], {"probe": evaluator}, make_accelerator("cpu", precision), len(label))
    assert numbers["knn"] == numbers["zero_shot"] == 100


def test_classifiers_compute_in_full_precision(tmp_path, records):
    *_, objective = prepared(tmp_path, records)
    features = 100 + torch.randn(6, sum(objective.widths), generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = objective.logits(features)
    for found, expected in zip(half, objective.logits(features), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


class Stub(torch.nn.Module):
    """Layers that guess what the features say."""

    probed, columns = ["layer_1", "layer_2"], [("layer_1", 2), ("layer_2", 2), ("image_embedding", 3)]

    def __init__(self):
        super().__init__()
        self.best = torch.tensor(-1)

    def logits(self, features):
        return [features[:, :2], features[:, 2:4]]


def test_two_processes_give_the_numbers_of_one(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(40, 7, generator=generator), torch.randint(2, (40,), generator=generator)
    votes = {str(i): i % 2 for i in range(40)}
    rivals = Rivals(lambda: votes, torch.eye(3)[:2], 1)

    def shown(evaluator, rows):
        for part in rows:
            batch = {"features": features[part], "label": labels[part], "sample_id": [str(i) for i in part.tolist()]}
            evaluator.update(stub, batch)
        return evaluator

    stub = Stub()
    numbers = shown(ProbeEvaluator(rivals), torch.arange(40).split(9)).compute()
    hits = [(features[:, i : i + 2].argmax(1) == labels).double().mean() * 100 for i in (0, 2)]
    assert numbers["linear_layer_1"] == pytest.approx(hits[0]) and numbers["linear_layer_2"] == pytest.approx(hits[1])
    assert int(stub.best) == int(hits[1] > hits[0])
    assert numbers["zero_shot"] == pytest.approx(100 * (features[:, 4:6].argmax(1) == labels).double().mean())
    assert numbers["majority"] == pytest.approx(100 * labels.double().mean())
    assert numbers["knn"] == pytest.approx(100 * (torch.arange(40) % 2 == labels).double().mean())
    own = [shown(ProbeEvaluator(rivals), torch.arange(40)[rank::2].split(7)) for rank in range(2)]
    own[1].update(stub, {"features": features[:1], "label": labels[:1], "sample_id": ["0"]})  # a padded sampler
    merged = ProbeEvaluator(rivals)
    merged.load_state_dict(json.loads(json.dumps(own[0].state_dict())))
    parts = [(each.labels, each.hits) for each in (merged, own[1])]
    monkeypatch.setattr("vlbeit.tasks.probe.evaluator.gather_objects", lambda value: parts)
    assert merged.compute() == numbers


def words():
    return train_wordpiece(lambda: ["a photo of a dark red green blue thing ."], 60, 12)


def test_zero_shot_of_a_vl_run(tmp_path, records, capsys):
    """The class vectors and picture vectors are those that the contrastive loss of stage=vl compares."""
    tokenizer = words()
    meta = {"tokenizer": tokenizer.to_json()}
    recipe, meta, objective = built(
        tmp_path, "vl", meta=meta, templates=["a photo of a {}.", "{} thing"], dtype="float32"
    )
    run = replace(recipe.config, task=None)
    torch.manual_seed(1)
    spec = encoder_spec(run, experts=("image", "text"), fused=True, vocab_size=tokenizer.vocab_size)
    encoder = MoMEEncoder(spec).eval()
    head = Heads({"contrast": {"kind": "contrast", "dim": 32}})["contrast"]
    recipe.prepare(objective, {"train": records, "val": records}, cpu())
    assert "no zero_shot: what the run started from has no contrastive head" in capsys.readouterr().out
    assert "zero_shot" not in numbers_of(recipe, meta, objective, records)[0]
    state = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
    state |= {f"heads.contrast.{name}": value for name, value in head.state_dict().items()}
    transfer(objective, state, spec, objective.encoder.spec)
    recipe.prepare(objective, {"train": records, "val": records}, cpu())
    numbers, evaluator = numbers_of(recipe, meta, objective, records)
    low = spec.depth - spec.fused_layers
    image = torch.stack([recipe._image()(Image.open(records[i]["image"])) for i in range(12)])
    with torch.no_grad():
        pictures = head.embed_image(encoder(encoder(encoder.embed_image(image), stop=low, norm=False), start=low).x_BLD)
        names = []
        for name in ("dark red", "green", "blue"):
            ids = [torch.tensor([tokenizer(text)]) for text in (f"a photo of a {name}.", f"{name} thing")]
            tokens = [encoder(encoder(encoder.embed_text(each), stop=low, norm=False), start=low).x_BLD for each in ids]
            names.append(torch.stack([head.embed_text(each)[0] for each in tokens]).mean(0))
    guess = (pictures @ torch.stack([name / name.norm() for name in names]).T).argmax(1)
    right = guess == torch.arange(12) % 3
    assert numbers["zero_shot"] == pytest.approx(100 * right.double().mean())
    rows = {row["sample_id"]: row["zero_shot"] for row in evaluator.details()}
    assert [rows[str(i)] for i in range(12)] == right.double().tolist()
    predict = recipe.predictor(objective, meta)
    found = dict(predict(records[0]["image"], "dark red, green, blue"))
    logits = head.logit_scale.exp() * pictures[:1] @ torch.stack([name / name.norm() for name in names]).T
    assert found == pytest.approx(
        dict(zip(["dark red", "green", "blue"], logits.softmax(1)[0].tolist(), strict=True)), rel=1e-4
    )
    with pytest.raises(UsageError, match="the names are empty"):
        predict(records[0]["image"], " , ")


CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """An open_clip model with random weights, as the library keeps one in a folder."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    statistics = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": CLIP, "preprocess_cfg": statistics}))
    model = open_clip.CLIP(CLIP["embed_dim"], CLIP["vision_cfg"], CLIP["text_cfg"])
    with torch.no_grad():
        model.logit_scale.fill_(1.7)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def test_zero_shot_of_open_clip_is_its_own(tmp_path, records, clip):
    tower = f"open_clip:{clip}"
    model = replace(TINY, image_tower=tower, text_tower=tower)
    recipe = Probe(RunConfig(
        stage=Settings(name="vl"), task=ProbeSettings(name="probe", crop_pct=1.0, dtype="float32"), model=model,
        data=DataConfig(image_size=32, workers=0, cache=str(tmp_path)), text=TextConfig(max_length=16), init="none",
    ))  # fmt: skip
    meta = recipe.meta(records, {}) | tower_meta(recipe.config, {})
    assert meta["tokenizer"] == {"kind": "clip"}
    objective = recipe.objective(meta)
    recipe.start(objective)
    load_pretrained(objective.encoder, model)
    assert not [
        name
        for name, p in objective.named_parameters()
        if p.requires_grad and "heads.layer" not in name and "heads.tower" not in name
    ]
    recipe.prepare(objective, {"train": records, "val": records}, cpu())
    numbers, evaluator = numbers_of(recipe, meta, objective, records)
    assert {"linear_layer_1", "linear_layer_2", "linear_tower", "zero_shot"} < set(numbers)
    known = open_clip.create_model(f"local-dir:{clip}").eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{clip}")
    classifier = open_clip.build_zero_shot_classifier(
        known, tokenizer, ["dark red", "green", "blue"], ["a photo of a {}."]
    )
    pixels = torch.stack([recipe._image()(Image.open(records[i]["image"])) for i in range(12)]) / 2 + 0.5
    mean, std = (torch.tensor(values)[:, None, None] for values in ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]))
    with torch.no_grad():
        logits = known.logit_scale.exp() * known.encode_image((pixels - mean) / std, normalize=True) @ classifier
    rows = {row["sample_id"]: row["zero_shot"] for row in evaluator.details()}
    assert [rows[str(i)] for i in range(12)] == (logits.argmax(1) == torch.arange(12) % 3).double().tolist()
    found = dict(recipe.predictor(objective, meta)(records[1]["image"], "dark red,green,blue"))
    expected = dict(zip(["dark red", "green", "blue"], logits.softmax(1)[1].tolist(), strict=True))
    assert found == pytest.approx(expected, rel=1e-4) and max(expected.values()) > 0.34
    torch.testing.assert_close(recipe._class_vectors.T, classifier, rtol=1e-4, atol=1e-5)


def test_zero_shot_where_there_is_nothing_to_compare(tmp_path, records, capsys):
    prepared(tmp_path, records)
    assert "no zero_shot: stage=mim reads no texts; stage=vl does" in capsys.readouterr().out
    prepared(tmp_path, records, zero_shot="false")
    assert "no zero_shot" not in capsys.readouterr().out
    with pytest.raises(UsageError, match=r"task\.zero_shot=true: stage=mim reads no texts"):
        prepared(tmp_path, records, zero_shot="true")
    with pytest.raises(UsageError, match=r"names no tokenizer; text\.tokenizer= does"):
        prepared(tmp_path, records, stage="vl", zero_shot="true")


def test_class_names(tmp_path):
    assert class_names(CLASSES, "") == ["dark red", "green", "blue"]
    lines, listed, named = tmp_path / "n.txt", tmp_path / "n.json", tmp_path / "d.json"
    lines.write_text("crimson\n\ngrass\nsky\n")
    listed.write_text('["crimson", "grass", "sky"]')
    named.write_text('{"blue": "sky", "green": "grass", "dark_red": "crimson"}')
    for file in (lines, listed, named):
        assert class_names(CLASSES, str(file)) == ["crimson", "grass", "sky"]
    with pytest.raises(UsageError, match="has 3 names, the data 2 classes"):
        class_names(CLASSES[:2], str(lines))
    with pytest.raises(UsageError, match="no name for 1 classes, such as 'pink'"):
        class_names(["blue", "pink"], str(named))
    listed.write_text("{")
    with pytest.raises(DataError, match=r"task\.names=.*n\.json cannot be read"):
        class_names(CLASSES, str(listed))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"layers": [0]}, "blocks are counted from 1"),
        ({"layers": [1, 1]}, "names a block twice"),
        ({"dtype": "int8"}, "task.dtype=int8 is not one of float16, float32"),
        ({"k": -1}, "task.k=-1 must not be negative"),
        ({"temperature": 0.0}, "task.temperature=0.0 must be positive"),
        ({"zero_shot": "maybe"}, "task.zero_shot=maybe is not one of auto, true, false"),
        ({"templates": []}, "leaves no text"),
        ({"templates": ["a photo"]}, "has no {} where the name of a class goes"),
    ],
)
def test_settings_are_checked(setting, message):
    with pytest.raises(UsageError, match=message):
        ProbeSettings(**setting)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"layers": [3]}, r"task\.layers=\[3\]: the tower has model.depth=2 blocks"),
        ({"knn_layer": 3}, "task.knn_layer=3: the tower has model.depth=2 blocks"),
        ({"layers": [2], "knn_layer": 1}, r"task\.knn_layer=1 is not among task\.layers=\[2\]"),
    ],
)
def test_layers_are_those_of_the_tower(tmp_path, setting, message):
    with pytest.raises(UsageError, match=message):
        built(tmp_path, **setting)


@pytest.fixture
def real(monkeypatch, again, in_chain, tmp_path):
    """Words of a probe of the chain's mim run, on the real source."""
    from vlbeit.data.sources import open_source

    monkeypatch.setattr("vlbeit.tasks.probe.task.open_source", open_source)
    left_out = ("stage=", "steps=", "data.limit=", "data.root=")
    words = [word for word in again["mim"] if not word.startswith(left_out)]
    root = next(word for word in again["mim"] if word.startswith("data.root="))
    return [*words, f"data.cache={tmp_path / 'cache'}", root]


def test_from_the_command_line(real, in_chain, tmp_path, capsys):
    """A run, the same run broken off and resumed, a second one with a warm cache, an evaluation, a prediction."""
    init = ["task=probe", f"init={in_chain / 'runs/mim'}"]
    with chdir(tmp_path):
        assert main(["train", *init, *real, "steps=6", "run=whole"]) == 0
        assert "features of train: " in (said := capsys.readouterr().out) and " MB in " in said
        with Image.open("whole/batch0.png") as image:
            assert (
                min(image.size) > 190 and len(image.convert("RGB").getcolors(10**6)) > 300
            )  # pictures, not names alone
        assert main(["train", *init, *real, "steps=3", "run=part"]) == 0
        assert " pictures from " in (said := capsys.readouterr().out) and " MB in " not in said
        assert main(["train", *init, *real, "steps=6", "optim.schedule=constant", "run=c6"]) == 0
        assert main(["train", *init, *real, "steps=3", "optim.schedule=constant", "run=c36"]) == 0
        assert main(["train", *init, *real, "steps=6", "optim.schedule=constant", "run=c36"]) == 0
        assert "going on from step 3" in capsys.readouterr().out
        one, two = (load_file(f"{run}/state/step-000006/model.safetensors") for run in ("c6", "c36"))
        assert all(torch.equal(value, two[name]) for name, value in one.items())
        last = [json.loads(Path(run, "metrics.jsonl").read_text().splitlines()[-1]) for run in ("c6", "c36")]
        assert last[0]["evaluation"] == last[1]["evaluation"]
        assert main(["train", *init, *real, "steps=7", "optim.schedule=constant", "run=c7", "resume=c6"]) == 0
        tower = load_file(in_chain / "runs/mim/checkpoint/model.safetensors")
        for name in ("blocks.0.attn.proj.weight", "cls_token"):
            assert torch.equal(one[f"encoder.{name}"], tower[f"encoder.{name}"])
        before = json.loads(Path("whole/evaluation.json").read_text())
        assert main(["evaluate", "whole"]) == 0
        after = json.loads(Path("whole/evaluation.json").read_text())
        assert {k: v for k, v in before.items() if k != "step"}.items() <= after.items()
        assert after["interval"]["linear"][0] <= after["linear"] <= after["interval"]["linear"][1]
        assert main(["evaluate", "whole", "task.k=1", "task.knn_layer=1"]) == 0
        capsys.readouterr()
        picture = next(Path(real[-1].partition("=")[2], "imagefolder/val").rglob("*.jpg"))
        assert main(["predict", "whole", str(picture)]) == 0
        assert "filled_circle" in capsys.readouterr().out


def test_the_first_batch_is_shown_by_its_pictures(tmp_path, records):
    recipe, meta, objective = prepared(tmp_path, records)
    spec = recipe.data(records, meta, train=True)
    words = {"workers": 0, "max_bad_fraction": 0, "seed": 3, "global_batch_size": 4, "micro_batch_size": 2}
    loader = TrainLoader(spec, **words)
    seen, shown = next(loader.steps(0, 1)), loader.first(16)
    assert "features" in seen[0] and "features" not in shown and shown["image"].shape[:2] == (4, 3)
    assert shown["sample_id"] == [name for batch in seen for name in batch["sample_id"]]
    assert shown["label"].tolist() == [label for batch in seen for label in batch["label"].tolist()]
    with torch.no_grad():
        found = objective.eval().features(shown["image"])
    torch.testing.assert_close(found, torch.cat([batch["features"] for batch in seen]), rtol=1e-2, atol=1e-2)


def test_a_vl_run_is_asked_by_names(real, in_chain, tmp_path, capsys):
    init = ["task=probe", "stage=vl", f"init={in_chain / 'runs/vl'}", "recipe=scenes_probe"]
    templates = 'task.templates=["a {}","a picture of a {}."]'
    with chdir(tmp_path):
        assert main(["train", *init, *real, "steps=2", templates, "run=vl"]) == 0
        numbers = json.loads(Path("vl/evaluation.json").read_text())
        assert 0 <= numbers["zero_shot"] <= 100 and "linear_layer_3" in numbers
        assert main(["evaluate", "vl", 'task.templates=["{}"]']) == 0
        found = json.loads(Path("vl/evaluation-changed.json").read_text())
        assert found["linear"] == numbers["linear"] and "zero_shot" in found
        capsys.readouterr()
        picture = next(Path(real[-1].partition("=")[2], "imagefolder/val").rglob("*.jpg"))
        assert main(["predict", "vl", str(picture), "a circle, a square"]) == 0
        assert "a square" in capsys.readouterr().out
