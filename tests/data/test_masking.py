import math

import numpy as np
import pytest

from vlbeit.data.masking import BlockwiseMask, RandomMask, mask_words
from vlbeit.data.randomness import stream
from vlbeit.data.text import choose_tokenizer, train_wordpiece
from vlbeit.errors import UsageError


def draw(mask, count, seed=0):
    generator = stream(seed)
    return np.stack([mask(generator) for _ in range(count)])


def test_published_statistics_of_blockwise_masks():
    """20,000 masks of the published code: mean 74.47, exactly 75 in 66.6 %, centre 0.72, middle of a side 0.19, corner
    0.04."""
    masks = draw(BlockwiseMask((14, 14), 75), 1500)
    counts = masks.sum((1, 2))
    assert counts.max() == 75 and counts.min() >= 55
    assert counts.mean() == pytest.approx(74.47, abs=0.15)
    assert (counts == 75).mean() == pytest.approx(0.666, abs=0.05)
    share = masks.mean(0)
    assert share[6:8, 6:8].mean() == pytest.approx(0.72, abs=0.04)
    assert np.mean([share[0, 6], share[0, 7], share[6, 0], share[7, 13]]) == pytest.approx(0.19, abs=0.04)
    assert np.mean([share[0, 0], share[0, 13], share[13, 0], share[13, 13]]) == pytest.approx(0.04, abs=0.02)


def test_exact_masks_have_the_number():
    for grid, number, block in (((14, 14), 75, 16), ((8, 8), 24, 5), ((2, 3), 6, 4), ((1, 5), 2, 1)):
        masks = draw(BlockwiseMask(grid, number, block, exact=True), 50)
        assert masks.shape == (50, *grid) and (masks.sum((1, 2)) == number).all()


def test_random_masks_have_the_number_and_no_favourite_patch():
    masks = np.stack([RandomMask((4, 6), 9)(stream(0, index)) for index in range(3000)])
    assert (masks.sum((1, 2)) == 9).all()
    assert np.abs(masks.mean(0) - 9 / 24).max() < 0.04
    with pytest.raises(UsageError, match="25 masked patches do not fit a grid of 4 x 6"):
        RandomMask((4, 6), 25)


def test_small_and_non_square_grids():
    counts = draw(BlockwiseMask((4, 12), 20, 4), 100).sum((1, 2))
    assert counts.max() == 20 and counts.mean() > 18


def test_masks_hang_on_the_generator_alone():
    mask = BlockwiseMask((8, 8), 24, 5)
    assert (mask(stream(1, 2)) == mask(stream(1, 2))).all() and (mask(stream(1, 2)) != mask(stream(1, 3))).any()


def test_impossible_masks():
    with pytest.raises(UsageError, match="17 masked patches do not fit a grid of 4 x 4"):
        BlockwiseMask((4, 4), 17)
    with pytest.raises(UsageError, match="at least 1 patch"):
        BlockwiseMask((4, 4), 4, 0)


@pytest.fixture(scope="module")
def tokenizer():
    texts = ["the small red circle is left of unbelievable squares and triangles"] * 3
    return train_wordpiece(lambda: texts, 60, 40)


def test_whole_words_are_masked_up_to_the_budget(tokenizer):
    ids = tokenizer("the small red circle is left of unbelievable squares")
    words = tokenizer.words(ids)
    assert len(set(words)) < len(ids) - 1  # some word has several tokens
    budget = max(1, round(len(ids) * 0.3))
    seen = set()
    for seed in range(200):
        masked, labels = mask_words(ids, words, tokenizer, stream(seed), 0.3)
        chosen = {word for word, label in zip(words, labels, strict=True) if label != -100}
        seen |= chosen
        assert None not in chosen and chosen
        assert len(chosen) == 1 or sum(label != -100 for label in labels) <= budget
        for old, new, word, label in zip(ids, masked, words, labels, strict=True):
            assert label == (old if word in chosen else -100)
            assert word in chosen or new == old
    assert seen == set(words) - {None}


def test_a_text_of_one_long_word_and_an_empty_one(tokenizer):
    ids = tokenizer("unbelievable")
    assert len(ids) > 4  # more tokens than the budget of 1
    _, labels = mask_words(ids, tokenizer.words(ids), tokenizer, stream(0))
    assert labels == [-100, *ids[1:-1], -100]
    empty = tokenizer("")
    assert mask_words(empty, tokenizer.words(empty), tokenizer, stream(0)) == (empty, [-100, -100])


def test_eighty_ten_ten(tokenizer):
    ids = tokenizer("red circle left of the small red circle")
    kinds = {"mask": 0, "same": 0, "other": 0}
    generator = stream(5)
    for _ in range(1500):
        masked, labels = mask_words(ids, tokenizer.words(ids), tokenizer, generator)
        for new, label in zip(masked, labels, strict=True):
            if label != -100:
                kinds["mask" if new == tokenizer.mask_id else "same" if new == label else "other"] += 1
    total = sum(kinds.values())
    tolerance = 4 * math.sqrt(0.25 / total)
    assert kinds["mask"] / total == pytest.approx(0.8 + 0.1 / tokenizer.vocab_size, abs=tolerance)
    assert kinds["other"] / total == pytest.approx(0.1, abs=tolerance)
    assert kinds["same"] / total == pytest.approx(0.1, abs=tolerance)


def test_the_appended_mask_token_of_clip():
    from vlbeit.config import TextConfig

    clip = choose_tokenizer(TextConfig(tokenizer="clip"), lambda: [])
    ids = clip("how many red circles are there")
    drawn = [mask_words(ids, clip.words(ids), clip, stream(seed), 0.5)[0] for seed in range(20)]
    assert any(clip.mask_id in masked for masked in drawn) and all(max(masked) < clip.vocab_size for masked in drawn)
