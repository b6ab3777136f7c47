"""Mutated chat templates through olora's renderer: does any crash it, hang it or fill the memory?

    cargo build --release -p olora-data --example render
    python tools/templates/mutate.py DIR --render target/release/examples/render [--n 50000] [--seed 0] [--seconds 10] [--mib 1024]

DIR holds `*.jinja`, as for `sweep.py`; none is kept here. Each mutant is one to three edits of a template: parts cut, doubled,
swapped, taken from another template, numbers made large, operators and filters replaced, and pieces that are known to be hard put in.
Each is rendered with one conversation that has tools, calls and thoughts. Printed: what came of them, the longest time, the highest
resident memory, and every mutant over a limit (written to --keep). No network.
"""

import argparse
import collections
import json
import random
import re
import resource
import select
import subprocess
import sys
import time
from pathlib import Path

from sweep import ASK, ASK2, CALLS_TWO, RESULT, RESULT2, SAY, SAY2, SYSTEM, THOUGHT, TOOLS

MESSAGES = [SYSTEM, ASK, CALLS_TWO | {"reasoning_content": "I look."}, RESULT, RESULT2, SAY, ASK2, THOUGHT, ASK, SAY2]
HARD = [
    "{% for i in range(100000) %}", "{% endfor %}", "{% set messages = messages + messages %}", "{% set content = content + content %}",
    "{% set x = (x or 'ab') * 1000 %}{{ x }}", "| tojson(indent=1000000000000)", "| indent(999999999)", "| batch(100000000) | list",
    "'%999999999s' | format('a')", "'{:999999999}'.format(1)", "[::-1]", "[::-2]", "[5:1:-1]", "| replace('', 'aaaaaaaa')", "| join(messages)",
    "* 1000000000", "** 99", "// 0", "% 0", "| sort | list", "| unique | list", "| map('upper') | list", "| reverse | list", "| items", "| dictsort",
    "{% set ns = namespace(a=messages) %}{% set ns.a = [ns.a, ns.a] %}{{ ns.a }}", "{% macro m(x) %}{{ m(x) }}{{ m(x) }}{% endmacro %}{{ m(1) }}",
    "{% for a in messages recursive %}{{ loop(messages) }}{% endfor %}", "{% generation %}", "{% endgeneration %}", "((((((((((((((((", "))))))))",
    "[[[[[[[[", "not " * 500, "-" * 500, "~ 'a' " * 500, "+ 1 " * 500, "{% if x %}" * 100, "{% raw %}", "{% endraw %}", "{#", "#}", "\u0000", "\U0010fffe",
    ".count('')", ".split('')", ".splitlines()", ".items()", ".keys() | tojson", "| string | length", "| list | string", "loop", "caller()", "is in messages",
    "| groupby('role')", "| selectattr('role', 'equalto', messages) | list", "| first", "| last", "| int", "| round(99999999)", "namespace(x=ns)", "messages[0].content",
]  # fmt: skip


def mutant(templates, random):
    source = random.choice(templates)
    for _ in range(random.randint(1, 3)):
        # Edits at tags reach further than those in text.
        marks = [match.start() for match in re.finditer(r"\{[%{]|[%}]\}|[|+~.(\[]", source)] or [0]
        at = random.choice(marks) if random.random() < 0.8 else random.randrange(len(source) + 1)
        length = random.choice([1, 2, 5, 20, 100, 1000])
        part = source[at : at + length]
        kind = random.randrange(8)
        if kind == 0:
            source = source[:at] + source[at + length :]
        elif kind == 1:
            source = source[:at] + part * random.choice([2, 3, 10, 100]) + source[at + length :]
        elif kind == 2:
            other = random.choice(templates)
            start = random.randrange(len(other))
            source = source[:at] + other[start : start + length] + source[at:]
        elif kind in (3, 4):
            hard = random.choice(HARD)
            if not hard.startswith("{") and random.random() < 0.3:
                hard = "{{ messages " + hard + " }}"
            source = source[:at] + hard + source[at:]
        elif kind == 5:
            to = random.randrange(len(source) + 1)
            source = source[:at] + source[at + length : to] + part + source[max(to, at + length) :]
        elif kind == 6:
            numbers = [m for m in re.finditer(r"\d+", source)]
            if numbers:
                m = random.choice(numbers)
                number = random.choice(["0", "-1", "9" * 18, str(2**63), str(2**64 - 1), "100000", "1e308"])
                source = source[: m.start()] + number + source[m.end() :]
        else:
            names = [m for m in re.finditer(r"\b[a-z_]{2,}\b", source)]
            if names:
                a, b = random.choice(names), random.choice(names)
                source = source[: a.start()] + b.group() + source[a.end() :]
    return source[:400_000]


class Renderer:
    def __init__(self, command):
        self.command, self.process = command, None

    def start(self):
        limit = lambda: resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
        self.process = subprocess.Popen([self.command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=limit)

    def resident(self):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+)", status).group(1)) / 1024

    def __call__(self, request, seconds):
        """(what came of it, seconds, MiB at its highest)"""
        if self.process is None:
            self.start()
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")  # the highest so far is forgotten
        begin = time.monotonic()
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        answer = b""
        while not answer.endswith(b"\n"):
            left = seconds - (time.monotonic() - begin)
            ready, _, _ = select.select([self.process.stdout], [], [], max(0, left))
            if not ready:
                self.process.kill()
                self.process.wait()
                self.process = None
                return "HANG", seconds, 0.0
            more = self.process.stdout.read1(1 << 20)
            if not more:
                error = self.process.stderr.read().decode(errors="replace")[-300:]
                self.process.wait()
                code, self.process = self.process.returncode, None
                return f"CRASH {code}: {error}", time.monotonic() - begin, 0.0
            answer += more
        answer = json.loads(answer)
        kind = "rendered" if "text" in answer else "refused"
        if "should not" in answer.get("error", ""):
            kind = "PANIC"
        elif "beyond what a chat template may" in answer.get("error", ""):
            kind = "bounded"
        elif "syntax error" in answer.get("error", ""):
            kind = "no Jinja"
        return kind, time.monotonic() - begin, self.resident()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--render", required=True)
    parser.add_argument("--n", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--mib", type=float, default=1024)
    parser.add_argument("--keep", type=Path, help="a directory for mutants over a limit")
    args = parser.parse_args()
    templates = [path.read_bytes().decode() for path in sorted(args.directory.glob("*.jinja"))]
    render = Renderer(args.render)
    counts, longest, highest, bad = collections.Counter(), (0.0, 0), (0.0, 0), []
    begin = time.monotonic()
    for i in range(args.n):
        source = mutant(templates, random.Random(f"{args.seed} {i}"))
        kind, seconds, mib = render(dict(template=source, messages=MESSAGES, tools=TOOLS, add_generation_prompt=True, specials={"bos_token": "<s>", "eos_token": "</s>"}), args.seconds)
        counts[kind.split(":")[0]] += 1
        longest, highest = max(longest, (seconds, i)), max(highest, (mib, i))
        if kind[:5] in ("HANG", "CRASH", "PANIC") or mib > args.mib:
            bad.append(i)
            print(f"mutant {i}: {kind}, {seconds:.1f} s, {mib:.0f} MiB", flush=True)
            if args.keep:
                args.keep.mkdir(exist_ok=True)
                (args.keep / f"{args.seed}-{i}.jinja").write_text(source)
        if i % 5000 == 4999:
            print(f"{i + 1}: {dict(counts)}", flush=True)
    print(f"{args.n} mutants of {len(templates)} templates, seed {args.seed}, in {time.monotonic() - begin:.0f} s: " + ", ".join(f"{n} {kind}" for kind, n in counts.most_common()))
    print(f"longest {longest[0]:.1f} s (mutant {longest[1]}), highest resident {highest[0]:.0f} MiB (mutant {highest[1]}), over a limit: {len(bad)}")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
