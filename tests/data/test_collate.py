import numpy as np
import torch

from vlbeit.data.collate import collate


def test_texts_are_padded_and_the_rest_is_stacked():
    samples = [
        {
            "sample_id": str(n),
            "image": torch.full((3, 2, 4), float(n)),
            "mask": np.array([True, n > 1]),
            "text_ids": list(range(5, 5 + n)),
            "mlm_labels": torch.tensor([-100] * (n - 1) + [9]),
            "label": n,
            "answers": ["a"] * n,
        }
        for n in (1, 3)
    ]
    batch = collate(samples)
    assert batch["sample_id"] == ["1", "3"] and batch["answers"] == [["a"], ["a", "a", "a"]]
    assert batch["text_ids"].tolist() == [[5, 0, 0], [5, 6, 7]]
    assert batch["text_keep"].tolist() == [[True, False, False], [True, True, True]]
    assert batch["mlm_labels"].tolist() == [[9, -100, -100], [-100, -100, 9]]
    assert batch["image"].shape == (2, 3, 2, 4) and batch["mask"].dtype == torch.bool
    assert batch["label"].tolist() == [1, 3]


def test_a_given_keep_is_kept():
    samples = [{"text_ids": torch.ones(n, dtype=torch.long), "text_keep": torch.ones(n).bool()} for n in (2, 1)]
    assert collate(samples)["text_keep"].tolist() == [[True, True], [True, False]]
