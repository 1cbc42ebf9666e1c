"""From a batch to probabilities: plain, of the flipped picture too, of several models."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vlbeit.tasks.vqa.answering import Answering, Member


class Sided(nn.Module):
    """Knows how bright the left half is and how bright the right: its first two answers; the third is constant."""

    def __init__(self, shift: float = 0.0, answers: int = 3) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(shift))
        self.answers = answers
        self.batches: list[int] = []
        self.masks: list[object] = []

    def answer_logits(self, batch):
        self.batches.append(len(batch["image"]))
        self.masks.append(batch["text_keep"])
        left, right = batch["image"].mean((1, 2)).unflatten(-1, (2, -1)).mean(-1).unbind(-1)
        return (torch.stack([left, right, torch.zeros_like(left)], dim=-1) + self.shift)[:, : self.answers]


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return {
        "image": torch.randn(4, 3, 2, 4),
        "text_ids": torch.zeros(4, 3, dtype=torch.long),
        "text_keep": torch.arange(3) < torch.tensor([[3], [2], [3], [1]]),
        "sides": torch.tensor([False, True, False, False]),
    }


def test_plain(batch):
    model, answering = Sided(), Answering(["left", "right", "dog"])
    probabilities = answering(model, batch)
    torch.testing.assert_close(probabilities, model.answer_logits(batch).sigmoid())
    assert not probabilities.requires_grad
    assert answering.best(model, batch) == [answering.answers[index] for index in probabilities.argmax(1)]


def test_a_batch_without_padding_brings_no_mask(batch):
    model = Sided()
    Answering(["left", "right", "dog"])(model, batch)
    Answering(["left", "right", "dog"])(model, {**batch, "text_keep": torch.ones(4, 3, dtype=torch.bool)})
    assert model.masks[0] is not None and model.masks[1] is None


def test_flip_changes_left_and_right_and_spares_questions_of_sides(batch):
    """What this model says of left and right is true of every picture: flipped and mapped back it says the same."""
    model = Sided()
    plain = Answering(["left", "right", "dog"])(model, batch)
    flipped = Answering(["left", "right", "dog"], flip=True)(model, batch)
    torch.testing.assert_close(flipped, plain)
    assert model.batches == [4, 4, 3]
    other = Answering(["cat", "bird", "dog"], flip=True)(model, batch)  # no sides: the mean of both halves
    rows = ~batch["sides"]
    mean = (plain[rows] + plain[rows][:, [1, 0, 2]]) / 2
    torch.testing.assert_close(other[rows], mean)
    torch.testing.assert_close(other[~rows], plain[~rows])


def test_an_answer_without_its_other_side_keeps_what_the_picture_says(batch):
    plain = Answering(["left", "dog", "cat"])(Sided(), batch)
    answering = Answering(["left", "dog", "cat"], flip=True, members=[Member(Sided(), ["dog", "right", "cat"])])
    mean = answering(Sided(), batch)
    rows = ~batch["sides"]
    torch.testing.assert_close(mean[:, 0], plain[:, 0] / 2)
    torch.testing.assert_close(mean[:, 3], plain[:, 1] / 2)  # "right", which only the member knows
    swapped = (plain[:, 0] + plain[:, 1]) / 2  # "dog" goes by the right half here, by the left half in the member
    torch.testing.assert_close(mean[rows, 1], swapped[rows])


def test_answers_are_mirrored_once(batch, monkeypatch):
    from vlbeit.tasks.vqa import answering as module

    asked, original = [], module.mirrored
    monkeypatch.setattr(module, "mirrored", lambda answers: asked.append(answers) or original(answers))
    answering = Answering(["left", "right", "dog"], flip=True)
    for _ in range(3):
        answering(Sided(), batch)
    assert len(asked) == 1


def test_nothing_is_flipped_where_all_questions_are_of_sides(batch):
    model = Sided()
    Answering(["left", "right", "dog"], flip=True)(model, {**batch, "sides": torch.ones(4, dtype=torch.bool)})
    assert model.batches == [4]


def test_members_are_averaged_by_the_text_of_their_answers(batch):
    one, two = Sided(), Sided(0.5, answers=2)
    answering = Answering(["left", "right", "dog"], members=[Member(two, ["dog", "cat"])])
    assert answering.answers == ["left", "right", "dog", "cat"]
    a, b = one.answer_logits(batch).sigmoid(), two.answer_logits(batch).sigmoid()
    expected = torch.stack([a[:, 0], a[:, 1], a[:, 2] + b[:, 0], b[:, 1]], dim=1) / 2
    torch.testing.assert_close(answering(one, batch), expected)
    assert set(answering.best(one, batch)) <= set(answering.answers)
