"""Packed texts: each is what it is alone, in values and in gradients."""

from __future__ import annotations

import pytest
import torch

from vlbeit.models.encoder import MoMEEncoder, join
from vlbeit.models.spec import EncoderSpec
from vlbeit.nn import packed
from vlbeit.nn.relpos import text_index

LENGTHS = ((5, 1, 3, 2), (6, 5), (11,))  # of the texts of three sequences; the second has padding


def encoder(positions: str, **parts) -> MoMEEncoder:
    """In float64, its position tables not zero."""
    torch.manual_seed(0)
    spec = EncoderSpec(
        32, 3, 2, image_size=None, experts=("text",), vocab_size=50, text_positions=12, positions=positions, **parts
    )
    made = MoMEEncoder(spec).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made.eval()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """ids and segments, [3, 12]: one more token than the longest sequence has."""
    torch.manual_seed(1)
    ids, segments = torch.randint(50, (3, 12)), torch.zeros(3, 12, dtype=torch.long)
    for row, lengths in enumerate(LENGTHS):
        numbers = [number for number, length in enumerate(lengths, 1) for _ in range(length)]
        segments[row, : len(numbers)] = torch.tensor(numbers)
    return ids, segments


def texts(ids, segments):
    """Every text and where it stands: row, mask of its tokens, ids [1, T]."""
    for row in range(len(ids)):
        for number in range(1, int(segments[row].max()) + 1):
            own = segments[row] == number
            yield row, own, ids[row, own][None]


@pytest.mark.parametrize("positions", ["per_layer", "shared", "absolute"])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_each_text_is_what_it_is_alone(positions: str, checkpointed: bool) -> None:
    model = encoder(positions, grad_checkpointing=checkpointed).train(checkpointed)
    ids, segments = batch()
    together = model(model.embed_text(ids, segments > 0, segments)).x_BLD
    assert together.isfinite().all(), "padding too"
    for row, own, alone in texts(ids, segments):
        expected = model(model.embed_text(alone)).x_BLD[0]
        torch.testing.assert_close(together[row, own], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("positions", ["per_layer", "absolute"])
def test_nothing_leaks_between_texts(positions: str) -> None:
    model = encoder(positions)
    ids, segments = batch()
    for row, own, _ in texts(ids, segments):
        tokens = model.embed_text(ids, segments > 0, segments)
        x_BLD = tokens.x_BLD.detach().requires_grad_()
        model(tokens._replace(x_BLD=x_BLD)).x_BLD[row, own].square().sum().backward()
        seen = x_BLD.grad.abs().sum(-1) > 0
        expected = torch.zeros_like(seen)
        expected[row, own] = True
        assert torch.equal(seen, expected), "every token of the text, and no other"


def test_gradients_of_the_weights_are_those_of_the_texts_alone() -> None:
    ids, segments = batch()
    model, other = encoder("per_layer"), encoder("per_layer")
    out = model(model.embed_text(ids, segments > 0, segments)).x_BLD
    out[segments > 0].square().sum().backward()
    for _, _, alone in texts(ids, segments):
        other(other.embed_text(alone)).x_BLD.square().sum().backward()
    for (name, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-9, atol=1e-9, msg=name)


def test_rows_of_the_table_begin_anew_with_every_text() -> None:
    _, segments = batch()
    index = packed.packed_index(segments, 12)
    assert index.min() >= 0 and index.max() == 24
    assert torch.equal(index == 24, segments[:, :, None] != segments[:, None, :]), "the row of what is not seen"
    for row, own, alone in texts(segments, segments):
        torch.testing.assert_close(index[row][own][:, own], text_index(alone.shape[1], 12))
    assert packed.places(segments)[0].tolist() == [0, 1, 2, 3, 4, 0, 0, 1, 2, 0, 1, 0]


def test_what_cannot_be_is_refused() -> None:
    model = encoder("per_layer")
    ids, segments = batch()
    tokens = model.embed_text(ids, None, segments)
    with pytest.raises(ValueError, match="packed texts cannot be joined"):
        join(tokens, tokens)
    with pytest.raises(ValueError, match="13 tokens is longer than the position table"):
        model(model.embed_text(torch.zeros(1, 13, dtype=torch.long), None, torch.ones(1, 13, dtype=torch.long)))
