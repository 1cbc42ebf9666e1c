"""Training steps of our image tower against timm's BEiT of the same size, in one process, as a ratio.

    OMP_NUM_THREADS=2 python benchmarks/encoder_speed.py --batch 4 --rounds 5

The two are timed in turns, so that a noisy machine disturbs both alike; the median of the rounds counts.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import timm
import torch

from vlbeit.models.encoder import MoMEEncoder
from vlbeit.models.heads import ClassificationHead
from vlbeit.models.spec import EncoderSpec


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    image = torch.randn(options.batch, 3, 224, 224, device=options.device)
    reference = timm.create_model("beit_base_patch16_224", num_classes=1000).to(options.device)
    encoder = MoMEEncoder(EncoderSpec(768, 12, 12, final_norm=False)).to(options.device)
    head = ClassificationHead(768, 1000).to(options.device)
    steps = {
        "timm beit_base_patch16_224": lambda: reference(image),
        "vlbeit base": lambda: head(encoder(encoder.embed_image(image)).x_BLD),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(options.rounds + 1):
        for name, forward in steps.items():
            seconds = timed(forward, image)
            if round_:  # the first warms up
                times[name].append(seconds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, seconds in medians.items():
        print(f"{name}: {options.batch / seconds:.2f} images/s forward and backward")
    print(f"ratio (ours / timm): {medians['timm beit_base_patch16_224'] / medians['vlbeit base']:.2f}")


def timed(forward: Callable[[], torch.Tensor], image: torch.Tensor) -> float:
    """Seconds of one forward and backward."""
    if image.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    forward().square().mean().backward()
    if image.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
