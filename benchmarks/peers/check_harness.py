"""Compare `olora evaluate --tasks … --output OURS` with `harness.py … --output HARNESS`, item by item.

    python check_harness.py OURS HARNESS [--tolerance 2e-3]

Both are directories of `TASK.jsonl`; every task that both hold is compared, up to the shorter file. Of multiple choice:
the largest difference of a log-likelihood, and every item whose prediction, plain, per character or per byte, is another,
with the lead of the winner over our choice in the harness's numbers. Of GSM8K: every item whose text or extracted answer
is another. Fails if numbers of choices, lengths or right answers differ, if a log-likelihood differs by more than the
tolerance, or if a prediction differs whose lead is more than twice the tolerance. Needs nothing but Python.

The tolerance is for sums over 150 tokens: on SmolLM2-135M in f32 the harness is 8e-6 a token from the same in float64.
"""

import argparse
import json
import sys
from pathlib import Path

from common import print_json, table


def read(path):
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def argmax(values):
    return max(range(len(values)), key=values.__getitem__)


def predictions(scores, characters, octets):
    """Choice and the scores that decide, for each metric."""
    yield "acc", scores
    yield "acc_norm", [score / n for score, n in zip(scores, characters)]
    yield "acc_bytes", [score / n for score, n in zip(scores, octets)]


def compare_choices(ours, theirs):
    """The largest and mean difference, the items that differ, and what is simply wrong."""
    differences, others, wrong, greedy = [], [], [], 0
    for a, b in zip(ours, theirs):
        for ours_key, key in [("gold", "gold"), ("characters", "choice_characters"), ("bytes", "choice_bytes")]:
            if a[ours_key] != b[key]:
                wrong.append(f"item {a['index']}: {ours_key} {a[ours_key]}, {key} {b[key]}")
        if len(a["log_likelihoods"]) != len(b["log_likelihoods"]):
            wrong.append(f"item {a['index']}: {len(a['log_likelihoods'])} and {len(b['log_likelihoods'])} choices")
            continue
        differences += [abs(x - y) for x, y in zip(a["log_likelihoods"], b["log_likelihoods"])]
        greedy += sum(x != y for x, y in zip(a["is_greedy"], b["is_greedy"]))
        lengths = b["choice_characters"], b["choice_bytes"]
        mine = dict(predictions(a["log_likelihoods"], *lengths))
        for metric, scores in predictions(b["log_likelihoods"], *lengths):
            choice, other = argmax(mine[metric]), argmax(scores)
            if choice != other:
                lead = scores[other] - scores[choice]
                others.append({"item": a["index"], "metric": metric, "ours": choice, "harness": other, "lead": lead})
    return differences, others, wrong, greedy


def compare_generations(ours, theirs):
    others, wrong = [], []
    for a, b in zip(ours, theirs):
        filters = b["filters"]
        found = {"text": (a["response"], b["generation"])}
        for name, key in [("strict-match", "strict"), ("flexible-extract", "flexible")]:
            judged = a[key], float(a[f"{key}_match"])
            reference = filters[name]["answer"], filters[name]["exact_match"]
            found[name] = (a[key], filters[name]["answer"])
            # The same text must be judged alike.
            if a["response"] == b["generation"] and judged != reference:
                wrong.append(f"item {a['index']}: the same text, but {name} gives {judged} and {reference}")
        others += [{"item": a["index"], "what": what, "ours": x, "harness": y} for what, (x, y) in found.items() if x != y]
    return others, wrong


def compare(ours, theirs, tolerance):
    n = min(len(ours), len(theirs))
    if "generation" in theirs[0]:
        others, wrong = compare_generations(ours, theirs)
        return {"items": n, "different": others, "wrong": wrong}
    differences, others, wrong, greedy = compare_choices(ours, theirs)
    worst = max(differences, default=0.0)
    if worst > tolerance:
        wrong.append(f"a log-likelihood differs by {worst}")
    for other in others:
        if other["lead"] > 2 * tolerance:
            wrong.append(f"item {other['item']}: another {other['metric']}, by {other['lead']}")
    accuracies = {
        metric: (sum(x[metric] for x in ours[:n]) / n, sum(y[metric] for y in theirs[:n]) / n)
        for metric in ("acc", "acc_norm")
        if metric in theirs[0]
    }
    mean = sum(differences) / max(len(differences), 1)
    return {
        "items": n,
        "log_likelihoods": len(differences),
        "largest": worst,
        "mean": mean,
        "greedy_differs": greedy,
        "accuracies": accuracies,
        "different": others,
        "wrong": wrong,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ours", type=Path)
    parser.add_argument("harness", type=Path)
    parser.add_argument("--tolerance", type=float, default=2e-3, help="of a log-likelihood, in nats")
    given = parser.parse_args()
    names = sorted(path.stem for path in given.ours.glob("*.jsonl") if (given.harness / path.name).is_file())
    if not names:
        parser.error(f"{given.ours} and {given.harness} have no TASK.jsonl in common")
    results, rows = {}, []
    for name in names:
        ours, theirs = (read(directory / f"{name}.jsonl") for directory in (given.ours, given.harness))
        results[name] = result = compare(ours, theirs, given.tolerance)
        largest, mean = (f"{result[key]:.1e}" if key in result else "" for key in ("largest", "mean"))
        rows.append([name, result["items"], largest, mean, len(result["different"]), len(result["wrong"])])
    table(["task", "items", "largest", "mean", "different", "wrong"], rows)
    for name, result in results.items():
        for other in result["different"]:
            print(f"{name}: {other}")
        for wrong in result["wrong"]:
            print(f"{name}: WRONG {wrong}")
    print_json(results)
    return 1 if any(result["wrong"] for result in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
