#!/usr/bin/env python3
"""Runs the examples of a Markdown file against `olora serve`, so that they stay true.

    python3 tools/serve/examples.py docs/serve.md README.md --olora target/release/olora

An example is a fenced block (```bash, ```sh or ```python) right below a line that says so:

    <!-- run: serve -->                     it must end with exit code 0
    <!-- run: serve, prints: "deleted" -->  and print that
    <!-- run: serve, fails: 404 -->         an HTTP error with that status is what it shows

`127.0.0.1:8080` and `localhost:8080` in a block become the server's address, `$PORT` is its port, and `curl` fails on HTTP
errors. Blocks of a file run in order, in one directory. The server has the quickstart's model with a chat template under
the name `base`, the adapter `crier` loaded and `squire` in its --adapters-dir; `--replace OLD=NEW` puts other words in the
place of those of the text, such as a model's name. A block that begins with `olora serve` is not run as it is: its options
must be those that `olora serve --help` knows.

Exit code 1 if an example failed, or there is none.
"""

import os
import pathlib
import re
import subprocess
import sys

from common import Checks, Server, adapters, arguments, environment, expect, parser, same, with_template

BLOCK = re.compile(r"^<!-- run: serve(?P<rest>.*?) -->[ \t]*\n(?:[ \t]*\n)?```(?P<language>\w+)\n(?P<text>.*?)^```", re.M | re.S)
CURL = 'curl() { command curl --fail-with-body --silent --show-error --max-time 60 "$@"; }\n'


def blocks(text):
    """Line number, language, text and what is expected of each example."""
    for found in BLOCK.finditer(text):
        wanted = dict(re.findall(r",\s*(prints|fails):\s*(\".*?\"|\S+?)(?=,|$)", found["rest"].strip()))
        yield text[:found.start("text")].count("\n") + 1, found["language"], found["text"], {k: v.strip('"') for k, v in wanted.items()}


def starts(given, text):
    """Whether the options of a command that serves are known."""
    words = subprocess.run([given.olora, "serve", "--help"], env=environment(), capture_output=True, text=True, timeout=20).stdout
    for option in re.findall(r"(?<!\S)--[a-z][a-z-]*", text):
        expect(option in words, f"`olora serve --help` has no {option}")


def run(given, server, language, text, wanted, place):
    text = re.sub(r"(127\.0\.0\.1|localhost):8080", f"127.0.0.1:{server.port}", text)
    for old, _, new in (pair.partition("=") for pair in given.replace):
        text = text.replace(old, new)
    env = environment(PORT=str(server.port), PATH=f"{given.olora.parent}{os.pathsep}{os.environ['PATH']}")
    # What `OPENAI_…` an example needs it sets itself.
    argv = [sys.executable, "-c", text] if language == "python" else ["bash", "-euo", "pipefail", "-c", CURL + text]
    ran = subprocess.run(argv, env=env, cwd=place, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=120)
    said = (ran.stdout + ran.stderr).strip()
    if "fails" in wanted:
        expect(ran.returncode != 0 and wanted["fails"] in said, f"it was to fail with {wanted['fails']}: {ran.returncode}, {said[-300:]}")
        return
    same(ran.returncode, 0, f"exit code, after {said[-300:]!r}")
    expect(said, "it prints nothing")
    expect(wanted.get("prints", "") in said, f"it does not print {wanted.get('prints')}: {said[-300:]}")


def main():
    made = parser(__doc__)
    made.add_argument("files", nargs="+", type=pathlib.Path)
    made.add_argument("--replace", action="append", default=[], metavar="OLD=NEW")
    given = arguments(made)
    checks = Checks()
    model = with_template(given.model, given.work)
    shelf = adapters(given.olora, given.work)
    options = ["--model", model, "--name", "base", "--adapters-dir", shelf, "--adapter", shelf / "crier"]
    for file in given.files:
        found = list(blocks(file.read_text(encoding="utf-8")))
        place = given.work / f"in-{file.stem}"
        place.mkdir()
        with Server(given.olora, *options) as server:
            for line, language, text, wanted in found:
                with checks.check(f"{file}:{line}"):
                    expect(language in ("bash", "sh", "python"), f"a block of {language}")
                    if text.startswith("olora serve"):
                        starts(given, text)
                    else:
                        run(given, server, language, text, wanted, place)
        if not found:
            checks.skip(str(file), "no block below <!-- run: serve -->")
    expect(checks.done, "no example at all")
    return checks.end()


if __name__ == "__main__":
    sys.exit(main())
