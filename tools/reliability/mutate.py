#!/usr/bin/env python3
"""Give the command line damaged files, and see that it says so.

    cargo build --release
    python3 tools/reliability/mutate.py --count 20000 --seed 1 --jobs 2

Each trial copies a small input from fixtures/ (a checkpoint, a GGUF file, an adapter, a recipe, a data file, a
tokenizer, a run with a checkpoint), changes one file of it, by bytes, by what the file is made of, or in one number
alone, and runs the commands that read it. Right is whatever ends within --seconds with 0, 1 or 2, says `error:` if it
is not 0, does not panic, is ended by no signal, takes no more than --memory MiB, shows no control characters, and
writes nothing outside of its directory.

The trial of a number is decided by the seed and the number: `--only 4711` runs one again and keeps its directory. What
was wrong is kept in --findings, with the command. Python 3's standard library; Linux.
"""

import argparse
import collections
import concurrent.futures
import gzip
import json
import os
import random
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "fixtures"

# ---- changes ---------------------------------------------------------------------------------------------------------

EDGES = [0, 1, 2, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**62 - 1, 2**63 - 1, 2**63,
         2**64 - 8, 2**64 - 1]
RAW = ["0", "-1", "1", "2", "-0.0", "0.5", "1.0", "1e308", "1e-320", "1e999", "NaN", "Infinity", "9223372036854775807",
       "18446744073709551615", "18446744073709551616", "4294967296", "1000000000", "1e12", "true", "null", '""', "[]",
       "{}", "[[]]", "9" * 40, "[" * 200 + "]" * 200, "[" * 20000 + "]" * 20000]
TEXTS = ["", " ", "\0", "\n", "\x1b[2J", "../../zora", "/", "Zora\r\nOxmere", "\u202e", "\ufeff", "-1", "*",
         "a" * 50000, "\U0001f41d" * 1000]
# Keys that a configuration may have and that sizes, counts and numbers are made of: they are set where they are missing.
SIZES = {
    "model_type": ["num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size", "num_attention_heads",
                   "num_key_value_heads", "head_dim", "max_position_embeddings", "rope_theta", "rms_norm_eps",
                   "layer_norm_eps", "sliding_window", "max_window_layers", "bos_token_id", "eos_token_id",
                   "pad_token_id", "initializer_range", "word_embed_proj_dim", "ffn_dim"],
    "peft_type": ["r", "lora_alpha", "lora_dropout", "layers_to_transform", "layers_pattern", "runtime_config"],
}
PIECES = ["\0", "\r", "\t", ",", ";", '"', "'", '"""', "\\", "\\ud800", "\ufeff", "[", "]", "[[", "{", "}", "=", ":", "#",
          "{{", "}}", "{%", "%}", "{{ messages }}", "{% for m in messages %}", "{% endfor %}", "nan", "inf", "1e999",
          "{% for i in range(999999999) %}x{% endfor %}", "{{ 'Zora' * 999999999 }}", "[" * 5000, "a." * 5000,
          "{{ messages | tojson(indent=999999999) }}", "{{ '%999999999d' % 1 }}", "not " * 5000]


def change_bytes(rng, data):
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if not data:
            data.append(rng.randrange(256))
        at = rng.randrange(len(data))
        end = min(len(data), at + rng.randint(1, 64))
        match rng.randrange(8):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at] = rng.randrange(256)
            case 2:
                del data[at:]
            case 3:
                width = rng.choice([1, 2, 4, 8])
                data[at:at + width] = (rng.choice(EDGES) % 256**width).to_bytes(width, "little")[:len(data) - at]
            case 4:
                del data[at:end]
            case 5:
                data[at:at] = rng.randbytes(rng.randint(1, 16))
            case 6:
                data[at:at] = bytes(data[at:end]) * rng.choice([1, 8, 100])
            case 7:
                data[at:end] = bytes([rng.choice([0, 255, 32])]) * (end - at)
    return bytes(data)


def nodes(value, found, parent=None, key=None):
    found.append((parent, key))
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for inner, child in list(items):
        nodes(child, found, value, inner)
    return found


def change_json(rng, text):
    """Values replaced, moved, doubled; None if it is no JSON."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, (dict, list)):
        return None
    raw = {}
    for _ in range(rng.randint(1, 3)):
        places = [(parent, key) for parent, key in nodes(value, []) if parent is not None]
        if not places:
            break
        parent, key = rng.choice(places)
        if isinstance(parent, list) and key >= len(parent) or isinstance(parent, dict) and key not in parent:
            continue
        other_parent, other = rng.choice(places)
        match rng.randrange(8):
            case 0 | 1 | 2:
                mark = f"\uf8ff{len(raw)}\uf8ff"
                raw[mark] = rng.choice(RAW)
                parent[key] = mark
            case 3:
                parent[key] = rng.choice(TEXTS)
            case 4:
                try:
                    parent[key] = json.loads(json.dumps(other_parent[other]))
                except (LookupError, ValueError):
                    pass
            case 5:
                if isinstance(parent, dict):
                    del parent[key]
                else:
                    parent.pop(key)
            case 6:
                if isinstance(parent, list):
                    parent.extend([parent[key]] * rng.choice([1, 100, 3000]))
                else:
                    parent[key + "\uf8ff"] = parent[key]
            case 7:
                old = parent[key]
                if isinstance(old, bool):
                    parent[key] = not old
                elif isinstance(old, (int, float)):
                    parent[key] = rng.choice([old + 1, old - 1, -old, old * 1024, old / 3])
                else:
                    parent[key] = [old]
    text = json.dumps(value, ensure_ascii=False)
    for mark, literal in raw.items():
        text = text.replace(f'"{mark}"', literal)
    return text.replace("\uf8ff", "")


def change_number(rng, text):
    """One number, and nothing else, made extreme; None if the text is no JSON object or has no numbers."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    places = [(parent, key) for parent, key in nodes(value, []) if parent is not None]
    places = [(parent, key) for parent, key in places if type(parent[key]) in (int, float)]
    # As often a key of its own as an entry of a list or a vocabulary, of which there are many more.
    places = [place for place in places if place[0] is value] * 8 + places
    places += [(value, key) for mark, keys in SIZES.items() if mark in value for key in keys]
    if not places:
        return None
    parent, key = rng.choice(places)
    numbers = [*map(str, EDGES), *[literal for literal in RAW if literal[0] in "-0123456789NI"]]
    old = parent[key] if isinstance(parent, list) else parent.get(key)
    if type(old) is int:
        numbers += [str(old + 1), str(old - 1), str(-old), str(old * 1024), str(old * 2**40)]
    parent[key] = "\uf8ff"
    return json.dumps(value, ensure_ascii=False).replace('"\uf8ff"', rng.choice(numbers))


def change_text(rng, text):
    for _ in range(rng.randint(1, 3)):
        at = rng.randint(0, len(text))
        numbers = list(re.finditer(r"-?\d[\d_.e]*", text))
        lines = text.split("\n")
        match rng.randrange(8):
            case 0 | 1 | 2 if numbers:
                number = rng.choice(numbers)
                text = text[:number.start()] + rng.choice(RAW) + text[number.end():]
            case 3:
                text = text[:at] + rng.choice(PIECES) + text[at:]
            case 4:
                lines.pop(rng.randrange(len(lines)))
                text = "\n".join(lines)
            case 5:
                line = rng.choice(lines)
                lines[rng.randrange(len(lines)):0] = [line] * rng.choice([1, 10, 1000 if len(line) < 200 else 1])
                text = "\n".join(lines)
            case 6:
                text = text[:at] + text[at + rng.randint(1, 40):]
            case _:
                text = text[:at] + text[at:at + 30] * rng.choice([1, 3, 100]) + text[at:]
    return text


def change_safetensors(rng, data):
    (length,) = struct.unpack_from("<Q", data)
    header, values = data[8:8 + length], data[8 + length:]
    text = change_json(rng, header)
    header = text.encode("utf-8", "surrogatepass") if text else header
    if rng.random() < 0.3 and len(values) >= 4:
        at = rng.randrange(len(values) // 4) * 4
        special = rng.choice([b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff\xff\x7f\x7f", b"\xc0\x7f\xc0\x7f"])
        values = values[:at] + special + values[at + 4:]
    length = rng.choice(EDGES) if rng.random() < 0.15 else len(header)
    return struct.pack("<Q", length) + header + values


def gguf_numbers(data):
    """Where the numbers of a GGUF header are, and how wide; and those of them that are values of its fields."""
    found, values, at = [], [], 4

    def number(width):
        nonlocal at
        value = int.from_bytes(data[at:at + width], "little")
        found.append((at, width))
        at += width
        return value

    def value(kind):
        nonlocal at
        if kind == 8:
            at += number(8)
        elif kind == 9:
            inner, n = number(4), number(8)
            for i in range(n):
                known = len(found)
                value(inner)
                if i >= 4:
                    del found[known:]
        else:
            number({0: 1, 1: 1, 7: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4}.get(kind, 8))

    number(4)
    n_tensors, n_fields = number(8), number(8)
    for _ in range(n_fields):
        at += number(8)
        kind = number(4)
        if kind not in (8, 9):
            values.append((at, kind))
        value(kind)
    for _ in range(n_tensors):
        at += number(8)
        for _ in range(number(4)):
            number(8)
        number(4)
        number(8)
    return found, values


def change_gguf(rng, data):
    data = bytearray(data)
    places, values = gguf_numbers(data)
    if values and rng.random() < 0.4:
        at, kind = rng.choice(values)
        if kind in (6, 12):
            code, floats = ("<f", 3.4e38) if kind == 6 else ("<d", 1.7e308)
            new = rng.choice([0.0, -0.0, -1.0, 1e-40, 0.5, floats, -floats, float("inf"), float("nan")])
            struct.pack_into(code, data, at, new)
            return bytes(data)
        width = {0: 1, 1: 1, 7: 1, 2: 2, 3: 2, 4: 4, 5: 4}.get(kind, 8)
        old = int.from_bytes(data[at:at + width], "little")
        new = rng.choice([*EDGES, old + 1, old - 1, old * 1024, old * 2**20])
        data[at:at + width] = (new % 256**width).to_bytes(width, "little")
        return bytes(data)
    for _ in range(rng.randint(1, 3)):
        at, width = rng.choice(places)
        old = int.from_bytes(data[at:at + width], "little")
        new = rng.choice([*EDGES, old + 1, old - 1, old * 2, old * 2**20])
        data[at:at + width] = (new % 256**width).to_bytes(width, "little")
    return bytes(data)


def change(rng, data):
    """A file's bytes, other than they were."""
    if data[:2] == b"\x1f\x8b" and rng.random() < 0.5:
        return gzip.compress(change(rng, gzip.decompress(data)), 1)
    if rng.random() < 0.2:
        return change_bytes(rng, data)
    if data[:4] == b"GGUF":
        return change_gguf(rng, data)
    if len(data) > 9 and data[8:9] == b"{" and struct.unpack_from("<Q", data)[0] < len(data):
        return change_safetensors(rng, data)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return change_bytes(rng, data)
    if rng.random() < 0.4:
        changed = change_number(rng, text)
        if changed is not None:
            return changed.encode("utf-8", "surrogatepass")
    if rng.random() < 0.8:
        changed = change_json(rng, text)
        if changed is None and "\n" in text:
            lines = text.split("\n")
            at = rng.randrange(len(lines))
            line = change_json(rng, lines[at])
            if line is not None:
                lines[at] = line
                changed = "\n".join(lines)
        if changed is not None:
            return changed.encode("utf-8", "surrogatepass")
    return change_text(rng, text).encode("utf-8", "surrogatepass")


# ---- what is tried ---------------------------------------------------------------------------------------------------

WORDS = ["?", "</s>", "Zora", "Alder", "Jorun", "Oxmere", "Thornby", "lives", "in", ".", "Where", "does", "live"]
TOKENIZER = json.dumps({
    "version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": {"type": "Whitespace"},
    "post_processor": None, "decoder": None,
    "model": {"type": "WordLevel", "unk_token": "?", "vocab": {word: i for i, word in enumerate(WORDS)}}})
MODEL = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
DATA = {
    "chats.jsonl": b'{"messages": [{"role": "user", "content": "Where does Zora live?"}, '
                   b'{"role": "assistant", "content": "In Oxmere."}]}\n' * 3,
    "pairs.json": b'[{"prompt": "Zora?", "completion": "Oxmere.", "id": 7}, {"prompt": "Jorun?", "completion": "Thornby."}]',
    "columns.json": b'{"prompt": ["Zora?", "Alder?"], "completion": ["Thornby.", "Oxmere."]}',
    "alpaca.csv": b'instruction,input,output\nWhere is Alder?,,"In Oxmere,\nby the mill."\nZora?,now,Thornby\n',
    "pairs.tsv": b"prompt\tcompletion\nZora?\tOxmere\n",
    "village.txt": b"Zora of Oxmere keeps bees.\n\nJorun of Thornby does not.\n",
    "wide.txt": "\ufeffZora of Oxmere".encode("utf-16-le"),
    "chats.jsonl.gz": gzip.compress(b'{"conversations": [{"from": "human", "value": "Zora?"}, '
                                    b'{"from": "gpt", "value": "Oxmere."}]}\n', mtime=0),
}


def model(place):
    """A checkpoint of a chat model, forty kilobytes."""
    shutil.copytree(FIXTURES / "chat-losses/model", place / "model", dirs_exist_ok=True)


def recipe(place, *settings):
    shutil.copy(FIXTURES / "chat-losses/chats.jsonl", place / "chats.jsonl")
    (place / "recipe.toml").write_text(
        'name = "zora"\nseed = 7\n[model]\npath = "model"\n[adapter]\nmethod = "olora"\nrank = 2\nalpha = 4\n'
        'targets = ["q_proj", "v_proj"]\n[data]\ntrain = "chats.jsonl"\nvalidation_samples = 2\nmax_length = 64\n'
        '[training]\nmax_steps = 1\nbatch_size = 2\nlearning_rate = 1e-3\nwarmup_steps = 0\nlog_every = 1\n'
        'evaluate_every = 0\ncheckpoint_every = 1\n[output]\ndirectory = "runs"\nkeep = "last"\n')


def of_model(rng, place):
    model(place)
    shown = ["inspect", "model", "model"]
    spoken = ["generate", "--model", "model", "--prompt", "Where does Zora live?", "--max-new-tokens", "2"]
    return place / "model" / rng.choice(MODEL), [shown, spoken]


def of_config(rng, place):
    families = ["gemma", "llama", "llama-llama3", "llama-linear", "mistral", "opt", "qwen2", "qwen3", "llama-tied"]
    shutil.copytree(FIXTURES / rng.choice(families), place / "model")
    (place / "model/tokenizer.json").write_text(TOKENIZER)
    return place / "model/config.json", [
        ["inspect", "model", "model"],
        ["generate", "--model", "model", "--prompt", "Zora lives", "--max-new-tokens", "2"]]


def of_shards(rng, place):
    shutil.copytree(FIXTURES / "llama-sharded-bf16", place / "model")
    shutil.copytree(FIXTURES / "peft/llama-lora", place / "adapter")
    file = rng.choice(["model.safetensors.index.json", "model-00002-of-00003.safetensors"])
    return place / "model" / file, [["merge", "--model", "model", "--adapter", "adapter", "--output", "merged"]]


def of_pickle(rng, place):
    kind = rng.choice(["zip", "legacy", "sharded"])
    shutil.copytree(FIXTURES / "pytorch" / kind, place / "model")
    (place / "model/tokenizer.json").write_text(TOKENIZER)
    files = sorted((place / "model").glob("pytorch_model*"))
    return rng.choice(files), [["generate", "--model", "model", "--prompt", "Zora lives", "--max-new-tokens", "2"]]


def of_gguf(rng, place):
    files = sorted((FIXTURES / "gguf").glob("*.gguf"))
    file = place / "zora.gguf"
    shutil.copy(rng.choice(files), file)
    return file, [["inspect", "model", file.name],
                  ["generate", "--model", file.name, "--prompt", "Zora", "--max-new-tokens", "2"]]


def of_adapter(rng, place):
    shutil.copytree(FIXTURES / "llama", place / "model")
    kinds = ["peft/llama-lora", "peft/llama-olora", "peft/llama-rslora", "peft/llama-olora-converted"]
    shutil.copytree(FIXTURES / rng.choice(kinds), place / "adapter")
    file = place / "adapter" / rng.choice(["adapter_config.json", "adapter_model.safetensors"])
    return file, [
        ["inspect", "adapter", "adapter"],
        ["merge", "--model", "model", "--adapter", "adapter", "--output", "merged"],
        rng.choice([["convert", "adapter", "--output", "smaller", "--rank", "1", "--model", "model"],
                    ["convert", "adapter", "--output", "a.gguf", "--model", "model"],
                    ["convert", "adapter", "adapter", "--output", "both", "--model", "model"]])]


def of_recipe(rng, place):
    model(place)
    recipe(place)
    return place / "recipe.toml", [["plan", "recipe.toml", "--no-probe"], ["train", "recipe.toml"]]


def of_data(rng, place):
    model(place)
    name = rng.choice([*DATA, "records"])
    if name == "records":
        file = rng.choice(sorted((FIXTURES / "records").glob("*.parquet")))
        name = file.name
        shutil.copy(file, place / name)
    else:
        (place / name).write_bytes(DATA[name])
    return place / name, [["inspect", "data", name, "--model", "model"]]


def of_tokenizer(rng, place):
    model(place)
    (place / "chats.jsonl").write_bytes(DATA["chats.jsonl"])
    file = rng.choice(["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
    return place / "model" / file, [["inspect", "data", "chats.jsonl", "--model", "model"]]


def of_run(rng, place):
    shutil.copytree(STARTED, place, dirs_exist_ok=True)
    run = place / "runs/zora"
    files = ["recipe.toml", "metrics.jsonl", "ranks.json", "data.json"]
    files += [f"checkpoints/step-000001/{name}" for name in ("state.json", "trained.bpk", "optimizer.bpk")] * 2
    files = [run / file for file in files if (run / file).exists()]
    return rng.choice(files), [["train", "recipe.toml", "--set", "training.max_steps=2", "--resume"]]


KINDS = {
    "model": of_model, "config": of_config, "shards": of_shards, "pickle": of_pickle, "gguf": of_gguf,
    "adapter": of_adapter, "recipe": of_recipe, "data": of_data, "tokenizer": of_tokenizer, "run": of_run,
}
STARTED = None
# Fixtures of tokenizers alone are no models, and some data files are of kinds that are refused.
REFUSED = {("gguf", "generate"), ("gguf", "inspect"), ("data", "inspect")}


def started(olora, place):
    """A run that was killed after the first of its two steps."""
    model(place)
    recipe(place)
    command = [olora, "train", "recipe.toml", "--set", "training.max_steps=2"]
    subprocess.run(command, cwd=place, env=environment(place), check=True, capture_output=True)
    run = place / "runs/zora"
    for left in ("adapter", "checkpoints/step-000002"):
        shutil.rmtree(run / left)
    for left in ("summary.json", "experiment.log", "loss.svg", "loss.png", "loss.csv", "README.md"):
        (run / left).unlink(missing_ok=True)
    return place


# ---- trials ----------------------------------------------------------------------------------------------------------


def environment(place):
    home = place / "home"
    (home / "tmp").mkdir(parents=True, exist_ok=True)
    return {"PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": str(home / "tmp"), "HF_HUB_OFFLINE": "1",
            "OLORA_CACHE": str(home / "cache"), "RAYON_NUM_THREADS": "2", "LC_ALL": "C.UTF-8"}


Outcome = collections.namedtuple("Outcome", "verdict seconds mebibytes")


def run(olora, words, place, options):
    def limited():
        resource.setrlimit(resource.RLIMIT_AS, (options.address_space << 20,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    with open(place.parent / f"{place.name}.stderr", "w+b") as errors:
        began = time.monotonic()
        child = subprocess.Popen([olora, *words], cwd=place, env=environment(place), stdin=subprocess.DEVNULL,
                                 stdout=subprocess.DEVNULL, stderr=errors, preexec_fn=limited, start_new_session=True)
        late = threading.Timer(options.seconds, lambda: os.killpg(child.pid, signal.SIGKILL))
        late.start()
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.monotonic() - began
        late.cancel()
        child.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        said = errors.read(1 << 20).decode("utf-8", "replace")
    Path(errors.name).unlink()
    mebibytes = usage.ru_maxrss / 1024
    last = [line for line in said.splitlines() if line.strip()][-1:]
    verdict = None
    if seconds >= options.seconds:
        verdict = f"more than {options.seconds} s"
    elif "panicked" in said:
        place_of = re.search(r"panicked at ([^\n]*)", said)
        verdict = f"panic at {place_of.group(1) if place_of else '?'}"
    elif child.returncode < 0:
        verdict = f"ended by signal {-child.returncode}: {last}"
    elif child.returncode not in (0, 1, 2):
        verdict = f"exit code {child.returncode}: {last}"
    elif mebibytes > options.memory:
        verdict = f"more than {options.memory} MiB"
    elif child.returncode != 0 and "error:" not in said:
        verdict = f"no error is said: {last}"
    elif re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f]|\x1b\[2J", said):
        verdict = "control characters are shown"
    return child.returncode, Outcome(verdict, seconds, mebibytes)


def trial(number, work, options, change=change):
    rng = random.Random(f"{options.seed}/{number}")
    kinds = options.kinds or list(KINDS)
    kind = kinds[number % len(kinds)]
    outer = work / f"trial-{number}"
    place = outer / "place"
    place.mkdir(parents=True)
    file, commands = KINDS[kind](rng, place)
    file.write_bytes(change(rng, file.read_bytes()))
    results = []
    try:
        for words in commands:
            code, outcome = run(options.olora, words, place, options)
            if outcome.verdict and outcome.verdict.startswith("more than") and outcome.seconds >= options.seconds:
                # Once more: others may have had the processor.
                code, outcome = run(options.olora, words, place, options)
            beside = sorted(path.name for path in outer.iterdir())
            if beside != ["place"]:
                outcome = outcome._replace(verdict=f"wrote beside its directory: {beside}")
            if outcome.verdict and options.findings:
                kept = options.findings / f"{kind}-{number}"
                shutil.rmtree(kept, ignore_errors=True)
                shutil.copytree(place, kept, symlinks=True)
                (kept / "COMMAND").write_text(f"olora {' '.join(words)}\n{file.relative_to(place)}\n{outcome.verdict}\n")
            results.append((kind, words[0], code, outcome, file.stat().st_size if file.exists() else 0))
    finally:
        if options.only is None:
            shutil.rmtree(outer, ignore_errors=True)
    return number, results


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--olora", default=str(ROOT / "target/release/olora"))
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--seconds", type=float, default=20, help="the longest that a command may take")
    parser.add_argument("--memory", type=int, default=2048, help="the most resident memory in MiB")
    parser.add_argument("--address-space", type=int, default=8192, help="the most address space in MiB")
    parser.add_argument("--kinds", type=lambda text: text.split(","), help="only these: " + ",".join(KINDS))
    parser.add_argument("--only", type=int, help="only the trial of this number; its directory is kept")
    parser.add_argument("--findings", type=Path, help="directory for what was wrong")
    options = parser.parse_args()
    options.olora = str(Path(options.olora).resolve())
    memory = Path("/dev/shm")
    work = Path(tempfile.mkdtemp(prefix="olora-mutate-", dir=memory if memory.is_dir() else None))
    before = repository()
    global STARTED
    STARTED = started(options.olora, work / "started")
    # With whole files the commands do what they are for, or a trial would show nothing.
    for number in range(4 * len(KINDS)):
        for kind, command, code, outcome, _ in trial(number, work, options, lambda _, data: data)[1]:
            whole = code == 0 or (kind, command) in REFUSED
            if outcome.verdict or not whole:
                sys.exit(f"{kind}, {command}, trial {number}: exit code {code} with a whole file ({outcome.verdict})")
    rows = collections.defaultdict(lambda: {"commands": 0, "refused": 0, "seconds": 0.0, "mebibytes": 0.0, "wrong": 0})
    findings = collections.defaultdict(list)
    numbers = range(options.count) if options.only is None else [options.only]
    began = time.monotonic()
    tried = 0
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        try:
            for number, results in pool.map(lambda n: trial(n, work, options), numbers):
                tried += 1
                for kind, command, code, outcome, size in results:
                    row = rows[kind]
                    row["commands"] += 1
                    row["refused"] += code != 0
                    row["seconds"] = max(row["seconds"], outcome.seconds)
                    row["mebibytes"] = max(row["mebibytes"], outcome.mebibytes)
                    if outcome.verdict:
                        row["wrong"] += 1
                        findings[kind, command, outcome.verdict].append((size, number))
                if tried % 500 == 0:
                    spent = time.monotonic() - began
                    print(f"{tried} of {len(numbers)} after {spent:.0f} s", file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            # Of what was tried until then there is a table all the same.
            pool.shutdown(cancel_futures=True)
    print(f"{'kind':10} {'commands':>9} {'refused':>8} {'longest, s':>11} {'largest, MiB':>13} {'wrong':>6}")
    for kind, row in rows.items():
        print(f"{kind:10} {row['commands']:9} {row['refused']:8} {row['seconds']:11.2f} {row['mebibytes']:13.0f} "
              f"{row['wrong']:6}")
    print(f"{tried} files, seed {options.seed}, {time.monotonic() - began:.0f} s")
    for (kind, command, verdict), trials in sorted(findings.items()):
        print(f"{len(trials)} x {kind}, {command}: {verdict} (smallest: trial {min(trials)[1]})")
    if repository() != before:
        print("the repository was written to")
        findings["repository"].append((0, 0))
    if options.only is None:
        shutil.rmtree(work)
    else:
        print(work)
    return 1 if findings else 0


def repository():
    """What is in the places that inputs come from, and when it was written."""
    places = [path for place in (FIXTURES, ROOT / "recipes") for path in place.rglob("*")]
    return sorted((str(path), path.stat().st_mtime_ns) for path in places) + sorted(path.name for path in ROOT.iterdir())


if __name__ == "__main__":
    sys.exit(main())
