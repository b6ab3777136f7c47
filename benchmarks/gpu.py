#!/usr/bin/env python3
"""Everything that is measured on a GPU, in one call that ends within ten minutes.

    python3 benchmarks/gpu.py --olora PATH/TO/olora [--devices cuda vulkan] [--shapes tinyllama-1.1b ...] [--no-peers]
    python3 benchmarks/gpu.py --olora target/release/olora --quick      # tries the script itself, on a CPU, in a minute

For each device: `olora doctor` (its table is printed as it stands). For each shape and device: 100 training steps after
20 of warm-up, random weights, every token of full-length sequences trained, LoRA of rank 16 on all linear layers, bf16,
AdamW on f32 factors; then the same step in PyTorch + PEFT (sdpa attention), eager and compiled, in the same sitting.
Prints a Markdown table and, as the last line, one JSON object. Needs Python's standard library; the peers need torch,
transformers and peft.

Tokens per second are those of the steps after warm-up. MFU is their share of the device's bf16 peak by NeMo's convention
for LoRA: (6 N + 6 L s d) (2 + trained / frozen) / 3 operations per token, N the linear layers and the vocabulary
projection, causal attention counted at half. Memory is what the
allocator held (`reserved`): ours at most at a logged line, PyTorch's at most at any time; on a CPU, the peak resident size.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
RANK = 16
BEGAN = time.monotonic()
# Dense bf16 peaks in TFLOP/s, from the vendors' data sheets.
PEAKS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "4090": 165}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--olora", type=pathlib.Path, required=True, help="the binary to measure")
    parser.add_argument("--devices", nargs="+", default=["cuda", "vulkan"])
    parser.add_argument("--shapes", nargs="+", default=["tinyllama-1.1b", "llama-3.2-1b"])
    parser.add_argument("--dtype", default="bfloat16", help="for devices that compute in it; others take float32")
    parser.add_argument("--sequence", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=1, help="sequences")
    parser.add_argument("--set", action="append", default=[], help="a key of the recipe, such as training.recompute=\"blocks\"")
    parser.add_argument("--warm-up", type=int, default=20)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--limit", type=int, default=150, help="seconds that one measurement may take")
    parser.add_argument("--minutes", type=float, default=9.5, help="what is not done by then is left out, and said")
    parser.add_argument("--no-doctor", action="store_true")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a tiny shape on the CPU")
    given = parser.parse_args()
    if given.quick:
        given.devices, given.shapes, given.dtype = ["cpu"], ["tiny"], "float32"
        given.sequence, given.batch, given.warm_up, given.steps = 64, 2, 2, 4
    return given


def say(text=""):
    print(text, flush=True)


def run(command, given):
    """Runs a command; returns its exit code, what it printed and the seconds it took."""
    began = time.monotonic()
    limit = min(given.limit, given.minutes * 60 - (began - BEGAN))
    if limit < 5:
        return 124, "", "left out: no time was left", 0.0
    try:
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=limit)
        return done.returncode, done.stdout, done.stderr, time.monotonic() - began
    except subprocess.TimeoutExpired as late:
        text = lambda x: (x or b"").decode() if isinstance(x, bytes) else (x or "")
        return 124, text(late.stdout), text(late.stderr) + f"\nnot done after {limit:.0f} s", time.monotonic() - began


def doctor(given, device):
    code, out, err, seconds = run([given.olora, "doctor", "--device", device], given)
    say(out.rstrip() or err.rstrip())
    say(f"(exit code {code}, {seconds:.0f} s)\n")
    return {"device": device, "exit_code": code, "seconds": seconds}


def workplace(given, shape, directory):
    """A checkpoint directory without weights, and text enough for every step."""
    checkpoint = directory / shape
    checkpoint.mkdir()
    shutil.copy(HERE / "gpu" / f"{shape}.json", checkpoint / "config.json")
    base = HERE.parent / "recipes" / "quickstart" / "base"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, checkpoint / name)
    text = directory / "text.txt"
    if not text.exists():
        lines = (HERE.parent / "recipes" / "quickstart" / "base-train.jsonl").read_text().splitlines()
        text.write_text("\n".join(json.loads(line)["completion"] for line in lines))
    return checkpoint, text


def train(given, shape, device, dtype, directory):
    checkpoint, text = workplace(given, shape, directory / f"{shape}-{device}".replace(":", "-"))
    name = f"{shape}-{device}".replace(":", "-")
    settings = {
        "name": name,
        "model.path": checkpoint,
        "data.train": text,
        "data.max_length": given.sequence + 1,
        "output.directory": directory / "runs",
        "training.max_steps": given.warm_up + given.steps,
        "training.batch_size": given.batch,
        "training.log_every": max(1, min(10, given.warm_up)),
    }
    if dtype:
        settings["model.dtype"] = dtype
    command = [given.olora, "train", HERE / "gpu" / "train.toml", "--device", device]
    for key, value in settings.items():
        command += ["--set", f"{key}={value}"]
    for setting in given.set:
        command += ["--set", setting]
    code, _, err, seconds = run(command, given)
    run_directory = directory / "runs" / name
    result = {"what": f"olora, {device}", "shape": shape, "device": device, "exit_code": code, "seconds": seconds}
    if code != 0:
        result["error"] = err.strip().splitlines()[-1:] or ["no message"]
        return result
    lines = [json.loads(line) for line in (run_directory / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((run_directory / "summary.json").read_text())
    steps = [line for line in lines if "tokens_per_second" in line]
    after = max((line for line in steps if line["step"] <= given.warm_up), key=lambda line: line["step"])
    last = steps[-1]
    tokens = last["tokens"] - after["tokens"]
    return result | {
        "device": summary["device"],
        "dtype": summary["precision"]["compute"],
        "tokens_per_second": tokens / (last["seconds"] - after["seconds"]),
        "step_seconds": (last["seconds"] - after["seconds"]) / (last["step"] - after["step"]),
        "peak_bytes": summary["peak_device_memory"] or summary["peak_memory"],
        "estimated_bytes": summary["estimated_peak"],
        "first_step_seconds": summary["first_step_seconds"],
        "kernel_choices": summary["kernel_choices"],
        "trainable_params": summary["n_trained_params"],
        "loss": summary["train_loss"],
    }


def peer(given, shape, compiled):
    cuda = not given.quick
    command = [sys.executable, HERE / "peers" / "train_step.py", "--config", HERE / "gpu" / f"{shape}.json"]
    command += ["--device", "cuda" if cuda else "cpu", "--dtype", given.dtype]
    command += ["--sequence", given.sequence, "--batch", given.batch]
    command += ["--warm-up", given.warm_up, "--steps", given.steps]
    command += ["--compile"] if compiled else []
    code, out, err, seconds = run(command, given)
    name = "PyTorch + PEFT, compiled" if compiled else "PyTorch + PEFT, eager"
    result = {"what": name, "shape": shape, "exit_code": code, "seconds": seconds}
    if code != 0:
        result["error"] = err.strip().splitlines()[-1:] or ["no message"]
        return result
    found = json.loads(out.splitlines()[-1])
    return result | {
        "device": found["device"],
        "dtype": found["dtype"],
        "tokens_per_second": found["tokens_per_second"]["median"],
        "step_seconds": found["step_seconds"]["median"],
        "peak_bytes": found["peak_device_bytes"] or found["peak_rss_bytes"],
        "first_step_seconds": found["first_step_seconds"],
        "trainable_params": found["trainable_params"],
        "loss": found["last_loss"],
        "versions": found["versions"],
    }


def flops_per_token(shape, sequence):
    """NeMo's convention (NVIDIA-NeMo/Automodel, recipes/llm/benchmark.py)."""
    c = json.loads((HERE / "gpu" / f"{shape}.json").read_text())
    d, inner, layers = c["hidden_size"], c["intermediate_size"], c["num_hidden_layers"]
    head = c.get("head_dim") or d // c["num_attention_heads"]
    q, kv = c["num_attention_heads"] * head, c["num_key_value_heads"] * head
    linear = [(d, q), (d, kv), (d, kv), (q, d), (d, inner), (d, inner), (inner, d)]
    frozen = layers * sum(a * b for a, b in linear)
    lora = layers * sum(RANK * (a + b) for a, b in linear)
    matmul = frozen + d * c["vocab_size"]
    return (6 * matmul + 6 * layers * sequence * d) * (2 + lora / matmul) / 3


def header():
    say("| shape | what | dtype | tokens/s | step, s | share of bf16 peak | peak memory | first step, s |")
    say("|---|---|---|---|---|---|---|---|")


def row(given, r):
    """Prints a row as soon as it is measured, so that a call that is cut short loses only the rest."""
    if "error" in r:
        say(f"| {r['shape']} | {r['what']} | | failed: {' '.join(r['error'])} | | | | |")
        return r
    peak = next((tflops for name, tflops in PEAKS.items() if name in r["device"]), None)
    r["flops_per_token"] = flops_per_token(r["shape"], given.sequence)
    r["mfu"] = r["tokens_per_second"] * r["flops_per_token"] / (peak * 1e12) if peak else None
    mfu = f"{100 * r['mfu']:.1f} %" if r["mfu"] else "unknown"
    first = r["first_step_seconds"]
    say(
        f"| {r['shape']} | {r['what']} | {r['dtype']} | {r['tokens_per_second']:,.0f} | {r['step_seconds']:.4f} "
        f"| {mfu} | {r['peak_bytes'] / 1e9:.2f} GB | {'-' if first is None else format(first, '.1f')} |"
    )
    return r


def main():
    given = arguments()
    results, examined = [], []
    with tempfile.TemporaryDirectory() as directory:
        directory = pathlib.Path(directory)
        listed = run([given.olora, "devices"], given)
        say(listed[1].rstrip() + "\n")
        for device in [] if given.no_doctor else given.devices:
            examined.append(doctor(given, device))
        code, out, _, _ = run([given.olora, "devices", "--json"], given)
        found = {d["device"]: d for b in (json.loads(out) if code == 0 else []) for d in b["devices"] if "device" in d}
        header()
        for shape in given.shapes:
            for device in given.devices:
                # Where there are several, `cuda` is `cuda:0`.
                details = found.get(device) or found.get(f"{device}:0")
                if details is None:
                    what = {"what": f"olora, {device}", "shape": shape, "exit_code": 1}
                    results.append(row(given, what | {"error": ["not found on this machine"]}))
                    continue
                dtype = given.dtype if given.dtype in details["dtypes"] else "float32"
                place = directory / f"{shape}-{device}".replace(":", "-")
                place.mkdir()
                results.append(row(given, train(given, shape, device, dtype, directory)))
            for compiled in [] if given.no_peers else [False, True]:
                results.append(row(given, peer(given, shape, compiled)))
    settings = {k: v for k, v in vars(given).items() if k not in ("olora", "quick")}
    say(json.dumps({"suite": "gpu", "quick": given.quick, "settings": settings, "doctor": examined, "results": results}))
    return 1 if any(r["exit_code"] for r in results + examined) else 0


if __name__ == "__main__":
    sys.exit(main())
