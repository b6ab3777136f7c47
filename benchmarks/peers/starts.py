"""Time PEFT's initialisations on every linear layer of a checkpoint.

    python starts.py CHECKPOINT [--rank 16] [--repeats 3] [--threads 2]

Times `get_peft_model`, model in memory, f32; the exact SVD once, the others as often as asked.
Prints a table and, as the last line, one JSON object.
"""

import argparse
import copy
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from common import print_json, spread, table, versions

STARTS = {"lora": True, "olora": "olora", "pissa_niter_4": "pissa_niter_4", "pissa": "pissa"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(given.threads)
    base = AutoModelForCausalLM.from_pretrained(given.checkpoint, dtype=torch.float32)
    result = {}
    for name, init in STARTS.items():
        config = LoraConfig(
            r=given.rank, lora_alpha=given.rank, target_modules="all-linear", init_lora_weights=init, task_type="CAUSAL_LM"
        )
        seconds = []
        for _ in range(1 if name == "pissa" else given.repeats):
            model = copy.deepcopy(base)  # initialising changes the base
            start = time.perf_counter()
            get_peft_model(model, config)
            seconds.append(time.perf_counter() - start)
        result[name] = spread(seconds)
    table(["start", "median s", "min s", "max s"], [[name, s["median"], s["min"], s["max"]] for name, s in result.items()])
    print_json(result | {"benchmark": "starts", "rank": given.rank, "threads": given.threads, "versions": versions()})


if __name__ == "__main__":
    main()
