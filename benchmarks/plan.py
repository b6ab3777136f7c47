#!/usr/bin/env python3
"""What `olora plan` predicts, beside what runs take: peak memory and time, on the CPU.

    python3 benchmarks/plan.py --olora target/release/olora --model SMOLLM2 --data RECORDS.json [--steps 10]

SMOLLM2 is a checkpoint directory of SmolLM2-135M, RECORDS an instruction file. Each row is `olora plan RECIPE` (with a
trial, for the time; memory is counted from shapes either way) and then `olora train` of the same recipe with the same
settings, each in a process of its own. Prints a Markdown table and, as the last line, one JSON object. Exit code 1 if a
peak is further than 15 % from what was predicted. Needs Python's standard library.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

RECIPES = pathlib.Path(__file__).resolve().parent.parent / "recipes"
ALLOWED = 0.15


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--olora", type=pathlib.Path, required=True)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--steps", type=int, default=10)
    return parser.parse_args()


def rows(given):
    """What is run: a name, a recipe and what is set in it."""
    real = [f"model.path={given.model}", f"data.train={given.data}"]
    short = [f"training.max_steps={given.steps}", "training.evaluate_every=0", "training.checkpoint_every=0"]
    lora, olora = RECIPES / "smollm2-135m" / "lora.toml", RECIPES / "smollm2-135m" / "olora.toml"
    yield "quickstart", RECIPES / "quickstart.toml", ["training.epochs=0.2", "samples.max_new_tokens=4"]
    yield "SmolLM2, LoRA, batch 8", lora, real + short
    yield "SmolLM2, OLoRA, batch 4", olora, real + short + ["training.batch_size=4"]
    packed = ["data.packing=true", "data.max_length=1024", "training.batch_size=2"]
    yield "SmolLM2, OLoRA, packed 2 × 1024", olora, real + short + packed
    yield "SmolLM2, LoRA, packed 2 × 1024, blocks again", lora, real + short + packed + ['training.recompute="blocks"']
    full = ['adapter={method="none"}', "training.batch_size=2", 'training.recompute="blocks"']
    yield "SmolLM2, all weights, batch 2, blocks again", lora, real + short + full


def run(command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{command} failed:\n{done.stderr}")
    return done.stdout


def measure(given, recipe, settings, directory):
    flags = []
    for setting in settings + [f"output.directory={directory}", "name=planned"]:
        flags += ["--set", setting]
    plan = json.loads(run([given.olora, "plan", recipe, "--json"] + flags))
    run([given.olora, "train", recipe] + flags)
    summary = json.loads((directory / "planned" / "summary.json").read_text())
    return plan, summary


def main():
    given = arguments()
    print("| recipe | peak, predicted | peak, measured | ratio | training, predicted | training, measured |")
    print("|---|---|---|---|---|---|")
    results, good = [], True
    for name, recipe, settings in rows(given):
        with tempfile.TemporaryDirectory() as directory:
            plan, summary = measure(given, recipe, settings, pathlib.Path(directory))
        predicted, measured = plan["peak_memory"], summary["peak_memory"]
        ratio = predicted / measured
        seconds, took = plan["probe"]["train_seconds"], summary["train_seconds"]
        good &= abs(ratio - 1) <= ALLOWED
        print(
            f"| {name} | {predicted / 1e6:.0f} MB | {measured / 1e6:.0f} MB | {ratio:.2f} | {seconds:.1f} s | {took:.1f} s |",
            flush=True,
        )
        results.append(
            {"recipe": name, "predicted": plan["memory"], "predicted_peak": predicted, "measured_peak": measured}
            | {"predicted_seconds": seconds, "measured_seconds": took}
        )
    print(json.dumps({"benchmark": "plan", "steps": given.steps, "results": results}))
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
