"""How often llama.cpp, PEFT and olora choose the same token, on a GGUF model with an adapter.

    python greedy_compare.py peft  MODEL.gguf --adapter DIR    --prompts FILE --out peft.json     # torch, transformers, peft, gguf
    python greedy_compare.py llama MODEL.gguf --adapter A.gguf --follow peft.json --out llama.json   # llama-cpp-python
    python greedy_compare.py olora MODEL.gguf --adapter DIR    --follow peft.json --out olora.json --olora target/release/olora
    python greedy_compare.py compare peft.json llama.json olora.json

`peft` is the reference: the model unpacked to f32, each prompt (a line of FILE) continued with the likeliest token.
`llama` starts from the same token ids, and computes on the packed weights, for which llama.cpp rounds activations to
8 bits; its keys and values are f32. Two things are compared with the reference:
  followed   the likeliest next token after each beginning of the reference's own text: every token counts once
  free       the program's own text: how far it is the reference's, and in how many prompts to the end. One token that
             differs makes all that follows differ
`olora` prints text and not tokens, so its text is compared, and nothing is followed. Of tokens that differ when followed,
`lead` says by how much the reference's choice led its second in logits, beside the lead of all tokens: where rounding
decides, it is small. Without --adapter the base alone is compared. With --raw no chat template is used.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"


def read_prompts(path):
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def run_peft(given):
    import torch
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_num_threads(given.threads)
    place = dict(pretrained_model_name_or_path=str(given.model.parent), gguf_file=given.model.name)
    tokenizer = AutoTokenizer.from_pretrained(given.tokenizer) if given.tokenizer else AutoTokenizer.from_pretrained(**place)
    if not tokenizer.chat_template and not given.raw:
        template = GGUFReader(given.model).get_field("tokenizer.chat_template")
        if template is None:
            sys.exit("neither the tokenizer nor the GGUF file has a chat template: give --tokenizer DIR or --raw")
        tokenizer.chat_template = template.contents()
    model = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32).eval()
    if given.adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, given.adapter).eval()
    end = model.config.eos_token_id
    end = end if isinstance(end, list) else [end]
    out = []
    for prompt in read_prompts(given.prompts):
        if given.raw:
            ids = tokenizer(prompt)["input_ids"]
        else:
            turns = [{"role": "user", "content": prompt}]
            text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        new, leads, cache, step = [], [], None, torch.tensor([ids])
        with torch.inference_mode():
            while len(new) < given.new_tokens and not (new and new[-1] in end):
                found = model(input_ids=step, past_key_values=cache, use_cache=True)
                best = found.logits[0, -1].topk(2)
                new.append(best.indices[0].item())
                leads.append((best.values[0] - best.values[1]).item())
                cache, step = found.past_key_values, best.indices[None, :1]
        text = tokenizer.decode(new, skip_special_tokens=True)
        out.append({"prompt": prompt, "ids": ids, "new": new, "leads": leads, "text": text})
    return {"program": "peft", "raw": given.raw, "new_tokens": given.new_tokens, "end": end, "prompts": out}


def run_llama(given):
    import numpy as np
    from llama_cpp import Llama

    follow = json.loads(given.follow.read_text())
    longest = max(len(p["ids"]) for p in follow["prompts"]) + follow["new_tokens"] + 8
    model = Llama(
        str(given.model),
        lora_path=str(given.adapter) if given.adapter else None,
        n_ctx=longest,
        n_batch=longest,
        n_threads=given.threads,
        logits_all=True,
        verbose=False,
        type_k=0,  # f32
        type_v=0,
        flash_attn=False,
    )
    out = []
    for reference in follow["prompts"]:
        ids, theirs = reference["ids"], reference["new"]
        model.reset()
        model.eval(ids + theirs[:-1])
        followed = np.argmax(model.scores[len(ids) - 1 : len(ids) + len(theirs) - 1], axis=-1).tolist()
        model.reset()
        model.eval(ids)
        new = [int(np.argmax(model.scores[model.n_tokens - 1]))]
        while len(new) < follow["new_tokens"] and new[-1] not in follow["end"]:
            model.eval(new[-1:])
            new.append(int(np.argmax(model.scores[model.n_tokens - 1])))
        text = model.detokenize(new).decode("utf-8", "replace")
        out.append({"prompt": reference["prompt"], "new": new, "followed": followed, "text": text})
    return {"program": "llama.cpp", "prompts": out}


def run_olora(given):
    follow = json.loads(given.follow.read_text())
    out = []
    for reference in follow["prompts"]:
        command = [given.olora, "generate", "--model", str(given.model), "--prompt", reference["prompt"]]
        command += ["--max-new-tokens", str(follow["new_tokens"])]
        command += (["--adapter", str(given.adapter)] if given.adapter else []) + (["--raw"] if follow["raw"] else [])
        found = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
        text = found.stdout.removeprefix(reference["prompt"]) if follow["raw"] else found.stdout
        out.append({"prompt": reference["prompt"], "text": text})
    return {"program": "olora", "prompts": out}


def common(ours, theirs):
    """How long two sequences are the same."""
    pairs = zip(ours, theirs)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))


def compare(files):
    reference, *others = [json.loads(file.read_text()) for file in files]
    for other in others:
        assert [p["prompt"] for p in other["prompts"]] == [p["prompt"] for p in reference["prompts"]], "other prompts"
        pairs = list(zip(reference["prompts"], other["prompts"]))
        result = {"reference": reference["program"], "program": other["program"], "prompts": len(pairs)}
        key = "new" if "new" in pairs[0][1] else "text"
        trimmed = lambda p: p[key].strip() if key == "text" else p[key]
        whole = [trimmed(ours) == trimmed(theirs) for theirs, ours in pairs]
        same = [common(trimmed(ours), trimmed(theirs)) / max(1, len(trimmed(theirs))) for theirs, ours in pairs]
        result["free"] = {
            "compared": {"new": "tokens", "text": "characters"}[key],
            "same_to_the_end": sum(whole),
            "share_until_the_first_difference": statistics.mean(same),
        }
        if "followed" in pairs[0][1]:
            tokens = [
                (mine == own, lead)
                for theirs, ours in pairs
                for mine, own, lead in zip(ours["followed"], theirs["new"], theirs["leads"], strict=True)
            ]
            differing = [lead for same, lead in tokens if not same]
            result["followed"] = {
                "tokens": len(tokens),
                "differ": len(differing),
                "share_same": 1 - len(differing) / len(tokens),
                "median_lead": statistics.median(lead for _, lead in tokens),
                "median_lead_where_different": statistics.median(differing) if differing else None,
                "largest_lead_where_different": max(differing, default=None),
            }
        print(json.dumps(result, indent=1))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("peft", "llama", "olora"):
        command = commands.add_parser(name)
        command.add_argument("model", type=Path, help="a GGUF file")
        command.add_argument("--adapter", type=Path, help="a GGUF adapter for llama, a PEFT directory for the others")
        command.add_argument("--out", type=Path, required=True)
        command.add_argument("--threads", type=int, default=2)
        if name == "peft":
            command.add_argument("--prompts", type=Path, required=True)
            command.add_argument("--tokenizer", help="a checkpoint directory, instead of the file's own")
            command.add_argument("--new-tokens", type=int, default=64)
            command.add_argument("--raw", action="store_true")
        else:
            command.add_argument("--follow", type=Path, required=True, help="what `peft` wrote")
        if name == "olora":
            command.add_argument("--olora", default="target/release/olora")
    commands.add_parser("compare").add_argument("files", type=Path, nargs="+")
    given = parser.parse_args()
    if given.command == "compare":
        compare(given.files)
        return
    result = {"peft": run_peft, "llama": run_llama, "olora": run_olora}[given.command](given)
    given.out.write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n")
    print(f"{given.out}: {len(result['prompts'])} prompts")


if __name__ == "__main__":
    sys.exit(main())
