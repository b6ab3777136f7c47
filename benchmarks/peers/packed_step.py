"""Time LoRA on a base that bitsandbytes packed in NF4 beside the dense base, on a CPU: the peer of a packed step.

    python packed_step.py --model CHECKPOINT                       # every base at 4 x 256, 1 x 512 and 1 x 1024 tokens
    python packed_step.py --model CHECKPOINT --base nf4 --batch 1 --sequence 512
    python packed_step.py --layer 14336x4096 --sequence 512        # one layer of that many outputs and inputs

Rank 16 on every linear layer; NF4 with double quantisation in blocks of 64, made from the checkpoint as it is loaded,
or read if the checkpoint is packed already. `--dtype` is the type of everything that is not packed, in which
bitsandbytes computes too. A step is forward, loss over all next tokens, backward, AdamW and zeroing of gradients, on
random tokens; of a layer, forward and backward alone, gradients of the inputs included. Each line is a process of its
own, so that its peak is its own; `loaded` is what the process holds before the first step. Prints a table and, as the
last line, one JSON object. Needs bitsandbytes beside requirements.txt; give nothing else to do to the machine.
"""

import argparse
import json
import os
import subprocess
import sys
import time

os.environ["HF_HUB_OFFLINE"] = "1"

import bitsandbytes
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.utils import logging

from common import peak_rss_bytes, print_json, spread, table, versions
from train_step import ALPHA, PROJECTIONS, RANK, measure

BASES = ("dense", "nf4")
SHAPES = ((4, 256), (1, 512), (1, 1024))


def resident_bytes():
    """What the process holds now; None where there is no /proc."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def lora(targets):
    return LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=targets)


def build(given):
    """The checkpoint, adapted, the factors in f32."""
    dtype, options = getattr(torch, given.dtype), {}
    if given.base == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    base = AutoModelForCausalLM.from_pretrained(given.model, dtype=dtype, device_map="cpu", **options)
    base.config.use_cache = False
    model = get_peft_model(base, lora(PROJECTIONS)).train()
    packed = [module for module in model.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    assert bool(packed) == (given.base == "nf4"), f"{len(packed)} packed layers"
    return model, base.config.vocab_size


def build_layer(given):
    """One adapted layer of random weights."""
    rows, columns = map(int, given.layer.split("x"))
    dtype = getattr(torch, given.dtype)
    layer = torch.nn.Linear(columns, rows, bias=False, dtype=dtype)
    torch.nn.init.normal_(layer.weight, std=0.02)
    if given.base == "nf4":
        packed = bitsandbytes.nn.Linear4bit(
            columns, rows, bias=False, compute_dtype=dtype, compress_statistics=True, quant_type="nf4"
        )
        packed.load_state_dict(layer.state_dict())
        layer = packed.to("cpu")
        assert layer.weight.dtype == torch.uint8, "the layer is not packed"
    return get_peft_model(torch.nn.Sequential(layer), lora(["0"])).train(), columns


def measure_layer(model, columns, given):
    seconds = []
    for _ in range(given.warm_up + given.steps):
        x = torch.randn(given.batch * given.sequence, columns, dtype=getattr(torch, given.dtype), requires_grad=True)
        start = time.perf_counter()
        y = model(x)
        y.backward(torch.ones_like(y))
        seconds.append(time.perf_counter() - start)
        model.zero_grad(set_to_none=True)
    return seconds, [None] * len(seconds)


def run(given):
    """One base at one shape, in this process."""
    torch.manual_seed(0)
    torch.set_num_threads(given.threads)
    model, size = build_layer(given) if given.layer else build(given)
    loaded = resident_bytes()
    seconds, losses = (measure_layer if given.layer else measure)(model, size, given)
    timed = seconds[given.warm_up :]
    return {
        "base": given.base,
        "batch": [given.batch, given.sequence],
        "tokens_per_second": spread([given.batch * given.sequence / s for s in timed]),
        "step_seconds": spread(timed),
        "first_step_seconds": seconds[0],
        "last_loss": losses[-1],
        "loaded_rss_bytes": loaded,
        "peak_rss_bytes": peak_rss_bytes(),
    }


def in_own_process(given, base, batch, sequence):
    arguments = [f"--{key}={getattr(given, key.replace('-', '_'))}" for key in ("dtype", "threads", "steps", "warm-up")]
    arguments.append(f"--layer={given.layer}" if given.layer else f"--model={given.model}")
    arguments += [f"--base={base}", f"--batch={batch}", f"--sequence={sequence}", "--one"]
    out = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(out.stdout.splitlines()[-1])


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", help="checkpoint directory")
    what.add_argument("--layer", metavar="OUTxIN")
    parser.add_argument("--base", choices=BASES, help="only this one")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--sequence", type=int, help="only this length; 4 x 256, 1 x 512 and 1 x 1024 if not given")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10, help="timed steps")
    parser.add_argument("--warm-up", type=int, default=2, help="steps that are not timed")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.device = "cpu"
    return given


def main():
    given = arguments()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    if given.one:
        print_json(run(given))
        return
    shapes = [(given.batch, given.sequence)] if given.sequence else SHAPES
    runs = [
        in_own_process(given, base, *shape) for shape in shapes for base in ([given.base] if given.base else BASES)
    ]
    megabytes = lambda count: "-" if count is None else f"{count / 1e6:,.0f}"
    table(
        ["base", "tokens", "seconds", "tokens/s", "loaded MB", "peak MB"],
        [
            [
                run["base"],
                "{} x {}".format(*run["batch"]),
                run["step_seconds"]["median"],
                run["tokens_per_second"]["median"],
                megabytes(run["loaded_rss_bytes"]),
                megabytes(run["peak_rss_bytes"]),
            ]
            for run in runs
        ],
    )
    print_json(
        {
            "benchmark": "packed_step",
            "what": given.layer or "model",
            "threads": given.threads,
            "steps": given.steps,
            "rank": RANK,
            "dtype": given.dtype,
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "runs": runs,
            "versions": versions() | {"bitsandbytes": bitsandbytes.__version__},
        }
    )


if __name__ == "__main__":
    main()
