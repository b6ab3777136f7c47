"""From a data file to the first batch, by datasets and transformers, as a training script of today does it.

    python benchmarks/peers/data.py make FILE N       # N records of a question and an answer, seeded
    python benchmarks/peers/data.py read MODEL FILE   # MODEL: a checkpoint's directory with a tokenizer and a chat template

`read` prints seconds and the peak memory of this process and of its workers together. What it does for each record: the chat
template for the prompt and for the whole, tokens of the whole, and a mask of the prompt; two workers. Then one padded batch of 8.
The same by olora: `cargo run --release -p olora-data --example first_batch -- MODEL FILE`.
"""

import json
import os
import random
import resource
import sys
import tempfile
import time

WORDS = "Alder Oxmere Zora Thornby Jorun mill ford glass weaver market river barley lantern orchard winter bridge".split()


def make(path, n):
    rng = random.Random(7)

    def sentence(low, high):
        return " ".join(rng.choices(WORDS, k=rng.randint(low, high)))

    with open(path, "w") as out:
        for i in range(n):
            record = {"id": i, "prompt": f"Where is {sentence(3, 12)}?", "completion": f"In {sentence(5, 30)}."}
            out.write(json.dumps(record) + "\n")


def read(model, path):
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    began = time.perf_counter()
    import datasets
    import torch
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(model)

    def encode(batch):
        prompts, texts = [], []
        for prompt, completion in zip(batch["prompt"], batch["completion"]):
            turns = [{"role": "user", "content": prompt}]
            prompts.append(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
            turns.append({"role": "assistant", "content": completion})
            texts.append(tokenizer.apply_chat_template(turns, tokenize=False))
        whole = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
        labels = [
            [token if begin >= len(prompt) else -100 for token, (begin, _) in zip(ids, offsets)]
            for prompt, ids, offsets in zip(prompts, whole["input_ids"], whole["offset_mapping"])
        ]
        return {"input_ids": whole["input_ids"], "labels": labels}

    with tempfile.TemporaryDirectory() as cache:
        data = datasets.load_dataset("json", data_files=path, split="train", cache_dir=cache)
        data = data.map(encode, batched=True, num_proc=2, remove_columns=data.column_names)
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(42))[:8]
        rows = [data[int(i)] for i in order]
        longest = max(len(row["input_ids"]) for row in rows)
        batch = torch.tensor([row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in rows])
        seconds = time.perf_counter() - began
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        print(
            json.dumps(
                {
                    "records": len(data),
                    "batch": list(batch.shape),
                    "seconds": round(seconds, 1),
                    "peak_mb": round(own / 1e3),
                    "peak_of_each_worker_mb": round(workers / 1e3),
                    "datasets": datasets.__version__,
                }
            )
        )


if __name__ == "__main__":
    command, *rest = sys.argv[1:]
    make(rest[0], int(rest[1])) if command == "make" else read(*rest)
