"""Vision-language objective: parity with open_clip and the golden tensors, negatives, many processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from vlbeit.errors import UsageError
from vlbeit.models.convert import Hints, convert
from vlbeit.models.encoder import MoMEEncoder
from vlbeit.models.spec import EncoderSpec
from vlbeit.objectives.contrastive import contrastive_terms
from vlbeit.objectives.matching import hardest, negatives, sampled
from vlbeit.objectives.vl import VLObjective
from vlbeit.stages.mlm import freeze_tower
from vlbeit.stages.vl import vl_heads

GOLDEN = Path(__file__).parents[1] / "golden" / "vlmo" / "vlmo_rel_pretrain"
SPEC = {
    "patch_size": 16,
    "image_size": (64, 64),
    "experts": ("image", "text"),
    "fused_layers": 1,
    "vocab_size": 120,
    "text_positions": 20,
}


def golden_objective() -> VLObjective:
    config = json.loads(GOLDEN.with_suffix(".json").read_text())
    encoder = MoMEEncoder(EncoderSpec(config["embed_dim"], config["depth"], config["num_heads"], **SPEC))
    objective = VLObjective(encoder, vl_heads(48, 120), draw=hardest).eval()
    weights = load_file(f"{GOLDEN}.weights.safetensors")
    objective.load_state_dict(convert(weights, Hints(image_size=(64, 64))).state)
    return objective


def golden_batch() -> tuple[dict, dict]:
    io = load_file(f"{GOLDEN}.io.safetensors")
    batch = {
        "image": io["in.image"],
        "text_ids": io["in.text_ids"],
        "text_keep": io["in.text_masks"].bool(),
        "mlm_ids": io["in.text_ids_mlm"],
        "mlm_labels": io["in.text_labels_mlm"],
    }
    return batch, io


@torch.no_grad()
def test_golden_losses() -> None:
    objective, (batch, io) = golden_objective(), golden_batch()
    losses = objective(batch, objective.counts(batch)).losses
    torch.testing.assert_close(losses["itc"], io["out.itc.loss"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(losses["mlm"], io["out.mlm.loss_weighted"], rtol=1e-5, atol=1e-5)
    _, _, image_logits, _ = objective._contrast(batch)
    torch.testing.assert_close(image_logits, io["out.itc.i2t_logits"], rtol=1e-5, atol=1e-4)


def unit(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape), dim=-1)


def test_contrast_equals_clip_loss() -> None:
    torch.manual_seed(0)
    text, image, scale = unit(6, 8), unit(6, 8), torch.tensor(9.0)
    ours = contrastive_terms(text, image, scale)[0].mean()
    torch.testing.assert_close(ours, open_clip.loss.ClipLoss()(image, text, scale))


def rank_main(folder: str) -> None:
    """One of two processes: gradients of ours and of open_clip's loss, the latter gathering with gradient too."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    torch.manual_seed(0)
    everything = torch.randn(2, 6, 8)
    results = {}
    for name in ("ours", "clip"):
        rows = everything[:, 3 * rank : 3 * rank + 3].clone().requires_grad_()
        text, image = F.normalize(rows[0], dim=-1), F.normalize(rows[1], dim=-1)
        scale = torch.tensor(9.0)
        if name == "ours":
            terms, logits, _ = contrastive_terms(text, image, scale)
            loss = terms.sum() / 3
            results["columns"] = negatives(logits.detach(), hardest)
        else:
            loss_function = open_clip.loss.ClipLoss(
                local_loss=True, gather_with_grad=True, rank=rank, world_size=2, cache_labels=False
            )
            loss = loss_function(image, text, scale)
        loss.backward()
        results[name] = loss.detach()
        results[f"{name}_grad"] = rows.grad
    torch.save(results, Path(folder) / f"rank{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_contrast_on_two_processes(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen([sys.executable, __file__, tmp_path], env={**os.environ, **common, "RANK": rank})
        for rank in "01"
    ]
    assert [worker.wait(timeout=200) for worker in workers] == [0, 0]
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1)]

    torch.manual_seed(0)
    rows = torch.randn(2, 6, 8).requires_grad_()
    text, image = F.normalize(rows[0], dim=-1), F.normalize(rows[1], dim=-1)
    terms, logits, _ = contrastive_terms(text, image, torch.tensor(9.0))
    terms.mean().backward()
    whole = torch.cat([rank["ours_grad"] for rank in ranks], dim=1) / 2  # DistributedDataParallel averages
    torch.testing.assert_close(whole, rows.grad)
    torch.testing.assert_close(torch.cat([rank["columns"] for rank in ranks]), negatives(logits.detach(), hardest))
    for rank in ranks:
        torch.testing.assert_close(rank["ours"], rank["clip"])
        torch.testing.assert_close(rank["ours_grad"], rank["clip_grad"])


def test_contrast_compares_in_full_precision() -> None:
    """Vectors that share most of their length, as those of a young tower do, all tie in products of 8 bits."""
    generator = torch.Generator().manual_seed(0)
    centre = 30 + torch.randn(50, 64, generator=generator)
    text, image = (F.normalize(centre + 0.1 * torch.randn(50, 64, generator=generator), dim=1) for _ in range(2))
    expected = contrastive_terms(text, image, torch.tensor(100.0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = contrastive_terms(text, image, torch.tensor(100.0))
        halves = contrastive_terms(text.bfloat16(), image.bfloat16(), torch.tensor(100.0))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert (found[1].argmax(1) == torch.arange(50)).all() and halves[0].dtype == halves[1].dtype == torch.float32


def test_negatives_are_never_the_pair_itself() -> None:
    torch.manual_seed(0)
    logits = 100 * torch.eye(5) + torch.randn(5, 5)  # so sure of the pair that the rest underflows
    for draw in (sampled, hardest):
        for _ in range(20):
            assert (negatives(logits, draw) != torch.arange(5)).all()
    with pytest.raises(UsageError, match="at least two pairs"):
        negatives(torch.zeros(1, 1), sampled)


def test_negatives_follow_the_likelihood() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([[0.0, 3.0, 0.0]]).repeat(1, 1)
    drawn = torch.cat([negatives(logits, sampled) for _ in range(400)])
    share = (drawn == 1).float().mean().item()
    assert share == pytest.approx(1 / (1 + torch.exp(torch.tensor(-3.0)).item()), abs=0.04)
    assert negatives(logits, hardest).tolist() == [1]


def test_every_parameter_of_vl_gets_a_gradient() -> None:
    objective, (batch, _) = golden_objective().train(), golden_batch()
    torch.stack(list(objective(batch, objective.counts(batch)).losses.values())).sum().backward()
    assert [name for name, p in objective.named_parameters() if p.grad is None] == []


def test_text_stage_trains_what_vlmo_trains() -> None:
    encoder = MoMEEncoder(EncoderSpec(48, 4, 3, **{**SPEC, "fused_layers": 0}))
    freeze_tower(encoder, attention=True)
    trained = {name for name, p in encoder.named_parameters() if p.requires_grad}
    kinds = {".".join(part for part in name.split(".") if not part.isdecimal()) for name in trained}
    assert kinds == {
        "type_embed.weight",
        "norm.weight",
        "norm.bias",
        "rel_pos.text",
        *(f"text_embed.{part}.weight" for part in ("word_embeddings", "token_type_embeddings", "norm")),
        "text_embed.norm.bias",
        *(f"blocks.experts.text.{part}" for part in ("norm.weight", "norm.bias")),
        *(f"blocks.experts.text.mlp.{layer}.{part}" for layer in ("fc1", "fc2") for part in ("weight", "bias")),
    }


if __name__ == "__main__":
    rank_main(sys.argv[1])
