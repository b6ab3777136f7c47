"""What the trials of several ranks share: starting them, and comparing what they leave."""

import argparse
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
# What differs between two runs of one recipe: time, memory, how many made it.
TIMES = {"seconds", "tokens_per_second", "peak_memory", "device_memory", "ranks"}


def say(text=""):
    print(text, flush=True)


def environment(**more):
    """As in a container, where one is root; without the cache of tokens, which is another's. Patience may be given."""
    others = ("OLORA_", "OMPI_", "PMIX_", "SLURM_")
    given = {key: value for key, value in os.environ.items() if key == "OLORA_RANK_TIMEOUT" or not key.startswith(others)}
    return given | {
        "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OLORA_CACHE": "off", "HF_HUB_OFFLINE": "1",
        "NO_COLOR": "1",
    } | more


def launcher(n, *options):
    """The command that starts `n` ranks on this machine, which may have fewer cores; nothing for one."""
    return ["mpirun", "--oversubscribe", "--bind-to", "none", *options, "-n", str(n)] if n > 1 else []


class Run:
    """A recipe with settings, in a directory of its own."""

    def __init__(self, olora, work, recipe, settings, name):
        self.olora, self.name = olora, name
        self.directory = pathlib.Path(work) / name
        self.recipe, self.settings = recipe, settings

    def argv(self, n, *more, command="train", options=()):
        sets = [part for setting in [*self.settings, f"output.directory={self.directory}"] for part in ("--set", setting)]
        return [*launcher(n, *options), str(self.olora), command, str(self.recipe), *sets, *more]

    def go(self, n, *more, timeout=600, options=(), env=None):
        began = time.monotonic()
        ran = subprocess.run(
            self.argv(n, *more, options=options), cwd=ROOT, env=environment(**(env or {})), stdin=subprocess.DEVNULL,
            capture_output=True, text=True, errors="replace", timeout=timeout,
        )
        ran.seconds = time.monotonic() - began
        return ran

    def start(self, n, *more, options=(), env=None):
        return subprocess.Popen(
            self.argv(n, *more, options=options), cwd=ROOT, env=environment(**(env or {})), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        )

    @property
    def place(self):
        found = [path for path in self.directory.iterdir() if path.is_dir()] if self.directory.exists() else []
        return found[0] if found else self.directory

    def result(self):
        """A hash of what was trained, and the lines of the metrics without times."""
        digest = hashlib.sha256()
        files = sorted(self.place.glob("adapter/*.safetensors")) + sorted(self.place.glob("model/*.safetensors"))
        if not files:
            return None
        for file in files:
            digest.update(file.read_bytes())
        lines = []
        for line in (self.place / "metrics.jsonl").read_text().splitlines():
            lines.append({key: value for key, value in json.loads(line).items() if key not in TIMES})
        return digest.hexdigest(), lines

    def remove(self):
        shutil.rmtree(self.directory, ignore_errors=True)


def error_of(ran):
    """The last thing that a process said, for people."""
    text = (ran.stderr or "") + (ran.stdout or "")
    errors = [line for line in text.splitlines() if line.startswith("error:")]
    return (errors or text.splitlines() or ["nothing was said"])[-1]


def arguments(parser):
    parser.add_argument("--olora", default=ROOT / "target/release/olora", help="a binary with the feature mpi")
    parser.add_argument("--work", help="a directory to work in, which is kept; else a temporary one")
    given = parser.parse_args()
    given.olora = pathlib.Path(given.olora).resolve()
    if not shutil.which("mpirun"):
        sys.exit("no mpirun: on Debian, install openmpi-bin")
    given.temporary = None
    if not given.work:
        given.temporary = tempfile.TemporaryDirectory(prefix="olora-parallel-")
        given.work = given.temporary.name
    given.work = pathlib.Path(given.work).resolve()
    return given


def parser(doc):
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
