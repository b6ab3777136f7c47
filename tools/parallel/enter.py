#!/usr/bin/env python3
"""In the place of `ssh` for `mpirun`: runs a command in the network namespace that stands for a machine.

    mpirun --mca plm_rsh_agent tools/parallel/enter.py --host 10.77.0.1:2,10.77.0.2:2 ...
"""

import os
import sys

# `mpirun` gives options of ssh, the host, and a command for a shell.
words = sys.argv[1:]
while words and words[0].startswith("-"):
    words.pop(0)
host, command = words[0], " ".join(words[1:])
number = host.rsplit(".", 1)[-1]
os.execvp("ip", [
    "ip", "netns", "exec", f"olora-{number}", "unshare", "--uts", "sh", "-c", f"hostname node{number}; {command}",
])
