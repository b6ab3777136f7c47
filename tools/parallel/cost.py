#!/usr/bin/env python3
"""What an exchange costs, beside torch's all-reduce over gloo.

    cargo build --release --workspace --locked --features olora/mpi --examples
    python3 tools/parallel/cost.py --python /path/to/python-with-torch        # as root: five minutes

Sums of 5 million and 41.9 million values (rank 16 on all linear layers of SmolLM2-135M's size and of an 8B model) over
two ranks: in one machine's memory, over TCP on its loopback, and between two network namespaces over a link shaped to
10 Gb/s and 1 Gb/s by `tc`. The median of six, after one to warm up. Link and both ends share this machine's cores.
"""

import pathlib
import subprocess
import sys

from common import ROOT, arguments, environment, parser, say
from machines import MCA, NET, drop, end_all, ip, make

VALUES = ["5000000", "41900000"]
HERE = pathlib.Path(__file__).resolve().parent


def shape(rate):
    for number, link in ((1, "olora-a"), (2, "olora-b")):
        words = ["tc", "qdisc", "replace", "dev", link, "root", "tbf", "rate", rate, "burst", "4mb", "latency", "100ms"]
        ip("netns", "exec", f"olora-{number}", *words)


def show(name, text):
    for line in text.splitlines():
        if "values:" in line:
            say(f"| {name} | {line.replace(': ', ' | ')} |")


def ours(name, exchange, argv=None, more=()):
    argv = argv or ["mpirun", "--bind-to", "none", "--oversubscribe", *more, "-n", "2"]
    ran = subprocess.run([*argv, str(exchange), *VALUES], env=environment(), capture_output=True, text=True, timeout=300)
    if ran.returncode:
        say(ran.stderr[-500:])
    show(f"ours, {name}", ran.stdout)


def gloo(name, python, places):
    """`places` are prefixes of a command, the address of the first, and the interface of each."""
    processes = []
    for rank, (prefix, interface) in enumerate(places[1]):
        argv = [*prefix, python, str(HERE / "gloo.py"), str(rank), "2", places[0], interface, *VALUES]
        processes.append(subprocess.Popen(argv, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    out = [process.communicate(timeout=300) for process in processes]
    if any(process.returncode for process in processes):
        say(out[0][1][-500:])
    show(f"gloo, {name}", out[0][0])


def main():
    given = parser(__doc__)
    given.add_argument("--exchange", type=pathlib.Path, default=ROOT / "target/release/examples/exchange")
    given.add_argument("--python", help="with torch; without it, gloo is left out")
    given = arguments(given)
    say("| what | ranks and values | seconds |\n|---|---|---|")
    ours("shared memory", given.exchange)
    ours("loopback", given.exchange, more=("--mca", "btl", "tcp,self", "--mca", "btl_tcp_if_include", "lo"))
    if given.python:
        gloo("loopback", given.python, ("127.0.0.1:29517", [((), "lo"), ((), "lo")]))
    make()
    try:
        for rate in ("10gbit", "1gbit"):
            shape(rate)
            mca = [word for key, value in MCA.items() for word in ("--mca", key, value)]
            argv = [
                "ip", "netns", "exec", "olora-1", "unshare", "--uts", "sh", "-c", 'hostname node1; exec "$@"', "sh",
                "mpirun", "--bind-to", "none", *mca, "--host", f"{NET}.1:1,{NET}.2:1", "-n", "2",
            ]
            ours(rate, given.exchange, argv)
            if given.python:
                enter = [("ip", "netns", "exec", "olora-1"), ("ip", "netns", "exec", "olora-2")]
                gloo(rate, given.python, (f"{NET}.1:29518", [(enter[0], "olora-a"), (enter[1], "olora-b")]))
    finally:
        end_all()
        drop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
