"""Mean IoU against areas counted by hand, against torchmetrics, and over two processes."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassJaccardIndex
from torchmetrics.segmentation import MeanIoU

from vlbeit.errors import DataError
from vlbeit.tasks.segmentation.evaluator import SegmentationEvaluator

K = 6
CLASSES = [f"class {index}" for index in range(K)]


def pictures(count=8, ignored=0.1, classes=5):
    """Pairs of prediction and label of unequal sizes; a tenth of the labels is 255, class 5 never occurs."""
    rng = np.random.default_rng(0)
    pairs = []
    for index in range(count):
        shape = (20 + index, 30)
        low = rng.integers(0, classes - 1)  # pictures show different classes
        label = rng.integers(low, classes, shape)
        found = np.where(rng.random(shape) < 0.5, label, rng.integers(0, classes, shape))
        pairs.append((found, np.where(rng.random(shape) < ignored, 255, label)))
    return pairs


def by_hand(pairs):
    """As mmsegmentation counts: areas summed over the set, masked by the label, then divided; NaN is left out."""
    right, predicted, labelled = (np.zeros(K) for _ in range(3))
    for found, label in pairs:
        for index in range(K):
            scored = label != 255
            right[index] += ((found == index) & (label == index) & scored).sum()
            predicted[index] += ((found == index) & scored).sum()
            labelled[index] += ((label == index) & scored).sum()
    with np.errstate(invalid="ignore"):
        iou, accuracy = right / (predicted + labelled - right), right / labelled
    numbers = {"miou": np.nanmean(iou), "macc": np.nanmean(accuracy), "aacc": right.sum() / labelled.sum()}
    return {name: 100 * value for name, value in numbers.items()}, 100 * iou


def evaluated(pairs, classes=CLASSES):
    evaluator = SegmentationEvaluator(classes)
    for index, (found, label) in enumerate(pairs):
        evaluator.update_one(torch.from_numpy(found), torch.from_numpy(label), str(index))
    return evaluator


@pytest.mark.parametrize("ignored", [0.0, 0.3])
def test_numbers_over_a_set_counted_by_hand(ignored):
    pairs = pictures(ignored=ignored)
    numbers, iou = by_hand(pairs)
    evaluator = evaluated(pairs)
    assert evaluator.compute() == pytest.approx({**numbers, "images": 8})
    rows = evaluator.details()["classes"]
    assert [row["class"] for row in rows] == CLASSES
    assert [row["iou"] for row in rows[:5]] == pytest.approx(iou[:5])
    assert rows[5] == {"class": "class 5", "iou": None, "acc": None, "pixels": 0}
    assert json.dumps(evaluator.details(), allow_nan=False)


def test_the_numbers_of_a_case_small_enough_to_count():
    label, found = np.array([[0, 0, 1, 255]]), np.array([[0, 1, 1, 2]])
    evaluator = evaluated([(found, label)])
    # class 0: 1 right of 2; class 1: 1 right of 2; the pixel of class 2 lies where nothing is scored
    assert evaluator.compute() == pytest.approx({"miou": 50, "macc": 75, "aacc": 200 / 3, "images": 1})
    assert evaluator.details()["images"] == [
        {
            "sample_id": "0",
            "score": pytest.approx(2 / 3),
            "miou": 50,
            "areas": [[0, 1, 1, 2], [1, 1, 2, 1]],
        }
    ]


def test_a_class_that_is_only_predicted_has_iou_0_and_no_accuracy():
    evaluator = evaluated([(np.array([[0, 2]]), np.array([[0, 0]]))])
    assert evaluator.compute() == pytest.approx({"miou": 25, "macc": 50, "aacc": 50, "images": 1})
    assert evaluator.details()["classes"][2] == {"class": "class 2", "iou": 0, "acc": None, "pixels": 0}


@pytest.mark.parametrize("ignored", [0.0, 0.3])
def test_the_jaccard_index_of_torchmetrics_agrees(ignored):
    pairs = pictures(ignored=ignored)
    jaccard = MulticlassJaccardIndex(num_classes=K, average="macro", ignore_index=255)
    for found, label in pairs:
        jaccard.update(torch.from_numpy(found), torch.from_numpy(label))
    assert evaluated(pairs).compute()["miou"] == pytest.approx(100 * jaccard.compute().item())


def test_the_mean_iou_of_torchmetrics_is_another_number():
    """It averages over pairs of picture and class; so does whoever averages the values of batches."""
    pairs = pictures(ignored=0)
    other = MeanIoU(num_classes=K, input_format="index")
    for found, label in pairs:
        other.update(torch.from_numpy(found)[None], torch.from_numpy(label)[None])
    own = evaluated(pairs).compute()["miou"]
    assert abs(100 * other.compute().item() - own) > 1
    rows = evaluated(pairs)
    rows.compute()
    assert abs(np.mean([row["miou"] for row in rows.details()["images"]]) - own) > 1


class Stub(torch.nn.Module):
    def predict(self, batch):
        return batch["found"]


def batch_of(pairs, first=0):
    found, labels = ([torch.from_numpy(pair[index]) for pair in pairs] for index in (0, 1))
    ids = [str(first + index) for index in range(len(pairs))]
    return {"sample_id": ids, "found": found, "original_segments": [label.to(torch.uint8) for label in labels]}


def test_batches_any_way_and_a_picture_twice():
    pairs = pictures()
    evaluator = SegmentationEvaluator(CLASSES)
    evaluator.update(Stub(), batch_of(pairs[:5]))
    again = SegmentationEvaluator(CLASSES)
    again.load_state_dict(json.loads(json.dumps(evaluator.state_dict())))
    again.update(Stub(), batch_of(pairs[4:], first=4))  # the fifth was there already
    assert again.compute() == evaluated(pairs).compute()


def test_our_own_mistakes_are_asserted():
    """torchmetrics takes a prediction of 7 of 6 classes without a word and counts it for another class."""
    label = np.zeros((2, 2), np.int64)
    for found in (label + 7, label - 1, np.zeros((3, 2), np.int64)):
        with pytest.raises(AssertionError):
            evaluated([(found, label)])
    with pytest.raises(AssertionError, match="a label beyond 6 classes"):
        evaluated([(label, label + 254)])


def test_nothing_to_score():
    empty = np.full((2, 2), 255)
    with pytest.raises(DataError, match=r"no pixel of 1 masks is scored.*task\.reduce_zero_label"):
        evaluated([(np.zeros((2, 2)), empty)]).compute()
    pairs = pictures()
    evaluator = evaluated([*pairs, (np.zeros((2, 2)), empty)])
    assert evaluator.compute() == pytest.approx({**by_hand(pairs)[0], "images": 9})
    assert evaluator.details()["images"][-1] == {"sample_id": "8", "score": None, "miou": None, "areas": []}
    with pytest.raises(ValueError, match="no picture"):
        SegmentationEvaluator(CLASSES).compute()


def worker(folder: Path, rank: int) -> None:
    """The pictures of one process, as the loader deals them."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    pairs, evaluator = pictures(), SegmentationEvaluator(CLASSES)
    for index in range(rank, len(pairs), 2):
        evaluator.update(Stub(), batch_of([pairs[index]], first=index))
    (folder / f"{rank}.json").write_text(json.dumps([evaluator.compute(), evaluator.details()]))
    torch.distributed.destroy_process_group()


def test_two_processes_give_the_numbers_of_one(tmp_path):
    forked = multiprocessing.get_context("fork")  # as the loader's workers: nothing is imported anew
    workers = [forked.Process(target=worker, args=(tmp_path, rank)) for rank in (0, 1)]
    for process in workers:
        process.start()
    for process in workers:
        process.join(timeout=120)
    assert [process.exitcode for process in workers] == [0, 0]
    one = evaluated(pictures())
    expected = [one.compute(), one.details()]
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)] == [expected, expected]


def test_intervals_are_those_of_sets_drawn_anew_by_hand():
    pairs = pictures(count=25)
    evaluator = evaluated([*pairs, (np.zeros((2, 2)), np.full((2, 2), 255))])  # the last one has nothing to score
    numbers = evaluator.compute()
    generator = np.random.default_rng(5)
    drawn = [by_hand([pairs[i] for i in generator.integers(25, size=25)])[0] for _ in range(300)]
    for name, (low, high) in evaluator.intervals().items():
        values = [each[name] for each in drawn]
        assert low < numbers[name] < high
        expected = np.quantile(values, [0.025, 0.975]).tolist()
        assert [low, high] == pytest.approx(expected, abs=0.5 * np.std(values))
    assert set(evaluator.intervals()) == {"miou", "macc", "aacc"}
