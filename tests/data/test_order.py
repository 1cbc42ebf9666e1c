import numpy as np
import pytest

from vlbeit.data.order import Member, Scattered, Sharded, StreamOrder, epoch_length, order_of
from vlbeit.data.records import ListRecords

PARTS = {
    "scattered": lambda: Scattered(1000),
    "one row": lambda: Scattered(1),
    "three rows": lambda: Scattered(3),
    "shards": lambda: Sharded([300, 0, 250, 7, 443], chunks=50, open_shards=2),
    "chunks of their own": lambda: Sharded([300, 700], chunks=[30, 700], open_shards=1),
    "chunks with ends": lambda: Sharded([30, 0, 500], chunks=[[7, 7, 30], [], 100], open_shards=2),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_pass_has_every_row_once_in_an_order_of_its_own(name):
    part = PARTS[name]()
    first, second = (part.rows((5, turn), 0, len(part)) for turn in (0, 1))
    assert first.dtype == np.int64
    assert sorted(first) == sorted(second) == list(range(len(part)))
    assert len(part) < 4 or (first.tolist() != second.tolist() and first.tolist() != sorted(first))


@pytest.mark.parametrize("name", PARTS)
def test_any_piece_of_a_pass_is_that_piece_of_the_whole(name):
    part, fresh = PARTS[name](), PARTS[name]()
    whole = part.rows((5, 0), 0, len(part))
    for start, stop in ((0, 1), (len(part) // 3, len(part) // 2 + 1), (len(part) - 1, len(part)), (0, 0)):
        assert fresh.rows((5, 0), start, stop).tolist() == whole[start:stop].tolist()


def test_shards_are_opened_a_few_at_a_time_and_chunks_stay_whole():
    part = Sharded([100] * 6, chunks=20, open_shards=2)
    rows = part.rows((1, 0), 0, 600)
    for begin in range(0, 600, 200):
        assert len({int(row) // 100 for row in rows[begin : begin + 200]}) == 2
    chunks = rows.reshape(-1, 20)
    assert (np.diff(chunks) == 1).all()
    assert len({int(row) // 100 for row in chunks[:10, 0]}) == 2  # of both shards in turns, not one after the other
    assert sorted(chunks[:10, 0]) != chunks[:10, 0].tolist()


def test_scattered_rows_have_no_favourite_places():
    places = np.array([Scattered(10).rows((7, turn), 0, 10) for turn in range(4000)])
    counts = np.array([[(places[:, place] == row).sum() for row in range(10)] for place in range(10)])
    assert ((counts - 400) ** 2 / 400).sum() < 140  # chi square of 81 degrees of freedom: 140 is 1 in 100,000
    neighbours = np.abs(np.diff(Scattered(10**6).rows((7, 0), 0, 2000)))
    assert 2.8e5 < neighbours.mean() < 3.9e5  # a third of the rows, as for random ones


def epoch(order, number, seed=3):
    return [order.place(seed, number * len(order) + item) for item in range(len(order))]


@pytest.mark.parametrize("window", [1, 7, 10_000])
def test_an_epoch_has_every_sample_once_whatever_is_asked_first(window):
    def make():
        return StreamOrder([Member(Sharded([40, 25, 35], chunks=10, open_shards=2)), Member(Scattered(60))], window)

    order = make()
    assert len(order) == 160
    for number in (0, 1):
        assert sorted(row for _, row in epoch(order, number)) == list(range(160))
        assert {turn for turn, _ in epoch(order, number)} == {number}
    assert epoch(order, 0) != epoch(order, 1)
    assert epoch(order, 0) != epoch(order, 0, seed=4)
    backwards = [make().place(3, position) for position in reversed(range(320))]
    assert backwards[::-1] == epoch(order, 0) + epoch(order, 1)


def test_weights_are_passes_over_a_member():
    order = StreamOrder([Member(Scattered(50)), Member(Scattered(30), 2), Member(Scattered(40), 0.5)], 20)
    assert len(order) == 50 + 60 + 20
    seen = [[place for place in epoch(order, number)] for number in range(3)]
    for number in range(3):
        rows = [row for _, row in seen[number]]
        assert sorted(row for row in rows if row < 50) == list(range(50))
        assert sorted(row for row in rows if 50 <= row < 80) == sorted([*range(50, 80)] * 2)
        twice = [place for place in seen[number] if 50 <= place[1] < 80]
        assert len(set(twice)) == 60, "the two visits of a row are different passes: augmented differently"
    third = [place for each in seen for place in each if place[1] >= 80]
    assert len({place for place in third}) == 60
    assert sorted(row for turn, row in third if turn == 0) == list(range(80, 120)), "the pass goes on in the next epoch"


def test_a_small_share_is_seen_in_some_of_the_epochs():
    order = StreamOrder([Member(Scattered(100)), Member(Scattered(4), 0.1), Member(Scattered(3), 0.5)], 30)
    rows = [row for _, row in (order.place(3, position) for position in range(1000 + 4 + 15))]
    assert sorted(rows) == sorted([*range(100)] * 10 + [*range(100, 104)] + [*range(104, 107)] * 5), "ten epochs"
    assert len(order) == 102
    alone = StreamOrder([Member(Scattered(4), 0.1)], 30)
    assert sorted(alone.place(3, position) for position in range(8)) == [
        (turn, row) for turn in (0, 1) for row in range(4)
    ]


def test_chunks_are_those_of_the_row_groups():
    part = Sharded([10, 6], chunks=[[2, 3, 3, 10], 4], open_shards=2)
    rows = part.rows((1, 0), 0, 16).tolist()
    for chunk in ([0, 1], [2], [*range(3, 10)], [10, 11, 12, 13], [14, 15]):
        assert rows[rows.index(chunk[0]) :][: len(chunk)] == chunk


def test_members_are_spread_evenly():
    order = StreamOrder([Member(Scattered(900)), Member(Scattered(100))], 50)
    rows = [row for _, row in epoch(order, 0)]
    shares = [sum(row >= 900 for row in rows[start : start + 50]) for start in range(0, 1000, 50)]
    assert shares == [5] * 20


def test_a_window_mixes_what_the_shards_keep_together():
    shards = Sharded([1000] * 8, chunks=100, open_shards=4)
    rows = np.array([row for _, row in epoch(StreamOrder([Member(shards)], 1000), 0)][:64])
    assert len({row // 100 for row in rows}) > 8


def test_records_without_an_order_have_none():
    records = ListRecords([{"id": "1"}] * 3)
    assert order_of(records) is None
    assert epoch_length(records) == 3
