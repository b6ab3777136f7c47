#!/usr/bin/env python3
"""Validates every recipe of the repository by the schema that `olora schema` prints, with a JSON-schema
validator that editors' language servers have the like of, and sees that wrong ones are refused.

    python3 tools/recipes/check_schema.py --olora target/release/olora

Needs Python 3.11 and the package `jsonschema`.
"""

import argparse
import copy
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import jsonschema

ROOT = Path(__file__).resolve().parents[2]

# What cannot be meant: a dotted key, a value.
WRONG = [
    ("training.learnig_rate", 1e-3),
    ("learning_rate", 1e-3),
    ("adapter.rank", 0),
    ("adapter.rank", "eight"),
    ("adapter.method", "qlora"),
    ("adapter.dropout", 1.0),
    ("training.batch_size", 1.5),
    ("training.learning_rate", "fast"),
    ("training.epochs", 0),
    ("data.train", 7),
    ("data.format", "tale"),
    ("data.sources", [{"path": "a.jsonl", "wieght": 2}]),
    ("model.quantize", "int3"),
    ("model.resize_embeddings", {"multiple": 8}),
    ("logging.wandb", True),
    ("tasks.names", ["chess"]),
    ("seed", -1),
]


def set_key(recipe, key, value):
    *sections, name = key.split(".")
    for section in sections:
        recipe = recipe.setdefault(section, {})
    recipe[name] = value


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--olora", required=True)
    schema = json.loads(subprocess.run([parser.parse_args().olora, "schema"], check=True, capture_output=True).stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    committed = json.loads((ROOT / "docs/recipe.schema.json").read_text())
    failed = ["docs/recipe.schema.json is not what the binary prints"] if committed != schema else []
    listed = subprocess.run(["git", "ls-files", "*.toml"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    recipes = {}
    for path in listed.split():
        try:
            recipe = tomllib.loads((ROOT / path).read_text())
        except tomllib.TOMLDecodeError:
            # What is tried with damaged files.
            continue
        # The other TOML files are Cargo's and the tools'.
        if "data" in recipe and "model" in recipe:
            recipes[path] = recipe
    for path, recipe in recipes.items():
        failed += [f"{path}: {error.json_path}: {error.message}" for error in validator.iter_errors(recipe)]
    whole = recipes["recipes/quickstart.toml"]
    for key, value in WRONG:
        recipe = copy.deepcopy(whole)
        set_key(recipe, key, value)
        if validator.is_valid(recipe):
            failed.append(f"{key} = {value!r} is taken")
    for missing in ["name", "model", "data"]:
        recipe = {key: value for key, value in whole.items() if key != missing}
        if validator.is_valid(recipe):
            failed.append(f"a recipe without {missing} is taken")
    for fault in failed:
        print(f"FAILED {fault}")
    print(f"{len(recipes)} recipes, {len(WRONG) + 3} wrong ones, {len(failed)} failures")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
