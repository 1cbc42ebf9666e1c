"""What a run will cost, before anything runs: `vlbeit plan`. No data, weights or accelerator are needed.

`planner` makes the plan, `trace` counts what a batch costs, `memory` what lies on a device, `stand_in` is instead of
the data, `report` shows it.
"""
