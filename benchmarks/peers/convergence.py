"""Train with PEFT what the suite `convergence` of olora-benchmarks has trained, on the very same batches.

    python convergence.py WORK.json [--threads 2]

WORK.json is written by `olora-benchmarks convergence --peer PYTHON`: the tokens of every step and of the validation data,
the learning rate of every step, and the adapter. f32. The starts are PEFT's own; those of
LoRA and of randomised PiSSA are random, so only OLoRA's run is the same to rounding. Prints the validation losses and,
as the last line, one JSON object.
"""

import argparse
import json
import os

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from common import print_json, table, versions


def loss_sum(model, rows):
    """The summed loss over trained tokens, and how many there are. Padding on the right needs no mask."""
    longest = max(len(row["tokens"]) for row in rows)
    ids = torch.tensor([row["tokens"][:-1] + [0] * (longest - len(row["tokens"])) for row in rows])
    targets = [
        [token if trained else -100 for token, trained in zip(row["tokens"][1:], row["trained"][1:])] for row in rows
    ]
    targets = torch.tensor([row + [-100] * (longest - 1 - len(row)) for row in targets]).flatten()
    causal = model.get_base_model()
    hidden = causal.model(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)
    at = (targets != -100).nonzero().squeeze(1)
    return cross_entropy(causal.lm_head(hidden[at]), targets[at], reduction="sum"), len(at)


def evaluate(model, rows, batch_size):
    total, count = 0.0, 0
    with torch.inference_mode():
        for start in range(0, len(rows), batch_size):
            loss, n = loss_sum(model, rows[start : start + batch_size])
            total, count = total + loss.item(), count + n
    return total / count


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    work = json.load(open(given.work))
    torch.manual_seed(work["seed"])
    base = AutoModelForCausalLM.from_pretrained(work["model"], dtype=torch.float32)
    lora = LoraConfig(
        r=work["rank"],
        lora_alpha=work["alpha"],
        use_rslora=work["rslora"],
        use_dora=work["dora"],
        init_lora_weights=work["init"],
        target_modules="all-linear" if work["targets"] == ["all-linear"] else work["targets"],
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base, lora).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(
        trained, betas=work["betas"], eps=work["epsilon"], weight_decay=work["weight_decay"]
    )
    losses = [(0, evaluate(model, work["validation"], work["batch_size"]))]
    for step, (batch, rate) in enumerate(zip(work["train"], work["rates"]), start=1):
        loss, count = loss_sum(model, batch)
        (loss / count).backward()
        if work["max_grad_norm"] > 0:
            torch.nn.utils.clip_grad_norm_(trained, work["max_grad_norm"])
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if step in work["evaluate_after"]:
            losses.append((step, evaluate(model, work["validation"], work["batch_size"])))
    table(["step", "validation loss"], [[str(step), f"{loss:.6f}"] for step, loss in losses])
    print_json({"benchmark": "convergence", "validation": losses, "threads": given.threads, "versions": versions()})


if __name__ == "__main__":
    main()
