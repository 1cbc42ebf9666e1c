"""`vlbeit plan`: its numbers are those of the run, and it needs no data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from vlbeit import compose, registry
from vlbeit.cli import main
from vlbeit.config import OptimConfig
from vlbeit.data.sources import open_records
from vlbeit.engine.optim import build_optimizer
from vlbeit.errors import UsageError
from vlbeit.nn import relpos
from vlbeit.planning import memory, planner, stand_in, trace
from vlbeit.planning.report import rows

SMALL = ["model=tiny", "text.vocab_size=500", "global_batch_size=64", "micro_batch_size=auto", "steps=100"]
VL = ["stage=vl", *SMALL]
PACKED = ["stage=mlm", "stage.pack=true", *SMALL]


@pytest.fixture(scope="module")
def vl() -> planner.Plan:
    return planner.plan(VL, planner.Machine(devices=4, gib=1.0), planner.Assumed(samples=3200))


@pytest.fixture(scope="module")
def packed() -> planner.Plan:
    return planner.plan(PACKED, planner.Machine())


@pytest.mark.parametrize("words", [VL, PACKED], ids=["vl", "packed"])
def test_the_trace_is_what_a_run_with_values_costs(words: list[str], vl: planner.Plan, packed: planner.Plan) -> None:
    found = vl if words is VL else packed
    with planner.without_data(compose.compose(words).config) as (config, recipe, meta, _):
        (batch, _) = planner.batches_of(config, recipe, meta)  # of two samples
    objective = recipe.objective(meta).train()
    optimizer = build_optimizer(recipe.param_groups(objective, config.optim), config.optim)
    cost = trace.measure(objective, batch)
    assert found.forward == pytest.approx(cost.forward / 2, rel=1e-4)
    assert found.backward == pytest.approx(cost.backward / 2, rel=1e-4)
    activations = found.memory.activations - (found.micro_batch - 2) * found.activations_per_sample
    assert activations == pytest.approx(cost.saved, rel=0.01)
    sum(objective(batch, objective.counts(batch)).losses.values()).backward()
    optimizer.step()
    state = [value for each in optimizer.state.values() for value in each.values() if value.ndim]
    assert found.memory.optimizer == pytest.approx(sum(value.nbytes for value in state), rel=1e-5)
    assert found.parameters == sum(parameter.numel() for parameter in objective.parameters())
    assert found.trained == sum(parameter.numel() for parameter in objective.parameters() if parameter.requires_grad)
    assert (found.trained < found.parameters) == (words is PACKED), "the tower of the text stage is frozen"


def test_length_and_size_of_a_run(vl: planner.Plan) -> None:
    assert (vl.steps, vl.samples, vl.epochs) == (100, 6400, 2.0)
    assert vl.tokens_per_sample == 3 * 3 + 1 + 32 and vl.tokens == 6400 * 42
    assert vl.total == (vl.forward + vl.backward) * 6400
    assert vl.seconds == pytest.approx(vl.total / (4 * 19.5e12 * 0.4))
    assert "19.5 TFLOP/s (A100-SXM4 in fp32)" in dict(rows(vl))["devices"]
    assert (vl.micro_batch, vl.accumulation) == (16, 1)
    assert vl.memory.weights == 4 * vl.parameters and vl.memory.buckets == vl.memory.gradients
    assert vl.memory.total == sum(vl.memory) and not vl.notes[1:]
    assert json.loads(json.dumps(vl.to_json()))["memory"]["total"] == vl.memory.total


def test_the_usual_peak_is_that_of_the_precision() -> None:
    usual = [planner.Machine().peak_at(name) for name in ("fp64", "fp32", "bf16", "fp16")]
    assert usual == [19.5, 19.5, 312, 312] and planner.Machine(peak=50.0).peak_at("bf16") == 50


def test_cached_gradients_cost_a_pass_more(vl: planner.Plan) -> None:
    words = [*VL, "stage.cache_gradients=true", "micro_batch_size=32"]
    found = planner.plan(words, planner.Machine())
    with planner.without_data(compose.compose(words).config) as (config, recipe, meta, _):
        (batch, _) = planner.batches_of(config, recipe, meta)
    cost = trace.measure(recipe.objective(meta).train(), batch)
    assert 0 < cost.looked < cost.forward / 2 and found.backward == pytest.approx(vl.backward, rel=1e-4)
    assert found.forward - vl.forward == pytest.approx(cost.looked / 2, rel=1e-4)


def test_an_objective_that_asks_for_values_is_run() -> None:
    words = ["stage=mim", "task=detection", "model=tiny", "global_batch_size=4", "micro_batch_size=4"]
    assert planner.plan(words, planner.Machine()).notes == [
        "its objective asks for values: a few empty samples were run to count"
    ]


def test_a_fault_of_an_objective_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*given: object) -> None:
        raise RuntimeError("wrong sizes")

    monkeypatch.setattr(trace, "trace", wrong)
    with pytest.raises(RuntimeError, match="wrong sizes"):
        planner.plan(PACKED, planner.Machine())


@pytest.mark.parametrize("name", ["samples", "labels"])
def test_no_data_set_has_nothing(name: str) -> None:
    with pytest.raises(UsageError, match=f"--{name} 0: give 1 or more"):
        planner.plan(VL, planner.Machine(), planner.Assumed(**{name: 0}))


def test_the_micro_batch_is_the_largest_that_fits(vl: planner.Plan) -> None:
    fixed = vl.memory.total - vl.memory.activations
    room = (fixed + 9 * vl.activations_per_sample) / (1 - memory.RESERVE) / planner.GIB
    machine = planner.Machine(devices=2, gib=room)
    assert planner._settled(compose.compose(VL).config, machine, fixed, vl.activations_per_sample) == (8, 4)
    nothing = planner._settled(compose.compose(VL).config, machine._replace(gib=1e-3), fixed, 1.0)
    assert nothing == (None, None)
    shown = dict(rows(vl._replace(micro_batch=None, accumulation=None)))
    assert "not even the smallest fits" in shown["micro-batch"]


def test_memory_that_is_shared_out() -> None:
    module = torch.nn.Linear(100, 100, bias=False, device="meta")
    options = {"average": True, "bytes_each": 4}
    ddp = memory.standing(module, OptimConfig(), devices=4, sharded=False, **options)
    fsdp = memory.standing(module, OptimConfig(), devices=4, sharded=True, **options)
    assert ddp[:5] == (40_000, 40_000, 80_000, 40_000, 40_000) and fsdp[:5] == (10_000, 10_000, 20_000, 10_000, 0)
    assert memory.moments(OptimConfig()) == 2 and memory.moments(OptimConfig(name="lion")) == 1


@pytest.mark.parametrize(
    ("words", "parameters"),
    [(["stage=mim", "task=classification", "model=base", "data.image_size=224"], 86_530_984),
     (["stage=mim", "model=base", "stage.target=pixels", "data.image_size=224"], 91_965_776 - (8192 - 768) * 769)],
)  # fmt: skip
def test_parameters_are_the_published_ones(words: list[str], parameters: int) -> None:
    with planner.without_data(compose.compose(words).config) as (_, recipe, meta, _):
        objective = trace.on_meta(lambda: recipe.objective(meta))
    assert sum(parameter.numel() for parameter in objective.parameters()) == parameters


def test_on_the_command_line_without_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["stage=mim", "model=tiny", "stage.target=pixels", "epochs=2", "data=imagefolder", "global_batch_size=8"]
    words += ["data.image_size=48"]
    assert main(["plan", *words, "--devices", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[:-1])) <= 120 and lines[-1].startswith(
        "next: accelerate launch --num_processes 2 -m vlbeit"
    )
    assert lines[1].split()[:3] == ["devices", "2", "of"]
    assert "epochs" in lines[3] and "unknown: give --samples" in lines[3]
    assert not list(tmp_path.iterdir())
    assert main(["plan", *words, "--devices", "2", "--samples", "100", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["steps"], found["samples"], found["machine"]["devices"]) == (25, 200, 2)


def test_records_that_lie_at_hand_are_counted(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("one\ntwo\nthree\n\nfour\n")
    data = ["data=text", f"data.root={tmp_path}", "epochs=6", "global_batch_size=2"]
    words = ["stage=mlm", "model=tiny", "init=none", *data]
    found = planner.plan(words, planner.Machine())
    assert (found.steps, found.samples, found.epochs) == (12, 24, 6)
    assert any("4 records of train" in note for note in found.notes)
    mixed = planner.plan([*words[:3], f"data.mix=[text:{tmp_path}*2.5]", *data[2:]], planner.Machine())
    assert (mixed.steps, mixed.epochs) == (30, 6)  # a weighted epoch has 10
    told = planner.plan(words, planner.Machine(), planner.Assumed(samples=10))
    assert told.steps == 30 and not any("records of train" in note for note in told.notes)
    (tmp_path / "train.txt").unlink()
    unknown = planner.plan(words, planner.Machine())
    assert unknown.steps is None and any("not counted" in note for note in unknown.notes)


def test_packed_texts_are_counted_as_rows(tmp_path: Path, packed: planner.Plan) -> None:
    (tmp_path / "train.txt").write_text("a red circle\n" * 40)
    data = ["data=text", f"data.root={tmp_path}", f"data.cache={tmp_path}/cache", "text.vocab_size=50"]
    config = compose.compose([*PACKED[:3], "init=none", *data, "epochs=2", "global_batch_size=2"]).config
    assumed, notes = planner._counted(config, planner.Assumed())
    recipe, records = registry.get("stage", "mlm")(config), open_records(config.data, "text", "train")
    assert assumed.samples == len(recipe.data(records, recipe.meta(records, {}), train=True).records) < 40
    assert f"the {assumed.samples} rows that the 40 texts of train are packed into" in notes[0]
    named = compose.compose([*PACKED[:3], "init=none", *data, "text.tokenizer=some/name", "steps=1"]).config
    unknown, notes = planner._counted(named, planner.Assumed())
    assert unknown.samples is None and "text.tokenizer=some/name is not at hand" in notes[0]
    assert "--samples, the rows that the texts are packed into" in dict(rows(packed))["epochs"]


def test_nothing_is_left_behind(vl: planner.Plan) -> None:
    """No tensors without values in the cache of position indexes, and no data source that stands in for others."""
    from torch._subclasses.fake_tensor import FakeTensor

    assert not any(isinstance(each, FakeTensor) for each in relpos._KEPT._kept.values())
    assert registry.get("data", "pairs").__name__ == "Pairs"
    assert vl.machine.devices == 4


@pytest.mark.parametrize(
    ("words", "machine", "message"),
    [
        (VL, {"devices": 3}, "global_batch_size=64 over --devices 3 leaves a rest"),
        ([*VL, "micro_batch_size=48"], {}, "in parts of micro_batch_size=48 leaves a rest"),
        (VL, {"shard": "zero"}, "--shard zero is neither ddp nor fsdp"),
        (VL, {"utilisation": 0.0}, "--utilisation must lie in"),
        (VL, {"gib": float("nan")}, "--memory and --peak must be positive"),
        (VL, {"peak": float("inf")}, "--memory and --peak must be positive"),
        (["task=probe", "model=tiny"], {}, "mim-probe cannot be planned without its data"),
    ],
)
def test_what_cannot_be_planned_is_one_line(words: list[str], machine: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        planner.plan(words, planner.Machine(**machine))


def test_a_vocabulary_that_needs_no_file() -> None:
    words = stand_in.plain_tokenizer(30522, 40)
    assert words.vocab_size == 30522 and words(" ".join(["a"] * 50)) == [2, *[5] * 38, 3]
