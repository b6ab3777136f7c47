"""Time greedy generation of one sequence with transformers: the peer of the `generate` suite of olora-benchmarks.

    python generate.py --model CHECKPOINT|CONFIG.json [--prompt 128] [--new-tokens 64] [--dtype float32] [--device cpu] [--threads 2]

KV cache, random prompt, no end of sequence. The first token, which reads the prompt, is timed by itself; a first
generation is not counted. Prints a table and, as the last line, one JSON object.
"""

import argparse
import json
import os
import time

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from common import peak_rss_bytes, print_json, table, versions


def build(given):
    if os.path.isdir(given.model):
        return AutoModelForCausalLM.from_pretrained(given.model, dtype=getattr(torch, given.dtype)).to(given.device).eval()
    config = LlamaConfig(**json.load(open(given.model)) | {"dtype": given.dtype})
    with torch.device(given.device):
        return LlamaForCausalLM(config).eval()


def timed(model, ids, new_tokens):
    """Seconds that `new_tokens` take; each is on the host before `generate` returns."""
    start = time.perf_counter()
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=0,
    )
    out[0, -1].item()
    assert out.shape[1] == ids.shape[1] + new_tokens
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompt", type=int, default=128, help="tokens")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(given.threads)
    model = build(given)
    ids = torch.randint(0, model.config.vocab_size, (1, given.prompt), device=given.device)
    with torch.inference_mode():
        timed(model, ids, min(given.new_tokens, 4))
        first = timed(model, ids, 1)
        whole = timed(model, ids, given.new_tokens)
    result = {
        "prompt_tokens_per_second": given.prompt / first,
        "tokens_per_second": (given.new_tokens - 1) / (whole - first),
    }
    table(["what", "tokens/s"], [["prompt", result["prompt_tokens_per_second"]], ["generated", result["tokens_per_second"]]])
    print_json(
        {"benchmark": "generate", "dtype": given.dtype, "prompt": given.prompt, "new_tokens": given.new_tokens, "threads": given.threads}
        | result
        | {"peak_rss_bytes": peak_rss_bytes(), "versions": versions()}
    )


if __name__ == "__main__":
    main()
