"""One training loop on `accelerate`. It knows no model, dataset or task: it meets objectives at `StepOutput`.

Start at `loop.Engine`. `schedule` and `optim` set the learning rates, `folder` and `checkpoint` keep the run on disk,
`device` picks the device, `evaluate` runs evaluators, `sinks` carry the metrics to file, terminal and trackers.
"""
