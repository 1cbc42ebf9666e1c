"""The published sizes in one table; `tiny` is for the built-in data. Imports no torch.

Sources: BEiT (arXiv 2106.08254) and VLMo (arXiv 2111.02358), numbers as in their reference code.
"""

from __future__ import annotations

from vlbeit.config import ModelConfig

PRESETS: dict[str, ModelConfig] = {
    preset.name: preset
    for preset in (
        # narrow and trained for minutes: fan-in sized initial weights and no layer scale, or it learns little by then
        ModelConfig(
            name="tiny",
            embed_dim=64,
            depth=3,
            num_heads=4,
            fused_layers=2,
            layer_scale=0.0,
            init_std=0.25,
            drop_path=0.0,
        ),
        ModelConfig(name="base", embed_dim=768, depth=12, num_heads=12, fused_layers=2, layer_scale=0.1),
        ModelConfig(
            name="base_plus",
            embed_dim=544,
            depth=24,
            num_heads=16,
            fused_layers=3,
            layer_scale=0.0,
            positions="absolute",
        ),
        ModelConfig(name="large", embed_dim=1024, depth=24, num_heads=16, fused_layers=3, layer_scale=1e-5),
    )
}
