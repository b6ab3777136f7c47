#!/usr/bin/env python3
"""The pages of `olora board` and of `olora serve` in a browser.

    apt-get install chromium
    pip install playwright axe-playwright-python
    python3 tools/pages/pages.py --olora target/release/olora --screenshots DIR       # a minute or two

- **board**: a training run is watched while it goes on: curves grow, new values are read out; two runs in one chart,
  logarithmic axis, smoothing, other x axes; texts of files are never markup.
- **chat**: base and adapter answer side by side, as the API does; answers appear while they are made, and can be stopped;
  adapters are loaded and dropped; a download is what `olora train` reads.
- **both**: everything with the keyboard alone and a focus that is seen; 320 pixels wide without scrolling sideways; no
  violation of WCAG 2.2 A and AA that axe-core finds, in each state, light and dark; no request to anywhere else; nothing in
  the browser's console, which is where breaches of the content security policy are told, too.
- `--report FILE` looks at an HTML report of a run or a comparison in the same way, without a server.

axe-core (MPL-2.0) is that of the Python package, or of `--axe FILE`, and no part of this repository. Exit code 1 if anything
failed.
"""

import contextlib
import json
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools/serve"))
from common import (  # noqa: E402 (found by the line above)
    Checks, Failed, Server, adapters, arguments, environment, expect, parser, same, say, shown, train, with_template,
)

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 320, "height": 640}
BAD = "a <img src=x onerror=alert(1)> & b"
PROMPT = "Where does Alder live?"
# What has the focus: its id or words, whether it is a control, and how it shows that.
FOCUSED = """() => {
  const node = document.activeElement;
  if (!node || node === document.body || node === document.documentElement) return null;
  const style = getComputedStyle(node), box = node.getBoundingClientRect();
  const around = [node, ...(node.labels ?? [])].map((one) => getComputedStyle(one));
  const seen = around.some((one) => one.outlineStyle !== "none" && parseFloat(one.outlineWidth) > 0 && !/, 0\\)$|transparent/.test(one.outlineColor) || one.boxShadow !== "none");
  const middle = [box.x + box.width / 2, box.y + box.height / 2];
  const top = document.elementFromPoint(...middle);
  return {id: node.id, tag: node.localName, words: (node.getAttribute("aria-label") || node.textContent || "").trim().slice(0, 60), seen,
    covered: !(top && (node.contains(top) || top.contains(node))), width: box.width, height: box.height};
}"""


def axe_source(given):
    if given.axe:
        return pathlib.Path(given.axe).read_text(encoding="utf-8")
    import axe_playwright_python

    return (pathlib.Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")


class Browser:
    """A page, and what it did that it should not."""

    def __init__(self, browser, given, axe, **options):
        self.given, self.axe, self.wrong = given, axe, []
        self.context = browser.new_context(viewport=WIDE, reduced_motion="reduce", **options)
        self.context.set_default_timeout(5000)
        self.page = self.context.new_page()
        self.cdp = self.context.new_cdp_session(self.page)
        self.quiet = False
        self.page.on("request", lambda request: self.asked(request.url))
        self.page.on("websocket", lambda socket: self.asked(socket.url))
        self.page.on("console", lambda message: self.told(message))
        self.page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        self.page.on("dialog", self.dialog)

    def asked(self, url):
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("data", "blob", "about", "file") and parts.hostname != "127.0.0.1":
            self.wrong.append(f"a request to {url}")

    def told(self, message):
        if message.type in ("error", "warning") and not self.quiet:
            self.wrong.append(f"{message.type}: {message.text[:300]} ({message.location.get('url', '')[-60:]})")

    def dialog(self, dialog):
        self.wrong.append(f"a dialog: {dialog.message[:100]}")
        dialog.dismiss()

    def clean(self):
        wrong, self.wrong = self.wrong, []
        expect(not wrong, "; ".join(dict.fromkeys(wrong)))

    def run(self, script):
        """The value of an expression, also where the page's policy forbids `eval`."""
        result = self.cdp.send("Runtime.evaluate", {"expression": script, "awaitPromise": True, "returnByValue": True})
        expect("exceptionDetails" not in result, shown(result.get("exceptionDetails")))
        return result["result"].get("value")

    def until(self, script, what, timeout=5):
        """Waits until an expression is true. Its value."""
        until = time.monotonic() + timeout
        while not (value := self.run(script)):
            expect(time.monotonic() < until, f"not within {timeout} s: {what}")
            self.page.wait_for_timeout(30)
        return value

    def audit(self, where):
        """What axe-core finds."""
        if not self.run("typeof axe === 'object'"):
            self.run(f"{self.axe}\n;0")
        options = json.dumps({"runOnly": {"type": "tag", "values": RULES}, "resultTypes": ["violations"]})
        found = self.run(
            f"axe.run(document, {options}).then((r) => r.violations.map((v) => [v.id, v.help, v.nodes.slice(0, 3).map((n) => n.target.join(' ') + ': ' "
            "+ (n.any[0] ?? n.all[0] ?? n.none[0] ?? {message: ''}).message)]))"
        )
        expect(not found, f"{where}: " + "; ".join(f"{name} ({help_}): {', '.join(nodes)[:400]}" for name, help_, nodes in found))

    def both_schemes(self, where):
        grounds = set()
        for scheme in ("light", "dark"):
            self.page.emulate_media(color_scheme=scheme)
            grounds.add(self.run("getComputedStyle(document.body).backgroundColor + getComputedStyle(document.documentElement).backgroundColor"))
            self.audit(f"{where}, {scheme}")
        expect(len(grounds) == 2, f"{where}: light and dark have one ground")
        self.page.emulate_media(color_scheme="light")

    def sideways(self, where):
        wide = self.run("""[document.documentElement.scrollWidth, document.documentElement.clientWidth, [...document.querySelectorAll("body *")]
            .filter((n) => n.getBoundingClientRect().right > document.documentElement.clientWidth + 1 && n.getBoundingClientRect().width > 0)
            .slice(0, 4).map((n) => n.localName + (n.id ? "#" + n.id : "." + n.className))]""")
        expect(wide[0] <= wide[1], f"{where}: {wide[0]} pixels wide in {wide[1]}: {wide[2]}")

    def picture(self, name, full=True):
        if self.given.screenshots:
            place = pathlib.Path(self.given.screenshots)
            place.mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=place / f"{name}.png", full_page=full)

    def tab_through(self, most=150):
        """What Tab reaches from the page's beginning until it is left, in order; each must be seen to have the focus."""
        self.run("document.activeElement.blur(), getSelection().removeAllRanges(), scrollTo(0, 0)")
        # From the beginning, wherever the focus was before.
        self.run("(() => { const n = document.createElement('span'); n.tabIndex = -1; document.body.prepend(n); n.focus(); n.remove(); })()")
        found = []
        for _ in range(most):
            self.page.keyboard.press("Tab")
            at = self.run(f"({FOCUSED})()")
            if at is None or (found and (at["id"], at["words"]) == (found[0]["id"], found[0]["words"])):
                return found
            found.append(at)
        raise Failed(f"Tab does not come to an end: {[one['id'] or one['words'] for one in found[-5:]]}")

    def reachable(self, ids):
        found = self.tab_through()
        missing = [id_ for id_ in ids if id_ not in [one["id"] for one in found]]
        expect(not missing, f"Tab does not reach {missing}; it reaches {[one['id'] or one['words'] for one in found]}")
        unseen = [one["id"] or f"{one['tag']} {one['words']}" for one in found if not one["seen"]]
        expect(not unseen, f"the focus is not seen on {unseen}")
        covered = [one["id"] or f"{one['tag']} {one['words']}" for one in found if one["covered"]]
        expect(not covered, f"the focus is covered on {covered}")

    def go_to(self, id_):
        """Puts the focus there with Tab alone."""
        self.tab_to(lambda at: at["id"] == id_, id_)

    def tab_to(self, is_there, what, most=150):
        for _ in range(most):
            at = self.run(f"({FOCUSED})()")
            if at and is_there(at):
                return
            self.page.keyboard.press("Tab")
        raise Failed(f"Tab does not reach {what}")


# ---------------------------------------------------------------- the board

N_POINTS = """[...document.querySelectorAll("#chart-loss path.pale, #chart-loss path.plain")].map((p) => (p.getAttribute("d").match(/[ML]/g) ?? []).length)"""
SMOOTHED = """[...document.querySelectorAll("#chart-loss path.smoothed")].map((p) => p.getAttribute("d")).join()"""
DESCRIPTION = """document.querySelector("#chart-loss desc").textContent"""
CONTROLS = ["theme", "filter", "order", "clear", "smoothing", "log-axis", "x-axis"]


def prepare_board(given):
    """A directory with a finished run, a comparison and a run whose files are full of markup."""
    place = given.work / "runs"
    train(given.olora, place, "alder", "training.epochs=1", "training.log_every=1", "samples.prompts=['Where does Alder live?']")
    results = sorted((ROOT / "benchmarks/results").glob("*/report.md"), key=lambda path: path.stat().st_size)
    if results:
        shutil.copytree(results[0].parent, place / "comparison", ignore=shutil.ignore_patterns("runs", "scores"))
    bad = place / BAD
    shutil.copytree(place / "alder", bad, ignore=shutil.ignore_patterns("checkpoints", "adapter"))
    for name in ("recipe.toml", "samples.json", "data.json"):
        if (bad / name).exists():
            text = (bad / name).read_text()
            (bad / name).write_text(text.replace("alder", BAD).replace("Alder", BAD))
    return place


def examples(web, run):
    """Each data set's sample is there, and what is marked of it is what is trained."""
    sets = json.loads((run / "data.json").read_text())
    pieces = [piece for one in sets for example in one["examples"] for piece in example["pieces"]]
    of_run = f"#details-{run.name} figure.example"
    web.until(f"document.querySelectorAll('{of_run}').length === {len(sets)}", "an example of each data set")
    same(web.run(f"[...document.querySelectorAll('{of_run} mark')].map((one) => one.childNodes[1].data)"), [piece["text"] for piece in pieces if piece["trained"]], "what is marked")
    shown = web.run(f"[...document.querySelectorAll('{of_run} .sample')].map((one) => [...one.childNodes].map((part) => part.tagName === 'MARK' ? part.childNodes[1].data : part.data).join('')).join('')")
    same(shown, "".join(piece["text"] for piece in pieces), "the text")


@contextlib.contextmanager
def live_run(given, place):
    """A training run that goes on until the block ends."""
    sets = [f"output.directory={place}", "name=live", "training.epochs=40", "training.log_every=1", "training.evaluate_every=20", "samples.prompts=[]"]
    argv = [str(given.olora), "train", str(ROOT / "recipes/quickstart.toml"), *(part for one in sets for part in ("--set", one))]
    process = subprocess.Popen(argv, cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def box_of(path):
    """The id of a run's checkbox."""
    return f"run-{urllib.parse.quote(path, safe=chr(39) + '!()*~-_.')}"


def choose(web, path):
    web.go_to(box_of(path))
    web.page.keyboard.press("Space")
    expect(web.run(f"document.getElementById({json.dumps(box_of(path))}).checked"), f"Space does not choose {path}")


def board(checks, browser, given, axe):
    place = prepare_board(given)
    with Server(given.olora, place, command="board") as server:
        web = Browser(browser, given, axe)
        with checks.check("board: the list of runs, and no violation in light and dark"):
            web.page.goto(server.url)
            web.until("document.querySelectorAll('#run-list input').length === 2", "two runs in the list")
            web.until(f"{N_POINTS}.some((n) => n > 2)", "a chart of the newest run")
            web.both_schemes("at the start")
            web.clean()
        with live_run(given, place), checks.check("board: curves grow while a run goes on, and are read out"):
            web.until(f"!!document.getElementById({json.dumps(box_of('live'))})", "the run that was started is in the list", 30)
            web.run("document.getElementById('clear').click()")
            choose(web, "live")
            web.until(f"{N_POINTS}[0] > 3", "points of the new run", 20)
            first, told = web.run(N_POINTS)[0], web.run("document.getElementById('live').textContent")
            # Of its own accord: nothing is pressed here.
            web.until(f"{N_POINTS}[0] > {first + 5}", "more points", 20)
            same(web.run("document.getElementById('live').getAttribute('aria-live')"), "polite", "aria-live")
            told = web.until(f"(() => {{ const t = document.getElementById('live').textContent; return t !== {json.dumps(told)} && t; }})()", "new values are read out", 25)
            expect("live" in told and re.search(r"step \d", told), f"what is read out: {told!r}")
            expect(web.run(f"document.getElementById({json.dumps(box_of('live'))}).closest('li').textContent.includes('running')"), "the list does not say that it is running")
            choose(web, "alder")
            web.until("document.querySelectorAll('#legend li').length === 2", "two runs in the legend")
            grown = web.run(N_POINTS)
            web.until(f"{N_POINTS}[0] > {grown[0] + 2}", "points, with two runs", 20)
            web.audit("while it grows")
            web.picture("board-live")
            web.clean()
        with checks.check("board: its end is shown without loading again"):
            web.until(f"!document.getElementById({json.dumps(box_of('live'))}).closest('li').textContent.includes('running')", "the run is still running", 15)
            web.clean()
        with checks.check("board: two runs in one chart, told apart without colour"):
            web.until(f"{N_POINTS}.length === 2", "two curves")
            lines = web.run("""[...document.querySelectorAll("#chart-loss path.smoothed")].map((p) => [getComputedStyle(p).stroke, p.getAttribute("stroke-dasharray")])""")
            expect(len({line[0] for line in lines}) == 2 and len({line[1] for line in lines}) == 2, f"colours and dashes {lines}")
            web.until("document.querySelectorAll('#differences tr').length > 1", "where the recipes differ")
            words = web.run(DESCRIPTION)
            expect("alder" in words and "live" in words and "lowest" in words, f"the description: {words[:200]}")
            web.both_schemes("two runs")
        with checks.check("board: smoothing, logarithmic axis and x axis with the keyboard"):
            keys = web.page.keyboard
            web.go_to("smoothing")
            before = web.run(SMOOTHED)
            keys.press("End")
            web.until("document.getElementById('smoothing-value').textContent === '0.99'", "End does not smooth most")
            web.until(f"{SMOOTHED} !== {json.dumps(before)}", "smoothing changes nothing")
            keys.press("Home")
            web.until(f"{SMOOTHED} === ''", "without smoothing there is a smoothed curve")
            for _ in range(60):
                keys.press("ArrowRight")
            web.until(f"{SMOOTHED} === {json.dumps(before)}", "0.60 is not what it was before")
            web.go_to("log-axis")
            ticks = web.run("[...document.querySelectorAll('#chart-loss .axis-text')].map((t) => t.textContent).join('|')")
            keys.press("Space")
            web.until(f"{DESCRIPTION}.includes('logarithmic')", "no logarithmic axis")
            expect(web.run("[...document.querySelectorAll('#chart-loss .axis-text')].map((t) => t.textContent).join('|')") != ticks, "its ticks are the same")
            web.picture("board-log")
            web.go_to("x-axis")
            for name in ("tokens", "seconds of training"):
                keys.press("ArrowDown")
                web.until(f"{DESCRIPTION}.includes({json.dumps('by ' + name)})", f"no axis of {name}")
            web.audit("logarithmic, by seconds")
            web.clean()
        with checks.check("board: the keyboard reaches all, and is seen where it is"):
            web.reachable([*CONTROLS, *map(box_of, ("alder", "live"))])
            web.run("document.activeElement.blur()")
            web.page.keyboard.press("Tab")
            same(web.run(f"({FOCUSED})().words"), "Skip to the curves", "the first thing that Tab reaches")
            web.page.keyboard.press("Enter")
            web.until("document.activeElement.id === 'main'", "the skip link does not lead to the curves")
            web.go_to("theme")
            was = web.run("getComputedStyle(document.body).backgroundColor")
            web.page.keyboard.press("Enter")
            web.until(f"getComputedStyle(document.body).backgroundColor !== {json.dumps(was)}", "the theme does not change")
            web.audit("by the button")
            # What was chosen holds against the system's scheme, until it is forgotten.
            web.run("localStorage.clear()")
            web.page.reload()
            web.until("document.querySelectorAll('#legend li').length === 2", "what was chosen is lost with loading again")
            web.go_to("filter")
            web.page.keyboard.type("ald")
            web.until("document.querySelectorAll('#run-list li:not([hidden])').length === 1", "the filter shows others, too")
            for _ in range(3):
                web.page.keyboard.press("Backspace")
            web.go_to("order")
            web.page.keyboard.press("ArrowDown")
            same(web.run("document.getElementById('order').value"), "name", "the order")
            # Numbers of the chart as a table.
            web.tab_to(lambda at: at["tag"] == "summary" and at["words"].startswith("Loss"), "the table of losses")
            web.page.keyboard.press("Enter")
            web.until("document.querySelectorAll('#chart-loss-table tr').length > 3", "no table")
            web.clean()
        with checks.check("board: every part opened, in light and dark"):
            web.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
            web.until("document.querySelectorAll('details.run table').length > 2", "details of runs")
            web.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
            examples(web, place / "alder")
            if (place / "comparison").exists():
                web.run("document.querySelector('#comparison-list input').click()")
                web.until("document.querySelectorAll('#reports table').length > 0", "the comparison's report")
            web.both_schemes("all opened")
            for scheme in ("light", "dark"):
                web.page.emulate_media(color_scheme=scheme)
                web.picture(f"board-{scheme}")
            web.page.emulate_media(color_scheme="light")
            web.clean()
        with checks.check("board: 320 pixels wide, without scrolling sideways"):
            web.page.set_viewport_size(NARROW)
            web.until("document.querySelector('#chart-loss').getBoundingClientRect().right <= 321", "the chart does not become narrow")
            web.sideways("all opened")
            web.both_schemes("narrow")
            web.picture("board-narrow")
            web.page.reload()
            web.until("document.querySelectorAll('#legend li').length === 2", "what was chosen is lost with loading again")
            web.sideways("loaded again")
            web.reachable([*CONTROLS, box_of("alder")])
            web.page.set_viewport_size(WIDE)
            web.clean()
        with checks.check("board: markup in names and files is text"):
            choose(web, BAD)
            web.until(f"document.getElementById('legend').textContent.includes({json.dumps(BAD)})", "the run's name is not shown as it is")
            web.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
            web.until(f"document.getElementById('details').textContent.includes({json.dumps(BAD)})", "its details")
            same(web.run("document.querySelectorAll('img[src=x], [onerror]').length"), 0, "elements made of text")
            web.audit("with markup in names")
            web.clean()
        with checks.check("board: none chosen"):
            web.go_to("clear")
            web.page.keyboard.press("Enter")
            web.until("!document.getElementById('nothing').hidden", "it does not say that no run is chosen")
            web.both_schemes("none chosen")
            web.clean()
        with checks.check("board: when the server goes, the page says so"):
            web.quiet = True
            web.run("document.querySelector('#run-list input').click()")
            code = server.stop()
            web.until("/not answer|gone|connection/i.test(document.getElementById('live').textContent)", "the page says nothing", 15)
            web.audit("without a server")
            same(code, 0, "exit code")
        web.context.close()


# ---------------------------------------------------------------- the chat

SETTINGS = ["temperature", "top-p", "max-tokens", "seed", "system"]


def cell(column, status=None, turn=-1):
    turns = "document.querySelectorAll('#log .turn')"
    found = f"[...{turns}].at({turn})?.querySelector('.cell[data-column=\"{column}\"]')"
    return f"(({found})?.dataset.status === {json.dumps(status)})" if status else found


def text_of(web, column, turn=-1):
    return web.run(f"{cell(column, turn=turn)}.querySelector('.text').textContent")


def set_field(web, id_, value):
    """With the keyboard."""
    web.go_to(id_)
    web.page.keyboard.press("Control+A")
    web.page.keyboard.press("Delete")
    if value:
        web.page.keyboard.type(value)


def send(web, message):
    web.go_to("message")
    web.page.keyboard.type(message)
    web.page.keyboard.press("Enter")


def streams(checks, browser, given, axe, shelf):
    # Answers that only end at their limit, so that there is something to watch and to stop.
    model = with_template(given.model, given.work, name="endless", positions=8192, end="<|pad|>")
    with Server(given.olora, "--model", model, "--adapter", shelf / "crier") as server:
        web = Browser(browser, given, axe)
        keys = web.page.keyboard
        with checks.check("chat: answers appear while they are made, and Stop stops them"):
            web.page.goto(server.url)
            web.until("document.getElementById('model-1').options.length === 2", "two models to choose from")
            for way in ("Escape", "Stop"):
                n = web.run("document.querySelectorAll('#log .turn').length")
                send(web, "Tell a long story.")
                web.until(f"document.querySelectorAll('#log .turn').length === {n + 1} && {cell(0, 'running')}", "the answer does not begin")
                lengths = {web.until(f"{cell(0)}.querySelector('.text').textContent.length", "nothing appears")}
                web.until(f"{cell(0, 'running')} && {cell(0)}.querySelector('.text').textContent.length > {max(lengths) + 5}", "it does not grow while it runs", 10)
                if way == "Escape":
                    web.audit("while answers are made")
                    web.picture("chat-running", full=False)
                    keys.press("Escape")
                else:
                    web.go_to("stop")
                    keys.press("Enter")
                for column in (0, 1):
                    web.until(cell(column, "stopped"), f"{way} does not stop column {column}", 2)
                server.wait_idle(1)
                kept = text_of(web, 0)
                expect(kept and "stopped" in web.run(f"{cell(0)}.querySelector('.stats').textContent"), "it is not said to be stopped")
                same(web.run("document.activeElement.id"), "message", f"where the focus is after {way}")
            web.both_schemes("stopped")
            web.clean()
        web.context.close()


def chat(checks, browser, given, axe):
    model = with_template(given.model, given.work, positions=8192)
    shelf = adapters(given.olora, given.work)
    checks.section(streams, browser, given, axe, shelf)
    options = ["--model", model, "--adapters-dir", shelf, "--adapter", shelf / "crier"]
    with Server(given.olora, *options) as server:

        def answer(name, messages, n):
            body = {"model": name, "messages": messages, "temperature": 0, "max_tokens": n}
            return server.json("POST", "/v1/chat/completions", body)["choices"][0]["message"]["content"]

        asked = [{"role": "user", "content": PROMPT}]
        web = Browser(browser, given, axe, accept_downloads=True)
        keys = web.page.keyboard
        with checks.check("chat: the page, base and adapter, no violation in light and dark"):
            web.page.goto(server.url)
            web.until("document.getElementById('model-1').options.length === 2", "two models to choose from")
            same(web.run("['model-0', 'model-1'].map((id) => document.getElementById(id).value)"), ["village", "crier"], "models")
            web.both_schemes("at the start")
            web.clean()
        with checks.check("chat: base and adapter side by side, as the API answers"):
            set_field(web, "max-tokens", "60")
            send(web, PROMPT)
            for column in (0, 1):
                web.until(cell(column, "done"), f"the answer in column {column}", 20)
            texts = [text_of(web, column) for column in (0, 1)]
            same(texts, [answer(name, asked, 60) for name in ("village", "crier")], "the answers")
            expect(texts[0] != texts[1], "both models say the same")
            boxes = web.run(f"[0, 1].map((c) => document.querySelectorAll('#log .cell')[c].getBoundingClientRect()).map((b) => [b.x, b.y, b.width])")
            expect(boxes[0][0] + boxes[0][2] <= boxes[1][0] and abs(boxes[0][1] - boxes[1][1]) < 2, f"not side by side: {boxes}")
            expect(web.run(f"{cell(0)}.querySelector('.stats').textContent.includes('tokens')"), "no numbers")
            spoken = web.run("document.getElementById('announcer').textContent")
            expect(all(text.strip()[:20] in spoken for text in texts), f"what is read out: {spoken[:200]!r}")
            web.both_schemes("with answers")
            web.clean()
        with checks.check("chat: a second message, with the history"):
            send(web, "And who is his friend?")
            for column in (0, 1):
                web.until(f"document.querySelectorAll('#log .turn').length === 2 && {cell(column, 'done')}", f"the answer in column {column}", 20)
            history = [*asked, {"role": "assistant", "content": text_of(web, 1, 0)}, {"role": "user", "content": "And who is his friend?"}]
            same(text_of(web, 1), answer("crier", history, 60), "the adapter's answer")
            web.picture("chat-light")
            web.page.emulate_media(color_scheme="dark")
            web.picture("chat-dark")
            web.page.emulate_media(color_scheme="light")
            web.clean()
        with checks.check("chat: what was said can be taken along"):
            with web.page.expect_download() as download:
                web.go_to("download")
                keys.press("Enter")
            path = given.work / "chat.jsonl"
            download.value.save_as(path)
            records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            same([record["model"] for record in records], ["village", "crier"], "records")
            same([turn["role"] for turn in records[1]["messages"]], ["user", "assistant"] * 2, "turns")
            same(records[1]["messages"][0]["content"], PROMPT, "the message")
            turns = [turn for record in records for turn in record["messages"]]
            expect({turn.pop("weight", None) for turn in turns} <= {None, 0}, "weights")
            path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
            argv = [str(given.olora), "inspect", "data", str(path), "--model", str(model)]
            ran = subprocess.run(argv, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
            expect(ran.returncode == 0, f"olora does not read it: {ran.stderr[-300:]}")
            web.clean()
        with checks.check("chat: an adapter is loaded, asked and dropped"):
            web.tab_to(lambda at: at["words"] == "Load squire", "Load squire")
            keys.press("Enter")
            web.until("document.querySelector('[data-adapter=squire]')?.textContent === 'Drop'", "it is not loaded")
            same(web.run("document.activeElement.dataset.adapter"), "squire", "the focus stays with it")
            web.go_to("new-chat")
            keys.press("Enter")
            web.run("document.getElementById('columns').focus()")
            keys.press("ArrowDown")
            web.until("document.getElementById('compare').dataset.columns === '3'", "three columns")
            web.run("document.getElementById('model-2').focus()")
            keys.press("End")
            web.until("document.getElementById('model-2').value === 'squire'", "squire is not among the models")
            set_field(web, "max-tokens", "60")
            send(web, PROMPT)
            for column in range(3):
                web.until(cell(column, "done"), f"the answer in column {column}", 20)
            same(text_of(web, 2), answer("squire", asked, 60), "squire's answer")
            web.both_schemes("three columns")
            web.picture("chat-three")
            web.tab_to(lambda at: at["words"] == "Drop squire", "Drop squire")
            keys.press("Enter")
            web.until("document.querySelector('[data-adapter=squire]')?.textContent === 'Load'", "it is not dropped")
            expect("squire" not in web.run("[...document.getElementById('model-0').options].map((o) => o.value)"), "it is still to choose")
            web.clean()
        with checks.check("chat: a setting that cannot be is told, and not sent"):
            set_field(web, "temperature", "3")
            n = web.run("document.querySelectorAll('#log .turn').length")
            send(web, "Hello")
            web.page.wait_for_timeout(200)  # for a request that must not come
            same(web.run("document.querySelectorAll('#log .turn').length"), n, "messages")
            expect(not web.run("document.getElementById('temperature').validity.valid"), "3 counts as valid")
            set_field(web, "temperature", "0")
            web.go_to("new-chat")
            keys.press("Enter")
            web.until("document.querySelectorAll('#log .turn').length === 0", "a new chat")
            web.clean()
        with checks.check("chat: the keyboard reaches all, and is seen where it is"):
            web.run("document.getElementById('columns').value = 2, document.getElementById('columns').dispatchEvent(new Event('change'))")
            set_field(web, "message", "")
            send(web, PROMPT)
            web.until(cell(1, "done"), "an answer", 20)
            web.go_to("message")
            keys.type("x")
            web.reachable(["columns", "theme", *SETTINGS, "adapter-refresh", "model-0", "model-1", "conversation", "message", "send", "retry-last", "download", "new-chat"])
            web.go_to("theme")
            was = web.run("getComputedStyle(document.documentElement).backgroundColor")
            keys.press("Enter")
            web.until(f"getComputedStyle(document.documentElement).backgroundColor !== {json.dumps(was)}", "the theme does not change")
            web.audit("by the button")
            keys.press("Enter")
            web.clean()
        with checks.check("chat: 320 pixels wide, without scrolling sideways"):
            web.page.set_viewport_size(NARROW)
            web.page.reload()
            web.until("document.getElementById('model-1').options.length === 2", "models")
            web.sideways("at the start")
            web.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
            set_field(web, "max-tokens", "60")
            send(web, PROMPT)
            for column in (0, 1):
                web.until(cell(column, "done"), "an answer", 20)
            send(web, "x" * 300)
            web.until(f"document.querySelectorAll('#log .turn').length === 2 && {cell(1, 'done')}", "an answer to a long word", 20)
            web.sideways("with answers and a long word")
            web.both_schemes("narrow")
            web.reachable(["columns", "theme", *SETTINGS, "model-0", "model-1", "message", "retry-last", "download", "new-chat"])
            web.picture("chat-narrow")
            web.page.set_viewport_size(WIDE)
            web.clean()
        with checks.check("chat: markup in messages and answers is text"):
            send(web, BAD)
            web.until(cell(1, "done"), "an answer", 20)
            expect(web.run(f"[...document.querySelectorAll('#log .said')].at(-1).textContent === {json.dumps(BAD)}"), "it is not shown as it is")
            same(web.run("document.querySelectorAll('img, [onerror]').length"), 0, "elements made of text")
            web.clean()
        with checks.check("chat: when the server goes, the page says so and can try again"):
            web.quiet = True
            same(server.stop(), 0, "exit code")
            send(web, PROMPT)
            web.until(cell(0, "failed"), "it does not fail", 10)
            expect(web.run(f"{cell(0)}.querySelector('.error').textContent.length") > 5, "no words about it")
            expect(web.run(f"!!{cell(0)}.querySelector('.retry')"), "no button to try again")
            web.both_schemes("failed")
            web.picture("chat-failed", full=False)
        web.context.close()


# ---------------------------------------------------------------- a report

def reports(checks, browser, given, axe):
    for path in map(pathlib.Path, given.report):
        web = Browser(browser, given, axe)
        asked = []
        web.page.on("request", lambda request: asked.append(request.url))
        with checks.check(f"report {path.name}: by itself, no violation, narrow, the keyboard"):
            web.page.goto(path.resolve().as_uri())
            web.until("document.querySelectorAll('svg.chart, #reports section').length > 0", "nothing is drawn")
            web.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
            web.both_schemes("all opened")
            web.picture(f"report-{path.stem}")
            web.reachable(["theme"])
            web.page.set_viewport_size(NARROW)
            web.page.wait_for_timeout(200)  # charts are drawn again
            web.sideways("narrow")
            others = [url for url in asked if not url.startswith(("data:", path.resolve().as_uri()))]
            same(others, [], "requests")
            web.clean()
        web.context.close()


def main():
    from playwright.sync_api import sync_playwright

    made = parser(__doc__)
    made.add_argument("--only", choices=["board", "chat", "report"], help="one of the pages")
    made.add_argument("--screenshots", help="a directory for pictures of the pages")
    made.add_argument("--report", action="append", default=[], help="an HTML report to look at; may be repeated")
    made.add_argument("--chromium", default=shutil.which("chromium") or shutil.which("chromium-browser"), help="the browser")
    made.add_argument("--axe", help="axe.min.js; by default, that of axe-playwright-python")
    given = arguments(made)
    if not given.village:
        sys.exit("pages.py is written for the quickstart's model")
    if not given.chromium:
        sys.exit("no chromium: on Debian, apt-get install chromium; or give --chromium")
    axe, checks = axe_source(given), Checks()
    say(axe.split("\n", 1)[0].strip("/*! "))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=given.chromium, args=["--no-sandbox", "--disable-gpu"])
        say(f"Chromium {browser.version}")
        for name, part in (("board", board), ("chat", chat), ("report", reports)):
            if given.only in (None, name):
                checks.section(part, browser, given, axe)
        browser.close()
    return checks.end()


if __name__ == "__main__":
    sys.exit(main())
