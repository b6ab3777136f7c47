#!/usr/bin/env python3
"""Kills olora, goes on as a scheduler would, and looks whether anything was lost.

    python3 tools/reliability/kills.py --quick                      # about a minute; in CI
    python3 tools/reliability/kills.py --kills 200 --seed 1         # 200 kills at random, and one at every call that writes
    python3 tools/reliability/kills.py --kills 50 --kinds olora full --no-calls

Every kind of work is first done in peace, twice, which must give the same bytes. Then:

- **at random**: SIGKILL after a random time, again and again, over all kinds, until the work is done;
- **at a call**: SIGKILL in the place of the N-th call that writes to the disk, and of writes also after half of the bytes,
  for every N of the final save (`--every-call`: of the whole run), in a fresh run and in one that was interrupted before;
- **signals**: INT, TERM and HUP in the middle of a run: the exit code, a checkpoint, the same result after going on;
- **two at once**: the same command twice on one directory: one does the work, the other is refused.

What must hold: the work ends (else `stuck`) with its result (else `without result`); every file says what it says after
work in peace, to the byte, but for times and memory (else `different`); steps are in `metrics.jsonl` once and in order; and
no other file is there (else `left-overs`). After each kill, what a reader could take for a result is whole.
Exit code 1 if anything failed. Linux on x86-64, Python's standard library and `cc`.
"""

import argparse
import functools
import pathlib
import random
import shutil
import signal
import sys
import time

from common import (
    DIFFERENT, LEFT, STEP, STUCK, WITHOUT, Output, Tally, Train, Workshop, all_at_once, arguments, kinds, say, table,
)

COLUMNS = [WITHOUT, STUCK, DIFFERENT, LEFT]


def end_and_judge(kind, place, half=None):
    """What is wrong once the work was gone on with, each sort once."""
    faults = [(DIFFERENT, f"half-written after the kill: {half}")] if half else []
    reason = kind.finish(place)
    if reason:
        faults.append((STUCK, reason))
    else:
        faults += kind.judge(place)
    kind.shop.drop(place)
    return faults


def killed_at_random(kind, seed):
    """One piece of work, killed until it is done. The number of kills, and what was wrong."""
    chance = random.Random(seed)
    place = kind.shop.place(kind.name)
    kind.prepare(place)
    n_kills, half = 0, None
    argv = kind.begin(place)
    while argv and n_kills < 6:
        ran = kind.shop.run(argv, place, kill_after=chance.uniform(0, 1.1 * kind.seconds), env=kind.environment(place))
        half = half or kind.half_written(place)
        if ran.code != -signal.SIGKILL:
            break
        n_kills += 1
        argv = kind.go_on(place)
    return n_kills, end_and_judge(kind, place, half)


def killed_at(kind, call, fault, interrupted=None):
    """One piece of work, killed at one call. How many kills, and what was wrong."""
    place = kind.shop.place(kind.name)
    kind.prepare(place)
    if interrupted:
        shutil.copytree(interrupted, place, dirs_exist_ok=True)
    argv = kind.go_on(place) if interrupted else kind.begin(place)
    ran = kind.shop.run(argv, place, env=kind.environment(place), under=kind.under(place), fault=fault, at=call.number)
    if ran.code != -signal.SIGKILL:
        say(f"  note: {kind.name}: no call {call.number} was killed (exit code {ran.code})")
    faults = end_and_judge(kind, place, kind.half_written(place))
    words = f"killed at {call.name} {shown(call, place)}{' in its middle' if fault == 'torn' else ''}"
    return int(ran.code == -signal.SIGKILL), [(column, f"{words}: {reason}") for column, reason in faults]


def shown(call, place):
    parts = pathlib.PurePath(call.path).parts[len(place.parts):]
    return "/".join(parts) or "."


def interrupted_run(kind, number=signal.SIGINT, at_step=3, ignored=()):
    """A run that got a signal when it had noted a step: its directory, how it ended, and its number of calls."""
    calls = kind.calls()
    notes = [call for call in calls if call.path.endswith("metrics.jsonl") and call.name == "write"]
    place = kind.shop.place(f"{kind.name}-interrupted")
    kind.prepare(place)
    ran = kind.shop.run(
        kind.begin(place), place, env=kind.environment(place), under=kind.under(place),
        fault=f"signal={int(number)}", at=notes[at_step - 1].number, ignored=ignored,
    )
    return place, ran


def final(kind, calls):
    """The calls after the last step was noted: checkpoint, result, summary, card."""
    if isinstance(kind, Output):
        return calls
    last = max((i for i, call in enumerate(calls) if call.path.endswith("metrics.jsonl")), default=0)
    if kind.name == "validated":
        # An evaluation is noted after the last step, too.
        notes = [i for i, call in enumerate(calls) if call.path.endswith("metrics.jsonl")]
        last = notes[-4] if len(notes) > 3 else 0
    return calls[last:]


def trials_at_calls(kind, every_call, quick):
    """A trial for each call, of a fresh run and of one that goes on."""
    found = []
    starts = [("fresh", None)]
    if isinstance(kind, Train):
        interrupted, ran = interrupted_run(kind)
        starts.append(("interrupted", interrupted))
    for name, interrupted in starts:
        if interrupted:
            copy = kind.shop.place(kind.name)
            shutil.copytree(interrupted, copy, dirs_exist_ok=True)
            calls = kind.calls(copy, kind.go_on(copy))
            kind.shop.drop(copy)
        else:
            calls = kind.calls()
        chosen = calls if every_call else final(kind, calls)
        if quick:
            # Where results appear and go, and every fifth of the others.
            chosen = [call for i, call in enumerate(chosen) if call.name.startswith(("rename", "unlink", "rmdir")) or i % 5 == 0]
        found += [(name, functools.partial(killed_at, kind, call, "kill", interrupted)) for call in chosen]
        if not quick:
            written = [call for call in chosen if call.name == "write"]
            found += [(name, functools.partial(killed_at, kind, call, "torn", interrupted)) for call in written]
    return found


def signalled(kind):
    """INT, TERM and HUP: how the run ends, and what comes of it."""
    rows, faults = [], []
    for number, codes in ((signal.SIGINT, (130,)), (signal.SIGTERM, (143,)), (signal.SIGHUP, (129, 130, 143))):
        place, ran = interrupted_run(kind, number)
        checkpoints = place / "runs" / kind.name / "checkpoints"
        steps = [int(path.name[5:]) for path in checkpoints.iterdir() if STEP.match(path.name)] if checkpoints.exists() else []
        newest = max(steps, default=0)
        wrong = end_and_judge(kind, place)
        if ran.code not in codes:
            wrong.append((DIFFERENT, f"exit code {ran.code}, not {codes[0]}"))
        if newest < 3:
            wrong.append((WITHOUT, f"the newest checkpoint is of step {newest}; step 3 was done"))
        name = number.name
        rows.append([name, ran.code, newest, "; ".join(reason for _, reason in wrong) or "as it should be"])
        faults += [(column, f"{name}: {reason}") for column, reason in wrong]
    # `nohup` has HUP ignored, so that a run outlives its terminal.
    place, ran = interrupted_run(kind, signal.SIGHUP, ignored=(signal.SIGHUP,))
    wrong = [] if ran.code == 0 else [(STUCK, f"SIGHUP under nohup: exit code {ran.code}, though it is to be ignored")]
    wrong += end_and_judge(kind, place)
    rows.append(["under nohup", ran.code, "", "; ".join(reason for _, reason in wrong) or "as it should be"])
    return rows, faults + wrong


def two_at_once(kind, interrupted=None):
    """The same command twice at the same time."""
    place = kind.shop.place(f"{kind.name}-twice")
    if interrupted:
        shutil.copytree(interrupted, place, dirs_exist_ok=True)
    argv = kind.go_on(place) if interrupted else kind.begin(place)
    both = [kind.shop.start(argv, place, env=kind.environment(place)) for _ in range(2)]
    ran = [kind.shop.finish(process) for process in both]
    codes = sorted(one.code for one in ran)
    faults = []
    if codes[0] != 0:
        faults.append((STUCK, f"neither did the work: {ran[0].err[-200:]}"))
    elif all("\nstep " in one.err for one in ran):
        faults.append((DIFFERENT, "both did the work"))
    for one in ran:
        if one.code != 0 and not any(line.startswith("error:") for line in one.err.splitlines()):
            faults.append((DIFFERENT, f"refused with exit code {one.code}, and no word: {one.err[-200:]}"))
    faults += end_and_judge(kind, place)
    if interrupted:
        kind.shop.drop(interrupted)
    return faults


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="kills at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every-call", action="store_true", help="calls of the whole run, not of the final save alone")
    parser.add_argument("--no-calls", action="store_true", help="only kills at random, signals and two at once")
    given = arguments(parser)
    began = time.monotonic()
    shop = Workshop(given.olora, given.work)
    if given.quick:
        given.kills = min(given.kills, 16)
        given.kinds = given.kinds or ["olora", "full", "validated", "cached", "merge", "merge-gguf", "convert"]
    if shop.shim is None and not given.no_calls:
        say("without the shim, nothing can be killed at a call: --no-calls leaves it out")
        return 2
    say(f"a scheduler gives: {'--auto-resume' if shop.auto_resume else '--resume where there is a checkpoint'}")
    work = kinds(shop, given.kinds)
    for kind in work:
        kind.measure()
    by_name = {kind.name: kind for kind in work}
    tally = Tally(COLUMNS, given.show)

    # At random, until there were as many kills as asked for.
    chance, n_kills, row = random.Random(given.seed), 0, 0
    while n_kills < given.kills:
        batch = [work[(row + i) % len(work)] for i in range(len(work))]
        trials = [functools.partial(killed_at_random, kind, chance.random()) for kind in batch]
        for kind, (kills, faults) in zip(batch, all_at_once(given.jobs, trials)):
            tally.note((kind.name, "at random"), faults, kills=kills)
            n_kills += kills
        row += 1

    if not given.no_calls:
        for kind in work:
            if given.quick and kind.name not in ("olora", "merge", "convert"):
                continue
            found = trials_at_calls(kind, given.every_call, given.quick)
            for (name, _), (kills, faults) in zip(found, all_at_once(given.jobs, [trial for _, trial in found])):
                tally.note((kind.name, f"at a call, {name}"), faults, kills=kills)

    if "olora" in by_name and shop.shim:
        rows, faults = signalled(by_name["olora"])
        tally.note(("olora", "signals"), faults)
        say("\nsignals in the middle of a run")
        table(["signal", "exit code", "newest checkpoint", "and then"], rows)
    # Long enough that the second begins before the first ends.
    long = Train("twice", shop, steps=60)
    long.measure()
    tally.note(("twice", "two at once, new"), two_at_once(long))
    if shop.shim:
        tally.note(("twice", "two at once, going on"), two_at_once(long, interrupted_run(long)[0]))

    say()
    failed = tally.print(["kind", "killed"], ["kills"])
    kills, trials = (sum(counts[column] for counts in tally.counts.values()) for column in ("kills", "trials"))
    say(f"\n{kills} kills in {trials} trials, {failed} faults, in {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
