"""Ranks, recalls, chance and intervals of retrieval, against counting by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vlbeit.data.records import ListRecords
from vlbeit.tasks.retrieval import ranking
from vlbeit.tasks.retrieval.numbers import NAMES, Ranks, chance, intervals, recalls
from vlbeit.tasks.retrieval.ranking import rank_pictures, rank_texts, reranked
from vlbeit.tasks.retrieval.records import PictureRecords

PICTURES, CAPTIONS = 23, 71


@pytest.fixture
def vectors():
    """Vectors of pictures and captions, and which picture a caption is of."""
    generator = torch.Generator().manual_seed(0)
    image_PE, text_ME = (torch.randn(n, 6, generator=generator) for n in (PICTURES, CAPTIONS))
    picture_of_M = torch.cat([torch.arange(PICTURES), torch.randint(PICTURES, (CAPTIONS - PICTURES,))])
    return image_PE, text_ME, picture_of_M


@pytest.mark.parametrize("cells", [1, 5 * PICTURES, 1 << 24])
def test_ranks_equal_those_of_whole_sorting_in_blocks_of_any_size(vectors, cells, monkeypatch):
    image_PE, text_ME, picture_of_M = vectors
    monkeypatch.setattr(ranking, "_CELLS", cells)
    score_MP = (text_ME.double() @ image_PE.double().T).numpy()
    found = rank_pictures(text_ME, image_PE, picture_of_M, 4)
    for caption, picture in enumerate(picture_of_M.tolist()):
        order = np.argsort(-score_MP[caption])
        assert found.rank_Q[caption] == 1 + order.tolist().index(picture)
        assert found.first_QK[caption].tolist() == order[:4].tolist()
    found = rank_texts(image_PE, text_ME, torch.arange(PICTURES), picture_of_M, 100)
    assert found.first_QK.shape == (PICTURES, CAPTIONS)
    for picture in range(PICTURES):
        order = np.argsort(-score_MP[:, picture])
        own = [place for place, caption in enumerate(order) if picture_of_M[caption] == picture]
        assert found.rank_Q[picture] == 1 + own[0], "the best of its captions counts, whatever the others are"


def test_ties_and_numbers_that_are_none_count_against_the_model():
    same = torch.ones(4, 3)
    picture_of_M = torch.tensor([0, 1, 2, 2])
    assert rank_pictures(same, same[:3], picture_of_M, 1).rank_Q.tolist() == [3, 3, 3, 3]
    assert rank_texts(same[:3], same, torch.arange(3), picture_of_M, 1).rank_Q.tolist() == [4, 4, 3]
    nan = torch.full((4, 3), torch.nan)
    assert rank_pictures(nan, nan[:3], picture_of_M, 1).rank_Q.tolist() == [3, 3, 3, 3]
    assert rank_texts(nan[:3], nan, torch.arange(3), picture_of_M, 1).rank_Q.tolist() == [4, 4, 3]
    one_nan = torch.eye(3)
    one_nan[2] = torch.nan  # a candidate
    assert rank_pictures(torch.eye(3)[:2], one_nan, torch.tensor([0, 1]), 3).rank_Q.tolist() == [2, 2]
    assert rank_pictures(torch.eye(3)[:1], one_nan, torch.tensor([0]), 3).first_QK.tolist() == [[0, 1, 2]]


def test_only_the_first_candidates_are_put_in_another_order():
    rank_Q = np.array([1, 3, 9, 2])
    right_QK = np.array([[1, 0, 0], [0, 0, 1], [0, 0, 0], [0, 1, 0]], dtype=bool)
    score_QK = np.array([[1.0, 2.0, 0.0], [0.0, 1.0, 2.0], [5.0, 5.0, 5.0], [1.0, 1.0, 1.0]])
    assert reranked(rank_Q, score_QK, right_QK).tolist() == [2, 1, 9, 3]
    two = np.array([[1, 1, 0]], dtype=bool)  # captions of one picture
    assert reranked(np.array([1]), np.array([[0.0, 3.0, 2.0]]), two).tolist() == [1]
    assert reranked(np.array([1]), np.array([[0.0, np.nan, 2.0]]), two).tolist() == [2]


def test_recalls_and_medians():
    found = recalls(Ranks(np.array([1, 5, 6, 11]), np.array([1, 1, 10, 12, 100])))
    assert {name: found[name] for name in NAMES} == pytest.approx(
        {"txt_r1": 25, "txt_r5": 50, "txt_r10": 75, "img_r1": 40, "img_r5": 40, "img_r10": 60}
    )
    assert found["recall_mean"] == pytest.approx((25 + 50 + 75 + 40 + 40 + 60) / 6)
    assert (found["txt_median_rank"], found["img_median_rank"]) == (5.5, 10)


def test_chance_is_what_random_vectors_reach():
    picture_of_M = np.repeat(np.arange(40), np.arange(40) % 5 + 1)
    generator, captions = np.random.default_rng(0), len(picture_of_M)
    sums, rounds = dict.fromkeys(NAMES, 0.0), 300
    for _ in range(rounds):
        text_M = generator.permutation(captions)  # rank of every caption, for all pictures the same: each is uniform
        texts_P = np.array([text_M[picture_of_M == picture].min() + 1 for picture in range(40)])
        pictures_M = generator.integers(1, 41, captions)
        found = recalls(Ranks(texts_P, pictures_M))
        sums = {name: sums[name] + found[name] / rounds for name in NAMES}
    expected = chance(picture_of_M)
    assert sums == pytest.approx({name: expected[name] for name in NAMES}, abs=1.0)
    assert chance(np.array([0, 0])) == dict.fromkeys(("recall_mean", *NAMES), 100.0), "there is nothing else"


def test_intervals_draw_pictures_with_all_their_captions():
    picture_of_M = np.repeat(np.arange(50), 4)
    alike = np.repeat(np.arange(50) % 2 * 50 + 1, 4)  # the captions of a picture rank alike
    found = intervals(Ranks(np.ones(50, int), alike), picture_of_M)
    assert found["txt_r1"] == (100, 100)
    low, high = found["img_r1"]
    assert low < 50 < high and high - low == pytest.approx(2 * 1.96 * 50 / 50**0.5, rel=0.15)
    assert found["recall_mean"][0] == pytest.approx((100 + low) / 2, abs=0.01)


def test_pairs_are_put_together_by_picture():
    rows = [("b", "1"), ("a", "2"), ("b", "3"), ("c", "4"), ("a", "5")]
    pairs = ListRecords([{"id": t, "image": f"{p}.jpg", "text": t, "picture": p} for p, t in rows])
    pictures = PictureRecords(pairs)
    assert len(pictures) == 3 and pictures.column("id") == ["b", "a", "c"]
    assert pictures.picture_of.tolist() == [0, 1, 0, 2, 1]
    assert pictures[1] == {"id": "a", "image": "a.jpg", "place": 1, "rows": [1, 4], "captions": ["2", "5"]}
    assert list(pictures.column("image")) == ["b.jpg", "a.jpg", "c.jpg"]
    with pytest.raises(IndexError, match="picture 3 of 3"):
        pictures[3]
