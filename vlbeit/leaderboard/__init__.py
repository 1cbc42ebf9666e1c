"""The leaderboard of the VQA challenge on EvalAI: a small client of its HTTP interface, and what a score would be.

`client` asks and says what refusals mean, `evalai` names the calls, `sending` brings a file there once, `tracking`
says what became of it, `estimate` predicts the score without a server. No torch but in `estimate`.
"""

CHALLENGE = 830  # VQA Challenge 2021, to which visualqa.org still points
