"""From the weights of one run to the start of the next."""

from __future__ import annotations

import pytest
import torch
from timm.layers import resize_rel_pos_bias_table

from vlbeit.errors import DataError, UsageError
from vlbeit.models.checkpoint import load, read_checkpoint, save_checkpoint
from vlbeit.models.encoder import MoMEEncoder
from vlbeit.models.heads import Heads
from vlbeit.models.spec import EncoderSpec
from vlbeit.models.transfer import check_fits, transfer

SMALL = {"embed_dim": 32, "depth": 3, "num_heads": 2, "patch_size": 8, "image_size": (32, 32)}


class Tower(torch.nn.Module):
    """An objective as far as weights go."""

    def __init__(self, heads: dict | None = None, **parts) -> None:
        super().__init__()
        torch.manual_seed(len(parts))
        self.encoder = MoMEEncoder(EncoderSpec(**{**SMALL, **parts}))
        self.heads = Heads(heads or {})
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        self.eval()

    def image(self, image: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self.encoder(self.encoder.embed_image(image)).x_BLD

    def describe(self) -> dict:
        return {"encoder": self.encoder.spec.to_dict(), "heads": self.heads.specs}


def take(target: Tower, source: Tower):
    return transfer(target, source.state_dict(), source.encoder.spec, target.encoder.spec)


def test_one_table_becomes_one_per_layer() -> None:
    source, target = Tower(positions="shared", mask_token=True), Tower()
    report = take(target, source)
    image = torch.randn(2, 3, 32, 32)
    assert torch.equal(source.image(image), target.image(image))
    assert report.unexpected == ["encoder.mask_token"] and report.missing == []
    assert report.resized == []
    assert report.remapped == {f"encoder.rel_pos.{layer}.image": ("encoder.rel_pos.0.image",) for layer in range(3)}
    assert target.encoder.rel_pos[0].image is not target.encoder.rel_pos[1].image


def test_another_image_size() -> None:
    source, target = Tower(image_size=(32, 48)), Tower(image_size=(40, 64))
    report = take(target, source)
    table = source.encoder.rel_pos[1].image.detach()
    expected = resize_rel_pos_bias_table(table, (5, 8), (9 * 15 + 3, 2), old_window_size=(4, 6))
    torch.testing.assert_close(target.encoder.rel_pos[1].image.detach(), expected)
    assert report.resized == [f"encoder.rel_pos.{layer}.image" for layer in range(3)] and report.missing == []
    source, target = Tower(positions="absolute"), Tower(positions="absolute", image_size=(64, 64))
    take(target, source)
    assert torch.equal(target.encoder.pos_embed[:, :1], source.encoder.pos_embed[:, :1])
    assert target.encoder.pos_embed.std() > 0.5 * source.encoder.pos_embed.std()


WORDS = {"experts": ("image", "text"), "vocab_size": 20}


@torch.no_grad()
def test_shorter_texts_keep_what_they_say() -> None:
    """The bias of any two words, and of CLS, is the same in the longer and in the shorter table."""
    source, target = Tower(**WORDS, text_positions=12), Tower(**WORDS, text_positions=7)
    report = take(target, source)
    assert report.missing == [] and set(report.resized) == {f"encoder.rel_pos.{layer}.text" for layer in range(3)}
    ids = torch.randint(0, 20, (2, 7))
    outputs = [tower.encoder(tower.encoder.embed_text(ids)).x_BLD for tower in (source, target)]
    assert torch.equal(*outputs)
    parts = {**WORDS, "positions": "absolute"}
    source, target = Tower(**parts, text_positions=12), Tower(**parts, text_positions=7)
    assert take(target, source).missing == []
    outputs = [tower.encoder(tower.encoder.embed_text(ids)).x_BLD for tower in (source, target)]
    assert torch.equal(*outputs)


def test_longer_texts_are_refused() -> None:
    short, long = (EncoderSpec(**SMALL, **WORDS, text_positions=length) for length in (7, 12))
    check_fits(long, short, "runs/mlm")
    with pytest.raises(UsageError, match=r"texts can become shorter, not longer; set text\.positions=7"):
        check_fits(short, long, "runs/mlm")


def test_token_types_of_a_second_picture() -> None:
    two, three = Tower(**WORDS), Tower(**WORDS, token_types=3)
    assert "encoder.type_embed.weight" in take(three, two).resized
    types = three.encoder.type_embed.weight
    assert torch.equal(types[:2], two.encoder.type_embed.weight) and torch.equal(types[2], types[1])
    fewer = Tower(**WORDS)
    take(fewer, three)
    assert torch.equal(fewer.encoder.type_embed.weight, types[:2])


def test_answers_are_taken_by_their_names() -> None:
    def head(answers: int) -> dict:
        return {"answer": {"kind": "vqa", "dim": 32, "num_answers": answers}}

    source, target = Tower(head(4)), Tower(head(5))
    initial = target.heads["answer"][3].bias.detach().clone()
    theirs, ours = {"answers": ["yes", "no", "red", "2"]}, {"answers": ["2", "blue", "yes", "no", "green"]}
    report = transfer(target, source.state_dict(), source.encoder.spec, target.encoder.spec, (theirs, ours))
    found, given = target.heads["answer"][3], source.heads["answer"][3]
    assert torch.equal(found.weight[[2, 3, 0]], given.weight[[0, 1, 3]])
    assert torch.equal(found.bias[[2, 3, 0]], given.bias[[0, 1, 3]])
    assert torch.equal(found.bias[[1, 4]], initial[[1, 4]])
    assert report.remapped["heads.answer.3.bias"] == ("3 of 5 rows of heads.answer.3.bias by their answers",)

    same = Tower(head(4))
    report = transfer(same, source.state_dict(), source.encoder.spec, same.encoder.spec, (theirs, theirs))
    assert report.missing == report.resized == [] and torch.equal(same.heads["answer"][3].bias, given.bias)
    other = Tower(head(4))
    labels = (theirs, {"answers": ["a", "b", "c", "d"]})
    report = transfer(other, source.state_dict(), source.encoder.spec, other.encoder.spec, labels)
    assert report.missing == ["heads.answer.3.weight", "heads.answer.3.bias"]
    with pytest.raises(DataError, match="head answer: a list of 3 labels for a classifier of width 4"):
        labels = ({"answers": ["yes", "no", "red"]}, theirs)
        transfer(other, source.state_dict(), source.encoder.spec, other.encoder.spec, labels)


def test_heads_are_taken_where_they_fit() -> None:
    answers = {"answer": {"kind": "vqa", "dim": 32, "num_answers": 5}}
    source, same = Tower(answers), Tower(answers, final_norm=True)
    wider = Tower({"answer": {"kind": "vqa", "dim": 32, "num_answers": 6}})
    assert take(same, source).missing == []
    assert torch.equal(same.heads["answer"][3].bias, source.heads["answer"][3].bias)
    assert take(wider, source).missing == ["heads.answer.3.weight", "heads.answer.3.bias"]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"embed_dim": 64}, "has model.embed_dim=32, this run has 64"),
        ({"depth": 4}, "has model.depth=3, this run has 4"),
        ({"positions": "absolute"}, "positions"),
        ({"experts": ("image", "text"), "vocab_size": 40}, None),
    ],
)
def test_what_does_not_fit_is_named(parts: dict, message: str | None) -> None:
    source, target = EncoderSpec(**SMALL), EncoderSpec(**{**SMALL, **parts})
    if message is None:
        check_fits(source, target, "runs/mim")
    else:
        with pytest.raises(UsageError, match=message):
            check_fits(source, target, "runs/mim")


def test_vocabulary_of_another_size_is_refused() -> None:
    text = {"experts": ("image", "text"), "text_positions": 12}
    with pytest.raises(UsageError, match="vocabulary of 40, this run 50"):
        check_fits(EncoderSpec(**SMALL, **text, vocab_size=40), EncoderSpec(**SMALL, **text, vocab_size=50), "runs/mlm")


def test_one_expert_for_all_is_not_one_for_each() -> None:
    text = {"experts": ("image", "text"), "text_positions": 12, "vocab_size": 40}
    tower, shared = EncoderSpec(**SMALL), EncoderSpec(**SMALL, **text, shared_expert=True)
    check_fits(tower, shared, "runs/mim")  # the one expert of a tower of pictures is either
    with pytest.raises(UsageError, match="this run modality: set"):
        check_fits(shared, EncoderSpec(**SMALL, **text), "runs/vl")


def test_checkpoint_round_trip(tmp_path) -> None:
    tower = Tower({"answer": {"kind": "vqa", "dim": 32, "num_answers": 2}})
    save_checkpoint(tmp_path, tower.state_dict(), tower.describe(), {"seed": 1}, {"answers": ["yes", "nö"]})
    model = load(tmp_path)
    image = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.encode(image=image).x_BLD, tower.image(image))
    assert model.meta == {"answers": ["yes", "nö"]} and model.config == {"seed": 1}
    assert list(model.heads) == ["answer"] and not model.encoder.training
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers.json", "config.json", "model.safetensors"]


def test_what_a_load_leaves_is_reported(tmp_path) -> None:
    tower = Tower({"answer": {"kind": "vqa", "dim": 32, "num_answers": 2}})
    state = {**tower.state_dict(), "heads.mine.weight": torch.zeros(2)}
    description = {**tower.describe(), "heads": {**tower.heads.specs, "mine": {"kind": "of a plug-in"}}}
    save_checkpoint(tmp_path, state, description, {}, {})
    report = load(tmp_path).report
    assert report.unexpected == ["heads.mine.weight"] and set(report.loaded) == set(tower.state_dict())


def test_damaged_checkpoints_are_named(tmp_path) -> None:
    tower = Tower()
    with pytest.raises(DataError, match="no such run or checkpoint"):
        load(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"holds no checkpoint/config\.json"):
        load(tmp_path)
    save_checkpoint(tmp_path, tower.state_dict(), tower.describe(), {}, {"answers": []})
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-8] + b"12345678")
    with pytest.raises(DataError, match="differs from the hash"):
        load(tmp_path)
    weights.write_bytes(whole)
    (tmp_path / "answers.json").unlink()
    with pytest.raises(DataError, match=r"answers\.json"):
        read_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DataError, match="cannot read the checkpoint"):
        load(tmp_path)
