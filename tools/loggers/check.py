#!/usr/bin/env python3
"""Is what TensorBoard and MLflow show of a run what its metrics.jsonl says?

    python3 tools/loggers/check.py runs/mine                        # a run with `tensorboard = true`
    python3 tools/loggers/check.py runs/mine --events logs/mine     # with `tensorboard = "logs"`
    python3 tools/loggers/check.py --olora target/release/olora     # runs of the quickstart, one of them killed
    python3 tools/loggers/check.py --olora target/release/olora --mlflow

With `--mlflow`, a real server of MLflow is started on the loopback, with a database in a temporary directory: a run is
stopped and goes on, and its metrics are read back; then the server is killed in the middle of a run, which has to end well,
say so, and keep the rest in a file.

Needs Python's packages `tensorboard` and, with `--mlflow`, `mlflow`; nothing is asked of the network. Made with 2.21.0 and
3.17.2. Exit code 1 if anything differs.
"""

import argparse
import json
import math
import os
import pathlib
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]

STEP = {
    "loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/grad_norm",
    "tokens": "train/tokens",
    "tokens_per_second": "train/tokens_per_second",
    "seconds": "train/seconds",
    "peak_memory": "memory/peak_bytes",
    "device_memory": "memory/device_bytes",
}
"""Keys of a logged step, and their tags."""

EVALUATION = {"validation_loss": "validation/loss", "validation_perplexity": "validation/perplexity"}
RANKS = ["exchange_seconds", "slowest_seconds", "median_seconds"]

failures = []


def say(text):
    print(text, flush=True)


def check(holds, what):
    say(f"{'ok  ' if holds else 'FAIL'} {what}")
    if not holds:
        failures.append(what)


def logged(run):
    """What metrics.jsonl says, by tag and step. A process that is killed may leave half a line."""
    values = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        try:
            line = json.loads(line)
        except ValueError:
            continue
        of = {tag: line[key] for key, tag in {**STEP, **EVALUATION}.items() if line.get(key) is not None}
        for prefix, key in [("train", "measures"), ("validation", "validation_measures")]:
            for name, value in line.get(key, {}).items():
                of[name if name.startswith("tasks/") else f"{prefix}/{name}"] = value
        for key in RANKS if line.get("ranks") else []:
            of[f"ranks/{key}"] = line["ranks"][key]
        values.update({(tag, line["step"]): value for tag, value in of.items()})
    return values


def rounded(value):
    """To 32 bits."""
    return struct.unpack("f", struct.pack("f", value))[0]


def same(one, other):
    return one == other or (math.isnan(one) and math.isnan(other))


def compare(found, expected, what, killed=False):
    """Two sets of values, by tag and step. A process that was killed may have had no time to tell of its last line."""
    missing, more = expected.keys() - found.keys(), found.keys() - expected.keys()
    if killed:
        last = max(step for _, step in expected)
        missing = {(tag, step) for tag, step in missing if step < last}
    other = [key for key in expected.keys() & found.keys() if not same(found[key], expected[key])]
    check(
        expected and not missing and not more and not other,
        f"{what}: {len(expected)} values; missing {sorted(missing)[:3]}, too many {sorted(more)[:3]}, "
        f"different {sorted(other)[:3]}",
    )


def check_events(run, events, killed=False):
    """TensorBoard's own reader against metrics.jsonl."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    accumulator = EventAccumulator(str(events), size_guidance={"scalars": 0, "tensors": 0})
    accumulator.Reload()
    tags = accumulator.Tags()
    found, n_scalars = {}, 0
    for tag in tags["scalars"]:
        for event in accumulator.Scalars(tag):
            found[tag, event.step] = event.value
            n_scalars += 1
    expected = {key: rounded(value) for key, value in logged(run).items()}
    compare(found, expected, f"TensorBoard's scalars of {run.name}", killed)
    check(n_scalars == len(found), f"no step of {run.name} is there twice")
    plugins = accumulator.summary_metadata
    texts = {tag for tag in tags["tensors"] if plugins[tag].plugin_data.plugin_name == "text"}
    check("recipe" in texts, f"the recipe is among the texts of {run.name}: {sorted(texts)}")
    recipe = accumulator.Tensors("recipe")[-1] if "recipe" in texts else None
    if recipe:
        lines = tensor_util.make_ndarray(recipe.tensor_proto).item().decode().splitlines()
        recipe = "".join(line.removeprefix("    ") + "\n" for line in lines)
        check(recipe.strip() == (run / "recipe.toml").read_text().strip(), f"and is that of {run.name}")
    now = time.time()
    times = [event.wall_time for tag in tags["scalars"] for event in accumulator.Scalars(tag)]
    check(all(now - 1e8 < at <= now for at in times), "times are times")


class Olora:
    """A binary and a directory for its runs."""

    def __init__(self, binary, work):
        self.binary = pathlib.Path(binary).resolve()
        self.work = work
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
        self.environment |= {"HF_HUB_OFFLINE": "1", "OLORA_CACHE": "off"}

    def command(self, name, *more, steps=400):
        settings = [
            f"name={name}", f'output.directory="{self.work}"', f"training.max_steps={steps}", "training.log_every=1",
            "training.batch_size=4", "training.evaluate_every=50", "training.checkpoint_every=20",
            "samples.max_new_tokens=4", *more,
        ]
        settings = [word for setting in settings for word in ("--set", setting)]
        return [self.binary, "train", "recipes/quickstart.toml", *settings]

    def start(self, command):
        return subprocess.Popen(
            command, cwd=ROOT, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def run(self, command):
        """What it says; it has to end well."""
        process = self.start(command)
        _, said = process.communicate()
        check(process.returncode == 0, f"exit code {process.returncode} of {command[-1]}")
        if process.returncode:
            say(said)
        return said

    def until(self, process, step):
        """What it says until a step has been made."""
        said = ""
        for line in process.stderr:
            said += line
            if line.startswith(f"step {step}/"):
                return said
        raise SystemExit(f"it ended before step {step}:\n{said}")


def check_tensorboard(olora):
    settings = ["logging.tensorboard=true"]
    olora.run(olora.command("straight", *settings))
    check_events(olora.work / "straight", olora.work / "straight" / "tensorboard")
    # What is left of a run that was killed is whole up to its last step; the steps after its last checkpoint are made again.
    command = olora.command("killed", *settings)
    process = olora.start(command)
    olora.until(process, 87)
    process.kill()
    process.communicate()
    run = olora.work / "killed"
    check_events(run, run / "tensorboard", killed=True)
    said = olora.run([*command, "--resume"])
    check("resuming after step" in said, "it goes on after its last checkpoint")
    check(len(list((run / "tensorboard").iterdir())) == 2, "a session is a file")
    check_events(run, run / "tensorboard")


class Server:
    """MLflow's own, on the loopback."""

    def __init__(self, work):
        self.work = work
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.process = None

    def start(self):
        options = {
            "--backend-store-uri": f"sqlite:///{self.work}/mlflow.db",
            "--default-artifact-root": f"{self.work}/artifacts",
            "--host": "127.0.0.1", "--port": str(self.port), "--workers": "1",
        }
        command = [sys.executable, "-m", "mlflow", "server", *(word for option in options.items() for word in option)]
        with open(self.work / "server.log", "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{self.address}/health", timeout=1).read()
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        raise SystemExit(f"the server does not start: {(self.work / 'server.log').read_text()}")

    def kill(self):
        if self.process:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def run(self, name):
        """The run of a name, and all of its metrics as (time, value), by key and step."""
        from mlflow import MlflowClient

        client = MlflowClient(self.address)
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        runs = [run for run in client.search_runs(experiments) if run.info.run_name == name]
        check(len(runs) == 1, f"{len(runs)} run of the name {name}")
        points = {}
        for key in runs[0].data.metrics:
            for metric in client.get_metric_history(runs[0].info.run_id, key):
                points.setdefault((key, metric.step), []).append((metric.timestamp, metric.value))
        return runs[0], points


def newest(points):
    """A step that was made again has a value for each time."""
    return {key: max(of)[1] for key, of in points.items()}


def check_mlflow(olora, server):
    server.start()
    settings = [f'logging.mlflow={{ uri = "{server.address}", experiment = "village" }}']
    command = olora.command("tracked", *settings)
    process = olora.start(command)
    olora.until(process, 27)
    process.send_signal(signal.SIGINT)
    said = process.communicate()[1]
    check(process.returncode == 130, f"exit code {process.returncode} of a run that was interrupted")
    check("MLflow" not in said, "nothing is said of a server that answers")
    run, points = server.run("tracked")
    check(run.info.status == "KILLED", f"it is {run.info.status}")
    compare(newest(points), logged(olora.work / "tracked"), "MLflow's metrics of a run that was interrupted")
    olora.run([*command, "--resume"])
    run, points = server.run("tracked")
    check(run.info.status == "FINISHED", f"it is {run.info.status}")
    compare(newest(points), logged(olora.work / "tracked"), "MLflow's metrics after it has gone on")
    params = run.data.params
    check(
        params.get("adapter.method") == "olora" and params.get("training.max_steps") == "400",
        f"{len(params)} parameters: {list(params.items())[:4]} …",
    )
    tags = run.data.tags
    check(tags.get("mlflow.source.name") == "olora" and "olora.version" in tags, f"tags: {tags}")

    settings += ["training.evaluate_every=500", "training.checkpoint_every=500"]
    process = olora.start(olora.command("bereft", *settings, steps=1500))
    said = olora.until(process, 100)
    # What was sent so far is there.
    time.sleep(2)
    began = time.monotonic()
    server.kill()
    said += process.communicate()[1]
    seconds = time.monotonic() - began
    check(process.returncode == 0, f"exit code {process.returncode} of a run whose server was killed, {seconds:.0f} s later")
    bereft = olora.work / "bereft"
    check(json.loads((bereft / "summary.json").read_text())["finished"], "it is finished")
    for line in said.splitlines():
        if "MLflow" in line:
            say(f"     said: {line}")
    kept = [json.loads(line) for line in (bereft / "mlflow-unsent.jsonl").read_text().splitlines()]
    check(f"{len(kept)} values, kept in" in said, f"it says that {len(kept)} values are kept")
    server.start()
    run, points = server.run("bereft")
    check(run.info.status == "RUNNING", f"there it is {run.info.status}")
    points = newest(points)
    n_there = len(points)
    points.update({(line["key"], line["step"]): line["value"] for line in kept})
    compare(points, logged(bereft), f"what the server has ({n_there}) and what is kept ({len(kept)})")
    # A longer run sends what was kept first.
    olora.run([*olora.command("bereft", *settings, steps=1510), "--resume"])
    run, points = server.run("bereft")
    check(run.info.status == "FINISHED", f"there it is {run.info.status}")
    compare(newest(points), logged(bereft), "MLflow's metrics when the server is back and the run goes on")
    check(not (bereft / "mlflow-unsent.jsonl").exists(), "nothing is kept any more")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=pathlib.Path, help="a run's directory")
    parser.add_argument("--events", type=pathlib.Path, help="where its event files are, if not in the run's directory")
    parser.add_argument("--olora", help="a binary to make runs with")
    parser.add_argument("--mlflow", action="store_true", help="with a server of MLflow, too; needs --olora")
    arguments = parser.parse_args()
    if not arguments.run and not arguments.olora or arguments.mlflow and not arguments.olora:
        parser.error("give a run's directory, or --olora BIN, with or without --mlflow")
    # The loopback is reached without a proxy.
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "*"
    if arguments.run:
        check_events(arguments.run, arguments.events or arguments.run / "tensorboard")
    if arguments.olora:
        with tempfile.TemporaryDirectory() as work:
            work = pathlib.Path(work)
            olora = Olora(arguments.olora, work)
            check_tensorboard(olora)
            if arguments.mlflow:
                server = Server(work)
                try:
                    check_mlflow(olora, server)
                finally:
                    server.kill()
    say(f"{len(failures)} failures")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
