#!/usr/bin/env python3
"""Whether a recipe gives the same adapter, byte for byte, with any number of ranks.

    python3 tools/parallel/equal.py --quick          # half a minute; in CI
    python3 tools/parallel/equal.py                  # all kinds of runs
    python3 tools/parallel/equal.py --model DIR --data FILE --steps 20 --ranks 1,2,4   # another model

Each kind of run is made with one process, which is what the others are compared with, and with several: the
adapter's bytes, and every loss, gradient norm and validation loss in `metrics.jsonl`. Some are interrupted and go
on with another number of ranks. Then the same with other numbers of threads, as ranks share the cores out.
Exit code 1 if anything differs. Needs a binary with the feature `mpi`, and Open MPI.
"""

import json
import signal
import subprocess
import sys

from common import ROOT, Run, arguments, environment, error_of, launcher, parser, say

QUICKSTART = ROOT / "recipes/quickstart.toml"
# Steps of sixteen sequences, in four micro-batches; the losses of every step are compared.
USUAL = [
    "training.accumulation=4", "training.batch_size=4", "training.max_steps=12", "training.evaluate_every=5",
    "training.checkpoint_every=4", "training.log_every=1", "samples.prompts=[]",
]
KINDS = {
    "usual": ([], (2, 4)),
    # Twelve micro-batches: also numbers of ranks that are no power of two, and blocks that are not.
    "twelve": (["training.accumulation=12", "training.batch_size=2", "training.max_steps=6"], (2, 3, 4, 6, 12)),
    # 84 micro-batches of 4 and one step of what is left; the last has none for some ranks.
    "short-end": (["training.epochs=0.19", "training.accumulation=8", "training.batch_size=5"], (2, 4, 8)),
    "dropout": (["adapter.dropout=0.2"], (2, 4)),
    "blocks": (["adapter.dropout=0.1", 'training.recompute="blocks"'], (2,)),
    "packed": (["data.packing=true", "training.batch_size=2"], (2, 4)),
    "best": (['output.keep="best"', "training.learning_rate=0.02"], (4,)),
    "dora": (["adapter.dora=true", 'adapter.method="lora"'], (2, 4)),
    "eva": (['adapter.method="eva"', "adapter.rank=4"], (2,)),
    "saved": (['adapter.modules_to_save=["norm"]'], (2, 4)),
    "full": (
        ['adapter.method="none"', "training.learning_rate=1e-4"], (2, 4),
    ),
}
QUICK = ["usual", "twelve", "short-end", "dropout", "packed"]


def settings_of(kind):
    changed = KINDS[kind][0]
    keys = {setting.split("=")[0] for setting in changed}
    if "training.epochs" in keys:
        keys.add("training.max_steps")
    return [one for one in USUAL if one.split("=")[0] not in keys] + changed


def recipe_of(kind, work):
    """The quickstart; for a run without an adapter, without its section."""
    if kind != "full":
        return QUICKSTART
    text = QUICKSTART.read_text()
    before, _, after = text.partition("[adapter]")
    path = work / "full.toml"
    path.write_text(before + '[adapter]\nmethod = "none"\n\n[data]' + after.partition("[data]")[2])
    return path


def compared(name, run, n, expected, *more, **options):
    """One run, and whether it is what one process gives."""
    ran = run.go(n, *more, **options)
    if ran.returncode != 0:
        say(f"  {name}: FAILED: {error_of(ran)}")
        return 1
    found = run.result()
    same = found == expected
    what = "the same" if same else "DIFFERENT"
    if not same and found and expected:
        what += " adapter" if found[0] != expected[0] else " metrics"
    say(f"  {name}: {what} ({ran.seconds:.1f} s)")
    return 0 if same else 1


def interrupted(olora, work, recipe, settings, expected, first, then):
    """A run that is stopped by a signal, which `mpirun` hands on, and goes on with another number of ranks."""
    run = Run(olora, work, recipe, settings, f"interrupted-{first}-{then}")
    run.remove()
    name = f"{first} ranks, stopped, then {then}"
    process = run.start(first, "--auto-resume")
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith("step 3/"):
            process.send_signal(signal.SIGUSR1 if first > 1 else signal.SIGTERM)
    code = process.wait(60)
    checkpoints = sorted((run.place / "checkpoints").glob("step-*"))
    if code == 0 or not checkpoints or run.result():
        say(f"  {name}: FAILED: it was not stopped in mid-run (exit code {code}, {len(checkpoints)} checkpoints)")
        say("    " + "    ".join(said[-6:]))
        return 1
    return compared(f"{name} from {checkpoints[-1].name}", run, then, expected, "--auto-resume")


def all_interrupted(given):
    """As `usual`, with larger steps, so that a signal comes in the middle."""
    settings = [one for one in USUAL if not one.startswith("training.batch_size")] + ["training.batch_size=24"]
    alone = Run(given.olora, given.work, QUICKSTART, settings, "whole")
    alone.remove()
    ran = alone.go(1)
    expected = alone.result()
    say(f"larger steps: {expected[0][:16]} ({ran.seconds:.1f} s)")
    pairs = ((4, 2), (2, 1), (1, 4))
    return sum(interrupted(given.olora, given.work, QUICKSTART, settings, expected, *pair) for pair in pairs)


def evaluated(given, *options):
    """`olora evaluate` with one process and several: the numbers, but for the seconds."""
    def once(n):
        argv = [*launcher(n), str(given.olora), "evaluate", *options, "--json"]
        ran = subprocess.run(argv, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=600)
        if ran.returncode:
            return error_of(ran)
        # With tasks, events come before the result.
        found = json.loads(ran.stdout.splitlines()[-1])
        for part in (found, *found.get("tasks", [])):
            part.pop("seconds", None)
        return found

    expected = once(1)
    failed = 0
    say(f"evaluate {' '.join(options)}: {str(expected)[:90]}")
    for n in (2, 3):
        found = once(n)
        failed += found != expected
        say(f"  {n} ranks: {'the same' if found == expected else f'DIFFERENT: {found}'}")
    return failed


def main():
    given = parser(__doc__)
    given.add_argument("--quick", action="store_true")
    given.add_argument("--kinds", nargs="*")
    given.add_argument("--model")
    given.add_argument("--data")
    given.add_argument("--steps", type=int, default=20)
    given.add_argument("--ranks", default="1,2,4")
    given.add_argument("--set", action="append", default=[], help="for --model: more settings")
    given.add_argument("--tasks", nargs="+", metavar="WORD", help="a model, a directory of task files, names of tasks")
    given = arguments(given)
    failed = 0
    if given.model:
        ranks = [int(n) for n in given.ranks.split(",")]
        settings = [
            f"model.path={given.model}", f"data.train={given.data}", f"training.max_steps={given.steps}",
            "training.batch_size=2", "training.accumulation=4", "training.log_every=1", "training.evaluate_every=10",
            "training.checkpoint_every=10", "samples.prompts=[]", "data.validation_samples=16", *given.set,
        ]
        recipe = ROOT / "recipes/smollm2-135m/olora.toml"
        say(f"{given.model}, {given.steps} steps")
        expected = None
        for n in ranks:
            run = Run(given.olora, given.work, recipe, settings, f"model-{n}")
            run.remove()
            if expected is None:
                ran = run.go(n, timeout=3000)
                if ran.returncode != 0:
                    sys.exit(error_of(ran))
                expected = run.result()
                say(f"  {n} ranks: {expected[0][:16]} ({ran.seconds:.1f} s)")
            else:
                failed += compared(f"{n} ranks", run, n, expected, timeout=3000)
        return 1 if failed else 0
    kinds = given.kinds or (QUICK if given.quick else list(KINDS))
    for kind in kinds:
        recipe, settings = recipe_of(kind, given.work), settings_of(kind)
        alone = Run(given.olora, given.work, recipe, settings, f"{kind}-1")
        alone.remove()
        ran = alone.go(1)
        if ran.returncode != 0:
            say(f"{kind}: FAILED: {error_of(ran)}")
            failed += 1
            continue
        expected = alone.result()
        say(f"{kind}: {expected[0][:16]} ({ran.seconds:.1f} s)")
        ranks = KINDS[kind][1]
        for n in ranks:
            run = Run(given.olora, given.work, recipe, settings, f"{kind}-{n}")
            run.remove()
            failed += compared(f"{n} ranks", run, n, expected)
        if kind == "usual":
            for threads in (1, 2, 3, 4):
                run = Run(given.olora, given.work, recipe, settings, f"{kind}-threads-{threads}")
                run.remove()
                env = {"RAYON_NUM_THREADS": str(threads)}
                failed += compared(f"1 process, {threads} threads", run, 1, expected, env=env)
    if "usual" in kinds:
        failed += all_interrupted(given)
        failed += evaluated(given, "--model", "recipes/quickstart/base", "--data", "recipes/quickstart/valid.jsonl")
    if given.tasks:
        model, directory, *names = given.tasks
        options = ["--model", model, "--task-data", directory, "--tasks", ",".join(names), "--limit", "30"]
        failed += evaluated(given, *options)
    say("all the same" if not failed else f"{failed} differ")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
