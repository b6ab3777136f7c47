"""Time LoRA on an instruction file, on a CPU in f32: prompts masked, sequences of unequal length.

    python instruction.py --model DIR --data FILE --loop plain    # what most people write
    python instruction.py --model DIR --data FILE --loop best     # what PyTorch can do here
    python instruction.py --model DIR --data FILE --check         # that both have the same loss and gradients

DIR is a Llama checkpoint in Hugging Face's layout, FILE a JSON list of Alpaca records.
Records are rendered and masked as `olora train` does: by the checkpoint's chat template, or the Alpaca prompt where it
has none; `olora inspect data FILE --model DIR --sample N` shows the same text. Adapter, batch size, learning rate and
clipping are those of recipes/smollm2-135m/lora.toml, the rate constant.

`plain`: batches drawn at random, padded on the right to the longest, an attention mask, and the model's own loss, which
makes logits at every position.
`best`: batches of similar length (sorted within shuffled windows of 50 batches), no attention mask, for none is needed
where padding is on the right of causal attention, logits at trained positions only, fused AdamW. `--compile` compiles
the loss for any shape (needs a C++ compiler, takes minutes: give it a warm-up of a few steps). No allocator
is set up: in short trials on a thread, neither huge pages (THP_MEM_ALLOC_ENABLE=1) nor a glibc that keeps freed memory
gained more than the noise; tcmalloc and jemalloc were not there to try.

Timed is a step: batch to tensors, forward, loss, backward, clipping, update; tokenising is not. Rates are the tokens of
all timed steps over their seconds: `trained` tokens are targets of the loss; `tokens` are all but padding and, as in
`olora train`, the last of each sequence, which predicts nothing. Prints a table and, as the last line, one JSON object.
Nothing else may run: threads that wait for one that has lost its core make a step many times as slow.
"""

import argparse
import itertools
import json
import os
import random
import sys
import time
from typing import NamedTuple

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from common import peak_rss_bytes, print_json, spread, table, versions
from train_step import ALPHA, PROJECTIONS, RANK

BATCH, MAX_LENGTH = 8, 512
LEARNING_RATE, MAX_GRAD_NORM = 5e-4, 1.0
WINDOW = 50  # batches
IGNORED = -100
TOLERANCE = 1e-4


class Sample(NamedTuple):
    ids: list
    labels: list  # the ids, IGNORED where not trained

    @property
    def trained(self):
        return sum(label != IGNORED for label in self.labels)


def render(tokenizer, record):
    """The text of a record, the range of characters to train, and whether the tokenizer is to add special tokens."""
    instruction, given, output = record["instruction"], record.get("input") or "", record["output"]
    if tokenizer.chat_template:
        user = f"{instruction}\n\n{given}" if given else instruction
        turns = [{"role": "user", "content": user}, {"role": "assistant", "content": output}]
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        prompt = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
        if not text.startswith(prompt):
            sys.exit("the chat template does not render a prompt as the beginning of the conversation")
        return text, (len(prompt), len(text.rstrip())), False
    paired = ", paired with an input that provides further context" if given else ""
    given = f"### Input:\n{given}\n\n" if given else ""
    prompt = (
        f"Below is an instruction that describes a task{paired}. "
        "Write a response that appropriately completes the request.\n\n"
        f"### Instruction:\n{instruction}\n\n{given}### Response:\n"
    )
    text = prompt + output
    return text, (len(prompt), len(text)), not (tokenizer.bos_token and text.startswith(tokenizer.bos_token))


def tokenise(tokenizer, record):
    """A record as a sample, or None if nothing trained is within MAX_LENGTH.

    The whole text is tokenised at once; a token is trained if any of it lies within the range.
    """
    text, (first, last), add_special_tokens = render(tokenizer, record)
    encoded = tokenizer(text, add_special_tokens=add_special_tokens, return_offsets_mapping=True)
    ids, trained, before = encoded["input_ids"], [], 0
    for start, end in encoded["offset_mapping"]:
        # Of a token that is only spaces, some tokenizers leave the end.
        start = min(start, before) if start == end else start
        trained.append(bool(trained) and start < last and first < end)
        before = end
    closed = max((i + 1 for i, t in enumerate(trained) if t), default=len(ids))
    if ids[closed - 1] != tokenizer.eos_token_id:
        ids, trained = ids[:closed] + [tokenizer.eos_token_id], trained[:closed] + [True]
    labels = [id if t else IGNORED for id, t in zip(ids, trained)]
    sample = Sample(ids[:MAX_LENGTH], labels[:MAX_LENGTH])
    return sample if sample.trained else None


def load_samples(given):
    """An id to pad with and a sample (or None) for each record."""
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    with open(given.data, encoding="utf-8") as file:
        samples = [tokenise(tokenizer, record) for record in json.load(file)]
    return tokenizer.pad_token_id or tokenizer.eos_token_id or 0, samples


def epochs(samples, grouped, seed):
    """Batches of record indices without end, every record once an epoch."""
    draw = random.Random(seed)
    usable = [i for i, sample in enumerate(samples) if sample]
    while True:
        draw.shuffle(usable)
        order = usable
        if grouped:
            windows = (usable[i : i + BATCH * WINDOW] for i in range(0, len(usable), BATCH * WINDOW))
            order = [i for window in windows for i in sorted(window, key=lambda i: len(samples[i].ids))]
        batches = [order[i : i + BATCH] for i in range(0, len(order), BATCH)]
        if grouped:
            draw.shuffle(batches)
        yield from batches


def plan(samples, given):
    """The samples of every step, warm-up included."""
    count = given.warm_up + given.steps
    if given.order:
        with open(given.order, encoding="utf-8") as file:
            batches = json.load(file)
        if len(batches) < count:
            sys.exit(f"{given.order} has {len(batches)} batches, {count} are needed")
    else:
        batches = epochs(samples, given.loop == "best", given.seed)
    batches = list(itertools.islice(batches, count))
    for index in itertools.chain.from_iterable(batches):
        if not (0 <= index < len(samples) and samples[index]):
            sys.exit(f"there is no record {index} with anything to train: the file has {len(samples)}, counted from 0")
    return [[samples[i] for i in batch] for batch in batches]


def padded(rows, value):
    longest = max(map(len, rows))
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])


def plain_loss(model, batch, pad):
    ids = padded([sample.ids for sample in batch], pad)
    labels = padded([sample.labels for sample in batch], IGNORED)
    mask = padded([[1] * len(sample.ids) for sample in batch], 0)
    return model(input_ids=ids, attention_mask=mask, labels=labels).loss


def loss_at(model, ids, positions, targets):
    """The mean loss of `targets`, which follow the flat `positions`."""
    causal = model.get_base_model()
    hidden = causal.model(input_ids=ids, use_cache=False).last_hidden_state
    logits = causal.lm_head(hidden.flatten(0, 1).index_select(0, positions))
    return cross_entropy(logits.float(), targets)


def best_loss(model, batch, pad, loss_at=loss_at):
    ids = padded([sample.ids[:-1] for sample in batch], pad)
    following = padded([sample.labels[1:] for sample in batch], IGNORED).flatten()
    positions = (following != IGNORED).nonzero().squeeze(1)
    return loss_at(model, ids, positions, following[positions])


def causal_attention(module, query, key, value, attention_mask, scaling=None, **_):
    """Attention of a whole sequence to what is before, key-value heads shared, by PyTorch's flash kernel.

    Transformers makes no mask for an attention it does not know. Its own `sdpa` would, when compiled: it cannot tell
    then that no sequences are packed.
    """
    out = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register("causal", causal_attention)
ATTENTION = {"plain": "sdpa", "best": "causal"}
LOSS = {"plain": plain_loss, "best": best_loss}


def build(given):
    """The checkpoint, adapted; the factors are in f32."""
    base = AutoModelForCausalLM.from_pretrained(given.model, dtype=getattr(torch, given.dtype))
    base.config.use_cache = False
    base.set_attn_implementation(ATTENTION[given.loop])
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=PROJECTIONS, task_type="CAUSAL_LM")
    return get_peft_model(base, lora).train()


def trainable(model):
    return [p for p in model.parameters() if p.requires_grad]


def measure(model, batches, pad, given):
    """Seconds and loss of every step."""
    best = given.loop == "best"
    optimiser = torch.optim.AdamW(trainable(model), lr=LEARNING_RATE, weight_decay=0.0, fused=best)
    loss_of, options = LOSS[given.loop], {}
    if given.compile:
        options["loss_at"] = torch.compile(loss_at, dynamic=True)
    seconds, losses = [], []
    for batch in batches:
        start = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=given.autocast):
            loss = loss_of(model, batch, pad, **options)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable(model), MAX_GRAD_NORM)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        losses.append(loss.item())
        seconds.append(time.perf_counter() - start)
    return seconds, losses


def check(model, batch, pad):
    """Whether both loops have the same loss and gradients on a batch."""
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at first, which would leave the other factor without gradient
            torch.nn.init.normal_(parameter, std=0.02)
    losses, gradients = {}, {}
    for loop, loss_of in LOSS.items():
        model.get_base_model().set_attn_implementation(ATTENTION[loop])
        loss = loss_of(model, batch, pad)
        gradients[loop] = torch.cat([g.flatten() for g in torch.autograd.grad(loss, trainable(model))])
        losses[loop] = loss.item()
    apart = abs(losses["plain"] - losses["best"])
    gradients_apart = ((gradients["plain"] - gradients["best"]).norm() / gradients["plain"].norm()).item()
    table(["loop", "loss"], [[loop, f"{loss:.6f}"] for loop, loss in losses.items()])
    passed = apart < TOLERANCE and gradients_apart < TOLERANCE
    print_json(
        {
            "benchmark": "instruction",
            "check": "passed" if passed else "failed",
            "lengths": [len(sample.ids) for sample in batch],
            "trained": sum(sample.trained for sample in batch),
            "losses": losses,
            "loss_difference": apart,
            "relative_gradient_difference": gradients_apart,
            "tolerance": TOLERANCE,
            "versions": versions(),
        }
    )
    return passed


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="checkpoint directory")
    parser.add_argument("--data", required=True, help="a JSON list of Alpaca records")
    parser.add_argument("--loop", choices=list(LOSS), default="plain")
    parser.add_argument("--steps", type=int, default=20, help="timed steps")
    parser.add_argument("--warm-up", type=int, default=3, help="steps that are not timed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the factors and of the batches")
    parser.add_argument("--order", help="a JSON list of lists of record indices, from 0: the batch of each step")
    parser.add_argument("--compile", action="store_true", help="torch.compile (best only)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the base")
    parser.add_argument("--autocast", action="store_true", help="products in bfloat16, as torch.autocast chooses them")
    parser.add_argument("--check", action="store_true", help="compare both loops on the first batch, time nothing")
    given = parser.parse_args()
    if given.steps < 1 or given.warm_up < 0:
        parser.error("--steps must be at least 1, --warm-up at least 0")
    if given.compile and (given.loop != "best" or given.check):
        parser.error("--compile is for timing --loop best")
    return given


def main():
    given = arguments()
    logging.disable_progress_bar()
    torch.manual_seed(given.seed)
    torch.set_num_threads(given.threads)
    pad, samples = load_samples(given)
    batches = plan(samples, given)
    model = build(given)
    if given.check:
        sys.exit(not check(model, batches[0], pad))
    all_seconds, all_losses = measure(model, batches, pad, given)
    seconds, losses, timed = (v[given.warm_up :] for v in (all_seconds, all_losses, batches))
    trained = [sum(sample.trained for sample in batch) for batch in timed]
    tokens = [sum(len(sample.ids) - 1 for sample in batch) for batch in timed]
    # `best` does not read the last column.
    unread = given.loop == "best"
    read = sum(len(sample.ids) - unread for batch in timed for sample in batch)
    places = sum(len(batch) * (max(len(sample.ids) for sample in batch) - unread) for batch in timed)
    table(
        ["step", "seconds", "trained", "tokens", "trained/s", "tokens/s", "loss"],
        [
            [str(i), s, n, t, n / s, t / s, loss]
            for i, (s, n, t, loss) in enumerate(zip(seconds, trained, tokens, losses))
        ],
    )
    print_json(
        {
            "benchmark": "instruction",
            "loop": given.loop,
            "attention": ATTENTION[given.loop],
            "compiled": given.compile,
            "threads": given.threads,
            "seed": given.seed,
            "order": "replayed" if given.order else "own",
            "warm_up": given.warm_up,
            "steps": given.steps,
            "batch_size": max(map(len, timed)),
            "max_length": MAX_LENGTH,
            "rank": RANK,
            "dtype": given.dtype,
            "autocast": given.autocast,
            "samples": sum(sample is not None for sample in samples),
            "trained": sum(trained),
            "tokens": sum(tokens),
            "padding_share": 1 - read / places,
            "trained_tokens_per_second": sum(trained) / sum(seconds),
            "tokens_per_second": sum(tokens) / sum(seconds),
            "step_seconds": spread(seconds),
            "first_step_seconds": all_seconds[0],
            "losses": all_losses,
            "mean_loss": sum(l * n for l, n in zip(losses, trained)) / sum(trained),
            "peak_rss_bytes": peak_rss_bytes(),
            "trainable_params": sum(p.numel() for p in trainable(model)),
            "total_params": sum(p.numel() for p in model.parameters()),
            "versions": versions(),
        }
    )


if __name__ == "__main__":
    main()
