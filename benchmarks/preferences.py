"""DPO on SmolLM2-135M and pairs from PIQA: a step's time and memory beside a supervised step's and TRL's, and what is learnt.

    python benchmarks/preferences.py MODEL PIQA.jsonl INSTRUCTIONS.json OUT [--olora PATH] [--trl PYTHON] [--only-time] [--timed N] [--times N]

Pairs are made of PIQA's records: the goal is the prompt, the right solution the chosen answer, the other the rejected one. The first 200
are trained on and the next 100 held out. Steps are timed on the first 48 pairs; the supervised ones have the same answers as records
of their own, so that an epoch has the same tokens. Everything runs one after another, on two threads, and prints one JSON line each; OUT must be new.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

TRAIN, HELD_OUT, TIMED, TIMES = 200, 100, 48, 2
RANK, BATCH, RATE, LENGTH, BETA = 16, 4, 5e-5, 256, 0.1
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def pairs(path):
    for line in Path(path).read_text().splitlines():
        record = json.loads(line)
        good, bad = record["choices"][record["gold"]], record["choices"][1 - record["gold"]]
        yield {"prompt": record["query"].removeprefix("Question: ").strip(), "chosen": good.strip(), "rejected": bad.strip()}


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def prepare(args):
    args.out.mkdir(parents=True)
    all_pairs = list(pairs(args.piqa))[: TRAIN + HELD_OUT]
    write(args.out / "train.jsonl", all_pairs[:TRAIN])
    write(args.out / "valid.jsonl", all_pairs[TRAIN:])
    answers = [{"prompt": pair["prompt"], "completion": pair[key]} for pair in all_pairs[:TRAIN] for key in ("chosen", "rejected")]
    write(args.out / "answers.jsonl", answers)
    write(args.out / "timed.jsonl", all_pairs[: args.timed])
    write(args.out / "timed-answers.jsonl", answers[: 2 * args.timed])
    instructions = json.loads(Path(args.instructions).read_text())[:50]
    (args.out / "instructions.json").write_text(json.dumps(instructions))


def recipe(args, name, train, batch, more):
    path = args.out / f"{name}.toml"
    path.write_text(
        f'name = "{name}"\nseed = 1\nmodel.path = "{args.model}"\n'
        f'[adapter]\nmethod = "olora"\nrank = {RANK}\nalpha = {RANK}\ntargets = ["all-linear"]\n'
        f'[data]\ntrain = "{args.out / train}"\nmax_length = {LENGTH}\n'
        f"[training]\nepochs = 1\nbatch_size = {batch}\nlearning_rate = {RATE}\nschedule = \"constant\"\nwarmup_steps = 0\nlog_every = 10\n"
        f'[output]\ndirectory = "{args.out / "runs"}"\n{more}'
    )
    return path


def tell(**found):
    print(json.dumps(found), flush=True)


def olora(args, name, train, batch, more="", sets=()):
    command = [args.olora, "train", str(recipe(args, name, train, batch, more))]
    for setting in sets:
        command += ["--set", setting]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=(args.out / f"{name}.log").open("w"))
    summary = json.loads((args.out / f"runs/{name}/summary.json").read_text())
    keys = ["steps", "tokens", "train_seconds", "tokens_per_second", "peak_memory", "estimated_peak", "validation_measures"]
    tell(run=name, **{key: summary[key] for key in keys if key in summary})
    return args.out / f"runs/{name}/adapter"


def evaluate(args, what, data, adapter, *sets):
    command = [args.olora, "evaluate", "--model", str(args.model), "--data", str(args.out / data), "--max-length", str(LENGTH), "--json"]
    command += ["--adapter", str(adapter)] if adapter else []
    for setting in sets:
        command += ["--set", setting]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    tell(evaluate=what, data=data, **json.loads(found))


def theirs(out, model, method, steps):
    """In a process of its own, with TRL: seconds a step and peak memory."""
    os.environ.update(HF_HUB_OFFLINE="1", TRL_EXPERIMENTAL_SILENCE="1")
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    torch.set_num_threads(2)
    times = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_, **__):
            self.began = time.perf_counter()

        def on_step_end(self, *_, **__):
            times.append(time.perf_counter() - self.began)

    file = "timed.jsonl" if method == "dpo" else "timed-answers.jsonl"
    records = [json.loads(line) for line in (Path(out) / file).read_text().splitlines()]
    as_turns = lambda record, key: [{"role": "user" if key == "prompt" else "assistant", "content": record[key]}]
    records = [{key: as_turns(record, key) for key in record} for record in records]
    config, trainer_class, batch, own = (DPOConfig, DPOTrainer, BATCH, {"beta": BETA}) if method == "dpo" else (SFTConfig, SFTTrainer, 2 * BATCH, {})
    arguments = config(
        output_dir=str(Path(out) / f"trl-{method}"), per_device_train_batch_size=batch, max_steps=steps, learning_rate=RATE, lr_scheduler_type="constant",
        bf16=False, use_cpu=True, gradient_checkpointing=False, report_to="none", save_strategy="no", logging_steps=1000, disable_tqdm=True,
        dataloader_pin_memory=False, max_length=LENGTH, **own,
    )
    model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    trainer = trainer_class(
        model=model, args=arguments, train_dataset=Dataset.from_list(records), processing_class=AutoTokenizer.from_pretrained(sys.argv[3]),
        peft_config=LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS, task_type="CAUSAL_LM"),
        callbacks=[Clock()],
    )
    trainer.train()
    tell(run=f"trl-{method}", steps=steps, seconds_per_step=sum(times[1:]) / len(times[1:]), train_seconds=sum(times), peak_memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def main():
    if sys.argv[1] == "--theirs":
        return theirs(sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "piqa", "instructions", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--olora", default="target/release/olora")
    parser.add_argument("--trl", help="a Python with TRL")
    parser.add_argument("--only-time", action="store_true")
    parser.add_argument("--timed", type=int, default=TIMED, help="pairs that steps are timed on")
    parser.add_argument("--times", type=int, default=TIMES, help="how often each run is made, in turn")
    args = parser.parse_args()
    prepare(args)
    held_out = f'[objective]\nmethod = "dpo"\nbeta = {BETA}\n'
    # Time and memory: an epoch of the same answers, in turn, of the first pairs.
    short = [f"data.train={args.out / 'timed-answers.jsonl'}"], [f"data.train={args.out / 'timed.jsonl'}"]
    for i in range(args.times):
        olora(args, f"sft-{i}", "answers.jsonl", 2 * BATCH, sets=short[0])
        olora(args, f"dpo-{i}", "train.jsonl", BATCH, held_out, short[1])
    olora(args, "sft-blocks", "answers.jsonl", 2 * BATCH, sets=[*short[0], "training.recompute=blocks"])
    olora(args, "dpo-blocks", "train.jsonl", BATCH, held_out, [*short[1], "training.recompute=blocks"])
    if args.trl:
        for method in ("sft", "dpo"):
            subprocess.run([args.trl, __file__, "--theirs", str(args.out), str(args.model), method, str(args.timed // BATCH)], check=True, stderr=(args.out / f"trl-{method}.log").open("w"))
    if args.only_time:
        return
    # What is learnt, in an epoch of all pairs.
    adapter = olora(args, "dpo", "train.jsonl", BATCH, held_out)
    rpo = olora(args, "rpo", "train.jsonl", BATCH, held_out, ["objective.rpo_alpha=1.0"])
    for what, adapter in (("base", None), ("dpo", adapter), ("rpo", rpo)):
        evaluate(args, what, "valid.jsonl", adapter, f"objective.beta={BETA}", "objective.method=dpo")
        evaluate(args, what, "instructions.json", adapter)


if __name__ == "__main__":
    main()
