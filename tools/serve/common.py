"""What the trials of `olora serve` share: a server of their own, requests to it, and a line for each check."""

import argparse
import collections
import contextlib
import http.client
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback

ROOT = pathlib.Path(__file__).resolve().parents[2]
VILLAGE = ROOT / "recipes/quickstart/base"
# The user's words and nothing else, which is what the quickstart's adapter learns from.
TEMPLATE = "{% for message in messages %}{% if not loop.first %}{{ '\\n' }}{% endif %}{{ message['content'] }}{% endfor %}"


def say(text=""):
    print(text, flush=True)


def environment(**more):
    """Ours without what would change the server's ways, and nothing of the hub."""
    given = {key: value for key, value in os.environ.items() if not key.startswith(("OLORA_", "HF_", "OPENAI_"))}
    return given | {"OLORA_CACHE": "off", "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"} | more


class Failed(Exception):
    """A check that did not hold."""


def expect(holds, words):
    if not holds:
        raise Failed(words)


def same(found, expected, what):
    if found != expected:
        raise Failed(f"{what}: {shown(found)}, not {shown(expected)}")


def shown(value, longest=160):
    text = repr(value)
    return text if len(text) <= longest else f"{text[:longest]}… ({len(text)} characters)"


def line_of(frames):
    """The last lines of these programs, which are none of a library's."""
    ours = [frame.lineno for frame in frames if pathlib.Path(frame.filename).parent.parent == ROOT / "tools"]
    return ", ".join(map(str, ours[-2:])) or frames[-1].lineno


class Checks:
    """One line for each, and how many failed."""

    def __init__(self):
        self.done = self.failed = 0

    @contextlib.contextmanager
    def check(self, name):
        began = time.monotonic()
        self.done += 1
        try:
            yield
        except Failed as failed:
            self.fail(name, str(failed))
        except Exception as error:  # whatever a client library raises is a finding
            frames = traceback.extract_tb(error.__traceback__)
            self.fail(name, f"{type(error).__name__} in line {line_of(frames)}: {str(error)[:400]}")
        else:
            say(f"ok    {name} ({time.monotonic() - began:.1f} s)")

    def section(self, part, *argv):
        """Several checks whose preparation may fail, too."""
        try:
            part(self, *argv)
        except Exception as error:
            self.done += 1
            frames = traceback.extract_tb(error.__traceback__)
            self.fail(f"{part.__name__}, in between", f"{type(error).__name__} in line {line_of(frames)}: {str(error)[:400]}")

    def fail(self, name, why):
        self.failed += 1
        say(f"FAIL  {name}: {why}")

    def skip(self, name, why):
        say(f"left out  {name}: {why}")

    def end(self):
        say(f"{self.done} checks, {self.failed} failed")
        return 1 if self.failed else 0


Answer = collections.namedtuple("Answer", "status headers body")
"""What was answered: headers by their names in small letters, the body in bytes."""


class Server:
    """`olora COMMAND`, serving on a port of its own until the block ends."""

    def __init__(self, olora, *argv, command="serve", key=None, env=None, patience=120, cwd=None):
        given = environment(**({"OLORA_API_KEY": key} if key else {}), **(env or {}))
        self.key = key
        self.lines = []
        self.process = subprocess.Popen(
            [str(olora), command, *map(str, argv), "--port", "0"], env=given, stdin=subprocess.DEVNULL, cwd=cwd or ROOT,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace",
        )
        ready = threading.Event()
        self.url = None

        def read():
            for line in self.process.stderr:
                self.lines.append(line.rstrip("\n"))
                found = re.search(r"(http://(?:[\d.]+|localhost|\[[\da-f:]+\]):\d+)", line)
                if found and self.url is None:
                    self.url = found[1]
                    ready.set()
            ready.set()

        threading.Thread(target=read, daemon=True).start()
        ready.wait(patience)
        if self.url is None:
            self.process.kill()
            self.process.wait()
            raise SystemExit(f"the server does not serve after {patience} s at most:\n" + "\n".join(self.lines[-20:]))
        self.host, port = self.url.split("//")[1].rsplit(":", 1)
        self.host, self.port = self.host.strip("[]"), int(port)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self, number=signal.SIGTERM):
        """Ends it as a service manager would. Its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        return self.process.returncode

    def alive(self):
        return self.process.poll() is None

    def memory(self):
        """Resident bytes."""
        text = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", text)[1]) * 1024

    def processor(self):
        """Seconds of processor time, of all its threads."""
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def ask(self, method, path, body=None, headers=None, timeout=60):
        """One request on a connection of its own; bytes are sent as they are, all else as JSON."""
        headers = dict(headers or {})
        if self.key and not any(name.lower() == "authorization" for name in headers):
            headers["Authorization"] = f"Bearer {self.key}"
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            headers.setdefault("Content-Type", "application/json")
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())
        finally:
            connection.close()

    def json(self, method, path, body=None, status=200, **options):
        """The answer's JSON, of the status that is expected."""
        answer = self.ask(method, path, body, **options)
        expect(answer.status == status, f"{method} {path}: {answer.status}, not {status}: {answer.body[:300]!r}")
        return json.loads(answer.body)

    def metrics(self):
        """Name with labels to value, and name to kind."""
        text = self.ask("GET", "/metrics").body.decode()
        values, kinds = {}, {}
        for line in text.splitlines():
            if line.startswith("# TYPE "):
                _, _, name, kind = line.split(None, 3)
                kinds[name] = kind.strip()
            elif line and not line.startswith("#"):
                name, value = line.rsplit(" ", 1) if "}" in line else line.split(None, 1)
                values[name.strip()] = float(value.split()[0])
        return values, kinds

    def busy(self):
        """How many requests are being answered or waited with, by the gauges that say so."""
        values, kinds = self.metrics()
        found = {
            name: value for name, value in values.items()
            if kinds.get(name.split("{")[0]) == "gauge" and re.search(r"running|active|in_flight|waiting|queue[d_]|busy", name)
            and not re.search(r"capacity|limit|max|size", name)
        }
        expect(found, f"no gauge of running requests in /metrics: {sorted(kinds)}")
        return sum(found.values())

    def wait_idle(self, within):
        """Seconds until nothing is being answered."""
        began = time.monotonic()
        while True:
            busy, took = self.busy(), time.monotonic() - began
            if busy == 0:
                return took
            expect(took < within, f"{busy:g} requests still there after {took:.1f} s")
            time.sleep(0.02)


def with_template(model, work, name="village", positions=None, end=None):
    """A directory like `model` that has a chat template; with more positions if they are given, and another token
    that ends an answer."""
    place = pathlib.Path(work) / name
    place.mkdir(parents=True)
    for file in pathlib.Path(model).iterdir():
        if file.is_file() and file.name not in ("config.json", "tokenizer_config.json"):
            os.symlink(file.resolve(), place / file.name)
    config = json.loads((pathlib.Path(model) / "config.json").read_text())
    if positions:
        config["max_position_embeddings"] = positions
    if end:
        vocabulary = json.loads((pathlib.Path(model) / "tokenizer.json").read_text())
        for token in vocabulary["added_tokens"]:
            # What ended answers before is a word like others now, which is shown.
            token["special"] = token["content"] == end
            if token["special"]:
                config["eos_token_id"] = token["id"]
        (place / "tokenizer.json").unlink()
        (place / "tokenizer.json").write_text(json.dumps(vocabulary))
    (place / "config.json").write_text(json.dumps(config))
    path = pathlib.Path(model) / "tokenizer_config.json"
    tokenizer = json.loads(path.read_text()) if path.exists() else {}
    if positions:
        tokenizer["model_max_length"] = positions
    if end:
        tokenizer["eos_token"] = end
    tokenizer.setdefault("chat_template", TEMPLATE)
    (place / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return place


def has_template(model):
    model = pathlib.Path(model)
    path = model / "tokenizer_config.json"
    inside = path.exists() and json.loads(path.read_text()).get("chat_template")
    return bool(inside or (model / "chat_template.jinja").exists() or (model / "chat_template.json").exists())


def train(olora, work, name, *settings):
    """An adapter of the quickstart, trained for a second or two: its directory."""
    sets = [f"output.directory={work}", f"name={name}", "samples.prompts=[]", *settings]
    argv = [str(olora), "train", str(ROOT / "recipes/quickstart.toml"), *(part for one in sets for part in ("--set", one))]
    ran = subprocess.run(argv, cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
    if ran.returncode != 0:
        raise SystemExit(f"training {name} failed: {ran.stderr[-500:]}")
    return pathlib.Path(work) / name


def adapters(olora, work):
    """Two adapters that answer differently: in `work/runs` their runs, in `work/shelf` copies by the names crier and squire."""
    work = pathlib.Path(work)
    shelf = work / "shelf"
    shelf.mkdir()
    train(olora, work / "runs", "crier", "training.epochs=0.5")
    train(olora, work / "runs", "squire", "training.epochs=0.2", "seed=7")
    for name in ("crier", "squire"):
        shutil.copytree(work / "runs" / name / "adapter", shelf / name)
    return shelf


def special_ids(model):
    """The tokens that end an answer, by the configuration."""
    found = set()
    for name in ("config.json", "generation_config.json"):
        path = pathlib.Path(model) / name
        if path.exists():
            ids = json.loads(path.read_text()).get("eos_token_id")
            found |= set(ids if isinstance(ids, list) else [ids]) - {None}
    return sorted(found)


def endless(model):
    """What keeps an answer from ending before its limit."""
    return {str(id_): -100 for id_ in special_ids(model)}


def parser(doc):
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--olora", default=ROOT / "target/release/olora", help="the binary")
    made.add_argument("--model", default=VILLAGE, help="a checkpoint directory; by default the quickstart's")
    made.add_argument("--work", help="a directory to work in, which is kept; else a temporary one")
    return made


def arguments(made):
    given = made.parse_args()
    given.olora, given.model = pathlib.Path(given.olora).resolve(), pathlib.Path(given.model).resolve()
    if not given.olora.exists():
        sys.exit(f"no {given.olora}: build it, or give --olora")
    given.village = given.model == VILLAGE.resolve()
    given.temporary = None
    if given.work:
        pathlib.Path(given.work).mkdir(parents=True, exist_ok=True)
    else:
        given.temporary = tempfile.TemporaryDirectory(prefix="olora-serve-")
        given.work = given.temporary.name
    given.work = pathlib.Path(given.work).resolve()
    return given
