#!/usr/bin/env python3
"""torch's all-reduce over gloo, to compare an exchange with: one process of it.

    gloo.py RANK N_RANKS ADDRESS INTERFACE VALUES...
"""

import os
import sys
import time

import torch
import torch.distributed as dist

rank, n, address, interface = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
os.environ["GLOO_SOCKET_IFNAME"] = interface
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"tcp://{address}", rank=rank, world_size=n)
for count in map(int, sys.argv[5:]):
    values = torch.full((count,), rank + 0.1)
    seconds = []
    for _ in range(7):
        dist.barrier()
        began = time.perf_counter()
        dist.all_reduce(values)
        seconds.append(time.perf_counter() - began)
    seconds = sorted(seconds[1:])
    if rank == 0:
        print(f"{n} ranks, {count} values: {seconds[len(seconds) // 2]:.4f} s", flush=True)
dist.destroy_process_group()
