"""Seconds to score an answer file as large as VQA v2's validation split, and the gain over the literal rules.

    OMP_NUM_THREADS=1 python benchmarks/vqa_scoring.py

The files are drawn: 214,354 questions in the official layout, ten answers each, their texts as frequent as words are
(Zipf). `file` is the whole command, files read and result written; `rules` is the scores alone, and `naive` what they
take where every answer of every question is normalised anew and each human is left out one by one, on fewer questions.
Both must give the same scores.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from vlbeit.data.answers import clean_answer, normalize_answer
from vlbeit.scoring import score_file
from vlbeit.tasks.vqa.rules import answer_score

WORDS = ("yes", "no", "Two", "t-shirt", "the red one", "dont know", "1,000", "hot-dog (large)", "a cat.", "white")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--questions", type=int, default=214_354)
    parser.add_argument("--naive", type=int, default=5_000, help="questions for the literal rules")
    options = parser.parse_args()
    humans, answers = drawn(options.questions)
    with tempfile.TemporaryDirectory() as folder:
        predictions, annotations = write(Path(folder), humans, answers)
        start = time.perf_counter()
        score_file(predictions, annotations, None, Path(folder, "result.json"))
        whole = time.perf_counter() - start
    normalize_answer.cache_clear()
    start = time.perf_counter()
    ours = [answer_score(answer, given) for answer, given in zip(answers, humans, strict=True)]
    rules = (time.perf_counter() - start) / len(answers)
    few = min(options.naive, len(answers))
    start = time.perf_counter()
    literal = [naive_score(answer, given) for answer, given in zip(answers[:few], humans[:few], strict=True)]
    naive = (time.perf_counter() - start) / few
    if literal != ours[:few]:
        raise SystemExit("the two ways differ")
    print(f"file   {whole:.1f} s for {len(answers)} questions, read and written")
    print(f"rules  {1e6 * rules:.1f} us a question, {rules * len(answers):.1f} s in all")
    print(f"naive  {1e6 * naive:.1f} us a question, {naive / rules:.1f} times as long")


def naive_score(prediction: str, humans: list[str]) -> float:
    """The published rules, step by step."""
    humans, prediction = [clean_answer(human) for human in humans], clean_answer(prediction)
    if len(set(humans)) > 1:
        humans = [normalize_answer.__wrapped__(human) for human in humans]
        prediction = normalize_answer.__wrapped__(prediction)
    turns = []
    for left_out in range(len(humans)):
        others = [human for place, human in enumerate(humans) if place != left_out]
        turns.append(min(1.0, len([human for human in others if human == prediction]) / 3))
    total = 0.0
    for turn in turns:
        total += turn
    return total / len(turns)


def drawn(questions: int) -> tuple[list[list[str]], list[str]]:
    """Ten human answers and a predicted one for each question; people agree on most of them."""
    random = np.random.default_rng(0)
    texts = [f"{WORDS[n % len(WORDS)]} {n // len(WORDS)}" if n >= len(WORDS) else WORDS[n] for n in range(30_000)]
    majority = (random.zipf(1.3, questions) - 1) % len(texts)
    others = (random.zipf(1.3, (questions, 10)) - 1) % len(texts)
    agree = random.random((questions, 10)) < random.random((questions, 1)) ** 0.3
    chosen = np.where(agree, majority[:, None], others)
    answers = np.where(random.random(questions) < 0.7, majority, others[:, 0])
    return [[texts[index] for index in row] for row in chosen], [texts[index] for index in answers]


def write(folder: Path, humans: list[list[str]], answers: list[str]) -> tuple[Path, Path]:
    """An answer file and its annotations."""
    rows = [
        {
            "question_id": key,
            "image_id": key // 5,
            "question_type": f"type {key % 65}",
            "answer_type": ("yes/no", "number", "other")[key % 3],
            "multiple_choice_answer": given[0],
            "answers": [
                {"answer": text, "answer_confidence": "yes", "answer_id": n + 1} for n, text in enumerate(given)
            ],
        }
        for key, given in enumerate(humans)
    ]
    predictions, annotations = folder / "answers.json", folder / "annotations.json"
    annotations.write_text(json.dumps({"annotations": rows}))
    predictions.write_text(json.dumps([{"question_id": key, "answer": text} for key, text in enumerate(answers)]))
    return predictions, annotations


if __name__ == "__main__":
    main()
