#!/usr/bin/env python3
"""What becomes of a run when one of its ranks fails.

    python3 tools/parallel/failures.py --kills 100 --jobs 4      # some minutes
    python3 tools/parallel/failures.py --kills 3                 # and the other failures: two minutes

- **kills**: SIGKILL to a random rank after a random time. The others must end within ten seconds, and the run, gone
  on with by another number of ranks, in the adapter of a run in peace. In every second trial `mpirun` is told to leave
  the others alone (`--enable-recovery`), as some launchers do: then a rank is missed by its signs of life.
- **stopped**: a rank that hangs (SIGSTOP), which no launcher notices.
- **no number**: a learning rate that makes the loss NaN.
- **differences**: ranks with another recipe, binary or data are refused before the first step.
- **a device**: with a binary built with `--features olora/mpi,olora/test-hooks`, `--test-hooks BINARY`: one rank's
  device fails in mid-run, and the others end with its message.

Exit code 1 if anything failed.
"""

import concurrent.futures
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

from common import ROOT, Run, arguments, environment, error_of, parser, say

QUICKSTART = ROOT / "recipes/quickstart.toml"
SETTINGS = [
    "training.accumulation=4", "training.batch_size=8", "training.max_steps=24", "training.evaluate_every=8",
    "training.checkpoint_every=3", "training.log_every=1", "samples.prompts=[]",
]
LIMIT = 10.0


def ranks_of(mpirun, olora):
    """The processes of the ranks, by `mpirun`'s children."""
    found = []
    try:
        children = pathlib.Path(f"/proc/{mpirun}/task/{mpirun}/children").read_text().split()
    except OSError:
        return found
    for pid in children:
        try:
            if pathlib.Path(os.readlink(f"/proc/{pid}/exe")).resolve() == olora:
                found.append(int(pid))
        except OSError:
            pass
    return found


def ended(process, limit):
    """Seconds until it ended, and what it said; killed after the limit."""
    began = time.monotonic()
    try:
        out, _ = process.communicate(timeout=limit)
        return time.monotonic() - began, out
    except subprocess.TimeoutExpired:
        process.kill()
        out, _ = process.communicate()
        return None, out


def kill_one(given, chance, number, seconds, expected, signal_=signal.SIGKILL, alone=None):
    """One run whose random rank is killed, gone on with. What was wrong, or nothing, and what it took."""
    run = Run(given.olora, given.work, QUICKSTART, SETTINGS, f"kill-{number}")
    run.remove()
    n = chance.choice((2, 4))
    alone = number % 2 == 1 if alone is None else alone
    options = ("--enable-recovery",) if alone else ()
    process = run.start(n, "--auto-resume", options=options)
    time.sleep(chance.uniform(0.3, seconds))
    pids = ranks_of(process.pid, given.olora)
    if not pids:
        process.communicate(timeout=60)
        took = None
    else:
        victim = chance.choice(pids)
        try:
            os.kill(victim, signal_)
        except ProcessLookupError:
            pass
        took, out = ended(process, 30)
        if signal_ == signal.SIGSTOP:
            # It goes with its launcher; where that has left it, it is this program's to end.
            try:
                os.kill(victim, signal.SIGKILL)
            except ProcessLookupError:
                pass
        if took is None or took > LIMIT:
            return f"the others were there {took or 30:.0f} s after the kill ({n} ranks{', alone' * alone})\n{out[-500:]}", took
        if "panicked" in out:
            return f"a panic: {out[-300:]}", took
    # What is left of the ranks ends by itself; a lock that is still held says so.
    for _ in range(3):
        ran = run.go(chance.choice((1, 2, 4)), "--auto-resume", timeout=120)
        if ran.returncode == 0:
            break
        time.sleep(3)
    if ran.returncode != 0:
        return f"cannot be gone on with: {error_of(ran)}", took
    if run.result() != expected:
        return "another adapter", took
    left = [path.name for path in run.place.rglob(".*")]
    if left:
        return f"left over: {left}", took
    run.remove()
    return None, took


def kills(given, seconds, expected):
    wrong, times, counted = 0, {True: [], False: []}, 0

    def one(number):
        return kill_one(given, random.Random(f"{given.seed} {number}"), number, seconds * given.jobs ** 0.5, expected)

    with concurrent.futures.ThreadPoolExecutor(given.jobs) as pool:
        for number, (reason, took) in enumerate(pool.map(one, range(given.kills))):
            counted += took is not None
            if took is not None:
                times[number % 2 == 1].append(took)
            if reason:
                wrong += 1
                say(f"  kill {number}: {reason}")
    for alone, of in times.items():
        if of:
            who = "ranks by themselves" if alone else "with mpirun's help"
            say(f"  {who}: {len(of)} kills, the others ended after {max(of):.1f} s at the most, {sorted(of)[len(of) // 2]:.1f} s in the middle")
    say(f"kills: {counted} of {given.kills} met a rank, {wrong} went wrong")
    return wrong


def refused(given, name, argv, words, cwd=ROOT, limit=LIMIT, env=None):
    """A command that must end soon, with an error of these words, once."""
    began = time.monotonic()
    ran = subprocess.run(
        argv, cwd=cwd, env=environment(**(env or {})), stdin=subprocess.DEVNULL, capture_output=True, text=True,
        errors="replace", timeout=120,
    )
    took = time.monotonic() - began
    text = ran.stderr + ran.stdout
    errors = [line for line in text.splitlines() if line.startswith("error:")]
    good = ran.returncode != 0 and len(errors) == 1 and all(word in errors[0] for word in words) and took < limit
    say(f"{name}: {'as it should be' if good else 'WRONG'} ({took:.1f} s, exit code {ran.returncode})")
    say(f"  {errors[0] if errors else text[-300:]}")
    if len(errors) > 1:
        say(f"  and {len(errors) - 1} more errors")
    return 0 if good else 1


def differences(given):
    """Ranks that would not make the same run."""
    run = Run(given.olora, given.work, QUICKSTART, SETTINGS, "differences")
    run.remove()
    wrong = 0
    one = run.argv(1)
    mpirun = ["mpirun", "--oversubscribe", "--bind-to", "none"]
    other = [*one, "--set", "training.learning_rate=1e-3"]
    wrong += refused(given, "another recipe", [*mpirun, "-n", "1", *one, ":", "-n", "1", *other], ["rank 1", "learning_rate"])
    copy = given.work / "olora-copy"
    shutil.copy2(given.olora, copy)
    with copy.open("ab") as file:
        file.write(b"\0")
    other = [str(copy), *one[1:]]
    wrong += refused(given, "another binary", [*mpirun, "-n", "1", *one, ":", "-n", "1", *other], ["rank 1", "another build"])
    elsewhere = given.work / "elsewhere"
    shutil.copytree(ROOT / "recipes", elsewhere / "recipes", dirs_exist_ok=True)
    data = elsewhere / "recipes/quickstart/train.jsonl"
    lines = data.read_text().splitlines(keepends=True)
    data.write_text("".join([lines[1], lines[0], *lines[2:]]))
    argv = [*mpirun, "-n", "1", *one, ":", "-n", "1", "--wdir", str(elsewhere), *one]
    wrong += refused(given, "other data", argv, ["rank 1", "other samples"])
    wrong += refused(given, "three ranks for four micro-batches", run.argv(3), ["3 ranks", "1, 2, 4"])
    wrong += refused(given, "a command that is not shared out", [*mpirun, "-n", "2", str(given.olora), "devices"], ["train"])
    return wrong


def main():
    given = parser(__doc__)
    given.add_argument("--kills", type=int, default=3)
    given.add_argument("--seed", type=int, default=0)
    given.add_argument("--jobs", type=int, default=1, help="kills at a time")
    given.add_argument("--only-kills", action="store_true")
    given.add_argument("--test-hooks", type=pathlib.Path, help="a binary with the feature test-hooks, too")
    given.add_argument("--plain", type=pathlib.Path, help="a binary without the feature mpi")
    given = arguments(given)
    run = Run(given.olora, given.work, QUICKSTART, SETTINGS, "peace")
    run.remove()
    ran = run.go(2)
    if ran.returncode != 0:
        sys.exit(error_of(ran))
    expected, seconds = run.result(), ran.seconds
    say(f"in peace: {expected[0][:16]} ({seconds:.1f} s with 2 ranks)")
    wrong = kills(given, seconds, expected)
    if given.only_kills:
        return 1 if wrong else 0
    reason, took = kill_one(given, random.Random(given.seed), 1000, 0.6 * seconds, expected, signal.SIGSTOP)
    say(f"a rank that hangs: {reason or 'as it should be'}" + (f" (the others ended after {took:.1f} s)" if took else ""))
    wrong += bool(reason)
    nan = Run(given.olora, given.work, QUICKSTART, [*SETTINGS, "training.learning_rate=1e30", "training.max_grad_norm=0"], "nan")
    nan.remove()
    wrong += refused(given, "no number", nan.argv(4), ["step"])
    wrong += differences(given)
    if given.plain:
        run = Run(given.plain.resolve(), given.work, QUICKSTART, SETTINGS, "plain")
        wrong += refused(given, "a build without MPI", run.argv(2), ["--features mpi"])
    if given.test_hooks:
        run = Run(given.test_hooks.resolve(), given.work, QUICKSTART, SETTINGS, "device")
        run.remove()
        env = {"OLORA_TEST_LOSE_DEVICE_AT": "9", "OLORA_TEST_LOSE_DEVICE_ON_RANK": "1"}
        wrong += refused(given, "a device that fails", run.argv(2), ["rank 1 on", "the device is lost"], env=env)
        whole = sorted(path.name for path in (run.place / "checkpoints").glob("step-*"))
        ran = run.go(1, "--auto-resume")
        same = ran.returncode == 0 and run.result() == expected
        say(f"  gone on with from {whole[-1]}: {'the same adapter' if same else 'WRONG: ' + error_of(ran)}")
        wrong += not same
    say("all as it should be" if not wrong else f"{wrong} went wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
