#!/usr/bin/env python3
"""Two machines, as two network namespaces with a virtual link between them: `mpirun` across it.

    python3 tools/parallel/machines.py           # as root: two minutes

- the same adapter as on one machine;
- the link is cut in mid-run: both sides must end with an error within ten seconds, and the run, gone on with once the
  link is back, in the same adapter;
- a machine that does not see the run directory: it is sent the checkpoint.

Namespaces are made here and removed; each has a name of its machine (`unshare --uts`), so that MPI takes them for two.
"""

import os
import pathlib
import signal
import subprocess
import sys
import time

from common import ROOT, Run, arguments, environment, error_of, parser, say
from failures import LIMIT, QUICKSTART, SETTINGS

HERE = pathlib.Path(__file__).resolve().parent
NET = "10.77.0"
# Of `mpirun`'s own connections, on which a cut link shows up late otherwise.
MCA = {
    "plm_rsh_agent": str(HERE / "enter.py"), "btl": "tcp,self,vader", "btl_tcp_if_include": f"{NET}.0/24",
    "oob_tcp_if_include": f"{NET}.0/24", "oob_tcp_keepalive_time": "3", "oob_tcp_keepalive_intvl": "1",
    "oob_tcp_keepalive_probes": "3",
}


def ip(*words):
    subprocess.run(["ip", *words], check=True)


def make():
    drop()
    for number in (1, 2):
        ip("netns", "add", f"olora-{number}")
        ip("-n", f"olora-{number}", "link", "set", "lo", "up")
    ip("link", "add", "olora-a", "netns", "olora-1", "type", "veth", "peer", "name", "olora-b", "netns", "olora-2")
    for number, link in ((1, "olora-a"), (2, "olora-b")):
        ip("-n", f"olora-{number}", "address", "add", f"{NET}.{number}/24", "dev", link)
        ip("-n", f"olora-{number}", "link", "set", link, "up")


def drop():
    for number in (1, 2):
        subprocess.run(["ip", "netns", "delete", f"olora-{number}"], capture_output=True)


def inside():
    """The processes in both namespaces."""
    pids = []
    for number in (1, 2):
        ran = subprocess.run(["ip", "netns", "pids", f"olora-{number}"], capture_output=True, text=True)
        pids += [int(pid) for pid in ran.stdout.split()]
    return pids


def olora_inside(olora):
    found = []
    for pid in inside():
        try:
            if pathlib.Path(os.readlink(f"/proc/{pid}/exe")).resolve() == olora:
                found.append(pid)
        except OSError:
            pass
    return found


def end_all():
    """Those that were started here, and are in the namespaces."""
    for pid in inside():
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def argv_of(run, *more, wrap=()):
    """Two ranks on each machine, started on the first."""
    mca = [word for key, value in MCA.items() for word in ("--mca", key, value)]
    hosts = f"{NET}.1:2,{NET}.2:2"
    mpirun = ["mpirun", "--bind-to", "none", *mca, "--host", hosts, "-n", "4"]
    return [
        "ip", "netns", "exec", "olora-1", "unshare", "--uts", "sh", "-c", 'hostname node1; exec "$@"', "sh", *mpirun,
        *wrap, *run.argv(1, *more),
    ]


def go(run, *more, **options):
    return subprocess.run(
        argv_of(run, *more, **options), cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL, capture_output=True,
        text=True, errors="replace", timeout=120,
    )


def cut(run, olora, expected):
    """A run whose link is cut after its fifth step."""
    process = subprocess.Popen(
        argv_of(run), cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace",
    )
    for line in process.stdout:
        if line.startswith("step 5/"):
            break
    ip("-n", "olora-1", "link", "set", "olora-a", "down")
    began = time.monotonic()
    gone = None
    while time.monotonic() - began < 60:
        if not olora_inside(olora):
            gone = time.monotonic() - began
            break
        time.sleep(0.1)
    try:
        out, _ = process.communicate(timeout=30)
        mpirun = time.monotonic() - began
    except subprocess.TimeoutExpired:
        end_all()
        out, _ = process.communicate()
        mpirun = None
    errors = [line for line in out.splitlines() if line.startswith("error:")]
    say(f"  all ranks ended after {gone and round(gone, 1)} s, mpirun after {mpirun and round(mpirun, 1)} s")
    say(f"  {errors[0] if errors else out[-500:]}")
    end_all()
    ip("-n", "olora-1", "link", "set", "olora-a", "up")
    # The address goes with the link in some kernels.
    subprocess.run(["ip", "-n", "olora-1", "address", "add", f"{NET}.1/24", "dev", "olora-a"], capture_output=True)
    time.sleep(1)
    ran = go(run, "--auto-resume")
    same = ran.returncode == 0 and run.result() == expected
    say(f"  gone on with: {'the same adapter' if same else 'WRONG ' + error_of(ran)}")
    return not (gone and gone < LIMIT and errors and same)


def main():
    given = arguments(parser(__doc__))
    if os.geteuid() != 0:
        sys.exit("network namespaces need root")
    wrong = 0
    alone = Run(given.olora, given.work, QUICKSTART, SETTINGS, "one")
    alone.remove()
    ran = alone.go(1)
    if ran.returncode != 0:
        sys.exit(error_of(ran))
    expected = alone.result()
    say(f"one process: {expected[0][:16]}")
    make()
    try:
        run = Run(given.olora, given.work, QUICKSTART, SETTINGS, "two-machines")
        run.remove()
        ran = go(run)
        machines = [line.strip() for line in ran.stderr.splitlines() if line.startswith("  rank ")]
        same = ran.returncode == 0 and run.result() == expected
        say(f"two machines: {'the same adapter' if same else 'WRONG ' + error_of(ran) + ran.stderr[-1500:]}")
        say("  " + "; ".join(line.split(":")[0] for line in machines))
        wrong += not same
        say("the link is cut in mid-run")
        run = Run(given.olora, given.work, QUICKSTART, SETTINGS, "cut")
        run.remove()
        wrong += cut(run, given.olora, expected)
        say("the second machine does not see the run directory")
        longer = [one for one in SETTINGS if "max_steps" not in one]
        run = Run(given.olora, given.work, QUICKSTART, SETTINGS, "unseen")
        run.remove()
        process = subprocess.Popen(
            run.argv(1), cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True,
        )
        for line in process.stderr:
            if line.startswith("step 7/"):
                process.send_signal(signal.SIGKILL)
                break
        process.wait()
        hide = 'case $(hostname) in node2) exec unshare --mount sh -c "mount -t tmpfs none \\"\\$0\\" && exec \\"\\$@\\"" "$0" "$@";; *) exec "$@";; esac'
        ran = go(run, "--auto-resume", wrap=("sh", "-c", hide, str(run.directory)))
        same = ran.returncode == 0 and run.result() == expected
        resumed = next((line for line in ran.stderr.splitlines() if line.startswith("resuming")), "it began again")
        say(f"  {resumed}: {'the same adapter' if same else 'WRONG ' + error_of(ran)}")
        wrong += not same or not resumed.startswith("resuming")
    finally:
        end_all()
        drop()
    say("all as it should be" if not wrong else f"{wrong} went wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
