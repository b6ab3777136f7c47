"""Time the LoRA training step of PEFT on a random LLaMA: the peer of the `paths` suite of olora-benchmarks.

    python train_step.py [--threads 2] [--steps 10] [--init lora|olora] [--attn sdpa|eager]

Prints a table and, as the last line, one JSON object. No downloads.
"""

import argparse
import os
import time

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from common import peak_rss_bytes, print_json, spread, table, versions

BATCH, SEQUENCE, VOCABULARY, RANK, ALPHA, WARM_UP = 4, 256, 8192, 16, 16, 3
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def build(init, attention):
    """The model, adapted; PEFT freezes the base and leaves the factors trainable."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=SEQUENCE,
        tie_word_embeddings=False,
        use_cache=False,
        attn_implementation=attention,
    )
    lora = LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=0.0,
        target_modules=PROJECTIONS,
        init_lora_weights="olora" if init == "olora" else True,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(LlamaForCausalLM(config).float(), lora).train()


def step(model, optimiser, ids):
    """One training step; the loss is over all next tokens."""
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return loss.item()


def measure(model, steps):
    """Seconds and loss of every timed step, after the warm-up. Each step has its own random batch."""
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, weight_decay=0.0)
    batches = [torch.randint(0, VOCABULARY, (BATCH, SEQUENCE)) for _ in range(WARM_UP + steps)]
    seconds, losses = [], []
    for ids in batches:
        start = time.perf_counter()
        losses.append(step(model, optimiser, ids))
        seconds.append(time.perf_counter() - start)
    return seconds[WARM_UP:], losses[WARM_UP:]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10, help="timed steps")
    parser.add_argument("--init", choices=["lora", "olora"], default="lora")
    parser.add_argument("--attn", choices=["sdpa", "eager"], default="sdpa")
    return parser.parse_args()


def main():
    given = arguments()
    torch.manual_seed(0)
    torch.set_num_threads(given.threads)
    model = build(given.init, given.attn)
    seconds, losses = measure(model, given.steps)
    rates = [BATCH * SEQUENCE / s for s in seconds]
    table(["step", "seconds", "tokens/s", "loss"], [[str(i), *row] for i, row in enumerate(zip(seconds, rates, losses))])
    print_json(
        {
            "benchmark": "train_step",
            "init": given.init,
            "attention": given.attn,
            "threads": given.threads,
            "steps": given.steps,
            "batch": [BATCH, SEQUENCE],
            "rank": RANK,
            "tokens_per_second": spread(rates),
            "step_seconds": spread(seconds),
            "peak_rss_bytes": peak_rss_bytes(),
            "trainable_params": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "total_params": sum(p.numel() for p in model.parameters()),
            "versions": versions(),
        }
    )


if __name__ == "__main__":
    main()
