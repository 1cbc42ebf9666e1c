from __future__ import annotations

import inspect
import json
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor

from vlbeit.engine.callbacks import Callbacks
from vlbeit.engine.evaluate import run_evaluators
from vlbeit.engine.folder import RunFolder
from vlbeit.engine.loop import Engine
from vlbeit.engine.state import TrainingState, first_named
from vlbeit.errors import DataError, Interrupted, UsageError


def weights(engine) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in engine.objective.state_dict().items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_step_is_short():
    assert len(inspect.getsource(Engine.train_step).splitlines()) <= 40


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_accumulation_equals_the_big_batch(toy, micro_batch):
    """Both losses: each is divided by the terms of the whole step, not averaged over micro-batches."""
    whole, parts = (toy.make_engine(micro_batch=m, dropout=0.0, precision="fp64") for m in (8, micro_batch))
    whole.fit(), parts.fit()
    for name, value in weights(whole).items():
        torch.testing.assert_close(parts.objective.state_dict()[name], value, rtol=0, atol=1e-12)


def test_clipping_and_gradient_norm(toy, tmp_path):
    engine = toy.make_engine(tmp_path, clip_grad=1e-3, optimizer="sgd", steps=3, log_every=1)
    before = weights(engine)["linear.bias"]
    engine.fit()
    moved = (weights(engine)["linear.bias"] - before).norm()
    assert 0 < moved < 3 * 1e-3 * 0.05
    assert lines(tmp_path)[0]["grad_norm"] > 0.1  # the norm before clipping


def test_learning_rate_is_written_into_the_groups(toy):
    engine = toy.make_engine(steps=12)
    engine.state.step = 1  # the last step of the warmup
    engine.train_step(next(toy.Samples().steps(1, 2)))
    assert [group["lr"] for group in engine.optimizer.param_groups] == [0.05, 0.025]
    assert engine.state.step == 2 and int(engine.objective.calls) == 1


def test_not_a_number_stops_before_the_update(toy, tmp_path):
    engine = toy.make_engine(tmp_path, stream=toy.Samples(4, nan_at=6))
    with pytest.raises(DataError) as error:
        engine.fit()
    message = str(error.value)
    assert message.startswith("step 6: ") and "fit is nan" in message
    assert "step6-sample4, step6-sample5, step6-sample6, step6-sample7." in message  # the second micro-batch only
    assert "sample3" not in message and "\n" not in message
    assert all(value.isfinite().all() for value in weights(engine).values())
    assert engine.folder.last_step() == 4


class Poisoned:
    """The toy's samples, NaN at some steps; the objective counts its calls in a buffer at every forward."""

    def __init__(self, toy, at):
        self.inner, self.at = toy.Samples(4), at

    def steps(self, start, stop):
        for step in range(start, stop):
            self.inner.nan_at = step if step in self.at else None
            yield from self.inner.steps(step, step + 1)


def counting_engine(toy, path, at, **settings):
    engine = toy.make_engine(path, stream=Poisoned(toy, at), ema_decay=0.5, log_every=1, **settings)
    engine.objective.register_forward_hook(lambda module, *_: module.calls.add_(100) and None)
    return engine


def test_skipped_steps_change_nothing(toy, tmp_path, caplog):
    engine = counting_engine(toy, tmp_path, {0, 3}, max_skipped=2)
    train_step, changed = engine.train_step, []

    def everything():
        moments = {f"{i}.{k}": v.clone() for i, s in enumerate(engine.optimizer.state.values()) for k, v in s.items()}
        averaged = {f"ema.{k}": v.clone() for k, v in engine.ema.module.state_dict().items()}
        return weights(engine) | moments | averaged

    def recording(batches):
        before = everything()
        train_step(batches)
        changed.append(not same(before, everything()))

    engine.train_step = recording
    with caplog.at_level("WARNING"):
        engine.fit()
    assert [step for step, does in enumerate(changed) if not does] == [0, 3]
    assert (engine.state.step, engine.state.skipped, engine.state.skipped_in_row) == (12, 2, 0)
    found = [record.message.split(";")[0] for record in caplog.records]
    assert found == [f"skipped step {step}: fit is nan, gradient norm is nan" for step in (0, 3)]
    assert "step3-sample7" in caplog.text and "step3-sample3" not in caplog.text
    trained = [line for line in lines(tmp_path) if "losses" in line]
    assert [line["step"] for line in trained if "skipped" in line] == [1, 4] and trained[0]["total"] is None
    assert trained[0]["logs"] == {} and all(line["total"] > 0 for line in trained if "skipped" not in line)


def test_skipping_is_resumed_to_the_bit(toy, tmp_path):
    engine = counting_engine(toy, tmp_path, {3, 6}, max_skipped=2)
    with pytest.raises(Interrupted):
        toy.in_step(engine, 3, raising(signal.SIGTERM)).fit()
    assert engine.state.skipped == 1
    again, whole = (counting_engine(toy, path, {3, 6}, max_skipped=2) for path in (tmp_path, None))
    again.fit(), whole.fit()
    assert same(weights(again), weights(whole)) and again.state == whole.state


@pytest.mark.parametrize(
    ("at", "counted"), [({5, 6, 7}, "3 steps in a row, 3 in all"), ({1, 3, 5}, "1 steps in a row, 3 in all")]
)
def test_too_many_skipped_steps_end_the_run(toy, tmp_path, at, counted):
    engine = counting_engine(toy, tmp_path, at, max_skipped=2)
    with pytest.raises(DataError, match=f"{counted}: more than engine.max_skipped=2 allows") as error:
        engine.fit()
    assert "\n" not in str(error.value) and engine.folder.last_step() == 4
    assert all(value.isfinite().all() for value in weights(engine).values())


def test_deepspeed_cannot_skip(toy, monkeypatch):
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.DEEPSPEED)
    with pytest.raises(UsageError, match=r"engine\.max_skipped=2: DeepSpeed updates the weights by itself"):
        toy.make_engine(max_skipped=2)


def test_overflowing_gradient_names_all_samples(toy, tmp_path):
    engine = toy.make_engine(tmp_path, micro_batch=4)
    engine.objective.scale.register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(
        DataError, match=r"step 0: gradient norm is (nan|inf); samples.*: step0-sample0.*step0-sample7\."
    ):
        engine.fit()


def test_step_without_any_term_of_a_loss(toy):
    class Small(toy.Samples):
        def batch(self, step, start, stop):
            batch = super().batch(step, start, stop)
            return {**batch, "y": batch["y"].clamp(max=0.5)}

    assert toy.make_engine(stream=Small(4), steps=3).fit().step == 3


def test_evaluation_does_not_disturb_training(toy):
    def noisy(model):
        assert not model.training and not torch.is_grad_enabled()
        torch.rand(3), np.random.rand()
        return {"distance": 1.0}

    often, never = (toy.make_engine(callbacks=Callbacks(f), evaluate_every=1) for f in (noisy, None))
    often.fit(), never.fit()
    assert same(weights(often), weights(never))
    assert often.objective.dropout.training


def test_fit_leaves_the_global_generators_alone(toy):
    engine = toy.make_engine(steps=2)
    torch.manual_seed(3), np.random.seed(3)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(3), np.random.seed(3)
    engine.fit()
    assert (torch.rand(1), np.random.rand()) == expected


def test_seed_and_dropout(toy):
    first, again, other = (toy.make_engine(seed=seed) for seed in (0, 0, 1))
    first.fit(), again.fit(), other.fit()
    assert same(weights(first), weights(again)) and not same(weights(first), weights(other))


def test_averaged_weights_are_evaluated_and_exported(toy, tmp_path):
    engine = toy.make_engine(tmp_path, ema_decay=0.5, evaluate_every=1, steps=3, lr=1e-4)
    averaged = weights(engine)
    history = []
    update = engine.ema.update

    def recording(model):
        update(model)
        history.append(weights(engine))

    engine.ema.update = recording
    engine.fit()
    for raw in history:
        averaged["linear.weight"] = 0.5 * averaged["linear.weight"] + 0.5 * raw["linear.weight"]
    torch.testing.assert_close(engine.ema.module.linear.weight, averaged["linear.weight"])
    assert lines(tmp_path)[-1]["evaluation"] == toy.distance(engine.ema.module) != toy.distance(engine.objective)
    exported = torch.load(tmp_path / "checkpoint" / "weights.pt")
    assert same(exported, engine.ema.module.state_dict())  # so small a rate improves at every step


def test_the_average_has_the_buffers_that_processes_agreed_on(toy):
    """`after_step` makes buffers equal on all processes: copied before it, each process would score another model."""
    engine = toy.make_engine(ema_decay=0.5, steps=3)
    engine.fit()
    assert int(engine.ema.module.calls) == int(engine.objective.calls) == 3


@pytest.mark.parametrize(("metric", "expected"), [("score", 2), ("-score", 4), ("", 6)])
def test_best_weights_are_exported(toy, tmp_path, metric, expected):
    scores = iter([5.0, 9.0, 9.0, 1.0, 3.0, float("nan")])
    exported = []
    callbacks = Callbacks(
        lambda model: {"score": next(scores)}, lambda state, folder: exported.append(int(state["calls"]))
    )
    engine = toy.make_engine(tmp_path, callbacks=callbacks, metric=metric, evaluate_every=1, steps=6)
    engine.fit()
    assert exported[-1] == expected
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert found["step"] == expected and found.get("metric", "") == metric.removeprefix("-")
    assert lines(tmp_path)[-1]["evaluation"]["score"] is None  # JSON has no NaN


def test_evaluation_at_every_epoch_and_at_the_end(toy, tmp_path):
    toy.make_engine(tmp_path, evaluate_every=0, steps_per_epoch=10 / 3, steps=8).fit()
    assert [line["step"] for line in lines(tmp_path) if "evaluation" in line] == [4, 7, 8]


def test_unknown_metric(toy):
    with pytest.raises(ValueError, match="metric accuracy is not among the evaluation's numbers: distance"):
        toy.make_engine(metric="accuracy").fit()


def test_metrics_are_means_since_the_last_line(toy, tmp_path):
    engine = toy.make_engine(tmp_path, steps=4, log_every=2, micro_batch=2, callbacks=Callbacks(), save_every=100)
    single = toy.make_engine(tmp_path / "single", steps=4, log_every=1, micro_batch=8, dropout=0.2)
    engine.fit(), single.fit()
    first, second = lines(tmp_path)
    assert (first["step"], second["step"], second["samples"]) == (2, 4, 32)
    assert first["total"] == pytest.approx(sum(first["losses"].values()))
    assert first["logs"]["error"] == pytest.approx(first["losses"]["fit"], rel=1e-5)  # the same mean, by another way
    assert first["samples_per_second"] > 0 and first["lr"] == engine.plan.schedule(1)
    ones = [line for line in lines(tmp_path / "single") if "losses" in line]
    assert [line["step"] for line in ones] == [1, 2, 3, 4]


def raising(*numbers):
    return lambda: [os.kill(os.getpid(), number) for number in numbers]


def test_signal_finishes_the_step_and_saves(toy, tmp_path):
    before = signal.getsignal(signal.SIGINT)  # a shell ignores it in what it runs in the background
    engine = toy.make_engine(tmp_path, micro_batch=2, resume_command="vlbeit train stage=mim")
    with pytest.raises(
        Interrupted, match=r"stopped after step 6 of 12, state saved in .*; to go on: vlbeit train"
    ) as e:
        toy.in_step(engine, 5, raising(signal.SIGINT)).fit()
    assert (e.value.exit_code, e.value.signal) == (130, signal.SIGINT) and engine.folder.last_step() == 6
    assert signal.getsignal(signal.SIGINT) is before
    assert lines(tmp_path)[-1]["step"] == 6  # what was not logged yet
    resumed, whole = toy.make_engine(tmp_path, micro_batch=2), toy.make_engine(micro_batch=2)
    resumed.fit(), whole.fit()
    assert same(weights(resumed), weights(whole))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_what_a_scheduler_sends_is_an_interruption_too(toy, tmp_path, number):
    """Twice, as torchrun and the scheduler may both send it: the second one changes nothing."""
    engine = toy.make_engine(tmp_path)
    with pytest.raises(Interrupted):
        toy.in_step(engine, 1, raising(number, signal.SIGTERM)).fit()
    assert engine.folder.last_step() == 2


def test_waiting_for_data_is_broken_off(toy, tmp_path):
    class Hanging(toy.Samples):
        def steps(self, start, stop):
            yield from super().steps(start, 5)
            threading.Timer(0.05, raising(signal.SIGTERM)).start()
            time.sleep(30)

    began = time.monotonic()
    with pytest.raises(Interrupted, match="stopped after step 5 of 12"):
        toy.make_engine(tmp_path, stream=Hanging()).fit()
    assert time.monotonic() - began < 10
    resumed, whole = toy.make_engine(tmp_path), toy.make_engine()
    resumed.fit(), whole.fit()
    assert same(weights(resumed), weights(whole))


def evaluation(stop_in=None):
    """An evaluation of three batches through the real thing; a signal comes in its second batch of the so-maniest."""
    made = []

    class Distance:
        def __init__(self):
            self.batches = 0

        def update(self, model, batch):
            self.batches += 1
            self.found = float(model.linear.weight.detach().norm())
            if len(made) == stop_in and self.batches == 2:
                os.kill(os.getpid(), signal.SIGUSR1)
                raise AssertionError("not broken off")

        def compute(self):
            assert self.batches == 3
            return {"distance": self.found}

    def evaluate(model):
        made.append(Distance())
        batches = [{"sample_id": ["a"]}] * 3
        return run_evaluators(model, batches, {"it": made[-1]}, Accelerator(cpu=True), 3)

    return evaluate


def test_evaluation_is_broken_off_and_made_up_for(toy, tmp_path):
    """The run ends with the same evaluations, best weights and metrics as one that was left alone."""
    export = []
    engine = toy.make_engine(tmp_path, callbacks=Callbacks(evaluation(2), lambda *_: None), evaluate_every=3)
    with pytest.raises(Interrupted, match="stopped after step 6 of 12"):
        engine.fit()
    assert [line["step"] for line in lines(tmp_path) if "evaluation" in line] == [3]
    killed = toy.make_engine(tmp_path, callbacks=Callbacks(evaluation(), lambda *_: None), evaluate_every=3)
    with pytest.raises(KeyError):  # after the evaluation is made up for, before a state says so
        toy.in_step(killed, 6, lambda: {}["killed"]).fit()
    again = toy.make_engine(tmp_path, callbacks=Callbacks(evaluation(), lambda *_: export.append(1)), evaluate_every=3)
    whole = toy.make_engine(tmp_path / "whole", callbacks=Callbacks(evaluation(), lambda *_: None), evaluate_every=3)
    again.fit(), whole.fit()
    assert again.state == whole.state and same(weights(again), weights(whole)) and not again.state.owes_evaluation
    evaluated = [
        [(line["step"], line["evaluation"]) for line in lines(f) if "evaluation" in line]
        for f in (tmp_path, tmp_path / "whole")
    ]
    assert evaluated[0] == evaluated[1]


@pytest.mark.parametrize("metric", ["-distance", ""])
def test_fewer_steps_than_were_made(toy, tmp_path, metric):
    """Stopped after step 2 and asked for no more: evaluated, exported, and from then on finished."""
    with pytest.raises(Interrupted):
        toy.in_step(toy.make_engine(tmp_path), 1, raising(signal.SIGTERM)).fit()
    assert not RunFolder(tmp_path).is_finished(2)
    for _ in range(2):
        assert toy.make_engine(tmp_path, steps=2, metric=metric).fit().step == 2
    assert RunFolder(tmp_path).is_finished(2) and (tmp_path / "checkpoint" / "weights.pt").exists()
    assert [line["step"] for line in lines(tmp_path) if "evaluation" in line] == [2]


def test_the_last_step_is_evaluated_where_a_run_ends_early(toy, tmp_path):
    """Stopped between two evaluations and asked for no more: the weights for users are the best of its steps, also
    where it goes on after that, from a state that does not know of it."""
    callbacks = Callbacks(lambda model: {"distance": {5: 2.0, 6: 1.0}.get(int(model.calls), 3.0)}, toy.export)

    def best() -> int:
        return json.loads((tmp_path / "evaluation.json").read_text())["step"]

    with pytest.raises(Interrupted):
        toy.in_step(toy.make_engine(tmp_path, callbacks=callbacks), 5, raising(signal.SIGTERM)).fit()
    assert best() == 5 and not RunFolder(tmp_path).is_finished(6)
    toy.make_engine(tmp_path, callbacks=callbacks, steps=6).fit()
    assert best() == 6 and RunFolder(tmp_path).is_finished(6)
    state = toy.make_engine(tmp_path, callbacks=callbacks).fit()
    assert (best(), state.best, state.best_step, state.evaluated) == (6, 1.0, 6, 12)
    assert [line["step"] for line in lines(tmp_path) if "evaluation" in line] == [5, 6, 10, 12]


def test_a_state_from_before_evaluated_steps_were_kept():
    old = {"step": 6, "samples": 48, "bad": [], "best": 1.0, "best_step": 5, "skipped": 0, "skipped_in_row": 0}
    assert not TrainingState.from_dict({**old, "owes_evaluation": False}).owes_evaluation
    assert TrainingState.from_dict({**old, "owes_evaluation": True}).owes_evaluation
    assert not TrainingState.from_dict(old).owes_evaluation  # older still


def test_the_last_evaluation_is_finished(toy, tmp_path):
    """The run would count as finished without it."""
    numbers = []

    def evaluate(model):
        os.kill(os.getpid(), signal.SIGTERM)
        return {"distance": numbers.append(1) or 1.0}

    assert toy.make_engine(tmp_path, callbacks=Callbacks(evaluate), evaluate_every=100).fit().step == 12
    assert numbers and lines(tmp_path)[-1]["evaluation"] == {"distance": 1.0}


def test_second_ctrl_c_quits_at_once(toy, tmp_path):
    engine = toy.in_step(toy.make_engine(tmp_path), 0, raising(signal.SIGINT, signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        engine.fit()
    assert engine.folder.last_step() is None


def test_stop_in_the_last_step_is_no_interruption(toy, tmp_path):
    assert toy.in_step(toy.make_engine(tmp_path), 11, raising(signal.SIGINT)).fit().step == 12


@pytest.mark.parametrize("precision", ["fp64", "bf16"])
def test_precision(toy, precision):
    engine = toy.make_engine(precision=precision, steps=4, ema_decay=0.5)
    engine.fit()
    expected = torch.float64 if precision == "fp64" else torch.float32
    assert engine.objective.linear.weight.dtype == engine.ema.module.linear.weight.dtype == expected
    full = toy.make_engine(precision="fp32", steps=4)
    full.fit()
    torch.testing.assert_close(engine.objective.linear.weight.float(), full.objective.linear.weight, rtol=0.1, atol=0.1)


def test_unreadable_samples_are_remembered(toy, tmp_path):
    assert toy.make_engine(tmp_path, stream=toy.Samples(2, bad_at=3)).fit().bad == [
        f"step3-sample{i}" for i in (0, 2, 4, 6)
    ]
    assert toy.make_engine(tmp_path).fit().bad[0] == "step3-sample0"


def test_a_million_unreadable_samples_stay_a_bounded_list(toy):
    """The first that were met are kept, whatever comes after them; a state of all processes is as short."""
    state = TrainingState()
    for start in range(0, 1000, 50):
        state.advance([{"sample_id": ["a"], "bad": [f"z{999 - number:03d}" for number in range(start, start + 50)]}], 1)
    assert state.bad == [f"z{number}" for number in range(800, 1000)] and state.step == 20
    assert first_named([], state.bad, ["z900", "other"])[:2] == ["other", "z800"]
    assert len(first_named([], state.bad, ["other"])) == 200
