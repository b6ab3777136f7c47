#!/usr/bin/env python3
"""OpenAI's own Python library against `olora serve`.

    pip install openai
    python3 tools/serve/openai_client.py --olora target/release/olora          # the quickstart's model: half a minute

What is checked: lists of models, chats and completions with all that may be asked of them, streams, several answers,
logprobs, errors by their classes, adapters by name, loaded and dropped while others are answered, streams that are
closed. With `--model DIR` another model; adapters are then left out, unless `--adapters-dir DIR` has two of them.

Exit code 1 if anything failed.
"""

import concurrent.futures
import json
import math
import pathlib
import subprocess
import sys
import threading
import time

import openai

from common import Checks, Server, adapters, arguments, endless, environment, expect, has_template, parser, same, with_template

PROMPT = "Where does Alder live?"
OTHERS = ["Who is the best friend of Clover?", "What does Zeb take to market?", "How many coins does Jorun ask?"]
KEY = "a-key-for-the-trial"


def client(server, key=None, retries=0):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key or "none", max_retries=retries, timeout=120)


class Trial:
    def __init__(self, server, name, model):
        self.server, self.name, self.model = server, name, model
        self.client = client(server)
        self.endless = endless(model)

    def chat(self, prompt=PROMPT, model=None, **more):
        messages = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
        given = {"temperature": 0, "max_tokens": 40, **more}
        return self.client.chat.completions.create(model=model or self.name, messages=messages, **given)

    def complete(self, prompt=PROMPT, model=None, **more):
        return self.client.completions.create(model=model or self.name, prompt=prompt, **{"temperature": 0, "max_tokens": 40, **more})

    def text(self, prompt=PROMPT, **more):
        return self.chat(prompt, **more).choices[0].message.content

    def refused(self, kind, say=None, code=None, param=None, ask=None, **more):
        """That this is refused with an exception of that kind which says what is meant."""
        try:
            (ask or self.chat)(**more)
        except openai.APIError as error:
            words = str(error)
            expect(type(error) is kind, f"{type(error).__name__} for {kind.__name__}: {words[:200]}")
            body = error.body if isinstance(error.body, dict) else {}
            expect(isinstance(body.get("message"), str) and body.get("type"), f"no error object: {error.body!r}")
            if say:
                expect(say in body["message"], f"{say!r} is not named: {body['message']}")
            if code:
                same(body.get("code"), code, "code")
            if param:
                same(body.get("param"), param, "param")
            return error
        expect(False, f"not refused: {more}")


def models(checks, t):
    with checks.check("models: the list, base first, and each by itself"):
        found = t.client.models.list().data
        same(found[0].id, t.name, "first of the list")
        same(len({model.id for model in found}), len(found), "names that differ")
        for model in found:
            same((model.object, model.owned_by), ("model", "olora"), model.id)
            expect(isinstance(model.created, int) and model.created > 1_600_000_000, f"created: {model.created}")
            same(model.parent, None if model.id == t.name else t.name, f"parent of {model.id}")
            same(t.client.models.retrieve(model.id).id, model.id, "retrieved")
    with checks.check("models: one that is not there"):
        t.refused(openai.NotFoundError, "nobody", "model_not_found", ask=t.client.models.retrieve, model="nobody")
        t.refused(openai.NotFoundError, "nobody", "model_not_found", model="nobody")
        t.refused(openai.NotFoundError, "nobody", "model_not_found", ask=t.complete, model="nobody")


def chats(checks, t):
    with checks.check("chat: greedy twice, its fields and its usage"):
        one, two = t.chat(), t.chat()
        choice = one.choices[0]
        expect(choice.message.content, "an empty answer")
        same(two.choices[0].message.content, choice.message.content, "the second answer")
        expect(one.id.startswith("chatcmpl-") and one.id != two.id, f"ids {one.id}, {two.id}")
        same((one.object, one.model, choice.index, choice.message.role), ("chat.completion", t.name, 0, "assistant"), "fields")
        same((choice.message.refusal, choice.logprobs), (None, None), "refusal, logprobs")
        expect(abs(one.created - time.time()) < 60, f"created {one.created}")
        expect(one.system_fingerprint, "no system_fingerprint")
        same(one.usage.total_tokens, one.usage.prompt_tokens + one.usage.completion_tokens, "usage")
        expect(0 < one.usage.completion_tokens <= 40 and one.usage.prompt_tokens > 0, str(one.usage))
    with checks.check("chat: max_tokens, max_completion_tokens, and the answer's end"):
        short = t.chat(max_tokens=3)
        same((short.choices[0].finish_reason, short.usage.completion_tokens), ("length", 3), "cut off")
        expect(t.text().startswith(short.choices[0].message.content), "the beginning differs")
        other = t.chat(max_tokens=openai.omit, max_completion_tokens=3)
        same(other.choices[0].message.content, short.choices[0].message.content, "by max_completion_tokens")
        long = t.chat(max_tokens=64, logit_bias=t.endless)
        same((long.choices[0].finish_reason, long.usage.completion_tokens), ("length", 64), "without an end")
    with checks.check("chat: streaming is the same, with usage only if asked"):
        whole = t.chat()
        chunks = list(t.chat(stream=True))
        same({chunk.object for chunk in chunks}, {"chat.completion.chunk"}, "objects")
        same((len({chunk.id for chunk in chunks}), {chunk.model for chunk in chunks}), (1, {t.name}), "ids and models")
        expect(all(chunk.choices for chunk in chunks), "a chunk without choices, though usage was not asked for")
        same(chunks[0].choices[0].delta.role, "assistant", "first role")
        joined = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        same(joined, whole.choices[0].message.content, "the stream")
        ends = [chunk.choices[0].finish_reason for chunk in chunks]
        same((ends[-1], set(ends[:-1])), (whole.choices[0].finish_reason, {None}), "finish_reason")
        expect(sum(bool(chunk.choices[0].delta.content) for chunk in chunks) > 1, "the stream came in one piece")
        chunks = list(t.chat(stream=True, stream_options={"include_usage": True}))
        same((chunks[-1].choices, chunks[-1].usage.total_tokens), ([], whole.usage.total_tokens), "the usage chunk")
        expect(all(chunk.usage is None for chunk in chunks[:-1]), "usage before the end")
    with checks.check("chat: characters of several tokens are streamed whole"):
        # Bytes that are no character by themselves may be drawn; none of them may break a chunk's text.
        for seed in range(4):
            more = {"temperature": 2, "seed": seed, "max_tokens": 60}
            joined = "".join(chunk.choices[0].delta.content or "" for chunk in t.chat(stream=True, **more))
            same(joined, t.text(**more), f"seed {seed}")
    with checks.check("chat: content in parts, several turns, a system prompt"):
        parts = [{"role": "user", "content": [{"type": "text", "text": PROMPT[:9]}, {"type": "text", "text": PROMPT[9:]}]}]
        text = t.text(parts)
        # Templates may put parts together with or without a line between.
        expect(text, "an empty answer")
        one = [{"role": "user", "content": [{"type": "text", "text": PROMPT}]}]
        same(t.text(one), t.text(), "one part")
        turns = [
            {"role": "system", "content": "Answer."}, {"role": "user", "content": "Who?"},
            {"role": "assistant", "content": "Alder."}, {"role": "user", "content": PROMPT},
        ]
        expect(t.chat(turns).usage.prompt_tokens > t.chat().usage.prompt_tokens, "turns were left out")
    with checks.check("chat: seeds repeat answers, alone and beside others"):
        more = {"temperature": 1.5, "seed": 11}
        alone = t.text(**more)
        same(t.text(**more), alone, "the same seed")
        expect(len({t.text(temperature=1.5, seed=seed) for seed in range(6)}) > 1, "six seeds have one answer")
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            others = [pool.submit(t.text, OTHERS[i % 3], temperature=1.5, seed=i) for i in range(7)]
            same(pool.submit(t.text, **more).result(), alone, "beside seven others")
            [other.result() for other in others]
    with checks.check("chat: greedy answers beside others are those by themselves"):
        prompts = [PROMPT, *OTHERS] * 3
        alone = {prompt: t.text(prompt) for prompt in set(prompts)}
        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            for prompt, text in zip(prompts, pool.map(t.text, prompts)):
                same(text, alone[prompt], prompt)
    with checks.check("chat: n=2 and n=8"):
        two = t.chat(n=2, temperature=1.5, seed=3)
        same([choice.index for choice in two.choices], [0, 1], "indexes")
        again = t.chat(n=2, temperature=1.5, seed=3)
        same([c.message.content for c in again.choices], [c.message.content for c in two.choices], "the same seed")
        eight = t.chat(n=8, temperature=2, seed=3)
        expect(len({choice.message.content for choice in eight.choices}) > 1, "eight choices are all the same")
        same(len({choice.message.content for choice in t.chat(n=3).choices}), 1, "greedy answers of n=3")
        expect(two.usage.completion_tokens > max(len(two.choices), 2), str(two.usage))
        joined = {0: "", 1: ""}
        for chunk in t.chat(n=2, temperature=1.5, seed=3, stream=True):
            joined[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        same(joined, {c.index: c.message.content for c in two.choices}, "the streams")
        t.refused(openai.BadRequestError, "n", param="n", n=9)
    with checks.check("chat: one candidate is greedy, penalties and biases work"):
        greedy = t.text()
        same(t.text(temperature=1, seed=5, extra_body={"top_k": 1}), greedy, "top_k 1")
        same(t.text(temperature=1, seed=5, top_p=1e-6), greedy, "top_p 1e-6")
        same(t.text(frequency_penalty=0, presence_penalty=0, extra_body={"repetition_penalty": 1}), greedy, "no penalties")
        biased = t.chat(logit_bias={"20": 100}, max_tokens=4, logprobs=True).choices[0]
        same(len({token.token for token in biased.logprobs.content}), 1, "tokens with a bias of 100 on one")
        long = t.chat(max_tokens=60, logit_bias=t.endless, logprobs=True).choices[0].logprobs.content
        varied = t.chat(max_tokens=60, logit_bias=t.endless, logprobs=True, frequency_penalty=2).choices[0].logprobs.content
        expect(len({x.token for x in varied}) > len({x.token for x in long}), "frequency_penalty 2 makes no more words")


def stops(checks, t):
    whole = t.chat(logprobs=True, max_tokens=40, logit_bias=t.endless).choices[0]
    text, tokens = whole.message.content, [bytes(token.bytes or token.token.encode()) for token in whole.logprobs.content]

    def stopped(stop, expected, what):
        answer = t.chat(stop=stop, logit_bias=t.endless).choices[0]
        same((answer.message.content, answer.finish_reason), (expected, "stop"), what)
        chunks = list(t.chat(stop=stop, stream=True, logit_bias=t.endless))
        same("".join(c.choices[0].delta.content or "" for c in chunks), expected, f"{what}, streamed")
        same(chunks[-1].choices[0].finish_reason, "stop", f"{what}, streamed")

    with checks.check("stop: a word, one of several, none that comes"):
        word = text.split()[2]
        stopped(word, text[:text.index(word)], "a word")
        later = text.split()[4]
        stopped(["no such words", word, later], text[:min(text.index(word), text.index(later))], "one of three")
        same(t.text(stop=["no such words"], logit_bias=t.endless), text, "none")
    with checks.check("stop: words that begin within a token and end in another"):
        tried = 0
        for i in range(1, len(tokens) - 2):
            try:
                stop = (tokens[i][-1:] + tokens[i + 1] + tokens[i + 2][:1]).decode()
            except UnicodeDecodeError:
                continue
            if len(tokens[i]) > 1 and len(stop.strip()) > 2:
                stopped(stop, text[:text.index(stop)], f"{stop!r}")
                tried += 1
                if tried == 4:
                    break
        expect(tried, f"no such words in {text!r}")
    with checks.check("stop: the same in completions, and five are refused"):
        base = t.complete(logit_bias=t.endless).choices[0].text
        word = base.split()[2]
        answer = t.complete(stop=[word], logit_bias=t.endless).choices[0]
        same((answer.text, answer.finish_reason), (base[:base.index(word)], "stop"), "a word")
        t.refused(openai.BadRequestError, "stop", param="stop", stop=list("abcde"))


def logprobs(checks, t):
    with checks.check("logprobs of chats: the text, sums, order, the greedy choice is the likeliest"):
        choice = t.chat(logprobs=True, top_logprobs=5).choices[0]
        content = choice.logprobs.content
        joined = b"".join(bytes(token.bytes) for token in content)
        expect(joined.decode(errors="replace").startswith(choice.message.content), f"{joined} is not {choice.message.content!r}")
        for token in content:
            tops = [top.logprob for top in token.top_logprobs]
            same(len(tops), 5, "alternatives")
            same(tops, sorted(tops, reverse=True), "their order")
            expect(sum(map(math.exp, tops)) <= 1 + 1e-4 and max(tops) <= 0, f"probabilities {tops}")
            same((token.token, token.logprob), (token.top_logprobs[0].token, tops[0]), "the chosen one")
        same(t.chat(logprobs=True).choices[0].logprobs.content[0].top_logprobs, [], "without top_logprobs")
        streamed = []
        for chunk in t.chat(logprobs=True, top_logprobs=5, stream=True):
            if chunk.choices[0].logprobs:
                streamed += chunk.choices[0].logprobs.content
        same([x.token for x in streamed], [x.token for x in content], "streamed tokens")
        expect(all(abs(a.logprob - b.logprob) < 1e-4 for a, b in zip(streamed, content)), "streamed numbers differ")
    with checks.check("logprobs of drawn tokens are those of the model"):
        choice = t.chat(temperature=1, seed=2, logprobs=True, top_logprobs=20).choices[0]
        for token in choice.logprobs.content:
            there = [top.logprob for top in token.top_logprobs if top.token == token.token]
            expect(not there or abs(there[0] - token.logprob) < 1e-5, f"{token.token!r}: {token.logprob} and {there}")
    with checks.check("logprobs of completions: the legacy form, and all of them add up to one"):
        choice = t.complete(logprobs=5, max_tokens=12, logit_bias=t.endless).choices[0]
        lists = choice.logprobs
        same({len(lists.tokens), len(lists.token_logprobs), len(lists.top_logprobs), len(lists.text_offset)}, {12}, "lengths")
        same("".join(lists.tokens), choice.text, "tokens")
        # Offsets are within prompt and answer as one text, or within the answer, but always lead from token to token.
        first = lists.text_offset[0]
        for token, at in zip(lists.tokens, lists.text_offset):
            same(choice.text[at - first:at - first + len(token)], token, "text_offset")
        for token, number, top in zip(lists.tokens, lists.token_logprobs, lists.top_logprobs):
            expect(abs(top[token] - number) < 1e-6, f"the chosen token is not among the best: {token!r} in {top}")
            expect(sum(map(math.exp, top.values())) <= 1 + 1e-4, f"probabilities {top}")
        expect(t.complete(logprobs=0, max_tokens=2).choices[0].logprobs.token_logprobs, "logprobs=0 has none")
        t.refused(openai.BadRequestError, "logprobs", param="logprobs", ask=t.complete, logprobs=21)
    with checks.check("echo: the prompt's tokens, the first without a number, the rest as when generated"):
        # Without a bias, which would be a part of the numbers when generating.
        made = t.complete(logprobs=1, max_tokens=12).choices[0]
        n = len(made.logprobs.tokens) - ("".join(made.logprobs.tokens) != made.text)
        echo = t.complete(PROMPT + made.text, logprobs=1, max_tokens=0, echo=True)
        choice, lists = echo.choices[0], echo.choices[0].logprobs
        same(choice.text, PROMPT + made.text, "text")
        same((lists.token_logprobs[0], lists.top_logprobs[0]), (None, None), "the first token")
        same((echo.usage.completion_tokens, echo.usage.prompt_tokens), (0, len(lists.tokens)), "usage")
        for token, at in zip(lists.tokens, lists.text_offset):
            same(choice.text[at:at + len(token)], token, "text_offset")
        if n and lists.tokens[-n:] == made.logprobs.tokens[:n]:
            for token, one, other in zip(lists.tokens[-n:], made.logprobs.token_logprobs, lists.token_logprobs[-n:]):
                expect(abs(one - other) < 1e-3, f"{token!r}: {one} when generated, {other} when read")
        else:
            checks.skip("echo against generating", f"read as other tokens: {lists.tokens[-n:]}")
        both = t.complete(max_tokens=4, echo=True, logprobs=1).choices[0]
        expect(both.text.startswith(PROMPT) and len(both.text) > len(PROMPT), f"{both.text!r}")
        same("".join(both.logprobs.tokens), both.text, "tokens of prompt and answer")


    with checks.check("echo: the token that ends the answer has its place in the lists"):
        # lm-evaluation-harness asks for one token and drops the last of the lists, whatever that token is.
        made = t.complete(max_tokens=200).choices[0]
        expect(made.finish_reason == "stop", "the model does not end its answer within 200 tokens")
        echo = t.complete(PROMPT + made.text, logprobs=1, max_tokens=1, echo=True)
        lists = echo.choices[0].logprobs
        same((echo.choices[0].text, echo.choices[0].finish_reason), (PROMPT + made.text, "stop"), "the answer")
        same({len(x) for x in (lists.tokens, lists.token_logprobs, lists.top_logprobs, lists.text_offset)},
             {echo.usage.prompt_tokens + 1}, "lengths")


def token_ids(model, tokens):
    """The ids of these tokens by the tokenizer's file, if it has them all in the form of bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    form = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    vocabulary = json.loads((pathlib.Path(model) / "tokenizer.json").read_text())["model"].get("vocab", {})
    ids = [vocabulary.get("".join(form[byte] for byte in token.encode())) for token in tokens]
    return ids if None not in ids else None


def completions(checks, t):
    with checks.check("completions: greedy twice, fields, sixteen tokens by default"):
        one, two = t.complete(), t.complete()
        same((one.object, one.model, one.choices[0].logprobs), ("text_completion", t.name, None), "fields")
        same(two.choices[0].text, one.choices[0].text, "the second answer")
        same(t.complete(max_tokens=openai.omit, logit_bias=t.endless).usage.completion_tokens, 16, "tokens by default")
    with checks.check("completions: streaming is the same"):
        joined = "".join(chunk.choices[0].text for chunk in t.complete(stream=True) if chunk.choices)
        same(joined, t.complete().choices[0].text, "the stream")
        last = list(t.complete(stream=True, stream_options={"include_usage": True}))[-1]
        same((last.choices, last.usage.total_tokens), ([], t.complete().usage.total_tokens), "usage")
    with checks.check("completions: a list of prompts"):
        prompts = [PROMPT, *OTHERS]
        found = t.complete(prompts, n=2)
        same([choice.index for choice in found.choices], list(range(8)), "indexes")
        for i, prompt in enumerate(prompts):
            alone = t.complete(prompt).choices[0].text
            same([found.choices[2 * i].text, found.choices[2 * i + 1].text], [alone] * 2, prompt)
    with checks.check("completions: token ids in the place of text"):
        tokens = t.complete(echo=True, max_tokens=0, logprobs=0).choices[0].logprobs.tokens
        ids = token_ids(t.model, tokens)
        if ids is None:
            ids = [5, 60, 70, 20]
            text = t.complete(ids)
        else:
            text = t.complete()
            same(t.complete(ids).choices[0].text, text.choices[0].text, "of the prompt's ids")
        same(t.complete(ids).usage.prompt_tokens, len(ids), "prompt tokens")
        lists = t.complete([ids, [5, 60, 70]])
        same(lists.choices[0].text, text.choices[0].text, "of a list of lists")
        same(lists.choices[1].text, t.complete([5, 60, 70]).choices[0].text, "the second of them")
        for wrong in ([-1], [10**9], [1.5]):
            t.refused(openai.BadRequestError, "prompt", ask=t.complete, prompt=wrong)


def refusals(checks, t):
    with checks.check("refused by name: values, keys that are not known, what is not computed"):
        refused = [
            ({"temperature": -1}, "temperature"), ({"top_p": 0}, "top_p"), ({"max_tokens": 0}, "max_tokens"),
            ({"presence_penalty": 3}, "presence_penalty"), ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
            ({"response_format": {"type": "json_object"}}, "response_format"),
            ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}}, "response_format"),
            ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}, "tools"),
            ({"extra_body": {"frobnicate": 1}}, "frobnicate"), ({"extra_body": {"functions": [{"name": "f"}]}}, "functions"),
            ({"logit_bias": {"x": 1}}, "logit_bias"),
        ]
        for more, name in refused:
            t.refused(openai.BadRequestError, name, **more)
        t.refused(openai.BadRequestError, "suffix", ask=t.complete, suffix="x")
        t.refused(openai.BadRequestError, "best_of", ask=t.complete, best_of=3)
        t.refused(openai.BadRequestError, "frobnicate", ask=t.complete, extra_body={"frobnicate": 1})
        image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]}]
        t.refused(openai.BadRequestError, "image_url", prompt=image)
        t.refused(openai.BadRequestError, "messages", prompt=[])
    with checks.check("ignored: what changes no answer here"):
        more = {"user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "parallel_tool_calls": True,
                "response_format": {"type": "text"}, "tools": [],
                "extra_body": {"safety_identifier": "s", "prompt_cache_key": "k", "verbosity": "low", "reasoning_effort": "low"}}
        same(t.text(**more), t.text(), "the answer")
    with checks.check("refused: more tokens than there are positions"):
        config = json.loads((pathlib.Path(t.model) / "config.json").read_text())
        positions = config["max_position_embeddings"]
        t.refused(openai.BadRequestError, code="context_length_exceeded", max_tokens=positions)
        t.refused(openai.BadRequestError, code="context_length_exceeded", prompt="Alder " * positions, max_tokens=1)
        t.refused(openai.BadRequestError, code="context_length_exceeded", ask=t.complete, prompt="Alder " * positions, max_tokens=1)


def several_adapters(checks, t, shelf, given):
    ask = t.server.json
    first, second = sorted(path.name for path in shelf.iterdir())[:2]
    base = t.text()
    with checks.check("adapters: base and adapter answer differently, each as `olora generate` does"):
        found = t.text(model=first)
        expect(found != base, f"both say {base!r}")
        for name, text in (("", base), (first, found)):
            argv = [given.olora, "generate", "--model", t.model, "--prompt", PROMPT, "--max-new-tokens", "40"]
            argv += ["--adapter", shelf / name] if name else []
            ran = subprocess.run(argv, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
            expect(ran.returncode == 0, ran.stderr[-300:])
            same(text.strip(), ran.stdout.strip(), f"`olora generate {name}`")
    with checks.check("adapters: base and adapter at once"):
        jobs = [(prompt, name) for prompt in [PROMPT, *OTHERS] for name in (t.name, first)]
        alone = [t.text(prompt, model=name) for prompt, name in jobs]
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            same(list(pool.map(lambda job: t.text(job[0], model=job[1]), jobs)), alone, "at once")
    with checks.check("adapters: loaded and dropped while others are answered"):
        wrong, asked, over = [], [0], threading.Event()

        def keep_asking(name, expected):
            while not over.is_set():
                try:
                    text = t.text(model=name)
                    asked[0] += 1
                    if text != expected:
                        wrong.append((name, text))
                except openai.APIError as error:
                    wrong.append((name, str(error)))

        threads = [threading.Thread(target=keep_asking, args=job) for job in ((t.name, base), (first, found))]
        [thread.start() for thread in threads]
        try:
            kept = None
            for _ in range(5):
                loaded = ask("POST", "/v1/adapters", {"name": second}, status=201)
                same(loaded["id"], second, "what was loaded")
                ask("POST", "/v1/adapters", {"name": second}, status=409)
                expect(second in [model.id for model in t.client.models.list().data], "not in the list")
                listed = {one["id"]: one["loaded"] for one in ask("GET", "/v1/adapters")["data"]}
                same(listed, {first: True, second: True}, "GET /v1/adapters")
                text = t.text(model=second)
                expect(text not in (base, found), f"{second} answers as another: {text!r}")
                same(text, kept or text, f"{second} loaded again")
                kept = text
                gone = t.client.models.delete(second)
                same((gone.id, gone.deleted), (second, True), "what was dropped")
                t.refused(openai.NotFoundError, second, "model_not_found", model=second)
                listed = {one["id"]: one["loaded"] for one in ask("GET", "/v1/adapters")["data"]}
                same(listed, {first: True, second: False}, "GET /v1/adapters")
        finally:
            over.set()
            [thread.join() for thread in threads]
        same(wrong[:2], [], f"answers to {asked[0]} others")
        expect(asked[0] > 5, f"only {asked[0]} others were answered")
    with checks.check("adapters: dropped while one of its answers is streamed"):
        ask("POST", "/v1/adapters", {"name": second}, status=201)
        stream = t.chat(model=second, stream=True, max_tokens=200, logit_bias=t.endless)
        next(iter(stream))
        t.client.models.delete(second)
        try:
            n = sum(1 for _ in stream)
        except openai.APIError:
            n = 0  # told so: that is an end, too
        expect(n >= 0 and t.text() == base, "the base answers otherwise")
        t.server.wait_idle(5)
    with checks.check("adapters: none of that name, and the base stays"):
        ask("POST", "/v1/adapters", {"name": "nobody"}, status=404)
        ask("DELETE", "/v1/models/nobody", status=404)
        ask("DELETE", f"/v1/models/{t.name}", status=400)
        same(t.text(), base, "the base")


def cancellation(checks, t):
    with checks.check("a stream that is closed gives its place back within a second"):
        limit = 4000
        with t.chat(stream=True, max_tokens=limit, n=2, logit_bias=t.endless) as stream:
            began = time.monotonic()
            for _, _ in zip(range(3), stream):
                pass
            first = time.monotonic() - began
            expect(t.server.busy() > 0, "nothing is said to be running in the middle of a stream")
        took = t.server.wait_idle(1)
        used = t.server.processor()
        time.sleep(0.5)  # what still computed would show
        idle = t.server.processor() - used
        expect(idle < 0.25, f"{idle:.2f} s of processor time in half a second afterwards (first chunks after {first:.2f} s)")
        expect(took < 1, f"after {took:.2f} s")
    with checks.check("so does an answer whose client goes away"):
        quick = openai.OpenAI(base_url=f"{t.server.url}/v1", api_key="none", max_retries=0, timeout=0.3)
        try:
            quick.chat.completions.create(
                model=t.name, messages=[{"role": "user", "content": PROMPT}], max_tokens=4000, logit_bias=t.endless, n=2,
            )
            raise AssertionError("8,000 tokens within 0.3 s")
        except openai.APITimeoutError:
            pass
        t.server.wait_idle(1)


def keys(checks, given, model):
    with Server(given.olora, "--model", model, key=KEY) as server, checks.check("a key: AuthenticationError without it"):
        name = client(server, KEY).models.list().data[0].id
        for wrong in ("wrong", KEY + "x", KEY[:-1]):
            try:
                client(server, wrong).models.list()
                expect(False, f"{wrong} opens")
            except openai.AuthenticationError as error:
                expect(KEY not in str(error), "the key is in the error")
        expect(client(server, KEY).completions.create(model=name, prompt=PROMPT, max_tokens=2).choices, "the key does not open")
        same(server.ask("GET", "/health", headers={"authorization": ""}).status, 200, "/health")


def queue(checks, given, model):
    options = ["--model", model, "--max-batch", "1", "--queue", "1"]
    with Server(given.olora, *options) as server, checks.check("a full queue: RateLimitError, and retries get through"):
        t = Trial(server, client(server).models.list().data[0].id, model)
        # Long enough that all sixteen are there before the first is answered.
        n_tokens = 1000 if given.village else 100
        expected = t.text(max_tokens=n_tokens, logit_bias=t.endless)
        limited, clients = [], [client(server) for _ in range(16)]

        def ask(one):
            messages = [{"role": "user", "content": PROMPT}]
            try:
                return one.chat.completions.create(
                    model=t.name, messages=messages, temperature=0, max_tokens=n_tokens, logit_bias=t.endless,
                ).choices[0].message.content
            except openai.RateLimitError as error:
                limited.append(error)

        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            texts = list(pool.map(ask, clients))
        expect(limited, "sixteen at once, for two places, were all answered")
        same(set(texts) - {None}, {expected}, "the answers")
        same(limited[0].response.headers.get("retry-after"), "1", "Retry-After")
        n = len(limited)
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            same(set(pool.map(ask, [client(server, retries=20) for _ in range(4)])), {expected}, "with retries")
        same(len(limited), n, "refusals in spite of retries")


def main():
    made = parser(__doc__)
    made.add_argument("--adapters-dir", help="a directory with two adapters of the model")
    given = arguments(made)
    checks = Checks()
    model = given.model
    if given.village:
        # More positions, so that an answer can be long enough to be left in its middle.
        model = with_template(given.model, given.work, positions=8192)
    elif not has_template(given.model):
        model = with_template(given.model, given.work, name=given.model.name)
    shelf = pathlib.Path(given.adapters_dir).resolve() if given.adapters_dir else None
    if given.village and not shelf:
        shelf = adapters(given.olora, given.work)
    options = ["--model", model]
    if shelf:
        options += ["--adapters-dir", shelf, "--adapter", sorted(path for path in shelf.iterdir())[0]]
    with Server(given.olora, *options) as server:
        t = Trial(server, model.name, model)
        for part in (models, chats, stops, logprobs, completions, refusals):
            checks.section(part, t)
        if shelf:
            checks.section(several_adapters, t, shelf, given)
        checks.section(cancellation, t)
        with checks.check("the server ends well"):
            same(server.stop(), 0, "exit code after SIGTERM")
    checks.section(keys, given, model)
    checks.section(queue, given, model)
    if given.village:
        with Server(given.olora, "--model", given.model, "--name", "plain") as server, checks.check("no chat template: refused"):
            t = Trial(server, "plain", given.model)
            t.refused(openai.BadRequestError, "chat template", "no_chat_template")
            expect(t.complete().choices[0].text, "no completion")
            t = Trial(server, "plain", given.model)
            t.server.json("POST", "/v1/adapters", {"name": "x"}, status=400)
    return checks.end()


if __name__ == "__main__":
    sys.exit(main())
