"""Contrast, hard negatives and cached gradients on one process."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

from vlbeit import dist
from vlbeit.engine.randomness import seed_generators
from vlbeit.errors import UsageError
from vlbeit.models.groups import vlmo_decays
from vlbeit.models.heads import Compared, Heads
from vlbeit.objectives.base import Objective
from vlbeit.objectives.contrastive import ContrastRule, Likenesses, contrast, contrast_head, others_of_picture
from vlbeit.objectives.global_contrast import GlobalContrast
from vlbeit.objectives.matching import choose, hardest, negatives, sampled
from vlbeit.types import StepOutput


def rows_of(text: torch.Tensor, image: torch.Tensor, scale: float, bias: float | None = None) -> Compared:
    unit = [F.normalize(x, dim=-1) for x in (text, image)]
    return Compared(*unit, torch.tensor(scale), None if bias is None else torch.tensor(bias))


def diagonal(size: int) -> torch.Tensor:
    return torch.eye(size, dtype=torch.bool)


@pytest.mark.parametrize(("ours", "theirs"), [("softmax", "clip local"), ("sigmoid", "siglip bidir")])
def test_equals_open_clip(contrast_run: ModuleType, ours: str, theirs: str) -> None:
    found = contrast_run.compared(contrast_run.ours(ContrastRule(ours)), 0, 6)
    expected = contrast_run.compared(contrast_run.open_clips()[theirs], 0, 6)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=f"{ours} {name}")


def test_published_gather_is_the_same_on_one_process(contrast_run: ModuleType) -> None:
    one, other = (
        contrast_run.compared(contrast_run.ours(ContrastRule("softmax", gather)), 0, 6)
        for gather in ("gradient", "published")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_compares_in_full_precision() -> None:
    """Vectors that share most of their length, as those of a young tower do, all tie in products of 8 bits."""
    generator = torch.Generator().manual_seed(0)
    centre = 30 + torch.randn(50, 64, generator=generator)
    rows = rows_of(*(centre + 0.1 * torch.randn(50, 64, generator=generator) for _ in range(2)), 100.0)
    terms, logits = contrast(rows, ContrastRule())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, found_logits = contrast(rows, ContrastRule())
        short = rows._replace(text_BD=rows.text_BD.bfloat16(), image_BD=rows.image_BD.bfloat16())
        halves, half_logits = contrast(short, ContrastRule())
    for ours, theirs in zip((found, *found_logits), (terms, *logits), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert (logits.text_BG.argmax(1) == torch.arange(50)).all()
    assert halves.dtype == half_logits.text_BG.dtype == torch.float32


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_other_captions_of_a_picture_take_no_part(loss: str) -> None:
    """Pictures a a b: for a row of a the other one is as if it were not there, in value and in gradient."""
    torch.manual_seed(0)
    text, image = torch.randn(2, 3, 8, dtype=torch.float64)
    picture, own = torch.tensor([7, 7, 5]), torch.arange(3)
    left_out = others_of_picture(picture, picture, own)
    assert left_out.nonzero().tolist() == [[0, 1], [1, 0]]
    bias = -3.0 if loss == "sigmoid" else None
    terms = contrast(rows_of(text, image, 5.0, bias), ContrastRule(loss), left_out)[0]
    for row, without in ((0, [0, 2]), (1, [1, 2])):
        alone = contrast(rows_of(text[without], image[without], 5.0, bias), ContrastRule(loss))[0]
        torch.testing.assert_close(terms[row], alone[0])
    leaves = [x.clone().requires_grad_() for x in (text, image)]
    contrast(rows_of(*leaves, 5.0, bias), ContrastRule(loss), left_out)[0][0].backward()
    assert all(leaf.grad.isfinite().all() and not leaf.grad[1].any() for leaf in leaves)
    everything = contrast(rows_of(text, image, 5.0, bias), ContrastRule(loss))[0]
    assert (everything[:2] > terms[:2]).all() and torch.isclose(everything[2], terms[2])


def test_first_scale_and_bias_of_siglip() -> None:
    heads = Heads({"sigmoid": contrast_head(8, "sigmoid"), "softmax": contrast_head(8, "softmax")})
    tokens = torch.randn(2, 3, 8)
    assert heads["sigmoid"](tokens, tokens).scale.item() == pytest.approx(10)
    assert heads["sigmoid"](tokens, tokens).bias.item() == -10
    assert heads["softmax"](tokens, tokens).bias is None and "softmax.logit_bias" not in heads.state_dict()
    assert heads.specs["softmax"] == {"kind": "contrast", "dim": 8}  # as checkpoints have it
    assert not vlmo_decays("heads.contrast.logit_bias", heads["sigmoid"].logit_bias)


def test_negatives_are_never_the_pair_itself() -> None:
    torch.manual_seed(0)
    logits = 100 * torch.eye(5) + torch.randn(5, 5)  # so sure of the pair that the rest underflows
    for draw in (sampled, hardest):
        for _ in range(20):
            assert (negatives(logits, diagonal(5), draw) != torch.arange(5)).all()
    with pytest.raises(UsageError, match="at least two pairs"):
        negatives(torch.zeros(1, 1), diagonal(1), sampled)


def test_negatives_follow_the_likelihood() -> None:
    torch.manual_seed(0)
    logits, own = torch.tensor([[0.0, 3.0, 0.0]]), torch.tensor([[True, False, False]])
    drawn = torch.cat([negatives(logits, own, sampled) for _ in range(400)])
    share = (drawn == 1).float().mean().item()
    assert share == pytest.approx(1 / (1 + torch.exp(torch.tensor(-3.0)).item()), abs=0.04)
    assert negatives(logits, own, hardest).tolist() == [1]


@pytest.mark.parametrize("draw", [sampled, hardest])
def test_negatives_are_of_other_pictures(draw) -> None:
    torch.manual_seed(0)
    picture = torch.tensor([1, 1, 1, 2])
    own, likely = torch.arange(4), Likenesses(*(9 * torch.ones(2, 4, 4) + torch.randn(2, 4, 4)).unbind())
    for _ in range(20):
        chosen = choose(likely, own, others_of_picture(picture, picture, own), draw)
        assert chosen.image_of_text_B[:3].tolist() == chosen.text_of_image_B[:3].tolist() == [3, 3, 3]
        assert chosen.there_B.all() and chosen.image_of_text_B[3] < 3
    alone = torch.ones(4)
    chosen = choose(likely, own, others_of_picture(alone, alone, own), draw)
    assert not chosen.there_B.any()  # and yet no crash: anything stands there


def test_rows_without_a_negative_do_not_count(contrast_run: ModuleType) -> None:
    """One picture alone in the batch: matching has its true pairs, and the loss is their mean."""
    objective = contrast_run.make_objective(ContrastRule())
    given = contrast_run.batch(0, 4)
    given["picture"] = torch.tensor([1, 1, 1, 1])
    counts = objective.counts(given)
    assert (counts["itm"], counts["itc"]) == (4, 4)
    output = objective(given, counts)
    total, number = output.logs["itm"]
    assert number == 4 and torch.isclose(output.losses["itm"], total / 4)
    torch.stack(list(output.losses.values())).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in objective.parameters())
    given["picture"][1] = 2
    assert objective.counts(given)["itm"] == 12
    given["picture"][1] = 1
    published = contrast_run.make_objective(ContrastRule(same_picture_negatives=True))
    assert published.counts(given)["itm"] == 12 and published(given, counts).logs["itm"][1] == 12


@pytest.mark.parametrize("name", ["softmax", "sigmoid", "published"])
def test_cached_gradients_are_those_of_the_large_batch(contrast_run: ModuleType, tmp_path: Path, name: str) -> None:
    """Two at a time against eight at once: contrast, and negatives from the whole step. fp64, two steps."""
    rule = contrast_run.RULES[name]
    large = contrast_run.trained(rule, 8, tmp_path / "large", cached=False)
    cached = contrast_run.trained(rule, 2, tmp_path / "cached", cached=True)
    plain = contrast_run.trained(rule, 2, tmp_path / "plain", cached=False)
    worst = 0.0
    for key, value in large["weights"].items():
        torch.testing.assert_close(cached["weights"][key], value, rtol=0, atol=1e-12, msg=key)
        worst = max(worst, float((plain["weights"][key] - value).abs().max()))
    assert worst > 1e-4, "accumulation alone is another loss"
    for lines in zip(large["metrics"].splitlines(), cached["metrics"].splitlines(), strict=True):
        one, two = map(json.loads, lines)
        assert one["logs"] == pytest.approx(two["logs"], abs=1e-6)  # summed in single precision
        assert one["losses"] == pytest.approx(two["losses"], abs=1e-12)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_cached_gradients_under_drop_path(contrast_run: ModuleType, loss: str) -> None:
    """Every micro-batch draws its own: the reference keeps the graphs of all of them until the joined loss is there."""
    batches = [contrast_run.batch(row, row + 2) for row in (0, 2, 4, 6)]
    gradients = []
    for cached in (False, True):
        objective = contrast_run.make_objective(ContrastRule(loss), cached=cached, drop_path=0.4).train()

        def features(index: int, objective=objective, graph: bool = True):
            seed_generators("micro", index)
            with torch.set_grad_enabled(graph):
                return objective(batches[index], {}).seen

        if cached:
            surveyed = objective.survey(batches, lambda index: features(index, graph=False))
            for index, given in enumerate(surveyed):
                seed_generators("micro", index)
                counts = {"itc": torch.tensor(8.0), "itm": torch.tensor(24.0), "mlm": torch.tensor(9.0)}
                objective(given, counts).losses["itc"].backward()
        else:
            parts = [features(index) for index in range(4)]
            picture = torch.cat([given["picture"] for given in batches])
            left_out = others_of_picture(picture, picture, torch.arange(8))
            for pair in zip(*parts, strict=True):
                joined = Compared(
                    torch.cat([each.text_BD for each in pair]),
                    torch.cat([each.image_BD for each in pair]),
                    *pair[0][2:],
                )
                (contrast(joined, ContrastRule(loss), left_out)[0].mean() / 2).backward(retain_graph=True)
        gradients.append({name: p.grad for name, p in objective.named_parameters() if p.grad is not None})
    whole, cached = gradients
    assert whole.keys() == cached.keys()
    for name, value in whole.items():
        torch.testing.assert_close(cached[name], value, rtol=0, atol=1e-12, msg=name)
    assert max(float(value.abs().max()) for value in whole.values()) > 1e-3


@pytest.mark.parametrize("precision", ["fp64", "bf16"])
def test_survey_sees_what_training_sees(contrast_run: ModuleType, tmp_path: Path, precision: str) -> None:
    """The engine seeds a look as the forward after it: the same features, drop path and all, and no graph."""
    dtype = torch.float64 if precision == "fp64" else torch.float32
    seen: dict[str, list] = {"looked": [], "trained": []}
    objective = contrast_run.make_objective(ContrastRule(), drop_path=0.4, dtype=dtype)
    first = objective.heads["contrast"]
    plain = first.forward

    def watched(*tokens):
        found = plain(*tokens)
        seen["trained" if torch.is_grad_enabled() else "looked"].append(found.text_BD.detach().clone())
        assert found.text_BD.requires_grad == torch.is_grad_enabled()
        return found

    first.forward = watched
    objective.contrast = GlobalContrast(ContrastRule(), hardest, cached=True)
    contrast_run.run_engine(objective, 2, tmp_path, steps=2, precision=precision)
    assert len(seen["looked"]) == len(seen["trained"]) == 8
    for looked, trained in zip(seen["looked"], seen["trained"], strict=True):
        # without a graph attention takes another kernel, which rounds otherwise
        torch.testing.assert_close(looked, trained, rtol=0, atol=1e-12 if precision == "fp64" else 1e-3)
    assert (seen["looked"][0] - seen["looked"][4]).abs().max() > 0.01


def test_running_statistics_learn_once_a_step(contrast_run: ModuleType, tmp_path: Path) -> None:
    """A look is no step of training: what a batch norm remembers counts each micro-batch once."""
    objective = contrast_run.make_objective(ContrastRule(), cached=True)
    objective.encoder.norm_of_pictures = torch.nn.BatchNorm2d(3)
    plain, norm = objective._features, objective.encoder.norm_of_pictures
    objective._features = lambda batch: plain({**batch, "image": norm(batch["image"])})
    contrast_run.run_engine(objective, 2, tmp_path, steps=1)
    assert int(norm.num_batches_tracked) == 4


def test_objective_of_the_documentation(contrast_run: ModuleType) -> None:
    """The dual encoder of docs/contrast.md: cached in two micro-batches it has the gradient of the whole."""
    text = (Path(__file__).parents[2] / "docs" / "contrast.md").read_text()
    names = {"torch": torch, "Objective": Objective, "StepOutput": StepOutput, "ContrastRule": ContrastRule}
    exec(text.split("```python\n")[1].split("```")[0], names | {"GlobalContrast": GlobalContrast}, found := {})
    gradients = []
    for micro in (8, 4):
        whole = contrast_run.make_objective(ContrastRule())
        objective = found["Dual"](whole.encoder, whole.heads)
        batches = [contrast_run.batch(row, row + micro) for row in range(0, 8, micro)]
        with torch.no_grad():
            surveyed = objective.survey(batches, lambda i, o=objective, b=batches: o(b[i], {}).seen)
        for given in surveyed:
            objective(given, {"itc": torch.tensor(8.0)}).losses["itc"].backward()
        assert sum(int(objective.counts(given)["itc"]) for given in surveyed) == 8
        gradients.append({name: p.grad for name, p in objective.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 20
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value, rtol=0, atol=1e-12, msg=name)


def test_rows_are_fetched_on_one_process() -> None:
    table = torch.arange(12.0).view(4, 3).requires_grad_()
    found = dist.fetch_rows(table.__getitem__, 4, torch.tensor([3, 0, 3]))
    assert torch.equal(found, table[[3, 0, 3]]) and not found.requires_grad
