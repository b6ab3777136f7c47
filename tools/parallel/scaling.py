#!/usr/bin/env python3
"""Weak scaling on paper: what share of a step is exchange and waiting, to 1,024 ranks.

    python3 tools/parallel/scaling.py [--step 4] [--network 25] [--per-node 8] [--jitter 0.02]

Nothing here was measured on more than one machine. The model of a step:

- each rank computes for `--step` seconds, give or take a normal share `--jitter`; all wait for the slowest, expected at
  the mean + sigma * sqrt(2 ln R);
- the ranks' headers: R - 1 messages each, at `--message` microseconds of the host for each sent and received, and one
  latency;
- the values: each rank sends and receives 2 G (R - 1) / R bytes (a slice to each, the sum of its own to all), through a
  network card of `--network` Gb/s that the ranks of a machine share; 2 (R - 1) messages at the same cost each;
- the host: values are copied from the device and back, and added, at `--host` GB/s each way.

Nothing overlaps with anything: it is what is built.
"""

import argparse
import math

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--step", type=float, default=4.0)
parser.add_argument("--network", type=float, default=25.0)
parser.add_argument("--per-node", type=int, default=8)
parser.add_argument("--jitter", type=float, default=0.02)
parser.add_argument("--message", type=float, default=4.0)
parser.add_argument("--latency", type=float, default=30.0)
parser.add_argument("--host", type=float, default=2.0)
given = parser.parse_args()

print(f"{given.step} s a step, {given.network} Gb/s for each machine of {given.per_node} ranks\n")
print("| ranks | values | headers | network | host | waiting | of a step lost |\n|---:|---:|---:|---:|---:|---:|---:|")
for values in (5.0e6, 41.9e6):
    for ranks in (2, 8, 64, 256, 1024):
        size = 4 * values
        headers = (ranks - 1) * 2 * given.message * 1e-6 + given.latency * 1e-6
        sharing = min(given.per_node, ranks)
        # What stays within a machine does not go through its card.
        outside = max(0, ranks - given.per_node) / ranks
        network = 2 * size * outside * sharing / (given.network * 1e9 / 8) + 4 * (ranks - 1) * given.message * 1e-6
        host = 4 * size / (given.host * 1e9)
        waiting = given.step * given.jitter * math.sqrt(2 * math.log(ranks))
        lost = headers + network + host + waiting
        print(
            f"| {ranks:,} | {values / 1e6:.1f} M | {1e3 * headers:.1f} ms | {1e3 * network:.0f} ms | {1e3 * host:.0f} ms | "
            f"{1e3 * waiting:.0f} ms | {100 * lost / (given.step + lost):.1f} % |"
        )
