"""What the commands of the documentation find in their directory, by the names that they use.

Every scene has the recipes, the tiny base of the quickstart by the names that stand for a model (BASE, MODEL, DIR, PATH), and small
data by the names that the documentation uses. `HF_HOME` is a cache in which the hub's names of models are that base, too. Beyond that:

    village   nothing: no run is there (what a block has if it names no scene)
    trained   finished runs, among them runs/mine; one that can be lengthened, of recipe.toml; adapters
    merged    the same, and the merged model of one
    pairs     my data are preferences; there is no run
    short     the quickstart's recipe is cut down to six steps on few data, for commands that make many runs of it
    chat      DIR has a template like Qwen3's, and no weights
    serve     a server answers; its address is put into the place of 127.0.0.1:8080
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools/serve"))

from common import Server, adapters, environment, with_template  # noqa: E402

import stand_ins  # noqa: E402

QUICKSTART = ROOT / "recipes/quickstart"
NAMES = ("village", "trained", "merged", "pairs", "short", "chat", "serve")
# Names of the hub that the documentation uses.
MODELS = ("HuggingFaceTB/SmolLM2-135M-Instruct", "owner/name")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
MINE = """\
name = "{name}"
[model]
path = "HuggingFaceTB/SmolLM2-135M-Instruct"
[data]
train = "my-data.jsonl"
validation_samples = 20
[training]
max_steps = {steps}
log_every = 1
"""


def lines(file, count):
    return (QUICKSTART / file).read_text().splitlines(keepends=True)[:count]


def jsonl(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


class Scenes:
    """Scenes are made when they are first asked for, and copied for each block."""

    def __init__(self, olora, work):
        self.olora, self.work = olora, work
        self.bin = work / "bin"
        # Large models have more positions than the village's, and recipes rely on it.
        self.base = with_template(QUICKSTART / "base", work, name="base", positions=2048)
        stand_ins.place(self.bin, olora, self.base)
        self.hub()
        self.made, self.count = {}, 0

    def environment(self, place, **more):
        return environment(
            HF_HOME=str(self.work / "hub"), HOME=str(place), PATH=f"{self.bin}{os.pathsep}{os.environ['PATH']}", **more,
        )

    def hub(self):
        """A cache as Python's `huggingface_hub` lays it out."""
        for kind, names in (("models", MODELS), ("datasets", ("owner/name",))):
            for name in names:
                folder = self.work / "hub/hub" / f"{kind}--{name.replace('/', '--')}"
                snapshot = folder / "snapshots" / COMMIT
                snapshot.mkdir(parents=True)
                (folder / "refs").mkdir()
                (folder / "refs/main").write_text(COMMIT)
                if kind == "models":
                    for file in self.base.iterdir():
                        os.symlink(file.resolve(), snapshot / file.name)
                else:
                    (snapshot / "train.jsonl").write_text("".join(lines("train.jsonl", 40)))
                    # Without its inventory, a cached data set may lack files and is not used.
                    (folder / "olora").mkdir()
                    (folder / "olora" / f"{COMMIT}.json").write_text(json.dumps({"files": ["train.jsonl"]}))

    def run(self, place, *argv):
        """A command that prepares a scene."""
        ran = subprocess.run(
            [self.olora, *argv], cwd=place, env=self.environment(place), stdin=subprocess.DEVNULL, capture_output=True, text=True,
        )
        if ran.returncode != 0:
            raise SystemExit(f"a scene cannot be made, `olora {' '.join(argv)}` fails:\n{ran.stderr[-1000:]}")

    def copy(self, name):
        """A directory of this scene that nobody has used."""
        if name not in self.made:
            place = self.work / "scenes" / name
            place.mkdir(parents=True)
            self.village(place)
            if name in ("trained", "merged", "pairs", "short", "chat"):
                getattr(self, name)(place)
            self.made[name] = place
        self.count += 1
        return pathlib.Path(shutil.copytree(self.made[name], self.work / "tries" / f"{self.count:03}", symlinks=True))

    def village(self, place):
        for name in ("BASE", "MODEL", "DIR", "PATH"):
            os.symlink(self.base, place / name)
        # A copy, since a command that is wrong may write into it.
        shutil.copytree(ROOT / "recipes", place / "recipes")
        os.symlink(ROOT / "Cargo.lock", place / "Cargo.lock")
        (place / "my-data.jsonl").write_text("".join(lines("train.jsonl", 160)))
        (place / "held-out.jsonl").write_text("".join(lines("valid.jsonl", 8)))
        (place / "question.txt").write_text("Where does Zora live?\n")
        (place / "mine.toml").write_text(MINE.format(name="mine", steps=6))
        (place / "recipe.toml").write_text(MINE.format(name="stopped", steps=8))
        # What data.md mixes and renames.
        (place / "village").mkdir()
        (place / "village/tales.jsonl").write_text("".join(lines("train.jsonl", 160)))
        riddle = "What has keys and opens nothing?"
        (place / "riddles.csv").write_text("riddle,solution\n" + f"{riddle},A piano.\n" * 160)
        said = [{"role": "user", "content": riddle, "mood": "calm"}, {"role": "assistant", "content": "A piano.", "mood": "glad"}]
        jsonl(place / "chats.jsonl", [{"messages": said, "score": 0.5}] * 40)
        # Two items for each task, in llm-foundry's layout; GSM8K with its own keys.
        ask, said = "Where does Alder live?", {"choices": ["In Oxmere.", "In a shoe."], "gold": 0}
        for task in ("arc_easy", "arc_challenge", "piqa"):
            jsonl(place / f"eval/{task}.jsonl", [{"query": f"Question: {ask}\n"} | said] * 2)
        jsonl(place / "eval/openbookqa.jsonl", [{"query": "Alder lives"} | said] * 2)
        passage = "Passage: Alder lives in Oxmere.\nQuestion: does Alder live in Oxmere?"
        jsonl(place / "eval/boolq.jsonl", [{"query": passage, "choices": ["no", "yes"], "gold": 1}] * 2)
        jsonl(place / "eval/winogrande.jsonl", [{"context_options": ["Alder", "Zora"], "continuation": "lives in Oxmere.", "gold": 0}] * 2)
        jsonl(place / "gsm8k/gsm8k.jsonl", [{"question": "Two coins and three coins?", "answer": "2 + 3 = 5\n#### 5"}])
        # CONTRIBUTING.md's command that runs this program.
        (place / ".ci").mkdir()
        (place / ".ci/run").write_text("#!/bin/sh\n# It runs this program, and cannot be run by it.\n")
        (place / ".ci/run").chmod(0o755)

    def trained(self, place):
        self.run(place, "train", "mine.toml")
        for name in ("one", "other"):
            self.run(place, "train", "mine.toml", "--set", f"name={name}", "--set", "training.max_steps=3")
        # Shorter than its recipe says, so that it can go on.
        self.run(place, "train", "recipe.toml", "--set", "training.max_steps=4")
        self.run(place, "train", "recipes/quickstart.toml", "--set", "training.max_steps=4", "--set", "samples.prompts=[]")
        for name, run in (("ADAPTER", "mine"), ("A", "one"), ("B", "other")):
            shutil.copytree(place / "runs" / run / "adapter", place / name)

    def merged(self, place):
        self.trained(place)
        self.run(place, "merge", "--adapter", "runs/mine", "--output", "merged")

    def pairs(self, place):
        (place / "pairs.jsonl").write_text("".join(lines("pairs-train.jsonl", 60)))
        (place / "held-out.jsonl").write_text("".join(lines("pairs-valid.jsonl", 8)))

    def short(self, place):
        text = (place / "recipes/quickstart.toml").read_text()
        for old, new in (
            ("epochs = 3", "max_steps = 6"), ("batch_size = 16", "batch_size = 4"), ("evaluate_every = 21", "evaluate_every = 1"),
            ("checkpoint_every = 126", "checkpoint_every = 6"), ("quickstart/train.jsonl", "quickstart/train.jsonl#24"),
            ("valid.jsonl", "valid.jsonl#8"),
        ):
            if text.count(old) != 1:
                raise SystemExit(f"recipes/quickstart.toml has no line `{old}` any more, which the scene `short` cuts down")
            text = text.replace(old, new)
        text = re.sub(r"^\[samples\].*", "", text, flags=re.M | re.S)
        (place / "recipes/quickstart.toml").write_text(text)

    def server(self):
        """With the base under the name `base`, the adapter `crier` loaded and `squire` in its --adapters-dir."""
        place = self.work / "served"
        if not place.exists():
            place.mkdir()
            adapters(self.olora, place)
        shelf = place / "shelf"
        return Server(
            self.olora, "--model", self.base, "--name", "base", "--adapters-dir", shelf, "--adapter", shelf / "crier", cwd=place,
        )

    def chat(self, place):
        """DIR as a model with a template like Qwen3's, for what `inspect data` shows; its weights are asked for by nothing."""
        masks = ROOT / "fixtures/chat_masks"
        (place / "DIR").unlink()
        (place / "DIR").mkdir()
        shutil.copy(masks / "tokenizer.json", place / "DIR")
        shutil.copy(masks / "templates/qwen3.jinja", place / "DIR/chat_template.jinja")
        end = next(one["id"] for one in json.loads((masks / "tokenizer.json").read_text())["added_tokens"] if one["content"] == "<|im_end|>")
        config = json.loads((QUICKSTART / "base/config.json").read_text()) | {"eos_token_id": end}
        (place / "DIR/config.json").write_text(json.dumps(config))
        (place / "DIR/tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}')
