import os
import random
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from vlbeit import dist
from vlbeit.data import loader
from vlbeit.data.collate import collate
from vlbeit.data.loader import EvalLoader, TrainLoader
from vlbeit.data.randomness import drawn, seeded, stream
from vlbeit.data.records import ListRecords, open_image
from vlbeit.data.transforms import TwoViews
from vlbeit.errors import DataError, UsageError
from vlbeit.types import DataSpec


class Draw:
    """A sample of what the three generators give."""

    def __call__(self, record):
        values = [random.random(), float(np.random.rand()), float(torch.rand(())), float(drawn().random())]
        return {"sample_id": record["id"], "value": torch.tensor(values, dtype=torch.float64)}


class Look:
    def __init__(self):
        self.views = TwoViews((16, 16), (8, 8), (0.5,) * 3, (0.5,) * 3)

    def __call__(self, record):
        return {"sample_id": record["id"], **self.views(open_image(record["image"]))}


class Complain:
    def __call__(self, record):
        raise UsageError(f"cannot do {record['id']}")


def numbers(count, transform=None):
    return DataSpec(ListRecords([{"id": str(n)} for n in range(count)]), transform or Draw(), collate)


def train(spec, workers=0, world=None, **changes):
    options = {"seed": 3, "global_batch_size": 4, "micro_batch_size": 2, "max_bad_fraction": 0.5} | changes
    return TrainLoader(spec, workers=workers, **options)


def flat(steps):
    return [batch for step in steps for batch in step]


def differing(left, right):
    """Batch and name of what is not the same to the bit."""
    assert len(left) == len(right) > 0
    return [
        (number, name)
        for number, (one, two) in enumerate(zip(left, right, strict=True))
        for name in one.keys() | two.keys()
        if not equal(one.get(name), two.get(name))
    ]


def equal(one, two):
    return torch.equal(one, two) if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor) else one == two


def test_any_number_of_workers_gives_the_same_bytes():
    assert differing(flat(train(numbers(10), 0).steps(0, 6)), flat(train(numbers(10), 2).steps(0, 6))) == []


def test_a_start_in_the_middle_is_the_tail_of_the_whole():
    whole = list(train(numbers(10)).steps(0, 9))
    for start in (1, 4, 8):
        assert differing(flat(whole[start:]), flat(train(numbers(10)).steps(start, 9))) == []
    assert list(train(numbers(10)).steps(9, 9)) == []


def test_the_first_samples_can_be_looked_at_and_nothing_changes():
    spec = numbers(12)
    loader = train(spec, global_batch_size=8)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    seen = loader.first(6)
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    step = flat(loader.steps(0, 1))
    assert seen["sample_id"] == [name for batch in step for name in batch["sample_id"]][:6]
    assert torch.equal(seen["value"], torch.cat([batch["value"] for batch in step])[:6])
    assert differing(flat(train(spec, global_batch_size=8).steps(0, 3)), flat(loader.steps(0, 3))) == []
    assert loader.first(100)["sample_id"] == [name for batch in step for name in batch["sample_id"]]


def test_every_epoch_is_a_permutation_of_its_own():
    batches = flat(train(numbers(10)).steps(0, 5))  # 20 positions: two epochs
    ids = [sample_id for batch in batches for sample_id in batch["sample_id"]]
    assert sorted(ids[:10], key=int) == sorted(ids[10:], key=int) == [str(n) for n in range(10)]
    assert ids[:10] != ids[10:]
    values = torch.cat([batch["value"] for batch in batches])
    assert len(torch.unique(values)) == values.numel()  # augmentation differs by sample and by epoch
    other = flat(train(numbers(10), seed=4).steps(0, 5))
    assert [i for batch in other for i in batch["sample_id"]] != ids


def test_a_small_set_repeats_within_a_batch():
    (step,) = train(numbers(3), global_batch_size=8, micro_batch_size=8).steps(0, 1)
    assert len(step[0]["sample_id"]) == 8 and set(step[0]["sample_id"]) == {"0", "1", "2"}


def test_micro_batches_and_processes_share_the_global_batch(monkeypatch):
    whole = flat(train(numbers(10), global_batch_size=8, micro_batch_size=8).steps(0, 3))
    parts = []
    monkeypatch.setattr(dist, "world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(dist, "rank", lambda rank=rank: rank)
        loader = train(numbers(10), global_batch_size=8, micro_batch_size=2)
        assert loader.accumulation == 2
        parts.append(list(loader.steps(0, 3)))
    for step in range(3):
        values = torch.cat([batch["value"] for rank in range(2) for batch in parts[rank][step]])
        assert torch.equal(values, whole[step]["value"])
    with pytest.raises(
        UsageError, match="global_batch_size=6 over 2 processes is not a multiple of micro_batch_size=2"
    ):
        train(numbers(10), global_batch_size=6, micro_batch_size=2)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_global_generators_are_left_alone(workers):
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(())
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    steps = train(numbers(10), workers).steps(0, 3)
    next(steps)
    list(EvalLoader(numbers(4), batch_size=2, workers=workers, max_bad_fraction=0))
    steps.close()
    assert (random.random(), np.random.rand(), torch.rand(())) == expected


def test_seeded_puts_the_state_back_after_an_error():
    torch.manual_seed(1)
    expected = torch.get_rng_state()
    with pytest.raises(KeyError), seeded(1, 2):
        torch.rand(3)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), expected)
    assert stream(1, 2).random() == stream(1, 2).random() != stream(2, 1).random()


def test_closing_ends_the_workers():
    steps = train(numbers(10), 2).steps(0, 100)
    next(steps)
    mine = children()
    assert len(mine) >= 2
    os.kill(mine[0], signal.SIGINT)  # Ctrl-C reaches the workers, too: the main process decides
    assert next(steps)
    steps.close()
    wait_for(lambda: children() == [])


class Hang:
    """A read that does not come back."""

    def __call__(self, record):
        time.sleep(1000)


def test_workers_stuck_in_a_read_end_too(monkeypatch):
    """What breaks off the waiting, a signal say, gets through at once, and nobody is left that an exit waits for."""
    monkeypatch.setattr(loader, "_GRACE", 0.2)

    began = []

    def stop(*_):
        began.append(time.monotonic())
        raise KeyboardInterrupt

    def send():
        """Once both are there: a signal in the middle of starting them may be lost."""
        wait_for(lambda: len(found := children()) == 2 and all(map(has_threads, found)))
        os.kill(os.getpid(), signal.SIGALRM)

    before = signal.signal(signal.SIGALRM, stop)
    sender = threading.Thread(target=send)
    sender.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            next(train(numbers(10, Hang()), 2).steps(0, 10))
    finally:
        sender.join()
        signal.signal(signal.SIGALRM, before)
    assert children() == [] and time.monotonic() - began[0] < 4  # torch alone waits five seconds for each


def test_workers_stuck_in_a_read_do_not_outlive_a_killed_main_process(monkeypatch):
    monkeypatch.setattr(loader, "_GRACE", 0.2)
    monkeypatch.setattr(loader, "_LOOK", 0.2)
    main = os.fork()
    if main == 0:
        next(train(numbers(10, Hang()), 2).steps(0, 10))
        os._exit(1)
    try:
        wait_for(lambda: len(watching := children(main)) == 2 and all(map(has_threads, watching)))
        workers = children(main)
    finally:
        os.kill(main, signal.SIGKILL)
        os.waitpid(main, 0)
    end = time.monotonic() + 20
    while (left := list(filter(is_alive, workers))) and time.monotonic() < end:
        time.sleep(0.02)
    for worker in left:
        os.kill(worker, signal.SIGKILL)
    assert len(workers) == 2 and left == []


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def has_threads(pid):
    return len(os.listdir(f"/proc/{pid}/task")) > 1


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children(of=None):
    """Process ids of the living children of a process, this one unless another is given."""
    of = of or os.getpid()
    return [int(pid) for pid in Path(f"/proc/{of}/task/{of}/children").read_text().split()]


@pytest.fixture
def images(tmp_path, draw):
    """Eight records; the second and the sixth image are broken."""
    records = []
    for n in range(8):
        path = draw(tmp_path / f"{n}.png")
        records.append({"id": f"id{n}", "image": str(path)})
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:200])
    (tmp_path / "5.png").unlink()
    return DataSpec(ListRecords(records), Look(), collate)


def test_unreadable_images_are_replaced_the_same_way_every_time(images, caplog):
    first = flat(train(images, 0).steps(0, 4))
    again = flat(train(images, 2).steps(0, 4))
    assert differing(first, again) == []
    bad = [sample_id for batch in first for sample_id in batch["bad"]]
    assert set(bad) == {"id1", "id5"} and len(bad) >= 4  # once an epoch or more
    used = {sample_id for batch in first for sample_id in batch["sample_id"]}
    assert used == {f"id{n}" for n in (0, 2, 3, 4, 6, 7)}
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 4 and sum("1.png cannot be read" in message for message in messages) == 2  # once a loader


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_unreadable_images_stop_the_training(images, workers):
    with pytest.raises(DataError, match=r"2 of 8 samples cannot be used .*bad_fraction=0.2 .*5\.png"):
        flat(train(images, workers, max_bad_fraction=0.2).steps(0, 10))


def test_nothing_but_unreadable_images():
    records = ListRecords([{"id": "a", "image": b"x"}])
    with pytest.raises(DataError, match="1 unusable sample in a row: an image of"):
        flat(train(DataSpec(records, Look(), collate), max_bad_fraction=1.0).steps(0, 1))


def test_a_replacement_comes_from_elsewhere_where_all_that_is_near_is_broken(images):
    class Near(ListRecords):
        def near(self, index):
            return range(index, index + 1)  # a shard of one sample

    spec = images._replace(records=Near([images.records[n] for n in range(8)]))
    batches = flat(train(spec).steps(0, 4))
    assert {sample_id for batch in batches for sample_id in batch["bad"]} == {"id1", "id5"}
    assert max(len(batch["bad"]) for batch in batches) <= 2, "no sample is tried twice"


def test_a_good_sample_costs_no_draws_of_others():
    class Near(ListRecords):
        def near(self, index):
            raise AssertionError("asked for others")

    records = Near([{"id": str(n)} for n in range(10)])
    batches = flat(train(DataSpec(records, Draw(), collate)).steps(0, 5))
    assert differing(batches, flat(train(numbers(10)).steps(0, 5))) == []


def test_without_workers_nothing_is_made_for_them(monkeypatch):
    made = []
    monkeypatch.setattr(loader.multiprocessing, "Semaphore", lambda value: made.append(value))
    monkeypatch.setattr(loader.atexit, "register", made.append)
    assert flat(train(numbers(10)).steps(0, 2)) and made == []


@pytest.mark.parametrize("workers", [0, 2])
def test_a_users_error_in_a_worker_stays_one_line(workers):
    with pytest.raises(UsageError) as error:
        flat(train(numbers(4, Complain()), workers).steps(0, 1))
    assert str(error.value).startswith("cannot do ") and "\n" not in str(error.value)


def test_evaluation_sees_every_sample_once_in_order(monkeypatch):
    spec = numbers(7)
    loader = EvalLoader(spec, batch_size=2, workers=0, max_bad_fraction=0)
    whole = list(loader)
    assert [i for batch in whole for i in batch["sample_id"]] == list("0123456")
    assert [len(batch["sample_id"]) for batch in whole] == [2, 2, 3] and len(loader) == 3  # no batch of one
    assert differing(whole, list(loader)) == []
    assert differing(whole, list(EvalLoader(spec, batch_size=2, workers=2, max_bad_fraction=0))) == []
    monkeypatch.setattr(dist, "world_size", lambda: 3)
    seen = []
    for rank in range(3):
        monkeypatch.setattr(dist, "rank", lambda rank=rank: rank)
        part = EvalLoader(spec, batch_size=2, workers=0, max_bad_fraction=0)
        batches = list(part)
        assert len(batches) == len(part)
        seen += [i for batch in batches for i in batch["sample_id"]]
    assert sorted(seen) == list("0123456")


def test_evaluation_takes_grey_for_an_unreadable_image(images, caplog):
    loader = EvalLoader(images, batch_size=4, workers=0, max_bad_fraction=0.25)
    for _ in range(2):  # a second evaluation does not count them again
        batches = list(loader)
        assert [batch["bad"] for batch in batches] == [["id1"], ["id5"]]
        assert [len(batch["sample_id"]) for batch in batches] == [4, 4]
        assert (batches[0]["pixels"][1] - 0.5).abs().max() < 0.25  # grey, jittered
    assert len(caplog.records) == 2
    with pytest.raises(DataError, match=r"data\.max_bad_fraction=0\.1"):
        list(EvalLoader(images, batch_size=4, workers=0, max_bad_fraction=0.1))
