#!/usr/bin/env python3
"""Runs the commands of the documentation, so that none can rot.

    python3 tools/docs/run.py --olora target/release/olora                  # README.md, CONTRIBUTING.md, docs/*.md
    python3 tools/docs/run.py docs/serve.md --olora target/release/olora    # one file
    python3 tools/docs/run.py --self-test --olora target/release/olora      # would it notice?

Above each fenced block stands a comment, which readers do not see, that says what becomes of it:

    <!-- run -->                        its commands are run, and must end with exit code 0
    <!-- run: trained -->               in a scene (`scenes.py` has their names, and what a block finds there)
    <!-- run: trained, each -->         each command by itself: they are alternatives, not steps
    <!-- run: serve, prints: "data:" -->   and what is said has these words
    <!-- run: serve, fails: 404 -->     an error is what it shows, and what is said has this word
    <!-- checked: reason -->            not run, but its programs are there and know their options
    <!-- not run: reason -->            neither
    <!-- output -->                     what the last block that ran has said; or, if there is one in the text between, what the
                                        last inline command says (`<!-- output: SCENE -->`)
    <!-- output of: olora … -->         what this command says
    <!-- file: village.jsonl -->        a file that the blocks below find
    <!-- recipe: mine.toml -->          a recipe, and the same
    <!-- recipe, train: riddles.csv --> a part of a recipe on these data
    <!-- listing: trained, of: runs/mine -->   every name in that directory of the scene is in the block

`toml` and `json` blocks need none: a recipe, or a part of one laid into a small whole, must be accepted by `olora plan --no-probe`,
and JSON must parse. A block of any other kind without a comment is an error, and so is `not run` without a reason.

Commands run in bash with `set -euo pipefail`, each block in a new directory, without a network. `stand_ins.py` says what they meet
in the place of programs that are not there, such as `cargo`, and why. Python blocks run, too, or are at least compiled.

Output is compared so: the lines that are shown come in this order, none between them. `…` within a line stands for anything in it;
at the end of a line or alone, for any lines too. A number before a unit of time, memory or speed is only a number. Other numbers
with a decimal point agree within 5 %, since processors differ in rounding. All else is equal, whole numbers included.

Inline commands of the text (`olora …`, `python3 tools/…`, `cargo … -p …`) are not run, but their subcommands, programs, packages
and options must be known.

Exit code 1 if anything failed.
"""

import collections
import contextlib
import fnmatch
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import tomllib

from scenes import MODELS, NAMES, ROOT, Scenes
from stand_ins import has_mpi

from common import Checks, Failed, arguments, expect, parser, same, say  # tools/serve, found by scenes.py

MARK = re.compile(r"<!-- (run|checked|not run|output of|output|file|recipe|listing)(?:: (.*?))?((?:, [\w ]+(?:: (?:\".*?\"|[^,\s]+))?)*) -->")
OPTION = re.compile(r", ([\w ]+)(?:: (\".*?\"|[^,\s]+))?")
# Marks whose words are a sentence or a command, commas and all.
SENTENCES = ("checked", "not run", "output of")
DECIMAL = r"[-+]?\d+\.\d+(?:e[-+]?\d+)?"
NUMBERS = re.compile(rf"(?P<measured>\d+(?:\.\d+)?)(?= (?:s|ms|kB|MB|GB|tok/s|tokens/s)\b)|(?P<decimal>(?<![\d.]){DECIMAL}(?!\d|\.\d))")
NEAR = 0.05
PATIENCE = 300


class Block:
    """A fenced block: where, in which language, what is in it, its mark, and the text since the block before."""

    def __init__(self, line, language, text, mark, prose):
        self.line, self.language, self.text, self.prose = line, language, text, prose
        self.kind, self.words, self.options = None, "", {}
        if mark:
            self.kind, words, options = mark[1], mark[2] or "", mark[3]
            if self.kind in SENTENCES:
                words, options = words + options, ""
            self.words = words.strip()
            self.options = {key: (value or "").strip('"') for key, value in OPTION.findall(options)}

    def scene(self):
        name = self.words or "village"
        expect(name in NAMES, f"there is no scene `{name}`, but {', '.join(NAMES)}")
        return name


def blocks(text):
    """The blocks of a file, and the lines of marks that stand above none."""
    found, lost = [], []
    mark, mark_line, prose, opened = None, 0, [], None
    for number, line in enumerate(text.splitlines(), 1):
        if opened:
            if re.match(rf"\s*{opened[1]}\s*$", line):
                body = textwrap.dedent("".join(row + "\n" for row in opened[3]))
                found.append(Block(opened[0], opened[2], body, mark, "\n".join(prose)))
                opened, mark, prose = None, None, []
            else:
                opened[3].append(line)
        elif fence := re.match(r"\s*(```+|~~~+)\s*(\w*)", line):
            opened = (number, fence[1], fence[2], [])
        else:
            if mark and line.strip():
                lost.append(mark_line)
                mark = None
            if read := MARK.fullmatch(line.strip()):
                mark, mark_line = read, number
            else:
                prose.append(line)
    if mark and not opened:
        lost.append(mark_line)
    expect(not opened, f"the block that begins in line {opened and opened[0]} does not end")
    return found, lost


def commands(text):
    """The commands of a script, each with its continued and quoted lines, without lines that are comments."""
    found, begun = [], ""
    for line in text.replace("\\\n", " ").splitlines():
        begun += line
        try:
            words = shlex.split(begun, comments=True)
        except ValueError:  # a quotation that goes on in the next line
            begun += "\n"
            continue
        found += [begun] if words else []
        begun = ""
    expect(not begun, f"a quotation does not end: {begun[:80]!r}")
    return found


def plain(text):
    """A script without what differs between two ways to write a command."""
    uncommented = (re.sub(r"\s+#\s.*$", "", line) for line in commands(text))
    return "\n".join(" ".join(line.split()) for line in uncommented).replace("cargo run --release --", "olora")


def differs(shown, said):
    """Why `said` does not show what a block shows; nothing if it does."""
    lines = shown.rstrip("\n").split("\n")
    said = "\n".join(line.rstrip() for line in said.split("\n"))
    found = pattern(lines).search(said)
    if not found:
        first = next(count for count in range(1, len(lines) + 1) if not pattern(lines[:count]).search(said))
        return f"its line {first} is not said there: {lines[first - 1]!r}; the end of what is said: {said[-300:]!r}"
    expected = [number["decimal"] for line in lines for number in NUMBERS.finditer(line) if number["decimal"]]
    for old, new in zip(expected, found.groups(), strict=True):
        if abs(float(old) - float(new)) > max(NEAR * abs(float(old)), 10 ** -len(old.split(".")[1].split("e")[0])):
            return f"it shows {old}, and {new} is said"
    return None


def pattern(lines):
    made = []
    for at, line in enumerate(lines):
        last = at == len(lines) - 1
        line = line.rstrip()
        if line == "…":
            made.append(r"(?:[^\n]*\n)*?")
            continue
        parts = line.split("…")
        words = []
        for part in parts:
            place = 0
            for number in NUMBERS.finditer(part):
                words.append(re.escape(part[place:number.start()]))
                words.append(rf"({DECIMAL})" if number["decimal"] else r"\d+(?:\.\d+)?")
                place = number.end()
            words.append(re.escape(part[place:]))
            words.append(r"[^\n]*?")
        words.pop()
        if line.endswith("…"):
            words.append("[^\\n]*" if last else r"[^\n]*(?:\n[^\n]*)*?")
        made.append("".join(words) + ("$" if last else "\n"))
    return re.compile("^" + "".join(made), re.M)


def toml(value):
    """A value as TOML, tables inline: a whole recipe is a line for each of its keys."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(part)}" for key, part in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


class Documentation:
    """What is tried, on one binary."""

    def __init__(self, olora, work, checks, show=False):
        self.olora, self.checks, self.show = olora, checks, show
        self.scenes = Scenes(olora, work)
        self.counts = collections.Counter()
        self.left = []
        self.helps = {}
        # What commands have said, by scene, files and command.
        self.said = {}

    def file(self, path, name):
        """One file of documentation. Its blocks find the files of the blocks above them."""
        text = path.read_text(encoding="utf-8")
        self.files, self.last, self.server = {}, None, None
        with contextlib.ExitStack() as stack:
            self.stack = stack
            try:
                found, lost = blocks(text)
            except Exception as error:
                self.checks.done += 1
                self.checks.fail(name, str(error))
                return
            for line in lost:
                self.checks.done += 1
                self.checks.fail(f"{name}:{line}", "a mark that stands above no block")
            for block in found:
                what = block.kind or block.language or "a block"
                with self.checks.check(f"{name}:{block.line}, {what}"):
                    self.block(block)
                    if block.kind == "not run":
                        self.left.append((f"{name}:{block.line}", block.words))
            with self.checks.check(f"{name}, commands within its text"):
                self.inline(text)

    def block(self, block):
        if block.language == "json":
            json.loads(block.text)
        if block.language == "python":
            compile(block.text, "a block", "exec")
        kind = block.kind
        if kind is None and block.language in ("toml", "json"):
            kind = "recipe" if block.language == "toml" else "file"
        expect(kind, "no comment above it says what becomes of it: `<!-- run -->`, or see tools/docs/run.py")
        known = {"run": ("each", "prints", "fails"), "recipe": ("train",), "listing": ("of", "after")}.get(kind, ())
        unknown = set(block.options) - set(known)
        expect(not unknown, f"the mark has unknown words: {', '.join(unknown)}")
        self.counts[kind] += 1
        {
            "run": self.run, "checked": self.check, "not run": self.not_run, "output": self.output, "output of": self.output,
            "recipe": self.recipe, "file": self.keep, "listing": self.listing,
        }[kind](block)

    # Blocks that run.

    def run(self, block):
        scene = block.scene()
        if block.language == "console":
            script = "\n".join(line.removeprefix("$ ") for line in block.text.splitlines() if line.startswith("$ "))
            expect(script, "no line begins with `$ `")
        else:
            script = block.text
        single = [script] if block.language == "python" else commands(script)
        parts = single if "each" in block.options else [script]
        expect(single, "no command in it")
        self.counts["commands"] += len(single)
        said = ""
        for part in parts:
            code, words = self.execute(scene, part, block.language)
            if "fails" in block.options:
                wanted = block.options["fails"]
                expect(code != 0 and wanted in words, f"it was to fail with {wanted}: exit code {code}, {words[-300:]!r}")
            else:
                expect(code == 0, f"exit code {code} of {part.strip()[:80]!r}: {words[-500:]}")
            said += words
        expect(block.options.get("prints", "") in said, f"it does not print {block.options.get('prints')}: {said[-300:]!r}")
        if block.language == "console":
            shown = "\n".join(line for line in block.text.splitlines() if not line.startswith("$ "))
            if shown.strip():
                why = differs(shown, said)
                expect(not why, why)
        self.last = said

    def place(self, scene):
        place = self.scenes.copy("village" if scene == "serve" else scene)
        for name, text in self.files.items():
            (place / name).unlink(missing_ok=True)
            (place / name).write_text(text)
        return place

    def execute(self, scene, script, language="", place=None):
        """Exit code, and what was said on both streams in its order."""
        more = {}
        if scene == "serve":
            if self.server is None:
                self.server = self.stack.enter_context(self.scenes.server())
            script = re.sub(r"(127\.0\.0\.1|localhost):8080", f"127.0.0.1:{self.server.port}", script)
            more["PORT"] = str(self.server.port)
        place = place or self.place(scene)
        argv = [sys.executable, "-c", script] if language == "python" else ["bash", "-euo", "pipefail", "-c", script]
        with tempfile.TemporaryFile("w+", errors="replace") as out:
            process = subprocess.Popen(
                argv, env=self.scenes.environment(place, **more), cwd=place, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True,
            )
            try:
                code = process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                code = f"none after {PATIENCE} s"
            # What a command has left running in its session is no part of it any more.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            out.seek(0)
            said = out.read()
        if self.show:
            say(textwrap.indent(f"{script.strip()}\n-> {code}\n{said}", "    | "))
        if code == 0 and language != "python":
            self.said[self.key(scene, script)] = said
        return code, said

    # Blocks that show what commands say.

    def output(self, block):
        if block.kind == "output of":
            expect(block.words, "of which command?")
            said = self.once("village", block.words)
        elif spans := [span for span in re.findall(r"`([^`\n]+)`", block.prose) if span.startswith("olora ")]:
            said = self.once(block.scene(), spans[-1])
        else:
            expect(self.last is not None, "no command has run above it")
            said = self.last
        why = differs(block.text, said)
        expect(not why, why)

    def once(self, scene, command):
        if self.key(scene, command) not in self.said:
            code, said = self.execute(scene, command)
            expect(code == 0, f"exit code {code} of {command[:80]!r}: {said[-500:]}")
        return self.said[self.key(scene, command)]

    def key(self, scene, script):
        return scene, plain(script), tuple(sorted(self.files.items()))

    def listing(self, block):
        """Every name of a directory is in the block. Names there are of files that only some runs have, too."""
        place = self.place(block.scene())
        if command := block.options.get("after"):
            code, said = self.execute(block.scene(), command, place=place)
            expect(code == 0, f"exit code {code} of {command[:80]!r}: {said[-500:]}")
        shown = []
        for line in block.text.splitlines()[1:]:
            names = [name.strip().split("/")[0] for name in re.split(r"\s{2,}", line.strip())[0].split(",")]
            stem = names[0].split(".")[0]
            shown += [stem + name if name.startswith(".") else name for name in names]
        there = sorted(path.name for path in (place / block.options["of"]).iterdir() if not path.name.startswith("."))
        lost = [name for name in there if not any(fnmatch.fnmatchcase(name, one) for one in shown)]
        expect(there and not lost, f"{block.options['of']} has what the block does not name: {', '.join(lost) or 'nothing at all'}")

    # Blocks that are read.

    def recipe(self, block):
        given = tomllib.loads(block.text)
        text = block.text
        if block.words:
            self.files[block.words] = text
        if not {"name", "model", "data"} <= given.keys():
            data = {} if {"train", "sources"} & given.get("data", {}).keys() else {"train": block.options.get("train", "my-data.jsonl")}
            whole = {"name": "part"} | given
            whole["model"] = {"path": MODELS[0]} | given.get("model", {})
            whole["data"] = data | given.get("data", {})
            text = "".join(f"{key} = {toml(part)}\n" for key, part in whole.items())
        place = self.place("pairs" if "objective" in given else "village")
        (place / "of-this-block.toml").write_text(text)
        code, said = self.execute("village", "olora plan of-this-block.toml --no-probe", place=place)
        expect(code == 0, f"`olora plan` refuses it: {said[-500:]}")

    def keep(self, block):
        if block.words.endswith((".jsonl", ".json")):
            for line in block.text.splitlines() if block.words.endswith(".jsonl") else [block.text]:
                json.loads(line)
        if block.words:
            self.files[block.words] = block.text

    # Commands that are not run.

    def not_run(self, block):
        expect(block.words, "why is it not run?")

    def check(self, block):
        expect(block.words, "why is it not run?")
        for command in commands(block.text):
            self.known(command)

    def known(self, command):
        """The program of a command is there, and knows its options."""
        words = shlex.split(re.sub(r"\s#\s.*$", "", command))
        options = [word.split("=")[0] for word in words if re.fullmatch(r"--[a-z][\w-]*(=.*)?", word)]
        if words[0] == "olora":
            self.known_olora(words[1:], options)
        elif re.fullmatch(r"python3?", words[0]) or words[0].endswith(".py"):
            script = next(word for word in words if word.endswith(".py"))
            expect((ROOT / script).exists(), f"there is no {script}")
            # Options that several programs share are in a file beside them, or where those of the server have theirs.
            shared = {*(ROOT / script).parent.glob("common.py"), ROOT / "tools/serve/common.py"}
            text = "".join(file.read_text() for file in {ROOT / script, *shared})
            for option in options:
                expect(f'"{option}"' in text or f"`{option}" in text, f"{script} has no {option}")
        elif words[0].startswith("target/release/"):
            program = self.olora.parent / pathlib.Path(words[0]).name
            program = program if program.exists() else ROOT / words[0]
            expect(program.exists(), f"there is no {program}: build it")
            self.in_help(words[0], [program, "--help"], options)
        elif words[0] == "cargo" and "-p" in words:
            package = words[words.index("-p") + 1]
            manifests = [ROOT / "Cargo.toml", *ROOT.glob("*/Cargo.toml"), *ROOT.glob("*/*/Cargo.toml")]
            expect(any(f'name = "{package}"' in file.read_text() for file in manifests), f"there is no package {package}")
            if "--example" in words:
                example = words[words.index("--example") + 1]
                expect((ROOT / f"examples/{example}.rs").exists(), f"there is no example {example}")
        elif words[:2] in (["cargo", "test"], ["cargo", "build"]):
            expect(command.split("#")[0].strip() in (ROOT / ".ci/run").read_text(), f"`{command}` is no step of .ci/run")
        else:
            raise Failed(f"nothing is known of `{words[0]}`: say `not run`")

    def known_olora(self, words, options):
        command = next((word for word in words if not word.startswith("-")), None)
        if command is None or not re.fullmatch(r"[a-z-]+", command):
            return
        # Asked itself, since the list of all leaves some out.
        expect(self.help([self.olora, command, "--help"]), f"there is no `olora {command}`")
        self.in_help(f"olora {command}", [self.olora, command, "--help"], options)

    def in_help(self, name, argv, options):
        text = self.help(argv)
        for option in options:
            expect(re.search(rf"{option}(?![\w-])", text), f"`{name}` has no {option}")

    def help(self, argv):
        key = tuple(map(str, argv))
        if key not in self.helps:
            ran = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=30)
            self.helps[key] = ran.stdout if ran.returncode == 0 else ""
        return self.helps[key]

    def inline(self, text):
        wrong = []
        # Blocks have been looked at; what is left are spans, which do not cross lines.
        prose = re.sub(r"^\s*(```+|~~~+).*?^\s*\1\s*$", "", text, flags=re.M | re.S)
        for span in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", prose):
            if not re.match(r"olora [a-z-]|python3? (tools|fixtures|benchmarks)/|tools/\S+\.py|cargo \w+ .*-p ", span):
                continue
            self.counts["inline"] += 1
            try:
                self.known(span.replace("…", "").replace("\\|", "|"))
            except Exception as error:
                wrong.append(f"`{span}`: {error}")
        expect(not wrong, "; ".join(wrong))

    def end(self):
        code = self.checks.end()
        counts = self.counts
        say(
            f"blocks: {counts['run']} run ({counts['commands']} commands), {counts['output'] + counts['output of']} outputs compared, "
            f"{counts['recipe']} recipes planned, {counts['file']} files read, {counts['listing']} listings compared, "
            f"{counts['checked']} checked for programs and options, {counts['not run']} not run; {counts['inline']} inline commands known"
        )
        for place, why in self.left:
            say(f"  not run: {place}: {why}")
        if not has_mpi(self.olora):
            say("  as one process: `mpirun`, since this binary is built without the feature mpi")
        return code


# What must be noticed, with a word of what is said of it; nothing where all is well.
TRIALS = [
    ("what is right passes", "<!-- run -->\n```\nolora --version\n```\n", None),
    ("a block without a mark", "```\nolora --version\n```\n", "no comment above it"),
    ("the same with a language", "```bash\nls\n```\n", "no comment above it"),
    ("a mark that is none", "<!-- ran -->\n```\nolora --version\n```\n", "no comment above it"),
    ("a mark above nothing", "<!-- run -->\n\nText.\n", "stands above no block"),
    ("no reason", "<!-- not run -->\n```\nolora --version\n```\n", "why is it not run?"),
    ("a scene that is not there", "<!-- run: moon -->\n```\nolora --version\n```\n", "no scene `moon`"),
    ("an option that is not there", "<!-- run -->\n```\nolora plan mine.toml --no-prob\n```\n", "exit code 2"),
    ("the first command of two", "<!-- run -->\n```\nolora inspect model NOWHERE\nolora --version\n```\n", "exit code 1"),
    ("the first command of a pipe", "<!-- run -->\n```\nolora inspect model NOWHERE | cat\n```\n", "exit code 1"),
    ("a program that is not there", "<!-- run -->\n```\nno-such-program\n```\n", "exit code 127"),
    ("a server that does not start", "<!-- run -->\n```\nolora serve --model NOWHERE\n```\n", "exit code"),
    ("a server that starts", "<!-- run -->\n```\nolora serve --model BASE\n```\n", None),
    ("another step than CI's", "<!-- run -->\n```\ncargo test --release --everything\n```\n", "no step of .ci/run"),
    ("another feature", "<!-- run -->\n```\ncargo run --features moon -- --version\n```\n", "no feature `moon`"),
    ("right output", "<!-- run -->\n```\necho one; echo loss 1.00 in 3 s\n```\n<!-- output -->\n```\none\nloss 1.01 in 9 s\n```\n", None),
    ("a line that is not said", "<!-- run -->\n```\necho one\n```\n<!-- output -->\n```\ntwo\n```\n", "line 1 is not said"),
    ("lines in another order", "<!-- run -->\n```\necho one; echo two\n```\n<!-- output -->\n```\ntwo\n…\none\n```\n", "line 3 is not"),
    ("a line between", "<!-- run -->\n```\necho 1; echo 2; echo 3\n```\n<!-- output -->\n```\n1\n3\n```\n", "line 2 is not said"),
    ("dots for it", "<!-- run -->\n```\necho 1; echo 2; echo 3\n```\n<!-- output -->\n```\n1\n…\n3\n```\n", None),
    ("a number too far off", "<!-- run -->\n```\necho loss 1.00\n```\n<!-- output -->\n```\nloss 1.10\n```\n", "1.10, and 1.00"),
    ("a whole number", "<!-- run -->\n```\necho step 9\n```\n<!-- output -->\n```\nstep 8\n```\n", "line 1 is not said"),
    ("a console", "<!-- run -->\n```console\n$ echo one\ntwo\n```\n", "line 1 is not said"),
    ("output of an inline command", "`olora --version` says\n\n<!-- output -->\n```\nolora 0.0.0\n```\n", "line 1 is not said"),
    ("a part of a recipe", "```toml\n[adapter]\nrank = 4\n```\n", None),
    ("a key that is not there", "```toml\n[adapter]\nranks = 4\n```\n", "refuses it"),
    ("no TOML", "```toml\n[adapter\n```\n", "TOMLDecodeError"),
    ("no JSON", "```json\n{\"a\": }\n```\n", "JSONDecodeError"),
    ("no JSON in a line", "<!-- file: a.jsonl -->\n```\n{}\n{\n```\n", "JSONDecodeError"),
    ("no Python", "<!-- not run: reason -->\n```python\ndef\n```\n", "SyntaxError"),
    ("a program's option", "<!-- checked: reason -->\n```\npython3 tools/docs/run.py --moon\n```\n", "no --moon"),
    ("a program", "<!-- checked: reason -->\n```\npython3 tools/docs/walk.py\n```\n", "no tools/docs/walk.py"),
    ("an inline option", "As `olora plan mine.toml --moon` says.\n", "has no --moon"),
    ("an inline command", "As `olora fly` says.\n", "no `olora fly`"),
    ("an error that is shown", "<!-- run: village, fails: NOWHERE -->\n```\nolora inspect model NOWHERE\n```\n", None),
    ("an error that does not come", "<!-- run: village, fails: NOWHERE -->\n```\nolora --version\n```\n", "it was to fail"),
    ("a listing", "<!-- listing: village, of: eval -->\n```\neval/\n  piqa.jsonl  a task\n```\n", "does not name: arc_challenge"),
]


class Silent(Checks):
    """Remembers what failed instead of saying it."""

    def __init__(self):
        super().__init__()
        self.words = []

    def fail(self, name, why):
        self.failed += 1
        self.words.append(why)


def self_test(given, checks):
    import common

    for number, (name, text, wanted) in enumerate(TRIALS):
        silent = Silent()
        if not number:
            tried = Documentation(given.olora, given.work, silent)
        tried.checks = silent
        path = given.work / "self-test.md"
        path.write_text(text)
        with checks.check(name):
            before, common.say = common.say, lambda text="": None
            try:
                tried.file(path, "self-test.md")
            finally:
                common.say = before
            if wanted is None:
                same(silent.words, [], "what failed")
            else:
                expect(any(wanted in words for words in silent.words), f"{wanted!r} was to be said: {silent.words}")
    return checks.end()


def main():
    made = parser(__doc__)
    made.add_argument("files", nargs="*", type=pathlib.Path, help="by default README.md, CONTRIBUTING.md and docs/*.md")
    made.add_argument("--self-test", action="store_true", help="are faults of each sort noticed?")
    made.add_argument("--show", action="store_true", help="print what is run, and what it says")
    given = arguments(made)
    began = time.monotonic()
    if given.self_test:
        return self_test(given, Checks())
    documentation = Documentation(given.olora, given.work, Checks(), given.show)
    files = given.files or [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    for file in files:
        path = file.resolve()
        documentation.file(path, str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(file))
    code = documentation.end()
    say(f"{time.monotonic() - began:.0f} s")
    return code


if __name__ == "__main__":
    sys.exit(main())
