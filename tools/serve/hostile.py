#!/usr/bin/env python3
"""What `olora serve` does with requests, bytes and clients that mean it no good.

    python3 tools/serve/hostile.py --olora target/release/olora                # a minute, most of it slow clients
    python3 tools/serve/hostile.py --olora target/release/olora --quick        # without slow clients, 500 connections

Bodies that are too large, damaged or nested; values of every wrong kind, each refused with a message that names the key;
paths that lead out; pages of other sites and names that are not ours; keys; clients that are slow, stop reading, go away
or come in thousands; bytes that are no HTTP. In the end the server must be there, idle, and answer as before, without a
panic in its log. Linux, the standard library.

Exit code 1 if anything failed.
"""

import base64
import concurrent.futures
import http.client
import json
import resource
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time

from common import Answer, Checks, Failed, Server, adapters, arguments, endless, environment, expect, parser, same, say, shown, with_template

PROMPT = "Where does Alder live?"
KEY = "a-key-for-the-trial"
MIB = 1 << 20
CHAT, COMPLETE = "/v1/chat/completions", "/v1/completions"


def chat(**more):
    return {"model": "village", "messages": [{"role": "user", "content": PROMPT}], "temperature": 0, "max_tokens": 16, **more}


def complete(**more):
    return {"model": "village", "prompt": PROMPT, "temperature": 0, "max_tokens": 16, **more}


def greedy(server):
    return server.json("POST", COMPLETE, complete(max_tokens=30))["choices"][0]["text"]


def connect(server, timeout=10):
    return socket.create_connection((server.host, server.port), timeout)


def everything(stream, limit=10 * MIB):
    """What comes until the other side closes, or nothing comes any more."""
    data = b""
    try:
        while len(data) < limit and (part := stream.recv(65536)):
            data += part
    except (TimeoutError, ConnectionResetError):
        pass
    return data


def raw(server, data, timeout=5, close=False):
    """What is answered to these bytes, whatever they are; `close` ends our side when they are sent."""
    with connect(server, timeout) as stream:
        try:
            stream.sendall(data)
            if close:
                stream.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # refused before it was sent: the answer is what counts
        return everything(stream)


def request(method, path, body=b"", headers=(), host="127.0.0.1", version="HTTP/1.1", length=True):
    lines = [f"{method} {path} {version}", *([f"host: {host}"] if host else []), *headers]
    if length and body:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def status_of(data):
    """The number in the first line, or nothing."""
    parts = data.split(b"\r\n", 1)[0].split()
    return int(parts[1]) if len(parts) > 1 and parts[0].startswith(b"HTTP/") and parts[1].isdigit() else None


def error_of(answer):
    """The error's message and all; it must be one in OpenAI's form."""
    try:
        error = json.loads(answer.body)["error"]
        expect(isinstance(error["message"], str) and error["message"] and isinstance(error["type"], str), shown(error))
        expect("param" in error and "code" in error, f"param or code is missing: {error}")
        return error
    except (ValueError, LookupError, TypeError):
        raise Failed(f"no error object: {answer.status} {answer.body[:200]!r}") from None


def well(server):
    same(server.ask("GET", "/health", timeout=5).status, 200, "/health")


# ---------------------------------------------------------------- bodies

def bodies(checks, server):
    with checks.check("bodies: a MiB is read, a byte more is 413"):
        text = json.dumps(complete()).encode()
        same(server.ask("POST", COMPLETE, text + b" " * (MIB - len(text))).status, 200, "a MiB")
        # By hand: the answer may come, and the connection end, before all is sent.
        answer = raw(server, request("POST", COMPLETE, text + b" " * (MIB + 1 - len(text))))
        same(status_of(answer), 413, "a byte more")
        error_of(Answer(413, {}, answer.partition(b"\r\n\r\n")[2]))
    with checks.check("bodies: declared too large, and nothing sent"):
        for length in (MIB + 1, 10**12, 2**63):
            began = time.monotonic()
            answer = raw(server, request("POST", COMPLETE, headers=[f"content-length: {length}"]))
            expect(status_of(answer) in (400, 413), f"{length}: {answer[:80]!r} after {time.monotonic() - began:.1f} s")
        answer = raw(server, request("POST", COMPLETE, headers=["content-length: 99999999", "expect: 100-continue"]))
        same(status_of(answer), 413, "with expect: 100-continue")
    with checks.check("bodies: 64 MiB, declared and in chunks, take no memory"):
        before = server.memory()
        block = b"x" * 65536
        for head, part, end in (
            (request("POST", COMPLETE, headers=[f"content-length: {64 * MIB}"]), block, b""),
            (request("POST", COMPLETE, headers=["transfer-encoding: chunked"]), b"10000\r\n" + block + b"\r\n", b"0\r\n\r\n"),
        ):
            with connect(server) as stream:
                try:
                    stream.sendall(head)
                    for _ in range(1024):
                        stream.sendall(part)
                    stream.sendall(end)
                except OSError:
                    pass
                answer = everything(stream)
            # A reset may overtake the answer.
            expect(status_of(answer) in (413, None), f"{answer[:80]!r}")
        expect(server.memory() < before + 32 * MIB, f"{(server.memory() - before) / MIB:.0f} MiB more")
        well(server)
    with checks.check("bodies: no JSON, no UTF-8, no object"):
        wrong = [
            b"", b" ", b"{", b"nonsense", b"{}x", b"[]", b"null", b"1", b'"text"', b"\xff\xfe{\x00}\x00", b'{"model": "\xff"}',
            b'{"model": "village", "prompt": "\xc3("}', b'{"model": "village", "prompt": "\\ud800"}', b'{"temperature": NaN}',
            b'{"model": "village", "prompt": "x", "temperature": 1e999}', b"\x00" * 1000, b'{"model": "village" "prompt": "x"}',
            b'{"model": "village", "prompt": "x"', b"{'model': 'village'}", b"\x1f\x8b\x08\x00",
        ]
        for body in wrong:
            for path in (CHAT, COMPLETE, "/v1/adapters"):
                answer = server.ask("POST", path, body)
                same(answer.status, 400, f"{path} {body[:40]!r}")
                error_of(answer)
    with checks.check("bodies: nested 100,000 deep"):
        n = 100_000
        for text in (
            "[" * n, "[" * n + "]" * n, '{"a":' * n + "1" + "}" * n,
            '{"model":"village","prompt":' + "[" * n + "]" * n + "}",
            '{"model":"village","messages":' + "[" * n + "]" * n + "}",
            '{"model":"village","prompt":"x","metadata":' + '{"a":' * n + "1" + "}" * n + "}",
            '{"model":"village","prompt":"x","logit_bias":' + "[" * n + "]" * n + "}",
        ):
            for path in (CHAT, COMPLETE):
                answer = server.ask("POST", path, text.encode())
                same(answer.status, 400, f"{path} {text[:40]}")
        well(server)


# ---------------------------------------------------------------- values

BAD = [
    # where, what is changed (None: left out), the status, what the message names
    (CHAT, {"model": None}, 400, "model"), (CHAT, {"model": 5}, 400, "model"), (CHAT, {"model": ["village"]}, 400, "model"),
    (CHAT, {"model": ""}, (400, 404), ""), (CHAT, {"model": "x" * 5000}, 404, ""), (CHAT, {"model": "../village"}, 404, ""),
    (CHAT, {"model": "village/"}, 404, ""), (CHAT, {"model": "VILLAGE"}, 404, ""), (CHAT, {"model": "village\x00"}, 404, ""),
    (CHAT, {"messages": None}, 400, "messages"), (CHAT, {"messages": []}, 400, "messages"), (CHAT, {"messages": "hello"}, 400, "messages"),
    (CHAT, {"messages": {}}, 400, "messages"), (CHAT, {"messages": [1]}, 400, "messages"), (CHAT, {"messages": [{}]}, 400, "messages"),
    (CHAT, {"messages": [[]]}, 400, "messages"), (CHAT, {"messages": [{"role": "user"}]}, 400, "content"),
    (CHAT, {"messages": [{"content": "x"}]}, 400, "role"), (CHAT, {"messages": [{"role": 1, "content": "x"}]}, 400, "role"),
    (CHAT, {"messages": [{"role": "king", "content": "x"}]}, 400, "role"),
    (CHAT, {"messages": [{"role": "user", "content": 5}]}, 400, "content"),
    (CHAT, {"messages": [{"role": "user", "content": {}}]}, 400, "content"),
    (CHAT, {"messages": [{"role": "user", "content": [{}]}]}, 400, "content"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, 400, "text"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]}, 400, "text"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, 400, "image_url"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]}, 400, "input_audio"),
    (CHAT, {"temperature": "1"}, 400, "temperature"), (CHAT, {"temperature": -0.1}, 400, "temperature"),
    (CHAT, {"temperature": []}, 400, "temperature"),
    (CHAT, {"temperature": True}, 400, "temperature"), (CHAT, {"top_p": 1.1}, 400, "top_p"), (CHAT, {"top_p": -1}, 400, "top_p"),
    (CHAT, {"top_p": "x"}, 400, "top_p"), (CHAT, {"n": 0}, 400, "n"), (CHAT, {"n": 9}, 400, "n"), (CHAT, {"n": 1.5}, 400, "n"),
    (CHAT, {"n": -1}, 400, "n"), (CHAT, {"n": 2**70}, 400, "n"), (CHAT, {"seed": "x"}, 400, "seed"), (CHAT, {"seed": 0.5}, 400, "seed"),
    (CHAT, {"stop": 5}, 400, "stop"), (CHAT, {"stop": [1]}, 400, "stop"), (CHAT, {"stop": list("abcde")}, 400, "stop"),
    (CHAT, {"stop": {}}, 400, "stop"), (CHAT, {"stream": "yes"}, 400, "stream"), (CHAT, {"stream": 1}, 400, "stream"),
    (CHAT, {"stream": True, "stream_options": 1}, 400, "stream_options"),
    (CHAT, {"stream": True, "stream_options": {"include_usage": 1}}, 400, "include_usage"),
    (CHAT, {"max_tokens": 0}, 400, "max_tokens"), (CHAT, {"max_tokens": -5}, 400, "max_tokens"), (CHAT, {"max_tokens": "9"}, 400, "max_tokens"),
    (CHAT, {"max_tokens": 1.5}, 400, "max_tokens"), (CHAT, {"max_tokens": 10**9}, 400, "max_tokens"),
    (CHAT, {"max_tokens": 2**63}, 400, "max_tokens"), (CHAT, {"max_tokens": 2**64 + 1}, 400, "max_tokens"),
    (CHAT, {"max_tokens": 1e300}, 400, "max_tokens"), (CHAT, {"max_tokens": None, "max_completion_tokens": 10**9}, 400, "max_completion_tokens"),
    (CHAT, {"logprobs": 5}, 400, "logprobs"), (CHAT, {"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs"),
    (CHAT, {"logprobs": True, "top_logprobs": -1}, 400, "top_logprobs"), (CHAT, {"logprobs": True, "top_logprobs": "x"}, 400, "top_logprobs"),
    (CHAT, {"presence_penalty": 2.1}, 400, "presence_penalty"), (CHAT, {"frequency_penalty": -3}, 400, "frequency_penalty"),
    (CHAT, {"frequency_penalty": "x"}, 400, "frequency_penalty"), (CHAT, {"logit_bias": []}, 400, "logit_bias"),
    (CHAT, {"logit_bias": {"x": 1}}, 400, "logit_bias"), (CHAT, {"logit_bias": {"99999999": 1}}, 400, "logit_bias"),
    (CHAT, {"logit_bias": {"-1": 1}}, 400, "logit_bias"), (CHAT, {"logit_bias": {"5": "x"}}, 400, "logit_bias"),
    (CHAT, {"logit_bias": {"5": 1e30}}, 400, "logit_bias"), (CHAT, {"top_k": -1}, 400, "top_k"), (CHAT, {"top_k": "x"}, 400, "top_k"),
    (CHAT, {"repetition_penalty": 0}, 400, "repetition_penalty"), (CHAT, {"repetition_penalty": -1}, 400, "repetition_penalty"),
    (CHAT, {"response_format": {"type": "json_object"}}, 400, "response_format"), (CHAT, {"response_format": 1}, 400, "response_format"),
    (CHAT, {"tools": [{"type": "function"}]}, 400, "tools"), (CHAT, {"tools": 1}, 400, "tools"),
    (CHAT, {"functions": [{"name": "f"}]}, 400, "functions"), (CHAT, {"frobnicate": 1}, 400, "frobnicate"),
    (CHAT, {"Temperature": 1}, 400, "Temperature"), (CHAT, {"prompt": "x"}, 400, "prompt"),
    (CHAT, {"frob\u202enicate\x1b[31m": 1}, 400, ""),
    (COMPLETE, {"prompt": None}, 400, "prompt"), (COMPLETE, {"prompt": 5}, 400, "prompt"), (COMPLETE, {"prompt": {}}, 400, "prompt"),
    (COMPLETE, {"prompt": []}, 400, "prompt"), (COMPLETE, {"prompt": [[]]}, 400, "prompt"), (COMPLETE, {"prompt": ["x", 1]}, 400, "prompt"),
    (COMPLETE, {"prompt": [-1]}, 400, "prompt"), (COMPLETE, {"prompt": [10**9]}, 400, "prompt"), (COMPLETE, {"prompt": [1.5]}, 400, "prompt"),
    (COMPLETE, {"prompt": [2**64]}, 400, "prompt"), (COMPLETE, {"prompt": [True]}, 400, "prompt"), (COMPLETE, {"prompt": [[1], ["x"]]}, 400, "prompt"),
    (COMPLETE, {"logprobs": True}, 400, "logprobs"), (COMPLETE, {"logprobs": 21}, 400, "logprobs"), (COMPLETE, {"logprobs": -1}, 400, "logprobs"),
    (COMPLETE, {"echo": "yes"}, 400, "echo"), (COMPLETE, {"max_tokens": 0}, 400, "max_tokens"), (COMPLETE, {"suffix": "x"}, 400, "suffix"),
    (COMPLETE, {"best_of": 3}, 400, "best_of"), (COMPLETE, {"messages": []}, 400, "messages"), (COMPLETE, {"frobnicate": 1}, 400, "frobnicate"),
    ("/v1/adapters", {}, 400, "name"), ("/v1/adapters", {"name": 5}, 400, "name"), ("/v1/adapters", {"name": "x", "y": 1}, 400, "y"),
    ("/v1/adapters", {"name": ["crier"]}, 400, "name"),
]


def values(checks, server):
    with checks.check(f"values: {len(BAD)} of the wrong kind, each refused by its name"):
        wrong = []
        for path, change, status, name in BAD:
            body = {CHAT: chat, COMPLETE: complete}.get(path, dict)() | change
            body = {key: value for key, value in body.items() if value is not None}
            answer = server.ask("POST", path, body)
            try:
                expect(answer.status in (status if isinstance(status, tuple) else (status,)), f"{answer.status}, not {status}")
                message = error_of(answer)["message"]
                expect(name in message, f"{name} is not named: {message[:150]}")
                expect(len(message) < 2000, f"a message of {len(message)} characters")
            except Failed as failed:
                wrong.append(f"{path} {shown(change, 70)}: {failed}")
        expect(not wrong, f"{len(wrong)} of {len(BAD)}:\n        " + "\n        ".join(wrong))
    with checks.check("values: null is as if it were left out"):
        nothing = ["temperature", "top_p", "n", "seed", "stop", "stream", "stream_options", "presence_penalty", "frequency_penalty",
                   "logit_bias", "user", "response_format", "tools", "logprobs", "top_logprobs"]
        same(server.ask("POST", CHAT, chat() | dict.fromkeys(nothing)).status, 200, "all of them null")
    with checks.check("values: prompts of odd characters are answered or refused, and leave nothing"):
        for text in ("", "\x00", "\u202e\u0301" * 20, "<|end|>" * 5, "\U0010ffff", "a" * 3000, "\n" * 2000, "{{ 1/0 }}", "{% for i in range(99999999) %}"):
            for path, body in ((CHAT, chat(messages=[{"role": "user", "content": text}])), (COMPLETE, complete(prompt=text))):
                answer = server.ask("POST", path, body)
                expect(answer.status in (200, 400), f"{path} {shown(text, 30)}: {answer.status}")
        server.wait_idle(2)


# ---------------------------------------------------------------- paths, methods, names

def paths(checks, server):
    with checks.check("paths: none leads out of where it should"):
        out = ["..", "../outside", "..%2foutside", "%2e%2e%2foutside", "....//outside", "crier/../../outside", "/etc", "crier%00", "..\\outside"]
        for name in out:
            for method in ("GET", "DELETE"):
                status = status_of(raw(server, request(method, f"/v1/models/{name}", headers=["connection: close"])))
                expect(status in (400, 404), f"{method} /v1/models/{name}: {status}")
        for name in [*out, ".", "", "./crier", "crier/", "outside", str(server.work / "outside"), "crier\x00", "x" * 5000, "\u202e"]:
            answer = server.ask("POST", "/v1/adapters", {"name": name})
            expect(answer.status == 404 or (name == "" and answer.status == 400), f"POST /v1/adapters {name[:40]!r}: {answer.status}")
            error_of(answer)
        for path in ("/../Cargo.toml", "/chat.js/../../Cargo.toml", "/..%2f..%2fetc/passwd", "//etc/passwd", "/%2e%2e/etc/passwd", "/chat.js%00", "/v1", "/v1/", "/nowhere"):
            answer = raw(server, request("GET", path, headers=["connection: close"]))
            expect(status_of(answer) in (400, 404), f"{path}: {status_of(answer)}")
            expect(b"root:" not in answer and b"[workspace" not in answer, f"{path} gives a file")
        well(server)
    with checks.check("methods: 405 for those that a route has not"):
        for path, allowed in (
            ("/health", "GET"), ("/metrics", "GET"), ("/v1/models", "GET"), (CHAT, "POST"), (COMPLETE, "POST"), ("/", "GET"),
            ("/v1/adapters", "GET POST"), ("/v1/models/village", "GET DELETE"),
        ):
            for method in ("GET", "POST", "PUT", "DELETE", "PATCH"):
                if method not in allowed:
                    answer = server.ask(method, path, b"{}" if method != "GET" else None)
                    same(answer.status, 405, f"{method} {path}")
        for method in ("TRACE", "CONNECT", "FROB", "get"):
            status = status_of(raw(server, request(method, "/health", headers=["connection: close"])))
            expect(status in (400, 403, 404, 405, 421), f"{method}: {status}")
    with checks.check("names: another Host is 421"):
        for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example", "", "[::2]", "0x7f.1", "a b"):
            answer = raw(server, request("GET", "/v1/models", headers=["connection: close", f"host: {host}"], host=None))
            expect(status_of(answer) in ((421,) if host.isascii() and " " not in host and host else (400, 421)), f"{host!r}: {answer[:60]!r}")
        answer = raw(server, request("GET", "/v1/models", headers=["connection: close"], host=None))
        expect(status_of(answer) in (400, 421), f"without one: {answer[:60]!r}")
        answer = raw(server, request("GET", "http://evil.example/v1/models", headers=["connection: close"], host="evil.example"))
        expect(status_of(answer) in (400, 421), f"as a proxy: {answer[:60]!r}")
        for host in ("localhost", f"localhost:{server.port}", f"127.0.0.1:{server.port}", "[::1]"):
            same(status_of(raw(server, request("GET", "/health", headers=["connection: close"], host=host))), 200, host)
    with checks.check("origins: pages of other sites are 403, ours are not"):
        ours = f"127.0.0.1:{server.port}"
        for origin in ("http://evil.example", "null", "https://localhost.evil.example", f"http://127.0.0.1:{server.port + 1}", f"http://{ours}.evil.example", ""):
            for method, path in (("POST", COMPLETE), ("GET", "/v1/models"), ("DELETE", "/v1/models/crier"), ("OPTIONS", COMPLETE)):
                body = json.dumps(complete()).encode() if method == "POST" else b""
                answer = raw(server, request(method, path, body, ["connection: close", f"origin: {origin}"], host=ours))
                same(status_of(answer), 403, f"{method} {path} of {origin!r}")
                expect(b"access-control-allow-origin" not in answer.lower(), f"{origin} is allowed in the headers")
        answer = raw(server, request("POST", COMPLETE, json.dumps(complete()).encode(), ["connection: close", f"origin: http://{ours}"], host=ours))
        same(status_of(answer), 200, "our own page")


# ---------------------------------------------------------------- connections

def no_http(checks, server):
    with checks.check("bytes that are no HTTP: 400, or closed, within five seconds"):
        hello = bytes.fromhex("16030100a5010000a10303") + b"\x00" * 160
        length = json.dumps(complete()).encode()
        odd = {
            "HTTP/0.9": b"GET /\r\n", "without a version": b"GET / \r\n\r\n", "another version": b"GET / HTTP/9.9\r\n\r\n",
            "noise": bytes(range(256)) * 20, "zeros": b"\x00" * 5000, "TLS": hello, "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "lines without an end": b"x" * 500_000, "a large header": request("GET", "/health", headers=["x: " + "y" * 500_000]),
            "many headers": request("GET", "/health", headers=[f"x{i}: y" for i in range(5000)]),
            "a long path": request("GET", "/" + "x" * 100_000), "control characters": request("GET", "/health", headers=["x: \x00\x01"]),
            "a header without a name": request("GET", "/health", headers=[": x"]), "a space in a name": request("GET", "/health", headers=["a b: x"]),
            "a length below 0": request("POST", COMPLETE, length, ["content-length: -1"], length=False),
            "a length that is none": request("POST", COMPLETE, length, ["content-length: ten"], length=False),
            "two lengths": request("POST", COMPLETE, length, ["content-length: 5", "content-length: 6"], length=False),
            "a chunk that is none": request("POST", COMPLETE, b"zz\r\n", ["transfer-encoding: chunked"], length=False),
            "a chunk beyond all": request("POST", COMPLETE, b"ffffffffffffffffff\r\n", ["transfer-encoding: chunked"], length=False),
            "an encoding that is none": request("POST", COMPLETE, length, ["transfer-encoding: frob"], length=False),
            "SSH": b"SSH-2.0-OpenSSH_9\r\n", "SMTP": b"EHLO x\r\n", "Redis": b"*1\r\n$4\r\nINFO\r\n",
        }
        for name, data in odd.items():
            began = time.monotonic()
            answer = raw(server, data, close=True)
            took = time.monotonic() - began
            expect(status_of(answer) in (None, 400, 404, 405, 413, 414, 421, 431, 501, 505), f"{name}: {answer[:60]!r}")
            expect(took < 4.5, f"{name}: {took:.1f} s")
        well(server)
    with checks.check("requests one behind the other on one connection"):
        body = json.dumps(complete(max_tokens=4)).encode()
        four = request("GET", "/health") + request("POST", COMPLETE, body) + request("GET", "/v1/models") + request("GET", "/health", headers=["connection: close"])
        answer = raw(server, four, timeout=20)
        same(answer.count(b"HTTP/1.1 200"), 4, "answers")
        order = [answer.find(word) for word in (b'"status"', b'"text_completion"', b'"list"')]
        expect(order == sorted(order) and -1 not in order, f"order {order}")
        # A body that the length cuts in two is no second request.
        smuggled = request("POST", COMPLETE, body, ["content-length: 2"], length=False)
        expect(b" 200 " not in raw(server, smuggled, close=True).split(b"\r\n")[0], "a body longer than its length")
    with checks.check("a length and chunks at once: one reading, or none"):
        both = request("POST", COMPLETE, b"0\r\n\r\nGET /v1/models HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n", ["transfer-encoding: chunked", "content-length: 4"], length=False)
        answer = raw(server, both, close=True)
        expect(status_of(answer) in (None, 400, 501), f"{answer[:60]!r}")
    with checks.check("clients that stop sending, or go away: nothing is left"):
        body = json.dumps(complete(max_tokens=3)).encode()
        answer = raw(server, request("POST", COMPLETE, body), timeout=10, close=True)
        expect(status_of(answer) in (200, None), f"half-closed after the request: {answer[:60]!r}")
        expect(b"HTTP/1.1 200" not in raw(server, request("POST", COMPLETE, body)[:-5], close=True), "a body that breaks off was answered")
        raw(server, request("POST", COMPLETE, body)[:30], close=True)
        long = json.dumps(complete(max_tokens=4000, stream=True, logit_bias=server.endless)).encode()
        for _ in range(20):
            stream = connect(server)
            stream.sendall(request("POST", COMPLETE, long))
            stream.recv(100)
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
            stream.close()  # with a reset
        server.wait_idle(2)
    with checks.check("a client that does not read its stream holds nobody up, and no memory"):
        body = json.dumps(complete(max_tokens=4000, n=4, stream=True, logprobs=5, logit_bias=server.endless)).encode()
        before = server.memory()
        streams = []
        for _ in range(4):
            stream = socket.socket()
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stream.settimeout(10)
            stream.connect((server.host, server.port))
            stream.sendall(request("POST", COMPLETE, body))
            streams.append(stream)
        began = time.monotonic()
        expect(greedy(server) == server.before, "another answer")
        took = time.monotonic() - began
        expect(took < 60, f"others wait for {took:.0f} s")
        more = (server.memory() - before) / MIB
        [stream.close() for stream in streams]
        expect(more < 300, f"{more:.0f} MiB more")
        server.wait_idle(2)


def slow(checks, server):
    """All at once, since each waits."""

    def headers():
        with connect(server, 1) as stream:
            began = time.monotonic()
            stream.sendall(b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\nx: ")
            while time.monotonic() - began < 40:
                try:
                    stream.sendall(b"y")
                    if stream.recv(1000) == b"":
                        return time.monotonic() - began
                except TimeoutError:
                    continue
                except OSError:
                    return time.monotonic() - began
        return None

    def body():
        with connect(server, 1) as stream:
            began = time.monotonic()
            stream.sendall(request("POST", COMPLETE, headers=["content-length: 1000"]) + b"{")
            answer = b""
            while time.monotonic() - began < 45:
                try:
                    stream.sendall(b" ")
                    part = stream.recv(1000)
                    answer += part
                    if not part or b"\r\n\r\n" in answer:
                        break
                except TimeoutError:
                    continue
                except OSError:
                    break
            return status_of(answer), time.monotonic() - began

    def idle(first):
        with connect(server, 60) as stream:
            stream.sendall(first)
            began = time.monotonic()
            everything(stream)
            return time.monotonic() - began

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        began = time.monotonic()
        dripped, bodied = [pool.submit(headers) for _ in range(2)], [pool.submit(body) for _ in range(2)]
        idles = [pool.submit(idle, b""), pool.submit(idle, request("GET", "/health"))]
        with checks.check("slow clients hold nobody up"):
            well(server)
            same(greedy(server), server.before, "an answer")
            expect(time.monotonic() - began < 5, f"{time.monotonic() - began:.1f} s")
        with checks.check("headers that drip: closed within 25 s"):
            for took in (one.result() for one in dripped):
                expect(took is not None and took < 25, f"after {took} s")
        with checks.check("a body that drips: 408 within 35 s"):
            for status, took in (one.result() for one in bodied):
                same(status, 408, f"after {took:.1f} s")
        with checks.check("connections that say nothing: closed within 30 s"):
            for took in (one.result() for one in idles):
                expect(took < 30, f"after {took:.1f} s")


def crowd(checks, server, n):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard != resource.RLIM_INFINITY else 65536, hard))
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 200
    if most < n:
        say(f"      only {most} connections: the limit of open files")
    n = min(n, most)
    with checks.check(f"{n} connections at once: /health within a second, or 503"):
        before, streams = server.memory(), []
        selector = selectors.DefaultSelector()
        began = time.monotonic()
        for i in range(n):
            stream = socket.socket()
            stream.setblocking(False)
            stream.connect_ex((server.host, server.port))
            selector.register(stream, selectors.EVENT_WRITE)
            streams.append(stream)
            if i % 500 == 499:  # as fast as they are taken
                waiting, until = True, time.monotonic() + 5
                while waiting and time.monotonic() < until:
                    for key, _ in selector.select(0.05):
                        selector.unregister(key.fileobj)
                    waiting = len(selector.get_map())
        took = time.monotonic() - began
        asked = time.monotonic()
        try:
            status = server.ask("GET", "/health", timeout=3).status
        except (ConnectionError, http.client.HTTPException):
            status = 503  # the refusal, overtaken by the connection's end
        asked = time.monotonic() - asked
        memory = server.memory() - before
        selector.close()
        [stream.close() for stream in streams]
        say(f"      opened in {took:.1f} s; /health {status} after {asked:.2f} s; {memory / MIB:.0f} MiB more")
        expect(status in (200, 503), f"/health: {status}")
        expect(asked < 1, f"/health after {asked:.1f} s")
        expect(server.alive(), "the server is gone")
    with checks.check("and when they are gone, all is as before"):
        until = time.monotonic() + 5
        while True:
            try:
                if server.ask("GET", "/health", timeout=2).status == 200:
                    break
            except (OSError, http.client.HTTPException):
                pass
            expect(time.monotonic() < until, "/health does not answer within 5 s")
            time.sleep(0.05)
        same(greedy(server), server.before, "an answer")


# ---------------------------------------------------------------- keys, limits, ends

def keys(checks, given, model):
    basic = base64.b64encode(f"anyone:{KEY}".encode()).decode()
    with Server(given.olora, "--model", model, "--allow-origin", "http://page.example:3000", key=KEY) as server:
        with checks.check("a key: 401 for none and for wrong ones, everywhere but /health"):
            for given_ in (None, "", "Bearer", "Bearer ", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", f"Bearer {KEY.upper()}", KEY, f"Token {KEY}",
                           "Basic " + base64.b64encode(b"anyone:wrong").decode(), "Basic ????", "Basic " + base64.b64encode(KEY.encode()).decode()):
                for method, path in (("GET", "/"), ("GET", "/metrics"), ("GET", "/v1/models"), ("POST", CHAT), ("POST", COMPLETE), ("POST", "/v1/adapters"),
                                     ("DELETE", "/v1/models/village"), ("GET", "/nowhere"), ("GET", "/chat.js")):
                    head = [] if given_ is None else [f"authorization: {given_}"]
                    answer = raw(server, request(method, path, b"{}" if method == "POST" else b"", ["connection: close", *head]))
                    same(status_of(answer), 401, f"{method} {path} with {given_!r}")
                    expect(KEY.encode() not in answer, "the key is in the answer")
            same(status_of(raw(server, request("GET", "/health", headers=["connection: close"]))), 200, "/health")
            for good in (f"Bearer {KEY}", f"bearer {KEY}", f"Basic {basic}"):
                same(server.ask("GET", "/v1/models", headers={"authorization": good}).status, 200, good[:6])
        with checks.check("a page that is allowed may ask, with the key"):
            head = ["connection: close", "origin: http://page.example:3000"]
            answer = raw(server, request("OPTIONS", COMPLETE, headers=[*head, "access-control-request-method: POST"]))
            expect(status_of(answer) in (200, 204) and b"access-control-allow-origin: http://page.example:3000" in answer.lower(), f"{answer[:200]!r}")
            body = json.dumps(complete(model=model.name, max_tokens=2)).encode()
            same(status_of(raw(server, request("POST", COMPLETE, body, head))), 401, "without the key")
            answer = raw(server, request("POST", COMPLETE, body, [*head, f"authorization: Bearer {KEY}"]), timeout=20)
            same(status_of(answer), 200, "with the key")
            answer = answer.lower()
            expect(b"access-control-allow-origin: http://page.example:3000" in answer and b"access-control-allow-origin: *" not in answer, "its headers")
            same(status_of(raw(server, request("GET", "/v1/models", headers=["connection: close", "origin: http://page.example", f"authorization: Bearer {KEY}"]))), 403, "another port")
        with checks.check("the key is in no log"):
            expect(not any(KEY in line for line in server.lines), "it is")
    with checks.check("addresses that others reach, without a key or with a short one: refused at the start"):
        for env, host in (({}, "0.0.0.0"), ({}, "::"), ({"OLORA_API_KEY": "short"}, "127.0.0.1"), ({"OLORA_API_KEY": ""}, "0.0.0.0")):
            argv = [str(given.olora), "serve", "--model", str(model), "--host", host, "--port", "0"]
            try:
                ran = subprocess.run(argv, env=environment(**env), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20)
            except subprocess.TimeoutExpired:
                raise Failed(f"{host} with {env} is served") from None
            expect(ran.returncode != 0 and "OLORA_API_KEY" in ran.stderr, f"{host} with {env}: {ran.returncode} {ran.stderr[-200:]}")


def limits(checks, given, model):
    options = ["--model", model, "--max-seconds", "1", "--max-tokens", "4096", "--max-body", "4096"]
    with Server(given.olora, *options) as server:
        more = {"model": model.name, "n": 8, "max_tokens": 4000, "logit_bias": endless(model)}
        with checks.check("--max-seconds: 504, and a stream that is told so"):
            began = time.monotonic()
            answer = server.ask("POST", COMPLETE, complete(**more))
            same(answer.status, 504, f"after {time.monotonic() - began:.1f} s")
            error_of(answer)
            expect(time.monotonic() - began < 3, f"after {time.monotonic() - began:.1f} s")
            answer = server.ask("POST", COMPLETE, complete(**more, stream=True))
            expect(b'"error"' in answer.body, f"the stream ends in {answer.body[-200:]!r}")
            server.wait_idle(1)
        with checks.check("--max-body and --max-tokens"):
            same(server.ask("POST", COMPLETE, complete(model=model.name, prompt="x" * 5000)).status, 413, "5,000 bytes for 4,096")
            same(server.ask("POST", COMPLETE, complete(model=model.name, max_tokens=4097)).status, 400, "4,097 tokens for 4,096")
    with Server(given.olora, "--model", model) as server, checks.check("SIGTERM in the middle of streams: exit code 0 within 5 s"):
        body = json.dumps(complete(**(more | {"stream": True}))).encode()
        streams = [connect(server) for _ in range(4)]
        for stream in streams:
            stream.sendall(request("POST", COMPLETE, body))
            expect(stream.recv(20).startswith(b"HTTP/1.1 200"), "no stream")
        began = time.monotonic()
        code = server.stop()
        took = time.monotonic() - began
        [stream.close() for stream in streams]
        same(code, 0, f"exit code after {took:.1f} s")
        expect(took < 5, f"after {took:.1f} s")
    with Server(given.olora, "--model", model) as server, checks.check("Ctrl-C: exit code 0"):
        same(server.stop(signal.SIGINT), 0, "exit code")


def main():
    made = parser(__doc__)
    made.add_argument("--quick", action="store_true", help="without slow clients, and 500 connections")
    made.add_argument("--connections", type=int, default=10_000)
    given = arguments(made)
    if not given.village:
        sys.exit("hostile.py is written for the quickstart's model")
    checks = Checks()
    # More positions, so that an answer can be long enough to be in the middle of.
    model = with_template(given.model, given.work, positions=8192)
    shelf = adapters(given.olora, given.work)
    shutil.copytree(shelf / "squire", given.work / "outside")
    with Server(given.olora, "--model", model, "--adapters-dir", shelf, "--adapter", shelf / "crier") as server:
        server.work, server.endless = given.work, endless(model)
        server.before = greedy(server)
        models = [one["id"] for one in server.json("GET", "/v1/models")["data"]]
        for part in (bodies, values, paths, no_http):
            checks.section(part, server)
        if not given.quick:
            checks.section(slow, server)
        checks.section(crowd, server, min(500, given.connections) if given.quick else given.connections)
        with checks.check("in the end: there, idle, as before"):
            expect(server.alive(), f"it is gone: {server.lines[-5:]}")
            well(server)
            server.wait_idle(2)
            same(greedy(server), server.before, "an answer")
            same([one["id"] for one in server.json("GET", "/v1/models")["data"]], models, "models")
        with checks.check("its log: no panic, no prompt, no control characters, and an end with code 0"):
            code = server.stop()
            log = "\n".join(server.lines)
            expect("panicked" not in log and "stack overflow" not in log, f"a panic: {log[-600:]}")
            expect(PROMPT not in log, "a prompt, without --log-prompts")
            expect(all(char.isprintable() or char in "\n\t" for char in log), "control characters")
            same(code, 0, "exit code")
    checks.section(keys, given, model)
    checks.section(limits, given, model)
    return checks.end()


if __name__ == "__main__":
    sys.exit(main())
