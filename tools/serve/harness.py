#!/usr/bin/env python3
"""EleutherAI's lm-evaluation-harness over `olora serve` against `olora evaluate --tasks`, item by item.

    pip install 'lm-eval[api]==0.4.13' transformers
    python3 tools/serve/harness.py --olora target/release/olora                # the quickstart's model: seconds
    python3 tools/serve/harness.py --olora target/release/olora --model DIR --data DIR --tasks arc_easy,piqa

The harness asks `/v1/completions` (its `local-completions`), with its own definitions of the tasks, of which only the
place of the data is another. `--data` is a directory with a file for each task, as `olora evaluate` reads them; without
it, questions about the quickstart's village are asked. Log-likelihoods must agree within 1e-3, and choices, `acc` and
`acc_norm` must be the same for every item. Items that would not fit in the model's positions are left out on both sides.

Nothing is downloaded. No torch is needed. Exit code 1 if anything differs.
"""

import json
import os
import pathlib
import random
import subprocess
import sys
import time

from common import ROOT, Checks, Server, arguments, environment, expect, parser, same, say, train

TOLERANCE = 1e-3
# Of the harness's definitions, those that are plain YAML.
DEFINITIONS = {
    "arc_easy": "arc/arc_easy.yaml", "arc_challenge": "arc/arc_challenge.yaml", "openbookqa": "openbookqa/openbookqa.yaml",
    "piqa": "piqa/piqa.yaml",
}
FILES = {"openbookqa": ["openbookqa", "openbook_qa"]}
LETTERS = "ABCDEFGH"


def village(task, n):
    """Questions about the village, with the right answer among those to other questions, in the data set's own keys."""
    lines = (ROOT / "recipes/quickstart/valid.jsonl").read_text().splitlines()
    records, chance = [json.loads(line) for line in lines], random.Random(task)
    answers = [record["completion"].strip() for record in records]
    items = []
    for record, right in list(zip(records, answers))[:n]:
        choices = chance.sample([answer for answer in answers if answer != right], 1 if task == "piqa" else 3)
        at = chance.randrange(len(choices) + 1)
        items.append(own_keys(task, record["prompt"], [*choices[:at], right, *choices[at:]], at))
    return items


def own_keys(task, question, choices, gold):
    if task == "piqa":
        return {"goal": question, "sol1": choices[0], "sol2": choices[1], "label": gold}
    lettered = {"text": choices, "label": list(LETTERS[:len(choices)])}
    key = "question_stem" if task == "openbookqa" else "question"
    return {"id": str(len(question)), key: question, "choices": lettered, "answerKey": LETTERS[gold]}


def read(task, directory):
    """The items of a file in the data set's own keys; llm-foundry's wording is taken off, as `olora evaluate` does."""
    names = FILES.get(task, [task])
    path = next((pathlib.Path(directory) / f"{name}.jsonl" for name in names if (pathlib.Path(directory) / f"{name}.jsonl").exists()), None)
    if path is None:
        sys.exit(f"no {names[0]}.jsonl in {directory}")
    items = []
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if "query" in record:
            question, choices, gold = record["query"], record["choices"], record["gold"]
            if task != "openbookqa":
                question = question.removeprefix("Question: ").removesuffix("\n")
            if task.startswith("arc"):
                distinct = list(dict.fromkeys(choices))
                choices, gold = distinct, distinct.index(choices[gold])
            record = own_keys(task, question, choices, gold)
        items.append(record)
    return items


def texts(task, item):
    """Context and choices, to see how long they are."""
    if task == "piqa":
        return f"Question: {item['goal']}\nAnswer:", [item["sol1"], item["sol2"]]
    if task == "openbookqa":
        return item["question_stem"], item["choices"]["text"]
    return f"Question: {item['question']}\nAnswer:", item["choices"]["text"]


def define(task, data, place):
    """The harness's definition with another place of the data. Its new name."""
    import lm_eval
    import yaml

    text = (pathlib.Path(lm_eval.__file__).parent / "tasks" / DEFINITIONS[task]).read_text()
    definition = yaml.safe_load(text)
    if "include" in definition:
        base = pathlib.Path(lm_eval.__file__).parent / "tasks" / DEFINITIONS[task]
        definition = yaml.safe_load((base.parent / definition.pop("include")).read_text()) | definition
    name = f"local_{task}"
    definition |= {
        "task": name, "dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": {"test": str(data)}},
        "training_split": None, "validation_split": None, "test_split": "test",
    }
    definition.pop("tag", None)
    (place / f"{name}.yaml").write_text(yaml.safe_dump(definition))
    return name


def by_harness(url, model, tokenizer, names, place, given, positions, bos):
    """Each task's items in order: log-likelihoods, acc, acc_norm; and its metrics."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    options = {
        "model": model, "base_url": f"{url}/v1/completions", "tokenizer": str(tokenizer), "tokenizer_backend": "huggingface",
        "tokenized_requests": True, "num_concurrent": given.concurrent, "max_length": positions, "max_retries": 3,
        "add_bos_token": bos,
    }
    found = lm_eval.simple_evaluate(
        model="local-completions", model_args=options, tasks=list(names.values()), bootstrap_iters=0, log_samples=True,
        batch_size=given.batch, task_manager=TaskManager(include_path=str(place), include_defaults=False),
    )
    result = {}
    for task, name in names.items():
        samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
        items = [
            {"log_likelihoods": [float(part[0]) for part in sample["filtered_resps"]], "acc": bool(sample["acc"]),
             "acc_norm": bool(sample["acc_norm"])} for sample in samples
        ]
        metrics = {key.split(",")[0]: value for key, value in found["results"][name].items() if key.startswith("acc")}
        result[task] = items, {key: metrics[key] for key in ("acc", "acc_norm")}
    return result


def by_olora(given, adapter, data, output):
    argv = [given.olora, "evaluate", "--model", given.model, "--tasks", ",".join(given.tasks), "--task-data", data, "--output", output]
    argv += ["--adapter", adapter] if adapter else []
    ran = subprocess.run(argv, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=3600)
    if ran.returncode != 0:
        sys.exit(f"olora evaluate failed: {ran.stderr[-500:]}")
    metrics = {one["task"]: one["metrics"] for one in json.loads((output / "results.json").read_text())["tasks"]}
    result = {}
    for task in given.tasks:
        items = [json.loads(line) for line in (output / f"{task}.jsonl").read_text().splitlines()]
        result[task] = sorted(items, key=lambda item: item["index"]), {key: metrics[task][key]["value"] for key in ("acc", "acc_norm")}
    return result


def compare(checks, what, ours, theirs, n):
    items, metrics = ours
    others, other_metrics = theirs
    with checks.check(f"{what}: log-likelihoods within {TOLERANCE:g}"):
        same(len(others), len(items), "items")
        same(len(items), n, "items")
        pairs = [(i, a, b) for i, (one, other) in enumerate(zip(items, others))
                 for a, b in zip(one["log_likelihoods"], other["log_likelihoods"], strict=True)]
        worst = max(pairs, key=lambda pair: abs(pair[1] - pair[2]))
        far = abs(worst[1] - worst[2])
        expect(far <= TOLERANCE, f"item {worst[0]}: {worst[1]} by olora evaluate, {worst[2]} by the harness")
        say(f"      {len(items)} items, {len(pairs)} choices, furthest apart {far:.1e}")
    with checks.check(f"{what}: the same choice for every item, and the same scores"):
        for key in ("acc", "acc_norm"):
            differ = [i for i, (one, other) in enumerate(zip(items, others)) if one[key] != other[key]]
            same(differ, [], f"items whose {key} differs")
            expect(abs(metrics[key] - other_metrics[key]) < 1e-9, f"{key}: {metrics[key]} and {other_metrics[key]}")
        best = [max(range(len(x)), key=x.__getitem__) for x in (other["log_likelihoods"] for other in others)]
        same([i for i, (item, at) in enumerate(zip(items, best)) if item["prediction"] != at], [], "items with another choice")
        say(f"      acc {metrics['acc']:.4f}, acc_norm {metrics['acc_norm']:.4f}")


def main():
    made = parser(__doc__)
    made.add_argument("--tasks", default="arc_easy,piqa", help=f"of {', '.join(DEFINITIONS)}, separated by commas")
    made.add_argument("--data", help="a directory with a file for each task")
    made.add_argument("--limit", type=int, default=100, help="items of each task")
    made.add_argument("--adapter", help="an adapter to score too; by default, for the quickstart's model, one that is trained here")
    made.add_argument("--concurrent", type=int, default=8, help="requests at once")
    made.add_argument("--batch", type=int, default=1, help="prompts in a request")
    given = arguments(made)
    given.tasks = given.tasks.split(",")
    os.environ |= {"HF_HOME": str(given.work / "hf"), "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
                   "TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(str(given.model))
    bos = tokenizer("a").input_ids != tokenizer("a", add_special_tokens=False).input_ids
    positions = json.loads((given.model / "config.json").read_text())["max_position_embeddings"]
    data, definitions = given.work / "tasks", given.work / "definitions"
    data.mkdir()
    definitions.mkdir()
    numbers, names = {}, {}
    for task in given.tasks:
        items, left_out = [], 0
        for item in read(task, given.data) if given.data else village(task, given.limit):
            context, choices = texts(task, item)
            if max(len(tokenizer(f"{context} {choice}").input_ids) for choice in choices) > positions - 8:
                left_out += 1
                continue
            items.append(item)
            if len(items) == given.limit:
                break
        (data / f"{task}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
        numbers[task], names[task] = len(items), define(task, data / f"{task}.jsonl", definitions)
        say(f"{task}: {len(items)} items" + (f", {left_out} too long for {positions} positions" if left_out else ""))
    checks = Checks()
    adapter = pathlib.Path(given.adapter).resolve() if given.adapter else None
    if given.village and not adapter:
        adapter = train(given.olora, given.work / "runs", "crier", "training.epochs=0.5")
    argv = ["--model", given.model, "--name", "base", *(["--adapter", f"tuned={adapter}"] if adapter else [])]
    for model in ("base", "tuned") if adapter else ("base",):
        ours = by_olora(given, adapter if model == "tuned" else None, data, given.work / f"scores-{model}")
        # Not while the other is computing: two cores are few.
        with Server(given.olora, *argv) as server:
            began = time.monotonic()
            theirs = by_harness(server.url, model, given.model, names, definitions, given, positions, bos)
            say(f"{model}: the harness took {time.monotonic() - began:.1f} s")
        for task in given.tasks:
            compare(checks, f"{model}, {task}", ours[task], theirs[task], numbers[task])
    return checks.end()


if __name__ == "__main__":
    sys.exit(main())
