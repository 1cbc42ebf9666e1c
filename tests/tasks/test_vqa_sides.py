"""Left and right in questions and answers, and what flips make of them."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from vlbeit.data.randomness import seeded
from vlbeit.data.text import train_wordpiece
from vlbeit.data.transforms import EvalImage, TrainImage
from vlbeit.tasks.vqa.answers import AnswerVocabulary
from vlbeit.tasks.vqa.sides import mirrored, speaks_of_sides, swapped
from vlbeit.tasks.vqa.transform import VQAEvalTransform, VQATrainTransform

HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
ANSWERS = ["left", "right", "dog"]


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("Is the dog left of the cat?", "Is the dog right of the cat?"),
        ("What is RIGHT, what is Left?", "What is LEFT, what is Right?"),
        ("the leftmost, in her right-hand", "the rightmost, in her left-hand"),
        ("moving leftwards, right-handed", "moving rightwards, left-handed"),
    ],
)
def test_sides_are_found_and_exchanged(text, other):
    assert speaks_of_sides(text) and swapped(text) == other and swapped(other) == text


@pytest.mark.parametrize("text", ["a bright copyright", "an upright leftover", "What color is it?", "rightly so"])
def test_other_words_stay(text):
    assert not speaks_of_sides(text) and swapped(text) == text


def test_mirrored_answers():
    assert mirrored(["left", "dog", "on right", "right"]) == [3, 1, None, 0]  # "on left" is no answer here


@pytest.fixture(scope="module")
def tokenizer():
    return train_wordpiece(lambda: ["what is on the left", "what is on the right", "is it a dog"], 80, 12)


def record(question, answers):
    image = Image.new("RGB", (32, 32))
    image.paste((255, 255, 255), (0, 0, 16, 32))  # the left half is white
    return {"id": "1", "image": image, "question": question, "answers": answers}


def drawn(tokenizer, sides, question, answers, vocabulary=ANSWERS):
    """Whether the picture was flipped, the question and the target, of a transform that flips whenever it may."""
    image = TrainImage((32, 32), *HALF, min_scale=1.0, hflip=1.0)
    transform = VQATrainTransform(image, tokenizer, AnswerVocabulary(vocabulary), sides=sides)
    with seeded(1):
        sample = transform(record(question, answers))
    return bool(sample["image"][0, 0, 0] < 0), tokenizer.decode(sample["text_ids"]), sample["target"].tolist()


@pytest.mark.parametrize(
    ("sides", "flipped", "question", "target"),
    [
        ("keep", True, "what is on the left", [1, 0, 0]),
        ("swap", True, "what is on the right", [0, 1, 0]),
        ("skip", False, "what is on the left", [1, 0, 0]),
    ],
)
def test_a_flip_and_the_sides(tokenizer, sides, flipped, question, target):
    assert drawn(tokenizer, sides, "what is on the left", ["left"] * 10) == (flipped, question, target)


@pytest.mark.parametrize("sides", ["keep", "swap", "skip"])
def test_questions_without_sides_are_flipped_as_ever(tokenizer, sides):
    assert drawn(tokenizer, sides, "is it a dog", ["dog"] * 10) == (True, "is it a dog", [0, 0, 1])


def test_an_answer_of_a_side_counts_too(tokenizer):
    assert drawn(tokenizer, "skip", "what is it", ["left"] * 10)[0] is False
    assert drawn(tokenizer, "swap", "what is it", ["left"] * 10)[2] == [0, 1, 0]


@pytest.mark.parametrize(
    ("answers", "flipped", "target"),
    [
        (["on left"] * 10, False, [0, 1]),  # "on right" is no answer: nothing to learn from
        (["on left"] * 6 + ["dog"] * 4, False, [1, 1]),
        (["on right"] * 6 + ["dog"] * 4, True, [1, 1]),  # and here the flip gains an answer
    ],
)
def test_swap_flips_nothing_that_would_lose_its_answer(tokenizer, answers, flipped, target):
    found = drawn(tokenizer, "swap", "is it a dog", answers, ["dog", "on left"])
    assert found == (flipped, "is it a dog", target)


def test_what_may_not_flip_draws_the_same_crop(tokenizer):
    image = TrainImage((32, 32), *HALF, hflip=1.0, randaugment=True)
    views = []
    for may_flip in (True, False):
        with seeded(4):
            views.append((image.view(record("", [])["image"], may_flip=may_flip), torch.rand(())))
    (one, flipped), after = views[0]
    (two, stayed), also = views[1]
    assert (flipped, stayed) == (True, False) and torch.equal(after, also) and not torch.equal(one, two)


def test_evaluation_decodes_a_picture_once(tokenizer, tmp_path, monkeypatch):
    paths = [tmp_path / f"{number}.png" for number in range(2)]
    for path in paths:
        record("", [])["image"].save(path)
    opened = []
    from vlbeit.tasks.vqa import transform as module

    original = module.open_image
    monkeypatch.setattr(module, "open_image", lambda value: opened.append(value) or original(value))
    transform = VQAEvalTransform(EvalImage((16, 16), *HALF), tokenizer, AnswerVocabulary(ANSWERS))
    samples = [
        transform({"id": str(n), "image": str(paths[n % 2]), "question": q, "answers": []})
        for n, q in enumerate(["is it a dog", "what is it", "left", "is it a dog", "what is it"])
    ]
    assert opened == [str(path) for path in paths]
    assert [sample["sides"] for sample in samples] == [False, False, True, False, False]
    assert torch.equal(samples[0]["image"], samples[2]["image"])
