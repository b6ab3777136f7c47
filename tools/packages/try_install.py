#!/usr/bin/env python3
"""A release tried as a stranger would: a bare Debian, the install script, the example trained, all of it removed again.

    python3 tools/packages/try_install.py --olora target/release/olora    # packs this binary as a release would
    python3 tools/packages/try_install.py --release target/distrib        # what `dist build` made, or a download

It needs root, for `debootstrap` (Debian's package, which brings the system) and `chroot`, and for --olora the program
`dist`, whose version is in dist-workspace.toml: `cargo install cargo-dist --locked --version VERSION`.

1. With --olora, `dist` makes the archive, its checksum and both install scripts by dist-workspace.toml, as it does in
   .github/workflows/release.yml. Only the compilation is left out: where `dist` would run `cargo build`, it is given the
   binary. So the trial is of what dist makes, and of this binary, not of how the workflow compiles it.
2. They are served on 127.0.0.1, next to an archive with one byte changed. The install scripts fetch from where
   OLORA_DOWNLOAD_URL says; without it, from the repository that Cargo.toml names.
3. `debootstrap` makes a root without a toolchain: Debian's smallest, and `curl` and `ca-certificates`, since something
   must fetch the script. The mirror is the one that apt uses on this machine. --root DIR keeps it for the next trial.
4. In it, an ordinary user runs the install script: first on the damaged archive, which must be refused; then on the right
   one, then `olora init --example` and `olora train quickstart.toml` in a login shell, where PATH is what the script made
   of it. Time is taken from before the script's first byte to the end of training: at most --bar seconds.
   The network is this machine's; the root has its own processes and mounts.
5. `uninstall.sh` runs. Then every file of the root is compared with the listing from before: its kind, mode, owner, and
   contents. What may have been added is what the user made, in the one folder that the commands ran in.

Exit code 1 if any of that did not hold.
"""

import argparse
import contextlib
import functools
import hashlib
import http.server
import json
import os
import pathlib
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
import tomllib

ROOT = pathlib.Path(__file__).resolve().parents[2]
# The user within the root, and where they work.
USER, WORK = "somebody", "tales"


class Failed(Exception):
    """A check that did not hold."""


def say(text=""):
    print(text, flush=True)


def expect(holds, words):
    if not holds:
        raise Failed(words)
    say(f"ok      {words}")


def run(command, **more):
    """The output of a command, which is shown if the command fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)
    if done.returncode:
        said = done.stdout[-2000:] + done.stderr[-4000:]
        raise Failed(f"{' '.join(map(str, command[:6]))} ended with {done.returncode}:\n{said}")
    return done.stdout


# --- the release ---

CARGO = """#!{python}
# Given to `dist` in the place of cargo. It answers `build` with the binary that is being tried.
import json, os, subprocess, sys
if "build" not in sys.argv[1:]:
    os.execv({cargo!r}, [{cargo!r}] + sys.argv[1:])
metadata = json.loads(subprocess.check_output([{cargo!r}, "metadata", "--format-version=1", "--no-deps"]))
package = next(package for package in metadata["packages"] if package["name"] == "olora")
target = next(target for target in package["targets"] if "bin" in target["kind"])
print(json.dumps({{
    "reason": "compiler-artifact", "package_id": package["id"], "manifest_path": package["manifest_path"],
    "target": target, "features": [], "fresh": True, "executable": {olora!r}, "filenames": [{olora!r}],
    "profile": {{"opt_level": "3", "debuginfo": 0, "debug_assertions": False, "overflow_checks": False, "test": False}},
}}))
"""


def pack(olora, dist, folder):
    """What `dist` makes of a binary for this machine's kind, in a folder of its own."""
    version = tomllib.loads((ROOT / "dist-workspace.toml").read_text())["dist"]["cargo-dist-version"]
    dist = shutil.which(dist)
    if dist is None:
        raise Failed(f"there is no `dist`: cargo install cargo-dist --locked --version {version}, or name it with --dist")
    found = run([dist, "--version"]).split()[-1]
    if found != version:
        raise Failed(f"this `dist` is {found}, and dist-workspace.toml asks for {version}")
    # The workspace with its folders as links, so that dist writes into a `target` of the trial's and not into ours.
    # Files are copied, since dist packs no links.
    workspace = folder / "workspace"
    workspace.mkdir()
    for entry in ROOT.iterdir():
        if entry.is_file():
            shutil.copy2(entry, workspace)
        elif entry.name not in ("target", ".git"):
            (workspace / entry.name).symlink_to(entry)
    binary = folder / "binary" / "olora"
    binary.parent.mkdir()
    shutil.copy2(olora, binary)
    cargo = folder / "bin" / "cargo"
    cargo.parent.mkdir()
    # The one behind rustup's, which would look itself up in PATH and find ours.
    real = run(["rustup", "which", "cargo"]).strip() if shutil.which("rustup") else shutil.which("cargo")
    cargo.write_text(CARGO.format(python=sys.executable, cargo=real, olora=str(binary)))
    cargo.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name != "CARGO_TARGET_DIR"}
    environment |= {"CARGO": str(cargo), "PATH": f"{cargo.parent}:{os.environ['PATH']}"}
    triple = next(line.split()[1] for line in run(["rustc", "-vV"]).splitlines() if line.startswith("host:"))
    made = workspace / "target" / "distrib"
    made.mkdir(parents=True)
    # In the workflow these run on two machines, and the second is given the first one's manifest with the checksum.
    for kind in ("local", "global"):
        manifest = run([dist, "build", f"--artifacts={kind}", "--output-format=json"] + ["--target", triple] * (kind == "local"),
                       cwd=workspace, env=environment)
        (made / f"{kind}-dist-manifest.json").write_text(manifest)
    return made


def archive_of(release):
    """The archive of this machine's kind."""
    machine = os.uname().machine
    archives = [path for path in release.glob(f"olora-{machine}-unknown-linux-*.tar.*") if path.suffix != ".sha256"]
    if len(archives) != 1:
        raise Failed(f"{release} must hold one archive for Linux on {machine}, and holds {len(archives)}")
    return archives[0]


def check(release):
    """Whether archive, checksums and install script agree."""
    archive = archive_of(release)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    written = archive.with_name(archive.name + ".sha256").read_text().split()
    expect(written[0] == digest and written[1].lstrip("*") == archive.name, f"{archive.name}.sha256 is the archive's")
    script = (release / "olora-installer.sh").read_text()
    expect(f'_checksum_value="{digest}"' in script, "the install script holds the archive's checksum")
    say(f"        {archive.name}: {archive.stat().st_size / 1e6:.1f} MB")
    for line in run(["tar", "tvf", archive]).splitlines():
        say(f"        {line}")


class Files(http.server.SimpleHTTPRequestHandler):
    """A folder's files, with no line for each request."""

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def served(folder):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Files, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


# --- the bare system ---

def debian(root):
    """A bare Debian, from the mirror of this machine's apt."""
    if shutil.which("debootstrap") is None:
        raise Failed("there is no `debootstrap`: apt-get install debootstrap")
    release = next(line.split("=", 1)[1].strip('"\n') for line in open("/etc/os-release") if line.startswith("VERSION_CODENAME="))
    wanted = ["Created-By: Packages", f"Codename: {release}", "Component: main"]
    mirrors = run(["apt-get", "indextargets", "--format", "$(REPO_URI)", *wanted]).split()
    if not mirrors:
        raise Failed(f"apt on this machine has no mirror for {release}")
    run(["debootstrap", "--variant=minbase", "--include=curl,ca-certificates", release, str(root), mirrors[0]])


class System:
    """A root, and commands run in it with processes and mounts of their own."""

    def __init__(self, root):
        self.root = root
        self.home = root / "home" / USER

    def command(self, script, user=USER):
        inside = ["chroot"] + (["--userspec", f"{user}:{user}"] if user != "root" else []) + [str(self.root)]
        home = f"/home/{USER}" if user != "root" else "/root"
        inside += ["env", "-i", f"HOME={home}", f"USER={user}", "LANG=C.UTF-8", "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
                   "bash", "-l", "-c", f"cd && {script}"]
        mounts = f'mount -t proc proc "{self.root}/proc" && exec "$@"'
        return ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", mounts, "sh", *inside]

    def run(self, script, user=USER):
        return run(self.command(script, user))

    def fails(self, script):
        """What a command says that must fail."""
        done = subprocess.run(self.command(script), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode == 0:
            raise Failed(f"this should have failed: {script}\n{done.stdout}")
        return done.stdout

    def listing(self):
        """Every path with what it is. Times are left out: a folder in which something was has a new one."""
        found = {}
        for folder, folders, files in os.walk(self.root):
            for name in folders + files:
                path = pathlib.Path(folder, name)
                state = path.lstat()
                kind = stat.S_IFMT(state.st_mode)
                what = [oct(state.st_mode), state.st_uid, state.st_gid]
                if kind == stat.S_IFLNK:
                    what.append(os.readlink(path))
                elif kind == stat.S_IFREG:
                    what.append(hashlib.sha256(path.read_bytes()).hexdigest())
                found[str(path.relative_to(self.root))] = what
        return found


# --- the trial ---

def trial(system, release, address, options):
    bare = system.run("command -v cargo rustc cc gcc python3 || true", user="root").split()
    expect(not bare, "the root has neither a toolchain nor Python")
    system.run(f"useradd --create-home --shell /bin/bash {USER}", user="root")
    script = f"curl -LsSf {address}/olora-installer.sh | OLORA_DOWNLOAD_URL={address}"

    said = system.fails(f"set -o pipefail; {script}/damaged sh")
    expect("checksum mismatch" in said, "an archive with one byte changed is refused")
    expect(not (system.home / ".local").exists(), "and nothing is installed")
    # dist's script leaves what it fetched when it stops there.
    for path in (system.root / "tmp").iterdir():
        shutil.rmtree(path)

    before = system.listing()
    took = {}

    def timed(name, command):
        start = time.monotonic()
        said = system.run(command)
        took[name] = time.monotonic() - start
        return said

    for line in timed("install", f"set -o pipefail; {script} sh 2>&1").splitlines():
        say(f"        {line}")
    after_install = system.listing()
    expect((system.home / ".local/bin/olora").exists(), "the binary is in ~/.local/bin")
    say("        the install script added or changed:")
    for path in changes(before, after_install):
        say(f"          {path}")
    timed("init", f"mkdir {WORK} && cd {WORK} && olora init --example")
    for line in timed("train", f"cd {WORK} && olora train quickstart.toml 2>&1").splitlines()[-12:]:
        say(f"        {line}")
    expect(list((system.home / WORK).rglob("adapter_model.safetensors")), "the adapter is there")
    whole = sum(took.values())
    times = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in took.items())
    expect(whole <= options.bar, f"from before the script's first byte to the adapter: {whole:.1f} s ({times}), at most {options.bar:g} s")

    for line in system.run(f"set -o pipefail; curl -LsSf {address}/uninstall.sh | sh 2>&1").splitlines():
        say(f"        {line}")
    left = [path for path in changes(before, system.listing()) if not f"{path[2:]}/".startswith(f"home/{USER}/{WORK}/")]
    shown = "".join(f"\n          {path}" for path in left)
    expect(not left, f"after uninstalling, the root is as before but for the user's folder{shown}")
    made = sorted(path.name for path in (system.home / WORK).iterdir())
    say(f"        the user's folder holds {', '.join(made)}")


def changes(before, after):
    """Paths that were added (+), removed (-) or changed (~)."""
    return sorted(
        [f"+ {path}" for path in after.keys() - before.keys()]
        + [f"- {path}" for path in before.keys() - after.keys()]
        + [f"~ {path}" for path in before.keys() & after.keys() if before[path] != after[path]],
        key=lambda line: line[2:],
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--olora", type=pathlib.Path, metavar="BIN", help="a binary, packed as a release would")
    what.add_argument("--release", type=pathlib.Path, metavar="DIR", help="a folder with the archive, its .sha256 and the scripts")
    parser.add_argument("--dist", default="dist", metavar="BIN", help="the program `dist` (default: the one in PATH)")
    parser.add_argument("--root", type=pathlib.Path, metavar="DIR", help="a bare Debian to copy; made there if it is not yet")
    parser.add_argument("--bar", type=float, default=120, metavar="SECONDS", help="how long all may take (default: 120)")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("this needs root, for debootstrap and chroot")

    with tempfile.TemporaryDirectory(prefix="olora-install-") as folder:
        folder = pathlib.Path(folder)
        try:
            release = options.release or pack(options.olora, options.dist, folder)
            check(release)
            served_files = folder / "served"
            (served_files / "damaged").mkdir(parents=True)
            archive = archive_of(release)
            for path in (archive, release / "olora-installer.sh", release / "uninstall.sh"):
                shutil.copy(path, served_files)
            damaged = bytearray(archive.read_bytes())
            damaged[len(damaged) // 2] ^= 1
            (served_files / "damaged" / archive.name).write_bytes(damaged)

            root = folder / "root"
            if options.root is None:
                debian(root)
            else:
                if not options.root.exists():
                    debian(options.root)
                run(["cp", "-a", str(options.root), str(root)])
            with served(served_files) as address:
                trial(System(root), release, address, options)
        except Failed as error:
            say(f"FAILED  {error}")
            return 1
    say("the release installs, trains and goes again")
    return 0


if __name__ == "__main__":
    sys.exit(main())
