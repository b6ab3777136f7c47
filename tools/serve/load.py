#!/usr/bin/env python3
"""`olora serve` under load: are answers to many at once those to one at a time, is nothing lost, does memory stay flat?

    python3 tools/serve/load.py --olora target/release/olora                                  # 200 clients for a minute
    python3 tools/serve/load.py --olora target/release/olora --clients 50 --seconds 10
    python3 tools/serve/load.py --olora target/release/olora --throughput --model DIR --rounds 5

Forty prompts, half of them for an adapter, are answered one at a time first. Then clients ask for them at random, greedily,
each as soon as it has its last answer, one in four as a stream. Every answer must be the one from before. A client that
is told 429 waits as it is told and asks again; that is counted, and no fault.

`--throughput` compares 8 clients at once with the same prompts one after another, in turns, so that what else the machine
does falls on both. Clients are this one process, of the standard library, which needs a part of the processor's time too.

Exit code 1 if an answer differed or was lost, or memory grew.
"""

import asyncio
import json
import random
import re
import statistics
import sys
import time

from common import ROOT, Checks, Server, arguments, endless, expect, parser, same, say, train

QUESTIONS = [
    "What is a good name for a brown dog, and why would a child like it?", "Explain in two sentences why the sky is blue.",
    "Write a short letter to a friend who has moved to another town.", "How does a bicycle stay upright while it is moving?",
    "List three things to take along on a walk in the mountains.", "What happens to bread when it is left in the open?",
    "Tell a story about a clock that goes backwards.", "Why do leaves change their colour in autumn?",
]


class Client:
    """One connection, kept open, over which completions are asked for."""

    def __init__(self, server):
        self.server, self.reader, self.writer = server, None, None

    async def ask(self, body):
        """Status, headers and the whole body of the answer.

        A server closes connections on which nothing comes for some seconds, and one that waits for its turn may be such:
        as clients do, a new one is opened then, once, if not a byte of an answer has come.
        """
        reused = self.writer is not None
        try:
            return await self.ask_once(body)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            self.close()
            if not reused or getattr(error, "partial", b""):
                raise
            return await self.ask_once(body)

    async def ask_once(self, body):
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection(self.server.host, self.server.port)
        data = json.dumps(body).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1:{self.server.port}\r\ncontent-length: {len(data)}\r\n\r\n"
        self.writer.write(head.encode() + data)
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, value in (line.split(":", 1) for line in head[1:] if line)}
        if headers.get("transfer-encoding", "").lower() == "chunked":
            parts = []
            while size := int(await self.reader.readline(), 16):
                parts.append(await self.reader.readexactly(size))
                await self.reader.readexactly(2)
            await self.reader.readline()
            answer = b"".join(parts)
        else:
            answer = await self.reader.readexactly(int(headers["content-length"]))
        if headers.get("connection", "").lower() == "close":
            self.close()
        return int(head[0].split()[1]), headers, answer

    def close(self):
        if self.writer:
            self.writer.close()
            self.writer = None


def text_of(answer, stream):
    """The text and the number of tokens."""
    if not stream:
        value = json.loads(answer)
        return value["choices"][0]["text"], value["usage"]["completion_tokens"]
    lines = [line[6:] for line in answer.decode().splitlines() if line.startswith("data: ")]
    if not lines or lines[-1] != "[DONE]":
        raise ValueError(f"a stream without its end: {lines[-1:]}")
    chunks = [json.loads(line) for line in lines[:-1]]
    text = "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])
    return text, next(chunk["usage"]["completion_tokens"] for chunk in reversed(chunks) if chunk.get("usage"))


def body_of(job, stream=False):
    more = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    return {"model": job[0], "prompt": job[1], "temperature": 0, "max_tokens": 40, **more}


class Load:
    def __init__(self, server, jobs):
        self.server, self.jobs, self.truth = server, jobs, {}
        self.latencies, self.first_to_last, self.wrong, self.lost = [], [], [], []
        self.limited = self.tokens = 0
        self.memory = []

    async def one_by_one(self):
        client = Client(self.server)
        for job in self.jobs:
            status, _, answer = await client.ask(body_of(job))
            expect(status == 200, f"{status}: {answer[:300]!r}")
            self.truth[job] = text_of(answer, False)[0]
        client.close()

    async def client(self, number, until):
        chance, client = random.Random(number), Client(self.server)
        while time.monotonic() < until:
            job, stream = chance.choice(self.jobs), chance.random() < 0.25
            asked = time.monotonic()
            while True:
                began = time.monotonic()
                try:
                    status, headers, answer = await asyncio.wait_for(client.ask(body_of(job, stream)), 120)
                except (OSError, ValueError, LookupError, TimeoutError, asyncio.IncompleteReadError) as error:
                    self.lost.append(f"{type(error).__name__}: {error}")
                    client.close()
                    break
                if status == 429:
                    self.limited += 1
                    if "retry-after" not in headers:
                        self.lost.append("429 without Retry-After")
                    await asyncio.sleep(float(headers.get("retry-after", 1)) * chance.uniform(0.5, 1.5))
                    if time.monotonic() > until + 60:
                        self.lost.append("refused until a minute after the end")
                        break
                    continue
                if status != 200:
                    self.lost.append(f"{status}: {answer[:200]!r}")
                    break
                try:
                    text, n = text_of(answer, stream)
                except (ValueError, LookupError, StopIteration) as error:
                    self.lost.append(f"an answer that is none: {error}")
                    break
                self.latencies.append(time.monotonic() - began)
                self.first_to_last.append(time.monotonic() - asked)
                self.tokens += n
                if text != self.truth[job]:
                    self.wrong.append(f"{job}: {text!r}, not {self.truth[job]!r}")
                break
        client.close()

    async def watch(self):
        while True:
            self.memory.append(self.server.memory())
            await asyncio.sleep(0.2)

    async def go(self, n, seconds):
        watching = asyncio.create_task(self.watch())
        began = time.monotonic()
        await asyncio.gather(*(self.client(i, began + seconds) for i in range(n)))
        watching.cancel()
        return time.monotonic() - began


def quantile(values, q):
    values = sorted(values)
    return values[min(len(values) - 1, int(q * len(values)))] if values else float("nan")


def under_load(checks, given):
    lines = (ROOT / "recipes/quickstart/valid.jsonl").read_text().splitlines()
    prompts = list(dict.fromkeys(json.loads(line)["prompt"] for line in lines))[:40]
    options, names = ["--model", given.model, "--name", "base"], ["base"]
    if given.village:
        options += ["--adapter", f"crier={train(given.olora, given.work / 'runs', 'crier', 'training.epochs=0.5')}"]
        names.append("crier")
    with Server(given.olora, *options) as server:
        load = Load(server, [(names[i % len(names)], prompt) for i, prompt in enumerate(prompts)])
        with checks.check("one at a time"):
            asyncio.run(load.one_by_one())
            expect(len(set(load.truth.values())) > len(prompts) / 4, "the answers are all alike")
        before = server.memory()
        used, own = server.processor(), time.process_time()
        took = asyncio.run(load.go(given.clients, given.seconds))
        used, own = server.processor() - used, time.process_time() - own
        n = len(load.latencies)
        say(f"      {n} answers to {given.clients} clients in {took:.1f} s: {n / took:.1f} a second, {load.tokens / took:.0f} tokens a second")
        say(f"      latency: p50 {quantile(load.latencies, 0.5):.3f} s, p99 {quantile(load.latencies, 0.99):.3f} s; with refusals before:"
            f" p50 {quantile(load.first_to_last, 0.5):.3f} s, p99 {quantile(load.first_to_last, 0.99):.3f} s; {load.limited} times 429")
        say(f"      processor time: server {used:.1f} s, clients {own:.1f} s")
        with checks.check("every answer is the one of before"):
            expect(n >= min(given.clients, 20), f"only {n} answers")
            expect(not load.wrong, f"{len(load.wrong)} of {n} differ: {load.wrong[:1]}")
        with checks.check("nothing is lost"):
            expect(not load.lost, f"{len(load.lost)}: {load.lost[:3]}")
        with checks.check("memory is flat: the last third within 5 % of the middle one"):
            third = len(load.memory) // 3
            middle, last = statistics.mean(load.memory[third:2 * third]), statistics.mean(load.memory[2 * third:])
            say(f"      {before / 2**20:.1f} MiB before, {middle / 2**20:.1f} in the middle third, {last / 2**20:.1f} in the last,"
                f" {max(load.memory) / 2**20:.1f} at the most")
            expect(abs(last / middle - 1) < 0.05, f"{last / middle - 1:+.1%}")
        with checks.check("idle afterwards, and still right"):
            server.wait_idle(2)
            job = load.jobs[0]
            value = server.json("POST", "/v1/completions", body_of(job))
            same(value["choices"][0]["text"], load.truth[job], "the answer")


def throughput(checks, given):
    prompts = (QUESTIONS * given.at_once)[:given.at_once]
    bias = endless(given.model)

    async def ask(client, prompt):
        body = {"model": "base", "prompt": prompt, "temperature": 0, "max_tokens": given.tokens, "logit_bias": bias}
        status, _, answer = await client.ask(body)
        expect(status == 200, f"{status}: {answer[:200]!r}")
        return text_of(answer, False)

    async def singly(clients):
        return [await ask(clients[0], prompt) for prompt in prompts]

    async def at_once(clients):
        return await asyncio.gather(*map(ask, clients, prompts))

    async def timed(way, clients):
        began = time.monotonic()
        answers = await way(clients)
        took = time.monotonic() - began
        return sum(n for _, n in answers) / took, [text for text, _ in answers]

    async def rounds(server):
        clients = [Client(server) for _ in prompts]
        _, expected = await timed(singly, clients)  # warms up, too
        rates, differ = {singly: [], at_once: []}, 0
        for i in range(given.rounds):
            for way in ((singly, at_once), (at_once, singly))[i % 2]:
                rate, texts = await timed(way, clients)
                rates[way].append(rate)
                differ += sum(a != b for a, b in zip(texts, expected))
            say(f"      round {i + 1}: one by one {rates[singly][-1]:.1f}, {given.at_once} at once {rates[at_once][-1]:.1f} tokens a second,"
                f" {rates[at_once][-1] / rates[singly][-1]:.2f} times")
        [client.close() for client in clients]
        return rates[singly], rates[at_once], differ

    options = ["--model", given.model, "--name", "base", *(given.server_options or [])]
    with Server(given.olora, *options) as server, checks.check(f"{given.at_once} at once against one by one"):
        one, many, differ = asyncio.run(rounds(server))
        ratios = [b / a for a, b in zip(one, many)]
        say(f"      {given.tokens} tokens each, {given.rounds} rounds; medians: one by one {statistics.median(one):.1f}, {given.at_once} at once"
            f" {statistics.median(many):.1f} tokens a second; ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        same(differ, 0, "answers that differ from those one by one")
        expect(statistics.median(ratios) >= given.at_least, f"the ratio is below {given.at_least}")


def main():
    made = parser(__doc__)
    made.add_argument("--clients", type=int, default=200)
    made.add_argument("--seconds", type=float, default=60)
    made.add_argument("--throughput", action="store_true", help="compare clients at once with one by one")
    made.add_argument("--at-once", type=int, default=8, help="of --throughput: clients")
    made.add_argument("--rounds", type=int, default=5, help="of --throughput")
    made.add_argument("--tokens", type=int, default=64, help="of --throughput: tokens in each answer")
    made.add_argument("--at-least", type=float, default=0, help="of --throughput: fail below this ratio")
    made.add_argument("--server-options", type=lambda text: re.split(r"\s+", text.strip()), help="of --throughput: such as '--quantize q8_0'")
    given = arguments(made)
    checks = Checks()
    checks.section(throughput if given.throughput else under_load, given)
    return checks.end()


if __name__ == "__main__":
    sys.exit(main())
