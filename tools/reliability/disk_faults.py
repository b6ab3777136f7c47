#!/usr/bin/env python3
"""Lets olora's disk be full, broken, read-only or gone, and takes its descriptors and its memory away.

    python3 tools/reliability/disk_faults.py --quick            # about a minute; in CI
    python3 tools/reliability/disk_faults.py                    # every call; more than an hour on two cores
    python3 tools/reliability/disk_faults.py --parts errors --kinds olora merge --every 5

Parts:

- `errors`: the N-th call on what the work writes or reads fails: ENOSPC from there on at every N, EDQUOT, EROFS, EIO, EACCES,
  EMFILE and ENOENT at some; and what is no error: EINTR, and writes and reads that take a part of the bytes;
- `mounts`: small disks that are really full (a tmpfs, from a few kB up), read-only ones, read-only inputs;
- `vanishing`: the model, the data, the run directory or the checkpoints go away in the middle of the work;
- `limits`: few descriptors (`ulimit -n`), little memory (`ulimit -v`).

What must hold when the fault is met: exit code 1, and one line on stderr that begins with `error:` and says the cause and a
path (else `message`); no panic (else `crash`); nothing that a reader could take for a result and is none (else
`half-written`); no temporary file stays where the disk lets it be removed. With the fault gone, the work ends
(else `stuck`) in the bytes that it gives in peace (else `different`), and nothing else is left (else `left-overs`).
With too little memory, a process may be ended by a signal; nothing may be lost by it.
Exit code 1 if anything failed. Linux on x86-64, Python's standard library and `cc`; mounts need user namespaces.
"""

import argparse
import errno
import functools
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from common import (
    DIFFERENT, LEFT, STUCK, WITHOUT, Output, Tally, Train, Workshop, all_at_once, arguments, in_checkpoint, kinds, say,
    tree,
)

MESSAGE, CRASH, HALF = "message", "crash", "half-written"
COLUMNS = [MESSAGE, CRASH, HALF, WITHOUT, STUCK, DIFFERENT, LEFT]
PARTS = ["errors", "mounts", "vanishing", "limits"]


def told(kind, place, ran, cause=None):
    """Whether a failure was told as it should be."""
    faults = []
    tail = ran.err.strip()[-300:]
    if "panicked" in ran.err or "RUST_BACKTRACE" in ran.err or ran.code < 0 or ran.code == 101:
        faults.append((CRASH, f"exit code {ran.code}: {tail}"))
        return faults
    errors = [line for line in ran.err.splitlines() if line.startswith("error:")]
    if ran.code != 1:
        faults.append((MESSAGE, f"exit code {ran.code}: {tail}"))
    if len(errors) != 1:
        faults.append((MESSAGE, f"{len(errors)} lines that begin with `error:`: {tail}"))
        return faults
    known = (place, kind.shop.work / "inputs", kind.shop.work / "source", tempfile.gettempdir())
    if not any(str(path) in errors[0] for path in known):
        faults.append((MESSAGE, f"no path: {errors[0]}"))
    if cause and os.strerror(cause) not in errors[0]:
        faults.append((MESSAGE, f"not the cause, {os.strerror(cause)}: {errors[0]}"))
    return faults


def unexpected(kind, place):
    """Names that are there and should not be, though the disk let them be removed."""
    return [name for name in tree(place) if name not in kind.expected and (not in_checkpoint(name) or "/." in name)]


def after(kind, place, ran, cause=None, removes=True, must_fail=False, must_succeed=False):
    """What is wrong with how it failed, and with what came of it when the fault was gone."""
    faults = []
    if ran.code == 0:
        # Met by something that the work does not depend on.
        if must_fail:
            faults.append((MESSAGE, "no failure was told"))
        faults += kind.judge(place)
        kind.shop.drop(place)
        return faults
    if must_succeed:
        faults.append((STUCK, f"exit code {ran.code}: {ran.err.strip()[-300:]}"))
    faults += told(kind, place, ran, cause)
    half = kind.half_written(place)
    if half:
        faults.append((HALF, half))
    if removes and place.exists():
        left = unexpected(kind, place)
        if left:
            faults.append((LEFT, f"at once: {', '.join(left)}"))
    place.mkdir(exist_ok=True)
    reason = kind.finish(place)
    if reason:
        faults.append((STUCK, reason))
    else:
        faults += kind.judge(place)
    kind.shop.drop(place)
    return faults


def with_error(kind, call, fault, on, classes, cause, removes, under, must_succeed=False):
    place = kind.shop.place(kind.name)
    kind.prepare(place)
    ran = kind.shop.run(
        kind.begin(place), place, env=kind.environment(place), under=[place, *under], fault=fault, at=call.number, on=on,
        classes=classes,
    )
    words = f"{call.name} {call.path.removeprefix(str(kind.shop.work))}"
    # Rust's standard library asks what is there when `mkdir` finds something, and then tells the first error.
    cause = None if "stat" in call.name else cause
    faults = after(kind, place, ran, cause, removes, must_succeed=must_succeed)
    return [(column, f"{words}: {reason}") for column, reason in faults]


def errors(shop, work, given, tally):
    """Calls that fail."""
    may_be_cut = {"write", "pwrite64", "read", "pread64"}
    may_be_interrupted = may_be_cut | {"openat", "open", "fsync", "fdatasync", "ftruncate"}
    # Name, what the shim does, for good, classes, all of them or every so many, whether left-overs can be removed.
    sorts = [
        ("ENOSPC", errno.ENOSPC, True, "s", 1, True),
        ("EDQUOT", errno.EDQUOT, True, "s", 7, True),
        ("EROFS", errno.EROFS, True, "srm", 7, False),
        ("EIO", errno.EIO, False, "srm", 5, False),
        ("EACCES", errno.EACCES, False, "s", 11, True),
        ("EMFILE", errno.EMFILE, False, "so", 5, False),
        ("EIO, reading", errno.EIO, False, "ol", 11, False),
        ("ENOENT, opening", errno.ENOENT, False, "o", 5, False),
        ("EINTR", "errno=4", False, "sl", 7, True),
        ("short", "short", False, "sl", 5, True),
    ]
    for kind in work:
        under = [shop.work / "inputs", shop.work / "source"]
        of_classes = {}
        for name, fault, on, classes, every, removes in sorts:
            if classes not in of_classes:
                of_classes[classes] = kind_calls(kind, classes, under)
            chosen = of_classes[classes]
            cause = fault if isinstance(fault, int) else None
            if cause is None:
                allowed = may_be_cut if fault == "short" else may_be_interrupted
                chosen = [call for call in chosen if call.name in allowed]
            every *= given.every * (6 if given.quick else 1)
            chosen = [call for i, call in enumerate(chosen) if i % every == every // 2]
            trials = [
                functools.partial(with_error, kind, call, f"errno={cause}" if cause else fault, on, classes, cause, removes, under,
                                  cause is None)
                for call in chosen
            ]
            for faults in all_at_once(given.jobs, trials):
                tally.note((kind.name, name), faults)
        if not given.quick:
            say(f"{kind.name}: {sum(counts['trials'] for row, counts in tally.counts.items() if row[0] == kind.name)} calls failed")


def kind_calls(kind, classes, under):
    place = kind.shop.place(kind.name)
    kind.prepare(place)
    ran = kind.shop.run(kind.begin(place), place, env=kind.environment(place), under=[place, *under], classes=classes)
    kind.shop.drop(place)
    return ran.calls


# ---------------------------------------------------------------- mounts

def mount(*argv):
    subprocess.run(["mount", *map(str, argv)], check=True, capture_output=True)


def on_small_disk(kind, kilobytes):
    place = kind.shop.place(kind.name)
    mount("-t", "tmpfs", "-o", f"size={kilobytes}k", "small", place)
    try:
        kind.prepare(place)
        ran = kind.shop.run(kind.begin(place), place, env=kind.environment(place))
        mount("-o", "remount,size=1g", place)
        faults = after(kind, place, ran, errno.ENOSPC)
    finally:
        subprocess.run(["umount", "-l", place], check=False)
    kind.shop.drop(place)
    return [(column, f"{kilobytes} kB: {reason}") for column, reason in faults]


def on_read_only_disk(kind):
    place = kind.shop.place(kind.name)
    mount("-t", "tmpfs", "-o", "size=1g", "read-only", place)
    try:
        kind.prepare(place)
        mount("-o", "remount,ro", place)
        ran = kind.shop.run(kind.begin(place), place, env=kind.environment(place))
        mount("-o", "remount,rw", place)
        faults = after(kind, place, ran, errno.EROFS, must_fail=True)
    finally:
        subprocess.run(["umount", "-l", place], check=False)
    kind.shop.drop(place)
    return faults


def with_inputs_read_only(kind):
    place = kind.shop.place(kind.name)
    kind.prepare(place)
    ran = kind.shop.run(kind.begin(place), place, env=kind.environment(place))
    return after(kind, place, ran, must_succeed=True)


def used(kind):
    """What the work takes on the disk when it is done, in kB."""
    place = kind.shop.place(kind.name)
    kind.prepare(place)
    kind.shop.run(kind.begin(place), place, env=kind.environment(place))
    size = sum(path.stat().st_blocks for path in place.rglob("*")) // 2
    kind.shop.drop(place)
    return size


def mounts(shop, work, given, tally):
    """In a namespace of its own, where this program is root."""
    steps = 6 if given.quick else 24
    for kind in work:
        size = used(kind)
        # A row of sizes from too little for anything to enough; a page at least.
        sizes = sorted({max(4, size * (i + 1) * 5 // (4 * steps)) for i in range(steps)})
        for faults in all_at_once(given.jobs, [functools.partial(on_small_disk, kind, size) for size in sizes]):
            tally.note((kind.name, "full disk"), faults)
        tally.note((kind.name, "read-only disk"), on_read_only_disk(kind))
    read_only = [shop.work / "inputs", shop.work / "source"]
    for path in read_only:
        mount("--bind", path, path)
        mount("-o", "remount,bind,ro", path)
    for kind in work:
        tally.note((kind.name, "read-only inputs"), with_inputs_read_only(kind))
    for path in read_only:
        subprocess.run(["umount", "-l", path], check=False)


# ---------------------------------------------------------------- what goes away

class WithInputs(Train):
    """A run whose model and data are its own."""

    def prepare(self, place):
        shutil.copytree(self.shop.work / "inputs", place / "inputs")

    def plain(self, place):
        given = super().plain(place)
        for key, path in (("model.path", "base"), ("data.train", "data/train.jsonl")):
            given += ["--set", f'{key}="{place / "inputs" / path}"']
        return given + ["--set", 'model.base_name="village"']


class MergeWithInputs(Output):
    """A merge whose base and adapter are its own."""

    def prepare(self, place):
        shutil.copytree(self.shop.work / "inputs", place / "inputs")
        shutil.copytree(self.shop.work / "source/runs/source/adapter", place / "adapter")

    def begin(self, place):
        model = ["--model", place / "inputs/base"]
        return [self.argv[0], *(["--adapter"] if self.argv[0] == "merge" else []), place / "adapter", *model,
                "--output", place / "out" / self.output, *self.argv[1:]]


def vanishing_at(kind, which, gone, must_succeed):
    """Stops the work at a call, takes something away, and lets it go on."""
    call = next(call for call in kind_calls(kind, "srm", []) if which(call))
    place = kind.shop.place(kind.name)
    kind.prepare(place)
    process = kind.shop.start(
        kind.begin(place), place, env=kind.environment(place), under=[place], fault=f"signal={int(signal.SIGSTOP)}", at=call.number
    )
    os.waitpid(process.pid, os.WUNTRACED)
    away = kind.shop.place("away") / "it"
    target = place / gone
    target.rename(away)
    os.kill(process.pid, signal.SIGCONT)
    ran = kind.shop.finish(process)
    if gone.startswith(("inputs", "adapter")):
        # Back again, so that the work can be gone on with.
        shutil.rmtree(target, ignore_errors=True)
        away.rename(target)
    faults = after(kind, place, ran, removes=not gone.startswith(("runs", "out")), must_succeed=must_succeed)
    return faults


def at_step(step):
    """The call that notes a step."""
    seen = iter(range(1, sys.maxsize))
    return lambda call: call.name == "write" and call.path.endswith("metrics.jsonl") and next(seen) == step


def at_write(call):
    return call.name == "write"


def vanishing(shop, _, given, tally):
    for name, settings, result in (("olora", [], "adapter"), ("full", ['adapter.method="none"'], "model")):
        kind = WithInputs(name, shop, *settings, result=result)
        kind.measure()
        for what, gone, must_succeed in (
            ("the model", "inputs/base", True),
            ("the data", "inputs/data", True),
            ("the run directory", f"runs/{name}", False),
            ("its parent", "runs", False),
            ("the checkpoints", f"runs/{name}/checkpoints", False),
        ):
            tally.note((name, f"{what} gone"), vanishing_at(kind, at_step(4), gone, must_succeed))
    for name, output, *argv in (
        ("merge", "merged", "merge", "--shard-size", "500kB"),
        ("merge-gguf", "merged.gguf", "merge"),
        ("convert", "converted", "convert", "--rank", "2"),
    ):
        kind = MergeWithInputs(name, shop, output, *argv)
        kind.measure()
        for what, gone in (("the model", "inputs/base"), ("the adapter", "adapter"), ("the output's parent", "out")):
            tally.note((name, f"{what} gone"), vanishing_at(kind, at_write, gone, False))


# ---------------------------------------------------------------- limits

def limited(kind, what, amount):
    """One trial with little of something. How it ended, and what was wrong."""
    place = kind.shop.place(kind.name)
    kind.prepare(place)
    ran = kind.shop.run(
        kind.begin(place), place, env=kind.environment(place), limits=lambda: resource.setrlimit(what, (amount, amount))
    )
    if ran.code == 0:
        ended = "done"
    elif "panicked" in ran.err:
        ended = "panic"
    elif ran.code < 0:
        ended = signal.Signals(-ran.code).name
    elif ran.code == 127 or "shared librar" in ran.err:
        ended = "not started"
    else:
        ended = "error"
    memory = what == resource.RLIMIT_AS
    # Removing what is in a directory takes descriptors, too.
    faults = after(kind, place, ran, removes=False)
    # Without descriptors, what fails may be no file: a pipe that signals are listened to with.
    if ended == "not started" or "listening to signals: " in ran.err:
        faults = [fault for fault in faults if fault[0] != MESSAGE]
    if memory:
        # The allocator of the standard library aborts, and the C library's now and then faults where a thread gets no
        # memory; there is no path to name, nor time to remove anything.
        allowed = ended in ("SIGABRT", "SIGSEGV", "error", "not started")
        faults = [fault for fault in faults if not (fault[0] in (CRASH, MESSAGE) and allowed)]
    unit = f"{amount >> 20} MB" if memory else f"{amount} descriptors"
    return ended, [(column, f"{unit}: {reason}") for column, reason in faults]


def limits(shop, work, given, tally):
    descriptors = range(4, 24, 6 if given.quick else 1)
    memory = [int((64 << 20) * 1.16**i) for i in range(0, 26, 6 if given.quick else 1)]
    for kind in work:
        for name, what, amounts in (
            ("few descriptors", resource.RLIMIT_NOFILE, descriptors), ("little memory", resource.RLIMIT_AS, memory)
        ):
            ends = []
            for ended, faults in all_at_once(given.jobs, [functools.partial(limited, kind, what, amount) for amount in amounts]):
                tally.note((kind.name, name), faults)
                ends.append(ended)
            say(f"{kind.name}, {name}: " + ", ".join(f"{ends.count(end)} {end}" for end in sorted(set(ends))))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--every", type=int, default=1, help="of the calls, only each so many")
    given = arguments(parser)
    began = time.monotonic()
    can_mount = subprocess.run(
        ["unshare", "-Urm", "mount", "-t", "tmpfs", "-o", "size=64k", "try", "/mnt"], capture_output=True, check=False
    ).returncode == 0
    inside = os.environ.get("OLORA_RELIABILITY_INSIDE")
    if "mounts" in given.parts and can_mount and not inside:
        # Everything in a namespace of its own: what is mounted there is gone with it.
        if hasattr(given, "kept"):
            given.kept.cleanup()
        os.execvpe("unshare", ["unshare", "-Urm", sys.executable, *sys.argv], os.environ | {"OLORA_RELIABILITY_INSIDE": "1"})
    shop = Workshop(given.olora, given.work)
    if shop.shim is None:
        say("without the shim, no call can fail and nothing can go away in the middle: --parts mounts limits")
        if set(given.parts) & {"errors", "vanishing"}:
            return 2
    if given.quick:
        given.kinds = given.kinds or ["olora", "merge", "convert"]
    work = kinds(shop, given.kinds)
    for kind in work:
        kind.measure()
    tally = Tally(COLUMNS, given.show)
    for name, part in (("errors", errors), ("mounts", mounts), ("vanishing", vanishing), ("limits", limits)):
        if name not in given.parts:
            continue
        if name == "mounts" and not can_mount:
            say("mounts: left out, since this machine has no user namespaces to mount in")
            continue
        try:
            part(shop, work, given, tally)
        except KeyboardInterrupt:
            say(f"{name}: stopped; what follows is of the trials until then")
            break
    say()
    failed = tally.print(["kind", "fault"])
    trials = sum(counts["trials"] for counts in tally.counts.values())
    say(f"\n{trials} trials, {failed} faults, in {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
