#!/usr/bin/env python3
"""Whether each published crate holds all that it compiles in, and which of its tests read files that it does not hold.

    cargo package --workspace --exclude olora-examples --exclude olora-benchmarks --exclude olora-tools \\
      --exclude olora-fuzz --no-verify --locked --allow-dirty
    python3 tools/packages/check_crates.py target/package

`cargo package --no-verify` compiles nothing, so a file that a crate includes from outside of itself is missed: in the
workspace it is there, in the package it is not. This reads the packages' sources for `include_str!`, `include_bytes!`,
`include!` and `#[path = "…"]`. Compiling the packages would find the same, and takes as long as a build.

Exit code 1 if what a library or binary includes is missing, if a description, a readme or a licence is, or if a crate
is larger than crates.io takes. Tests that need the repository are counted only: people who have the package run none.
"""

import io
import pathlib
import re
import sys
import tarfile
import tomllib

# What crates.io takes.
LIMIT = 10 * 1024 * 1024
INCLUDED = re.compile(r'\binclude(?:_str|_bytes)?!\s*[(\[]|#\[path\s*=')
OUTSIDE = re.compile(r"\.\./\.\.|fixtures/|recipes/")


def normal(path):
    """A path without `..`; None if it leads out of the package."""
    parts = []
    for part in pathlib.PurePosixPath(path).parts:
        if part == "..":
            if not parts:
                return None
            parts.pop()
        elif part != ".":
            parts.append(part)
    return "/".join(parts)


def argument(source, start):
    """What stands between a bracket before `start` and the one that closes it."""
    depth = 1
    for end in range(start, len(source)):
        depth += (source[end] in "([") - (source[end] in ")]")
        if depth == 0:
            return source[start:end]
    return source[start:]


def included(source, folder):
    """Line, path and whether the path is whole, of each file that a source file in `folder` includes."""
    for found in INCLUDED.finditer(source):
        said = argument(source, found.end())
        below = 'env!("CARGO_MANIFEST_DIR")' in said
        parts = re.findall(r'"([^"]*)"', re.sub(r'env!\("[^"]*"\)', "", said))
        # Put together by a macro or a build script: of what is written down is asked whether it leads out.
        whole = bool(parts) and not re.search(r"\$|OUT_DIR", said)
        path = "".join(parts) if whole else "".join(parts[:1])
        yield source.count("\n", 0, found.start()) + 1, path.lstrip("/") if below else f"{folder}/{path}", whole


def check(path):
    """What is wrong with a package, and how many files of its tests read outside of it."""
    problems, reading = [], 0
    with tarfile.open(path) as archive:
        root = path.name.removesuffix(".crate") + "/"
        files = {member.name.removeprefix(root): member for member in archive.getmembers() if member.isfile()}

        def text(name):
            return io.TextIOWrapper(archive.extractfile(files[name]), encoding="utf-8").read()

        package = tomllib.loads(text("Cargo.toml"))["package"]
        for key in ("description", "license", "repository", "readme"):
            if not package.get(key):
                problems.append(f"Cargo.toml has no {key}")
        if package.get("readme") and package["readme"] not in files:
            problems.append(f"{package['readme']} is not in the package")
        if len(package.get("keywords", [])) > 5 or len(package.get("categories", [])) > 5:
            problems.append("crates.io takes five keywords and five categories at most")
        if path.stat().st_size > LIMIT:
            problems.append(f"it has {path.stat().st_size} bytes, more than crates.io takes")
        for name in sorted(files):
            if not name.endswith(".rs"):
                continue
            source = text(name)
            compiled = name == "build.rs" or name.startswith("src/")
            if not compiled:
                reading += bool(OUTSIDE.search(source))
                continue
            for line, at, whole in included(source, pathlib.PurePosixPath(name).parent):
                if normal(at) is None or (whole and normal(at) not in files):
                    problems.append(f"{name}:{line} includes {at}, which is not in the package")
    return problems, reading


def main():
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "target/package")
    packages = sorted(folder.glob("*.crate"))
    if not packages:
        sys.exit(f"no packages in {folder}: run `cargo package` first, see the head of this file")
    failed, outside = 0, 0
    for path in packages:
        problems, reading = check(path)
        outside += reading
        for problem in problems:
            failed += 1
            print(f"{path.name}: {problem}")
    print(f"{len(packages)} packages, {failed} problems; {outside} files of tests and examples mention files of the repository")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
