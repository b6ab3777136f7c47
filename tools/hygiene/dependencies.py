#!/usr/bin/env python3
"""Is docs/dependencies.md what the manifests say?

Fails when a crate from outside that a member of the workspace depends on has no line there, when a line has no such
crate, and when a line names other members than those that depend on it; and when the number of crates in Cargo.lock is
another than the page says. Needs nothing but Python 3.11.

    python3 tools/hygiene/dependencies.py           # say what is wrong, if anything
    python3 tools/hygiene/dependencies.py --count   # and compare the numbers of each build, which `cargo tree` gives
    python3 tools/hygiene/dependencies.py --list    # print crates and who uses them, as the page has them
"""

import argparse
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "dependencies.md"
SECTION = "## Direct dependencies"
KINDS = ("dependencies", "build-dependencies", "dev-dependencies")
TOTAL = re.compile(r"^\| `Cargo\.lock`[^|]*\| ([0-9,]+) \|$", re.MULTILINE)
DEVICES = ("cuda", "rocm", "vulkan", "metal", "wgpu")
# `| `name` | `member`, `member` (tests) | reason |`
ROW = re.compile(r"^\| `([A-Za-z0-9_-]+)` \| ([^|]*) \| ([^|]*) \|$")


def manifest(path):
    with path.open("rb") as file:
        return tomllib.load(file)


def members(root):
    """The manifests of the workspace's members, in the order in which Cargo.toml names them."""
    for pattern in root["workspace"]["members"]:
        found = sorted(path for path in ROOT.glob(f"{pattern}/Cargo.toml"))
        if not found:
            sys.exit(f"Cargo.toml names the member {pattern}, and there is no {pattern}/Cargo.toml")
        yield from found


def tables(member):
    """Every table of dependencies of a manifest with its kind, those for some systems only included."""
    for part in (member, *member.get("target", {}).values()):
        for kind in KINDS:
            yield kind, part.get(kind, {})


def is_ours(name, entry, shared):
    if isinstance(entry, dict) and entry.get("workspace"):
        if name not in shared:
            sys.exit(f"{name} is taken from the workspace, and [workspace.dependencies] has none of this name")
        entry = shared[name]
    return isinstance(entry, dict) and "path" in entry


def used(root):
    """By name of a crate from outside, the members that depend on it: the kinds by the member's short name."""
    shared = root["workspace"].get("dependencies", {})
    users = {}
    for path in members(root):
        member = manifest(path)
        short = member["package"]["name"].removeprefix("olora-")
        for kind, table in tables(member):
            for name, entry in table.items():
                if not is_ours(name, entry, shared):
                    users.setdefault(name, {}).setdefault(short, set()).add(kind)
    # What is declared for all and taken by none is cargo-shear's to find; here it would have an empty column.
    return users


def column(users):
    """Who uses a crate, as the page says it."""
    names = []
    for short, kinds in sorted(users.items()):
        tests = kinds == {"dev-dependencies"}
        names.append(f"`{short}`" + (" (tests)" if tests else ""))
    return ", ".join(names)


def rows(text):
    """The lines of the page's first section, with their numbers."""
    found = {}
    inside = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("## "):
            inside = line == SECTION
        match = ROW.match(line) if inside else None
        if match:
            name, users, reason = match.groups()
            if name in found:
                sys.exit(f"docs/dependencies.md:{number}: {name} has a line already")
            found[name] = (number, users.strip(), reason.strip())
    return found


def built(*features):
    """How many crates the binary is made of, build scripts included."""
    command = ["cargo", "tree", "--locked", "-p", "olora", "-e", "normal,build", "--prefix", "none", *features]
    tree = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if tree.returncode:
        sys.exit(f"{' '.join(command)}: {tree.stderr.strip()}")
    # A line is a name, a version, and what is not counted: a path, "(*)" for one that was there before.
    return len({tuple(line.split()[:2]) for line in tree.stdout.splitlines() if line.strip()})


def counts():
    """The lines of the page that are of builds."""
    devices = "; ".join(str(built("--features", name)) for name in DEVICES)
    names = "; ".join(f"`{name}`" for name in DEVICES)
    return [
        f"| the binary as it is built by default, build scripts included | {built()} |",
        f"| the same without the feature `web` | {built('--no-default-features', '--features', 'flex')} |",
        f"| with {names} as well | {devices} |",
        f"| with `mpi` as well | {built('--features', 'mpi')} |",
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="print crates and who uses them")
    parser.add_argument("--count", action="store_true", help="compare the numbers of each build, too")
    arguments = parser.parse_args()
    users = used(manifest(ROOT / "Cargo.toml"))
    if arguments.list:
        for name in sorted(users):
            print(f"| `{name}` | {column(users[name])} |")
        return 0
    page = PAGE.read_text(encoding="utf-8")
    lines = rows(page)
    wrong = []
    locked = len(manifest(ROOT / "Cargo.lock")["package"])
    total = TOTAL.search(page)
    if not total:
        wrong.append("the number of crates in Cargo.lock is not said")
    elif int(total[1].replace(",", "")) != locked:
        wrong.append(f"Cargo.lock has {locked} crates, and the page says {total[1]}: count anew, the default build too")
    if arguments.count:
        wrong += [f"there should be the line {line}" for line in counts() if line not in page.splitlines()]
    for name in sorted(users.keys() - lines.keys()):
        wrong.append(f"no line for {name}: add | `{name}` | {column(users[name])} | why it is there |")
    for name in sorted(lines.keys() - users.keys()):
        wrong.append(f"line {lines[name][0]}: nothing depends on {name} any longer: remove it")
    for name in sorted(lines.keys() & users.keys()):
        number, said, reason = lines[name]
        if said != column(users[name]):
            wrong.append(f"line {number}: {name} is used by {column(users[name])}, and the page says {said}")
        if not reason:
            wrong.append(f"line {number}: {name} has no reason")
    for problem in wrong:
        print(f"docs/dependencies.md: {problem}", file=sys.stderr)
    if not wrong:
        print(f"docs/dependencies.md: {len(lines)} direct dependencies, each with a line")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
