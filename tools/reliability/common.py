"""What kills.py and disk_faults.py share: kinds of work, processes with faults in them, and what may be left of them."""

import collections
import concurrent.futures
import hashlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time

import bpk

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]

# What differs between two runs of one recipe: time, memory, where they lie.
TIMES = {
    "seconds", "tokens_per_second", "peak_memory", "device_memory", "peak_device_memory", "train_seconds",
    "wall_seconds", "attach_seconds", "first_step_seconds", "directory", "result", "estimated_memory", "estimated_peak",
}
STEP = re.compile(r"step-\d+$")
KEEP = 2
STEPS = 8


def say(text=""):
    print(text, flush=True)


Ran = collections.namedtuple("Ran", "code err out calls")
"""How a process ended (a signal's number below 0), what it said, and the calls that the shim counted."""

Call = collections.namedtuple("Call", "number kind name path")


class Workshop:
    """A binary, a directory to work in, and the shim."""

    def __init__(self, olora, work):
        self.olora = pathlib.Path(olora).resolve()
        self.work = pathlib.Path(work).resolve()
        self.work.mkdir(parents=True, exist_ok=True)
        self.home = self.work / "home"
        self.home.mkdir(exist_ok=True)
        self.count = 0
        self.lock = threading.Lock()
        help_ = subprocess.run([self.olora, "train", "--help"], capture_output=True, text=True, check=True).stdout
        self.auto_resume = "--auto-resume" in help_
        self.shim = self.make_shim()

    def make_shim(self):
        """The shim, or nothing where it cannot be made or the kernel takes no filter."""
        shim = self.work / "faults.so"
        built = subprocess.run(
            ["cc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", shim, HERE / "faults.c"], capture_output=True, text=True
        )
        if built.returncode != 0:
            say(f"the shim does not compile:\n{built.stderr}")
            return None
        tried = subprocess.run(
            ["true"], env=os.environ | {"LD_PRELOAD": str(shim), "FAULTS_UNDER": "/nowhere"}, capture_output=True, text=True
        )
        if tried.returncode != 0:
            say(f"the shim does not work here: {tried.stderr.strip()}")
            return None
        return shim

    def place(self, name):
        """A new, empty directory for one trial."""
        with self.lock:
            self.count += 1
            place = self.work / f"{self.count:05}-{name}"
        place.mkdir()
        return place

    def start(self, argv, place, env=None, under=None, fault=None, at=None, on=False, classes="srm", limits=None,
              ignored=()):
        """Starts `olora ARGV` with a fault in it, if one is given, in calls on what is below `under`."""
        given = {key: value for key, value in os.environ.items() if not key.startswith(("OLORA_", "HF_", "FAULTS_"))}
        given |= {"OLORA_CACHE": "off", "HF_HUB_OFFLINE": "1", "HOME": str(self.home), "NO_COLOR": "1"} | (env or {})
        log = None
        if under:
            log = self.work / f"{place.name}.{threading.get_ident()}.calls"
            given |= {
                "LD_PRELOAD": str(self.shim),
                "FAULTS_UNDER": ":".join(str(one) for one in under),
                "FAULTS_CLASSES": classes,
                "FAULTS_LOG": str(log),
                # Written by a logger that is allowed to fail.
                "FAULTS_NOT": "experiment.log",
                # The first write into a file and the second; after the last comes another call.
                "FAULTS_ROW": "2",
            }
            if fault:
                given |= {"FAULTS_DO": fault, "FAULTS_AT": str(at)} | ({"FAULTS_ON": "1"} if on else {})

        def begin():
            # As in a terminal, also where this program was started in the background or by nohup.
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            for number in ignored:
                signal.signal(number, signal.SIG_IGN)
            if limits:
                limits()

        process = subprocess.Popen(
            [self.olora, *map(str, argv)], cwd=ROOT, env=given, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", preexec_fn=begin,
        )
        process.calls_log = log
        return process

    def finish(self, process, kill_after=None, timeout=300):
        """Waits for it, or kills it after so many seconds."""
        try:
            out, err = process.communicate(timeout=kill_after if kill_after is not None else timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            if kill_after is None:
                err += f"\nno end within {timeout} s"
        calls = []
        if process.calls_log:
            text = process.calls_log.read_text(errors="replace") if process.calls_log.exists() else ""
            calls = [Call(int(n), kind, name, path) for n, kind, name, path in
                     (line.split(" ", 3) for line in text.splitlines() if line.count(" ") >= 3)]
            process.calls_log.unlink(missing_ok=True)
        return Ran(process.returncode, err, out, calls)

    def run(self, argv, place, kill_after=None, timeout=300, **options):
        return self.finish(self.start(argv, place, **options), kill_after, timeout)

    def drop(self, place):
        shutil.rmtree(place, ignore_errors=True)


# ---------------------------------------------------------------- what is compared

def without_times(value):
    if isinstance(value, dict):
        return {key: without_times(inner) for key, inner in value.items() if key not in TIMES}
    if isinstance(value, list):
        return [without_times(inner) for inner in value]
    return value


def canonical(path, name, place):
    """What a file says, but for what no two runs have in common."""
    data = path.read_bytes().replace(str(place).encode(), b"PLACE") if path.suffix in (".json", ".toml", ".md") else path.read_bytes()
    last = pathlib.PurePath(name).name
    parts = pathlib.PurePath(name).parts
    if last in ("experiment.log", "lock", ".lock") or last.endswith(".lock"):
        return b""
    if last == "samples.json":
        # Answers after training come after the summary, which says that the run is whole: one that is killed between the two
        # is without them, and goes on no more.
        return json.dumps([sample for sample in json.loads(data) if sample["when"] == "before"]).encode()
    # Of a comparison, the report and the pictures give times.
    if last == "report.md" or (len(parts) == 2 and last.startswith(("loss.", "steps.")) and parts[0] == "comparison"):
        return b""
    if last == "recipe.toml":
        return b"".join(line for line in data.splitlines(True) if not line.startswith(b"directory = "))
    if last in ("summary.json", "state.json") or "cells" in parts:
        value = without_times(json.loads(data))
        if last == "state.json":
            # Hashes of itself, times and all, and of the files beside it, of which the order of tensors is a part.
            value.pop("sha256", None)
            for file, digest in value.pop("files", {}).items():
                if hashlib.sha256((path.parent / file).read_bytes()).hexdigest() != digest:
                    raise ValueError(f"{file} is not what {name} says")
        if "cells" in parts:
            value.pop("finished", None)
            value.get("recipe", {}).pop("output", None)
        return json.dumps(value, sort_keys=True).encode()
    if last.endswith(".bpk"):
        return bpk.contents(path)
    if last == "metrics.jsonl":
        return b"\n".join(json.dumps(without_times(json.loads(line))).encode() for line in data.splitlines())
    if last == "comparison.json":
        value = json.loads(data)
        value.get("recipe", {}).pop("output", None)
        return json.dumps(value, sort_keys=True).encode()
    return data


def tree(place):
    """Relative path to content, directories to none."""
    found = {}
    for path in sorted(place.rglob("*")):
        name = str(path.relative_to(place))
        if path.is_dir():
            found[name] = None
        else:
            try:
                found[name] = canonical(path, name, place)
            except (ValueError, LookupError, OSError) as error:
                found[name] = f"damaged: {error}".encode()
    return found


def in_checkpoint(name):
    return any(STEP.match(part) for part in pathlib.PurePath(name).parts)


def metrics_fault(place):
    """Each step once, and increasing."""
    for path in place.rglob("metrics.jsonl"):
        for key in ("loss", "validation_loss"):
            try:
                steps = [line["step"] for line in map(json.loads, path.read_text().splitlines()) if key in line]
            except ValueError as error:
                return f"{path.relative_to(place)}: {error}"
            if any(later <= sooner for sooner, later in zip(steps, steps[1:])):
                return f"{path.relative_to(place)}: steps {steps}"
    return None


def difference(name, ours, expected):
    if ours is None or expected is None:
        return f"{name} is {'a directory' if ours is None else 'a file'}"
    try:
        rows = list(zip(ours.decode().splitlines(), expected.decode().splitlines()))
    except UnicodeDecodeError:
        return f"{name} differs ({len(ours)} bytes for {len(expected)})"
    for one, other in rows:
        if one != other:
            at = next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))
            return f"{name} differs: …{one[max(0, at - 30):at + 30]}… for …{other[max(0, at - 30):at + 30]}…"
    return f"{name} differs ({len(ours)} bytes for {len(expected)})"


WITHOUT, STUCK, DIFFERENT, LEFT = "without result", "stuck", "different", "left-overs"


class Kind:
    """Work that is begun, killed, gone on with, and then compared with the same work done in peace."""

    trains = False

    def __init__(self, name, shop):
        self.name, self.shop, self.env = name, shop, {}
        self.expected = None
        self.seconds = 0.0

    def under(self, place):
        return [place]

    def environment(self, place):
        return self.env

    def prepare(self, place):
        """What is there before the work begins."""

    def measure(self):
        """Does the work in peace, twice, and remembers what came of it."""
        trees = []
        for _ in range(2):
            place = self.shop.place(self.name)
            self.prepare(place)
            began = time.monotonic()
            ran = self.shop.run(self.begin(place), place, env=self.environment(place))
            self.seconds = time.monotonic() - began
            if ran.code != 0:
                raise SystemExit(f"{self.name}: the work fails by itself:\n{ran.err}")
            trees.append(tree(place))
            self.shop.drop(place)
        if trees[0] != trees[1]:
            wrong = [name for name in trees[0] if trees[0][name] != trees[1].get(name)] + sorted(set(trees[1]) - set(trees[0]))
            raise SystemExit(f"{self.name}: two runs in peace differ: {wrong}: "
                             f"{difference(wrong[0], trees[0].get(wrong[0]), trees[1].get(wrong[0]))}")
        self.expected = trees[0]

    def calls(self, place=None, argv=None, **options):
        """The calls of the work in peace, or of `argv` in `place`, on what it writes."""
        fresh = place is None
        if fresh:
            place = self.shop.place(self.name)
            self.prepare(place)
        options = {"under": self.under(place)} | options
        ran = self.shop.run(argv or self.begin(place), place, env=self.environment(place), **options)
        if ran.code != 0:
            raise SystemExit(f"{self.name}: the work fails under the shim:\n{ran.err}")
        if fresh:
            self.shop.drop(place)
        return ran.calls

    def finish(self, place, attempts=4):
        """As a scheduler does, which starts a job again until it ends well. What is wrong, or nothing."""
        last = ""
        for _ in range(attempts):
            argv = self.go_on(place)
            if argv is None:
                return None
            ran = self.shop.run(argv, place, env=self.environment(place))
            if ran.code == 0 or "is complete" in ran.err:
                return None
            errors = [line for line in ran.err.splitlines() if line.startswith("error:")]
            last = errors[-1] if errors else f"exit code {ran.code}: {ran.err[-300:]}"
        return last

    def half_written(self, place):
        """What a reader could take for a result, and is none."""
        return None

    def judge(self, place):
        """What is wrong when all is done: (column, words)."""
        found, faults = tree(place), []
        missing = [name for name in self.expected if name not in found and not in_checkpoint(name)]
        results = [name for name in missing if self.is_result(name)]
        if results:
            faults.append((WITHOUT, f"missing: {', '.join(results)}"))
        elif missing:
            faults.append((DIFFERENT, f"missing: {', '.join(missing)}"))
        for name, content in self.expected.items():
            if name in found and found[name] != content:
                faults.append((DIFFERENT, difference(name, found[name], content)))
        left = [name for name in found if name not in self.expected and not in_checkpoint(name)]
        left = [name for name in left if not any(str(parent) in left for parent in pathlib.PurePath(name).parents)]
        if left:
            faults.append((LEFT, ", ".join(left)))
        if self.trains:
            wrong = metrics_fault(place)
            if wrong:
                faults.append((DIFFERENT, wrong))
            for checkpoints in place.rglob("checkpoints"):
                names = sorted(path.name for path in checkpoints.iterdir() if STEP.match(path.name))
                if len(names) > KEEP or names[-1:] != [f"step-{self.steps:06}"]:
                    faults.append((DIFFERENT, f"checkpoints {names}"))
                for name in names:
                    lacks = {"state.json", "trained.bpk", "optimizer.bpk"} - {path.name for path in (checkpoints / name).iterdir()}
                    if lacks:
                        faults.append((DIFFERENT, f"checkpoint {name} lacks {', '.join(sorted(lacks))}"))
        return faults


class Train(Kind):
    trains = True

    def __init__(self, name, shop, *settings, steps=STEPS, result="adapter", cache=False):
        super().__init__(name, shop)
        self.steps, self.cache = steps, cache
        self.result = result
        self.keeps_best = 'output.keep="best"' in settings
        self.model = shop.work / "inputs/base"
        self.data = shop.work / "inputs/data"
        inputs(shop)
        self.recipe = shop.work / f"{name}.toml"
        adapter = "" if result == "model" else "rank = 4\n"
        train = "all.jsonl" if cache else "train.jsonl"
        self.recipe.write_text(
            f'name = "{name}"\n[model]\npath = "{self.model}"\n[adapter]\n{adapter}'
            f'[data]\ntrain = "{self.data / train}"\nmax_length = 32\n'
            f"[training]\nmax_steps = {steps}\nbatch_size = 4\nwarmup_steps = 2\nlearning_rate = 2e-3\n"
            f"log_every = 1\ncheckpoint_every = 2\nkeep_checkpoints = {KEEP}\n"
        )
        self.settings = [part for setting in settings for part in ("--set", setting)]

    def environment(self, place):
        return {"OLORA_CACHE": str(place / "cache")} if self.cache else {}

    def directory(self, place):
        return place / "runs" / self.name

    def plain(self, place):
        return ["train", self.recipe, *self.settings, "--set", f'output.directory="{place / "runs"}"']

    def begin(self, place):
        return self.plain(place) + (["--auto-resume"] if self.shop.auto_resume else [])

    def go_on(self, place):
        if self.shop.auto_resume:
            return self.begin(place)
        checkpoints = self.directory(place) / "checkpoints"
        there = checkpoints.is_dir() and any(STEP.match(path.name) for path in checkpoints.iterdir())
        return self.plain(place) + (["--resume"] if there else [])

    def is_result(self, name):
        parts = pathlib.PurePath(name).parts
        return parts[2:3] == (self.result,) and parts[-1] != "README.md"

    def half_written(self, place):
        return half_of(self.directory(place) / self.result, place, self.expected, self.keeps_best)


def half_of(directory, place, expected, keeps_best):
    """A directory that has what a reader looks for first must have the rest, as it is in the end.

    Where the best is kept, it is there from the first evaluation on, and other in the end."""
    if not any((directory / name).exists() for name in ("adapter_config.json", "config.json")):
        return None
    for name, content in expected.items():
        path = pathlib.PurePath(name)
        if path.name == "README.md" or not str(place / path).startswith(f"{directory}/"):
            continue
        if not (place / path).exists():
            return f"{directory.name} lacks {path.name}"
        if content is not None and not keeps_best and canonical(place / path, name, place) != content:
            return f"{name} is not what it is in the end"
    return None


class Output(Kind):
    """A command that writes one file or directory, or refuses where there is one."""

    def __init__(self, name, shop, output, *argv):
        super().__init__(name, shop)
        self.output, self.argv = output, argv

    def begin(self, place):
        return [*self.argv, "--output", place / "out" / self.output]

    go_on = begin

    def finish(self, place, attempts=4):
        """Once more, which is refused where there is something in the output's place."""
        there = (place / "out" / self.output).exists()
        ran = self.shop.run(self.begin(place), place, env=self.environment(place))
        if ran.code == 0 or (there and "exist" in ran.err):
            return None
        return f"exit code {ran.code}, {'with' if there else 'without'} an output before: {ran.err[-300:]}"

    def is_result(self, name):
        return pathlib.PurePath(name).parts[1:2] == (self.output,)

    def half_written(self, place):
        output = place / "out" / self.output
        if not output.exists():
            return None
        prefix = f"out/{self.output}"
        found = {name: content for name, content in tree(place).items() if name == prefix or name.startswith(prefix + "/")}
        wanted = {name: content for name, content in self.expected.items() if name == prefix or name.startswith(prefix + "/")}
        if found == wanted:
            return None
        missing = sorted(set(wanted) - set(found))
        return f"{self.output} is there without {', '.join(missing)}" if missing else f"{self.output} is there, other than in the end"


class Compare(Kind):
    trains = True
    steps = 4

    def __init__(self, name, shop):
        super().__init__(name, shop)
        self.recipe = Train(name, shop, steps=4).recipe

    def begin(self, place):
        return [
            "compare", self.recipe, "--methods", "lora,olora", "--seeds", "1", "--lrs", "1e-3,2e-3", "--widen", "0",
            "--set", f'data.validation="{self.shop.work / "inputs/data/valid.jsonl"}"', "--output", place / "comparison",
        ]

    go_on = begin

    def is_result(self, name):
        return "adapter" in pathlib.PurePath(name).parts and not name.endswith("README.md")

    def judge(self, place):
        # Its runs keep no checkpoints once they are finished.
        self.trains = False
        faults = super().judge(place)
        wrong = metrics_fault(place)
        return faults + ([(DIFFERENT, wrong)] if wrong else [])


def inputs(shop):
    """Copies of the base and of a little data, which faults may be put in."""
    target = shop.work / "inputs"
    if target.exists():
        return
    making = shop.work / "inputs.making"
    shutil.copytree(ROOT / "recipes/quickstart/base", making / "base")
    (making / "data").mkdir()
    train = (ROOT / "recipes/quickstart/train.jsonl").read_text().splitlines(True)
    valid = (ROOT / "recipes/quickstart/valid.jsonl").read_text().splitlines(True)
    (making / "data/train.jsonl").write_text("".join(train[:64]))
    (making / "data/valid.jsonl").write_text("".join(valid[:12]))
    # Large enough to be kept in the cache of tokens.
    (making / "data/all.jsonl").write_text("".join(train) * 2)
    making.rename(target)


def kinds(shop, only=None):
    """Everything that is tried."""
    inputs(shop)
    valid = f'data.validation="{shop.work / "inputs/data/valid.jsonl"}"'
    made = [
        Train("lora", shop, 'adapter.method="lora"'),
        Train("olora", shop),
        Train("dora", shop, "adapter.dora=true"),
        Train("eva", shop, 'adapter.method="eva"'),
        Train("native", shop, 'adapter.form="native"'),
        Train("saved", shop, 'adapter.modules_to_save=["model.norm"]'),
        Train("full", shop, 'adapter.method="none"', result="model"),
        Train("dropout", shop, "adapter.dropout=0.1", "training.accumulation=2"),
        Train("validated", shop, valid, "training.evaluate_every=2", 'samples.prompts=["Where does Alder live?"]',
              "samples.max_new_tokens=4", 'output.keep="best"'),
        Train("cached", shop, cache=True),
        Compare("comparison", shop),
    ]
    source = shop.work / "source"
    if not source.exists():
        train = Train("source", shop)
        ran = shop.run(train.plain(source), shop.work)
        if ran.code != 0:
            raise SystemExit(f"the adapter to merge is not made:\n{ran.err}")
    adapter = source / "runs/source/adapter"
    made += [
        Output("merge", shop, "merged", "merge", "--adapter", adapter, "--shard-size", "500kB"),
        Output("merge-gguf", shop, "merged.gguf", "merge", "--adapter", adapter),
        Output("convert", shop, "converted", "convert", adapter, "--rank", "2"),
        Output("convert-native", shop, "native", "convert", adapter, "--form", "native", "--method", "olora"),
        Output("convert-gguf", shop, "adapter.gguf", "convert", adapter),
    ]
    if only:
        unknown = set(only) - {kind.name for kind in made}
        if unknown:
            raise SystemExit(f"no such kind: {', '.join(sorted(unknown))}; there are {', '.join(k.name for k in made)}")
        made = [kind for kind in made if kind.name in only]
    return made


def all_at_once(jobs, trials):
    """Runs functions, as many at once as `jobs`, and gives what they return, in order."""
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(lambda trial: trial(), trials))


def table(heads, rows):
    widths = [max(len(str(row[i])) for row in [heads, *rows]) for i in range(len(heads))]
    for row in [heads, *rows]:
        say("  ".join(f"{cell!s:<{width}}" if i == 0 else f"{cell!s:>{width}}" for i, (cell, width) in enumerate(zip(row, widths))))


class Tally:
    """How many trials of which sort went wrong in which way."""

    def __init__(self, columns, show):
        self.columns, self.show = columns, show
        self.counts = collections.defaultdict(collections.Counter)
        self.reasons = collections.defaultdict(list)

    def note(self, row, faults, **counts):
        """Takes in one trial: its faults as (column, words)."""
        self.counts[row].update({"trials": 1} | counts)
        self.counts[row].update({column for column, _ in faults})
        for column, reason in faults:
            self.reasons[row, column].append(reason)

    def print(self, heads, counted=()):
        """The table and some of the reasons; gives the number of faults."""
        columns = ["trials", *counted, *self.columns]
        rows = [[*row, *(self.counts[row][column] for column in columns)] for row in self.counts]
        totals = [sum(counts[column] for counts in self.counts.values()) for column in columns]
        table([*heads, *columns], [*rows, ["all", *[""] * (len(heads) - 1), *totals]])
        for (row, column), told in self.reasons.items():
            say(f"\n{', '.join(row)}: {column}, {len(told)} times")
            for reason in told[: self.show]:
                say(f"  {reason}")
        return sum(totals[1 + len(counted):])


def arguments(parser):
    parser.add_argument("--olora", type=pathlib.Path, default=ROOT / "target/release/olora", help="the binary to try")
    parser.add_argument("--work", type=pathlib.Path, help="a directory for the trials; a temporary one if not given")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="trials at once")
    parser.add_argument("--kinds", nargs="+", help="only these kinds of work")
    parser.add_argument("--quick", action="store_true", help="a part, in less than a minute")
    parser.add_argument("--show", type=int, default=3, help="how many faults of each sort to print")
    given = parser.parse_args()
    if not given.olora.exists():
        parser.error(f"{given.olora} is not there: build it, or give --olora")
    if given.work is None:
        kept = tempfile.TemporaryDirectory(prefix="olora-reliability-")
        given.work = pathlib.Path(kept.name)
        given.kept = kept
    elif given.work.exists() and any(given.work.iterdir()):
        parser.error(f"{given.work} is not empty")
    return given
