"""Write the data of the setting `metamathqa` in the template of PEFT's method_comparison/MetaMathQA.

    python metamathqa.py MetaMathQA-395K.json gsm8k/train.jsonl data

Writes DIR/metamathqa.jsonl from all records of MetaMathQA, and DIR/gsm8k-valid.jsonl from the first 50 of GSM8K's
training split, as prompts and completions. Needs Python's standard library only.
"""

import json
import pathlib
import sys


def line(question, answer):
    record = {"prompt": f"Question: {question} Think step by step.\nAnswer:", "completion": f" {answer}"}
    return json.dumps(record, ensure_ascii=False) + "\n"


def main():
    meta, gsm8k, out = map(pathlib.Path, sys.argv[1:])
    out.mkdir(parents=True, exist_ok=True)
    records = json.loads(meta.read_text(encoding="utf-8"))
    with open(out / "metamathqa.jsonl", "x", encoding="utf-8") as file:
        file.writelines(line(record["query"], record["response"]) for record in records)
    held_out = [json.loads(text) for text in gsm8k.read_text(encoding="utf-8").splitlines()[:50]]
    with open(out / "gsm8k-valid.jsonl", "x", encoding="utf-8") as file:
        file.writelines(line(record["question"], record["answer"]) for record in held_out)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main()
