"""Time the LoRA training step of PEFT on a random LLaMA: the peer of the `paths` suite of olora-benchmarks.

    python train_step.py [--threads 2] [--steps 10] [--init lora|olora] [--attn sdpa|eager]
    python train_step.py --config CONFIG.json --device cuda --dtype bfloat16 --sequence 2048 [--compile]

Prints a table and, as the last line, one JSON object. No downloads.
"""

import argparse
import json
import os
import time

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from common import peak_rss_bytes, print_json, spread, table, versions

RANK, ALPHA = 16, 16
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# The model of the `paths` suite.
PATHS = {
    "vocab_size": 8192,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}


def build(given):
    """The model, adapted; PEFT freezes the base and leaves the factors trainable, in f32."""
    shape = json.load(open(given.config)) if given.config else PATHS
    config = LlamaConfig(**{**shape, "use_cache": False, "attn_implementation": given.attn})
    lora = LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=0.0,
        target_modules=PROJECTIONS,
        init_lora_weights="olora" if given.init == "olora" else True,
        task_type="CAUSAL_LM",
    )
    with torch.device(given.device):
        base = LlamaForCausalLM(config).to(getattr(torch, given.dtype))
    return get_peft_model(base, lora).train(), config.vocab_size


def step(model, optimiser, ids, autocast):
    """One training step; the loss is over all next tokens."""
    with torch.autocast(ids.device.type, dtype=torch.bfloat16, enabled=autocast):
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return loss.item()


def measure(model, vocabulary, given):
    """Seconds and loss of every step, warm-up included. Each step has its own random batch."""
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, weight_decay=0.0)
    seconds, losses = [], []
    for _ in range(given.warm_up + given.steps):
        ids = torch.randint(0, vocabulary, (given.batch, given.sequence), device=given.device)
        start = time.perf_counter()
        # Reading the loss waits for the device, as reading it at every step would in use.
        losses.append(step(model, optimiser, ids, given.autocast))
        seconds.append(time.perf_counter() - start)
    return seconds, losses


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10, help="timed steps")
    parser.add_argument("--init", choices=["lora", "olora"], default="lora")
    parser.add_argument("--attn", choices=["sdpa", "eager"], default="sdpa")
    parser.add_argument("--config", help="a config.json of another shape")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the base")
    parser.add_argument("--autocast", action="store_true", help="products in bfloat16, as torch.autocast chooses them")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--sequence", type=int, default=256)
    parser.add_argument("--warm-up", type=int, default=3, help="steps that are not timed")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model")
    return parser.parse_args()


def main():
    given = arguments()
    torch.manual_seed(0)
    torch.set_num_threads(given.threads)
    model, vocabulary = build(given)
    params = [p.numel() for p in model.parameters()]
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    cuda = given.device.startswith("cuda")
    if given.compile:
        model = torch.compile(model)
    all_seconds, all_losses = measure(model, vocabulary, given)
    seconds, losses = all_seconds[given.warm_up :], all_losses[given.warm_up :]
    rates = [given.batch * given.sequence / s for s in seconds]
    table(["step", "seconds", "tokens/s", "loss"], [[str(i), *row] for i, row in enumerate(zip(seconds, rates, losses))])
    print_json(
        {
            "benchmark": "train_step",
            "init": given.init,
            "attention": given.attn,
            "threads": given.threads,
            "steps": given.steps,
            "batch": [given.batch, given.sequence],
            "rank": RANK,
            "device": torch.cuda.get_device_name(given.device) if cuda else "cpu",
            "dtype": given.dtype,
            "autocast": given.autocast,
            "compiled": given.compile,
            "first_step_seconds": all_seconds[0],
            "last_loss": losses[-1],
            "peak_device_bytes": torch.cuda.max_memory_reserved() if cuda else None,
            "tokens_per_second": spread(rates),
            "step_seconds": spread(seconds),
            "peak_rss_bytes": peak_rss_bytes(),
            "trainable_params": trainable,
            "total_params": sum(params),
            "versions": versions(),
        }
    )


if __name__ == "__main__":
    main()
