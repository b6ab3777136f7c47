"""Score a checkpoint with EleutherAI's lm-evaluation-harness on local files, item by item, in f32 on a CPU.

    python harness.py --model DIR --data DIR --output DIR [--tasks arc_easy,boolq] [--limit N] [--peft ADAPTER]

The model class, the tasks' YAML files with their templates, and the metrics are the harness's own; no few-shot examples
and no chat template. Only where the documents come from differs: nothing is downloaded, DIR holds one file of JSON lines
per task (`--tasks` is every task here that has its file there):

    arc_easy.jsonl arc_challenge.jsonl boolq.jsonl openbook_qa.jsonl piqa.jsonl winogrande.jsonl hellaswag.jsonl test.jsonl

`test.jsonl` is GSM8K, named as in openai/grade-school-math. A record has the fields of the public data set, or those of
llm-foundry's `scripts/eval/local_data`, from which the former are restored:

- ARC: a choice that occurs twice is left out the second time, for llm-foundry fills three choices up to four;
- BoolQ: the question mark goes, because the template adds one; the passages' titles are lost in those files, so that no
  number can agree with one on the public data set to the last item.

Writes `TASK.documents.jsonl`, the first N documents as the harness sees them, and `TASK.jsonl`, a line per document. Of
multiple choice that holds contexts, continuations, their summed log-likelihoods, whether they are what greedy decoding
gives, the lengths of the choices, the index of the right one, and what the task's metrics make of it; of GSM8K the
context, what was generated, and per filter the number found and whether it is right. Prints a table and, as the last
line, one JSON object; seconds are those of prompts, tokenising and model together.
"""

import argparse
import importlib.metadata
import json
import os
import string
import sys
import time
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}

import lm_eval
import torch
from datasets import Dataset
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks._yaml_loader import load_yaml

from common import print_json, table, versions


def arc(record):
    texts = list(dict.fromkeys(record["choices"]))
    labels = list(string.ascii_uppercase[: len(texts)])
    right = texts.index(record["choices"][record["gold"]])
    question = record["query"].removeprefix("Question: ")
    return {"question": question, "choices": {"text": texts, "label": labels}, "answerKey": labels[right]}


def boolq(record):
    passage, question = record["query"].removeprefix("Passage: ").rsplit("\nQuestion: ", 1)
    return {"passage": passage, "question": question.removesuffix("?"), "label": record["gold"]}


def openbookqa(record):
    labels = list(string.ascii_uppercase[: len(record["choices"])])
    choices = {"text": record["choices"], "label": labels}
    return {"question_stem": record["query"], "choices": choices, "answerKey": labels[record["gold"]]}


def piqa(record):
    goal = record["query"].removeprefix("Question: ").removesuffix("\n")
    first, second = record["choices"]
    return {"goal": goal, "sol1": first, "sol2": second, "label": record["gold"]}


def winogrande(record):
    contexts = record["context_options"]
    # The options begin after the last space that the contexts have in common.
    start = os.path.commonprefix(contexts).rfind(" ") + 1
    first, second = (context[start:] for context in contexts)
    sentence = f"{contexts[0][:start]}_ {record['continuation']}"
    return {"sentence": sentence, "option1": first, "option2": second, "answer": str(record["gold"] + 1)}


# The harness's file, the local file, and what restores the public fields of a record of llm-foundry.
TASKS = {
    "arc_easy": ("arc/arc_easy.yaml", "arc_easy.jsonl", arc),
    "arc_challenge": ("arc/arc_challenge.yaml", "arc_challenge.jsonl", arc),
    "boolq": ("super_glue/boolq/default.yaml", "boolq.jsonl", boolq),
    "openbookqa": ("openbookqa/openbookqa.yaml", "openbook_qa.jsonl", openbookqa),
    "piqa": ("piqa/piqa.yaml", "piqa.jsonl", piqa),
    "winogrande": ("winogrande/default.yaml", "winogrande.jsonl", winogrande),
    "hellaswag": ("hellaswag/hellaswag.yaml", "hellaswag.jsonl", None),
    "gsm8k": ("gsm8k/gsm8k.yaml", "test.jsonl", None),
}


def read_documents(name, given):
    """The documents of a task, in the fields of the public data set."""
    _, file, restore = TASKS[name]
    with open(given.data / file, encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines if line.strip()]
    local = {"query", "context_options"}
    return [restore(record) if restore and local & record.keys() else record for record in records[: given.limit]]


def load_task(name, documents):
    """The harness's task on these documents, which stand for every split: without examples only one is read."""
    path = Path(lm_eval.__file__).parent / "tasks" / TASKS[name][0]
    splits = dict.fromkeys(("train", "validation", "test"), Dataset.from_list(documents))
    config = load_yaml(path, resolve_func=True)
    return ConfigurableTask(config=config | {"custom_dataset": lambda **_: splits, "num_fewshot": 0})


def choice_item(task, sample):
    """A line of output for a document of multiple choice."""
    document = sample["doc"]
    choices = task.doc_to_choice(document)
    # Where the contexts differ and the continuation does not, the harness has text and target the other way round.
    gold = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
    contexts, continuations = zip(*sample["arguments"])
    scores, greedy = zip(*sample["filtered_resps"])
    return {
        "index": sample["doc_id"],
        "contexts": contexts,
        "continuations": continuations,
        "log_likelihoods": scores,
        "is_greedy": greedy,
        "choice_characters": [len(choice) for choice in choices],
        "choice_bytes": [len(choice.encode()) for choice in choices],
        "gold": gold,
    } | {metric: sample[metric] for metric in sample["metrics"]}


def generation_items(samples):
    """A line of output for each generated answer; the harness has a sample for each filter."""
    items = {}
    for sample in samples:
        context, _ = sample["arguments"][0]
        item = {"index": sample["doc_id"], "context": context, "generation": sample["resps"][0][0], "filters": {}}
        found = {"answer": sample["filtered_resps"][0], "exact_match": float(sample["exact_match"])}
        items.setdefault(sample["doc_id"], item)["filters"][sample["filter"]] = found
    return list(items.values())


def write_lines(path, records):
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def score(name, model, given):
    """Scores and seconds of a task, written item by item."""
    documents = read_documents(name, given)
    task = load_task(name, documents)
    start = time.perf_counter()
    results = lm_eval.evaluate(model, {"tasks": {name: task}})
    seconds = time.perf_counter() - start
    samples = results["samples"][name]
    generated = task.OUTPUT_TYPE == "generate_until"
    items = generation_items(samples) if generated else [choice_item(task, sample) for sample in samples]
    write_lines(given.output / f"{name}.documents.jsonl", documents)
    write_lines(given.output / f"{name}.jsonl", items)
    # The harness names a score `metric,filter`.
    scores = {key: float(value) for key, value in results["results"][name].items() if "," in key and value != "N/A"}
    return {"items": len(items), "seconds": seconds, "scores": scores}


def rows(results):
    for name, result in results.items():
        scores = result["scores"]
        for key in scores:
            metric, filter = key.split(",")
            if not metric.endswith("_stderr"):
                label = metric if filter == "none" else f"{metric} ({filter})"
                error = scores.get(f"{metric}_stderr,{filter}", float("nan"))
                yield [name, label, f"{scores[key]:.4f}", f"{error:.4f}", result["items"], f"{result['seconds']:.0f}"]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="checkpoint in Hugging Face's layout")
    parser.add_argument("--data", type=Path, required=True, help="directory of the files above")
    parser.add_argument("--output", type=Path, required=True, help="directory, made if it is not there")
    parser.add_argument("--tasks", help="comma-separated")
    parser.add_argument("--limit", type=int, help="only the first N documents of each task")
    parser.add_argument("--peft", help="adapter in PEFT's layout; it stays beside the weights, unmerged")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    present = [name for name, (_, file, _) in TASKS.items() if (given.data / file).is_file()]
    given.tasks = given.tasks.split(",") if given.tasks else present
    for name in given.tasks:
        if name not in TASKS:
            parser.error(f"no task {name}: there are {', '.join(TASKS)}")
        if name not in present:
            parser.error(f"{name} needs {given.data / TASKS[name][1]}")
    if not given.tasks:
        parser.error(f"no file of any task in {given.data}")
    if given.output.resolve() == given.data.resolve():
        parser.error("--output would write over the files in --data")
    return given


def main():
    given = arguments()
    torch.set_num_threads(given.threads)
    given.output.mkdir(parents=True, exist_ok=True)
    model = HFLM(given.model, peft=given.peft, device="cpu", dtype="float32", batch_size=given.batch)
    results = {}
    for name in given.tasks:
        results[name] = score(name, model, given)
        print(f"{name}: {results[name]['items']} items, {results[name]['seconds']:.0f} s", file=sys.stderr, flush=True)
    table(["task", "metric", "value", "stderr", "items", "seconds"], rows(results))
    print_json(
        {
            "tasks": results,
            "threads": torch.get_num_threads(),
            "batch": given.batch,
            "versions": versions() | {"lm_eval": importlib.metadata.version("lm_eval")},
        }
    )


if __name__ == "__main__":
    main()
