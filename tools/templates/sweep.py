"""Do olora's renderings of chat templates equal Jinja2's? For every template of a directory, and a fixed set of conversations.

    cargo build -p olora-data --example render
    python tools/templates/sweep.py DIR [--render target/debug/examples/render] [--json report.json] [--show 5] [--only NAME]

DIR holds `*.jinja` and optionally `index.json`: `[{"name": …, "bos_token": …, "eos_token": …}, …]`. A directory of a checkpoint,
or one with a `tokenizer_config.json` and no `.jinja`, works as well. The templates are other people's: none is kept here.

Both sides render; both failing counts as equal, since what a template refuses is refused by both, but the reasons are noted.
Without --render only Jinja2's side is done: how many conversations have renderings of which none rewrites an earlier turn.
Dates are masked. Needs Jinja2 3.1, no network.
"""

import argparse
import collections
import datetime
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "fixtures/chat_masks"))

from prefixes import ChatTemplate, common_prefix, samples, trained_turns

SYSTEM = {"role": "system", "content": "Answer about the village."}
ASK = {"role": "user", "content": "Where does Alder live?"}
SAY = {"role": "assistant", "content": "In Oxmere."}
ASK2 = {"role": "user", "content": "  And Zora's brother, née \"Jorun\" <1>?\n"}
SAY2 = {"role": "assistant", "content": "In Thornby, by the mill & the ford.\n\n- house: 3\n"}
ASK3 = {"role": "user", "content": "Thanks."}
SAY3 = {"role": "assistant", "content": "You are welcome 🙂"}
THOUGHT = {"role": "assistant", "content": "<think>\nAlder is a glassblower.\n</think>\n\nIn Oxmere."}
THOUGHT2 = {"role": "assistant", "content": "<think>\nThe mill.\n</think>\n\nIn Thornby."}
REASONED = {"role": "assistant", "content": "In Oxmere.", "reasoning_content": "Alder is a glassblower."}
REASONED2 = {"role": "assistant", "content": "In Thornby.", "reasoning_content": "The mill."}

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "find_house",
            "description": "Finds where somebody lives; says \"none\" if nowhere.",
            "parameters": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "description": "Who, e.g. Alder"},
                    "since": {"type": "integer", "description": "Year", "default": 1990},
                    "kinds": {"type": "array", "items": {"type": "string"}, "enum": ["house", "mill"]},
                },
                "required": ["name"],
            },
        },
    },
    {
        "type": "function",
        "function": {"name": "ring", "description": "Rings the bell.", "parameters": {"type": "object", "properties": {}}},
    },
]


def call(name, arguments, id="abcdefgh1"):
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


CALL = call("find_house", {"name": "Alder's", "since": 1999, "exact": True, "kinds": ["house", "mill"], "note": None})
CALLS = {"role": "assistant", "content": "", "tool_calls": [CALL]}
CALLS_NULL = {"role": "assistant", "content": None, "tool_calls": [CALL]}
CALLS_TWO = {"role": "assistant", "content": "", "tool_calls": [CALL, call("ring", {}, "abcdefgh2")]}
RESULT = {"role": "tool", "content": '{"place": "Oxmere", "size": 1.5}', "name": "find_house", "tool_call_id": "abcdefgh1"}
RESULT2 = {"role": "tool", "content": "rung", "name": "ring", "tool_call_id": "abcdefgh2"}


def parts(message):
    return message | {"content": [{"type": "text", "text": message["content"]}]}


# name: (messages, tools). The first five are the plain conversations that people train on.
CONVERSATIONS = {
    "single": ([ASK, SAY], None),
    "system": ([SYSTEM, ASK, SAY], None),
    "turns": ([ASK, SAY, ASK2, SAY2, ASK3, SAY3], None),
    "system, turns": ([SYSTEM, ASK, SAY, ASK2, SAY2], None),
    "thoughts in content": ([ASK, THOUGHT, ASK2, THOUGHT2], None),
    "one thought in content": ([ASK, THOUGHT], None),
    "reasoning_content": ([ASK, REASONED, ASK2, REASONED2], None),
    "assistant first": ([SAY, ASK, SAY2], None),
    "two users": ([ASK, ASK2, SAY], None),
    "tools unused": ([SYSTEM, ASK, SAY, ASK2, SAY2], TOOLS),
    "tool call": ([ASK, CALLS, RESULT, SAY], TOOLS),
    "system, tool call, turns": ([SYSTEM, ASK, CALLS, RESULT, SAY, ASK2, SAY2], TOOLS),
    "two tool calls": ([ASK, CALLS_TWO, RESULT, RESULT2, SAY], TOOLS),
    "content null": ([ASK, CALLS_NULL, RESULT, SAY], TOOLS),
    "tool call with a thought": ([ASK, CALLS | {"reasoning_content": "I look."}, RESULT, REASONED], TOOLS),
    "tool call with words": ([ASK, CALLS | {"content": "I look."}, RESULT, SAY], TOOLS),
    "tool role alone": ([ASK, SAY, {"role": "tool", "content": "rung"}, SAY2], None),
    "parts": ([parts(ASK), parts(SAY), parts(ASK2), parts(SAY2)], None),
    "null keys": ([ASK, SAY | {"tool_calls": None, "reasoning_content": None}, ASK2, SAY2], None),
    "unknown role": ([{"role": "narrator", "content": "Dusk."}, ASK, SAY], None),
}
PLAIN = list(CONVERSATIONS)[:5]
KWARGS = [{}, {"enable_thinking": False}, {"enable_thinking": True}]


def templates(directory, only):
    """(name, source, special tokens)"""
    index = {}
    if (directory / "index.json").exists():
        index = {entry["name"]: entry for entry in json.loads((directory / "index.json").read_text())}
    found = []
    for path in sorted(directory.glob("*.jinja")):
        entry = index.get(path.stem, {"bos_token": "<s>", "eos_token": "</s>"})
        specials = {key: entry[key] for key in ("bos_token", "eos_token") if entry.get(key)}
        found.append((path.stem, path.read_bytes().decode(), specials))
    config = directory / "tokenizer_config.json"
    if not found and config.exists():
        config = json.loads(config.read_text())
        text = lambda token: token["content"] if isinstance(token, dict) else token
        specials = {key: text(value) for key, value in config.items() if key.endswith("_token") and value}
        found.append((directory.name, config["chat_template"], specials))
    return [entry for entry in found if not only or re.search(only, entry[0])]


class Ours:
    """The example `render` of olora-data: a JSON line in, a JSON line out."""

    def __init__(self, command):
        self.command = command
        self.process = None

    def __call__(self, request):
        if self.process is None:
            self.process = subprocess.Popen(
                [self.command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
            )
        try:
            self.process.stdin.write(json.dumps(request, ensure_ascii=False) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            error = self.process.stderr.read().strip()
            self.process = None
            return {"error": f"CRASHED: {error[-300:]}"}
        return json.loads(line)


def reason(error):
    return f"{type(error).__name__}: {error}"


def mask(text, dates):
    """Days in the formats that the template asked for, around today: a sweep may run over midnight."""
    now = datetime.datetime.now()
    for format in sorted(dates, key=len, reverse=True):
        for days in (-1, 0, 1):
            text = text.replace((now + datetime.timedelta(days=days)).strftime(format), f"<{format}>")
    return text


def theirs(template, messages, prompt, tools, kwargs):
    try:
        return {"text": template.render(messages, prompt, tools, kwargs)}
    except Exception as error:  # whatever a template does
        return {"error": reason(error)}


def standing(render, messages):
    """How a conversation stands with olora up to 0.x (one text that all prefixes agree with, or refused), and with samples that
    are split: ("agrees" | "rewrites" | "fails", detail), number of samples."""
    try:
        whole = render(messages, False)
        agrees = all(
            whole.startswith(part) for i in trained_turns(messages) for part in (render(messages[:i], True), render(messages[: i + 1], False))
        )
        found = samples(render, messages)
    except Exception as error:
        return "fails", reason(error), 0
    length = sum(len(text) for sample in found for text, _ in sample)
    return ("agrees" if agrees else "rewrites"), f"{length / max(1, len(whole)):.2f}", len(found)


def sweep(args):
    ours = Ours(args.render) if args.render else None
    counts, differences, standings = collections.Counter(), [], {}
    both_fail = collections.Counter()
    for name, source, specials in templates(args.directory, args.only):
        try:
            template, broken = ChatTemplate(source, specials), None
        except jinja2_errors() as error:
            template, broken = None, reason(error)
        counts["templates"] += 1
        for conversation, (messages, tools) in CONVERSATIONS.items():
            if template:
                render = lambda m, p: template.render(m, p, tools)
                standings[name, conversation] = standing(render, messages)
            else:
                standings[name, conversation] = ("fails", broken, 0)
            if not ours:
                continue
            for kwargs in KWARGS if "enable_thinking" in source else KWARGS[:1]:
                for prompt in (False, True):
                    # Prefixes as well: a template may treat a conversation that ends in the user's turn otherwise.
                    for end in sorted({len(messages), *trained_turns(messages)} - {0}):
                        request = dict(
                            template=source, specials=specials, messages=messages[:end], tools=tools, add_generation_prompt=prompt, kwargs=kwargs
                        )
                        expected = theirs(template, messages[:end], prompt, tools, kwargs) if template else {"error": broken}
                        found = ours(request)
                        counts["renderings"] += 1
                        if "error" in expected and "error" in found:
                            counts["both fail"] += 1
                            both_fail[expected["error"][:60], found["error"][:90]] += 1
                        elif "text" in expected and "text" in found and same(expected, found, template):
                            counts["equal"] += 1
                        else:
                            counts["different"] += 1
                            differences.append(dict(template=name, conversation=conversation, turns=end, prompt=prompt, kwargs=kwargs, expected=expected, found=found))
    return counts, differences, standings, both_fail


def jinja2_errors():
    import jinja2

    return (jinja2.exceptions.TemplateError,)


def same(expected, found, template):
    if expected["text"] == found["text"]:
        return True
    return bool(template.dates) and mask(expected["text"], template.dates) == mask(found["text"], template.dates)


def describe(difference):
    expected, found = difference["expected"], difference["found"]
    where = f"{difference['template']} / {difference['conversation']} [:{difference['turns']}] prompt={difference['prompt']} {difference['kwargs'] or ''}"
    if "error" in expected:
        return f"{where}\n   Jinja2 fails: {expected['error'][:200]}\n   olora renders: {found['text'][:200]!r}"
    if "error" in found:
        return f"{where}\n   olora fails: {found['error'][:300]}"
    at = common_prefix(expected["text"], found["text"])
    window = lambda text: repr(text[max(0, at - 40) : at + 80])
    return f"{where}\n   Jinja2: {window(expected['text'])}\n   olora:  {window(found['text'])}"


def report(args, counts, differences, standings, both_fail):
    print(", ".join(f"{value} {key}" for key, value in sorted(counts.items())))
    by_template = collections.Counter(d["template"] for d in differences)
    if by_template:
        print("differences by template: " + ", ".join(f"{name} {n}" for name, n in by_template.most_common()))
    shown = set()
    for difference in differences:
        key = (difference["template"], difference["conversation"]) if args.show > 5 else difference["template"]
        if key in shown or len(shown) >= args.show:
            continue
        shown.add(key)
        print(describe(difference))

    for what, chosen in (("plain", PLAIN), ("all", list(CONVERSATIONS))):
        here = [(key, value) for key, value in standings.items() if key[1] in chosen]
        states = collections.Counter(value[0] for _, value in here)
        split = [value for _, value in here if value[2] > 1]
        print(
            f"{what} conversations ({', '.join(chosen)}): {len(here)}; one text that all prefixes agree with: {states['agrees']}; "
            f"refused by a tool that wants that: {len(here) - states['agrees']} ({states['rewrites']} rewritten, {states['fails']} refused by the template); "
            f"with samples split: {len(here) - states['fails']} trained ({len(split)} of them in several samples), {states['fails']} refused"
        )
    reasons = collections.defaultdict(list)
    for (name, conversation), value in standings.items():
        if value[0] == "fails" and conversation in PLAIN:
            reasons[conversation, kind_of(value[1])].append(name)
    for (conversation, why), names in sorted(reasons.items()):
        print(f"  refused: {conversation}: {why}: {len(names)} ({', '.join(names[:6])}{', …' if len(names) > 6 else ''})")
    rewriting = sorted({name for (name, conversation), value in standings.items() if value[0] == "rewrites" and conversation in PLAIN})
    print(f"  templates that rewrite earlier turns or whose generation prompt is not kept (plain conversations): {len(rewriting)}: {', '.join(rewriting)}")
    if both_fail and args.show > 5:
        print("both fail:")
        for (theirs, ours), n in both_fail.most_common(args.show):
            print(f"  {n} × {theirs} | {ours}")


def kind_of(error):
    text = error.lower()
    for pattern, kind in [
        ("alternat|roles must|after the optional|must be user|must start", "role order"),
        ("system role|system message|only user.* supported|unsupported role|unknown role|unexpected message role|invalid message role", "role unknown to the template"),
        ("undefined|no attribute|has no element|can only concatenate|not iterable|unsupported operand", "the template fails on it"),
        ("user query|user message", "no user turn"),
        ("syntax|encountered unknown|no filter", "the template does not parse"),
    ]:
        if re.search(pattern, text):
            return kind
    return error[:80]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--render", help="the built example; without it only Jinja2's side is done")
    parser.add_argument("--json", type=Path, help="write all of it to a file")
    parser.add_argument("--show", type=int, default=5, help="how many differences to print")
    parser.add_argument("--only", help="only templates whose name matches")
    args = parser.parse_args()
    found = sweep(args)
    report(args, *found)
    counts, differences, standings, both_fail = found
    if args.json:
        args.json.write_text(
            json.dumps(
                {
                    "counts": counts,
                    "differences": differences,
                    "standings": [[*key, *value] for key, value in standings.items()],
                    "both_fail": [[*key, n] for key, n in both_fail.most_common()],
                },
                indent=1,
                ensure_ascii=False,
            )
            + "\n"
        )
    sys.exit(1 if counts["different"] else 0)


if __name__ == "__main__":
    main()
