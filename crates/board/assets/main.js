// The board, which asks the server, and the report, which has its data in it.

/** How often new values are read out, in milliseconds. */
const ANNOUNCE = 10_000;

/** How long to wait before a server that went away is asked again. */
const RETRY = 2_000;

/** What is said while a server is away. */
const AWAY = "The board does not answer. Trying again.";

/** As many as the server watches for one page. */
const MOST_RUNS = 64;

/** A file of one or more runs and comparisons. */
class Report {
  constructor(data) {
    const curves = new CurvesSection();
    const runs = data.runs.map((run, slot) => ({ ...run, slot, entry: run }));
    byId("curves").hidden = runs.length === 0;
    byId("recipes").hidden = runs.length < 2;
    byId("runs").hidden = runs.length === 0;
    byId("comparisons").hidden = data.comparisons.length === 0;
    byId("no-reports").hidden = true;
    curves.show(runs);
    byId("differences").replaceChildren(...differences(runs));
    byId("details").replaceChildren(...runs.map((run) => runDetails(run, true)));
    byId("reports").replaceChildren(
      ...data.comparisons.map((one) => comparisonReport(one, (name) => one.inlined[name])),
    );
    byId("made-by").textContent = `Made by olora ${data.version}.`;
  }
}

/** The page of a server. */
class Board {
  constructor() {
    this.curves = new CurvesSection();
    this.known = new Map();
    this.slots = new Map();
    this.announced = new Map();
    const asked = new URLSearchParams(location.search);
    this.isFirst = !asked.has("run") && !asked.has("comparison");
    this.runs = new Chooser("run", byId("run-list"), runWords, () => this.chosenRuns());
    this.comparisons = new Chooser("comparison", byId("comparison-list"), comparisonWords, () =>
      this.chosenComparisons(),
    );
    asked.getAll("run").forEach((path) => this.runs.chosen.add(path));
    asked.getAll("comparison").forEach((path) => this.comparisons.chosen.add(path));
    for (const id of ["filter", "order"]) {
      byId(id).addEventListener("input", () => this.arrange());
    }
    byId("choose").addEventListener("submit", (event) => event.preventDefault());
    byId("clear").addEventListener("click", () => {
      [...this.runs.chosen].forEach((path) => this.runs.choose(path, false));
    });
    this.begin();
  }

  /** Asks for the list, chooses a run if nothing was asked for, and listens. */
  async begin() {
    let listing;
    try {
      listing = await ask("/api/runs");
    } catch {
      this.retry();
      return;
    }
    const there = new Set([...listing.runs, ...listing.comparisons].map((one) => one.path));
    for (const chooser of [this.runs, this.comparisons]) {
      [...chooser.chosen].filter((path) => !there.has(path)).forEach((path) => chooser.chosen.delete(path));
    }
    this.list({ ...listing, gone: [], gone_comparisons: [] });
    if (this.isFirst && listing.runs.length > 0) {
      const [first] = [...listing.runs].sort(
        (one, other) =>
          (other.state === "running") - (one.state === "running") || ORDERS.newest(one, other),
      );
      this.isFirst = false;
      this.runs.choose(first.path, true);
    } else {
      this.chosenRuns();
    }
    this.chosenComparisons();
  }

  retry() {
    this.say(AWAY);
    clearTimeout(this.waiting);
    this.waiting = setTimeout(() => this.begin(), RETRY);
  }

  list({ directory, is_cut: isCut, runs, gone, comparisons, gone_comparisons: goneComparisons }) {
    byId("directory").textContent = isCut
      ? `${directory}: it has more directories below it than are looked into`
      : directory;
    this.runs.update(runs, gone);
    this.comparisons.update(comparisons, goneComparisons);
    this.arrange();
    for (const entry of runs) {
      const run = this.known.get(entry.path);
      if (run) {
        const isOther = run.entry?.state !== entry.state;
        run.entry = entry;
        if (isOther) {
          this.ask(entry.path);
        }
      }
    }
    for (const entry of comparisons) {
      if (this.comparisons.chosen.has(entry.path)) {
        this.chosenComparisons();
      }
    }
    this.curves.refresh();
  }

  arrange() {
    const text = byId("filter").value;
    const shown = this.runs.arrange(byId("order").value, text);
    this.comparisons.arrange("name", "");
    const all = this.runs.items.size;
    const count = shown === all ? `${all} ${all === 1 ? "run" : "runs"}` : `${shown} of ${all} runs`;
    if (byId("count").textContent !== count) {
      byId("count").textContent = count;
    }
    byId("no-comparisons").hidden = this.comparisons.items.size > 0;
  }

  /** Shows other runs: asks for what is new of them, and listens to all of them. */
  chosenRuns() {
    const paths = [...this.runs.chosen].slice(0, MOST_RUNS);
    for (const path of this.known.keys()) {
      if (!paths.includes(path)) {
        this.known.delete(path);
        this.slots.delete(path);
      }
    }
    for (const path of paths) {
      if (!this.known.has(path)) {
        const taken = new Set(this.slots.values());
        let slot = 0;
        while (taken.has(slot)) {
          slot += 1;
        }
        this.slots.set(path, slot);
        const entry = this.runs.items.get(path)?.entry ?? null;
        this.known.set(path, { path, slot, entry, curves: {} });
        this.ask(path);
      }
    }
    this.remember();
    this.listen(paths);
    this.show();
    if (this.runs.chosen.size > MOST_RUNS) {
      this.say(`Only the first ${MOST_RUNS} of the chosen runs are shown.`);
    }
  }

  /** What of a run is no curve. */
  async ask(path) {
    try {
      const { curves, ...details } = await ask("/api/run", { path });
      const run = this.known.get(path);
      if (run) {
        run.details = details;
        this.showDetails();
      }
    } catch {
      // It is gone, or the server is: the stream of events tells which.
    }
  }

  show() {
    this.curves.show([...this.known.values()]);
    this.showDetails();
  }

  showDetails() {
    const runs = [...this.known.values()].filter((run) => run.details).map((run) => run.details);
    byId("differences").replaceChildren(...differences(runs));
    const section = byId("details");
    const open = new Set([...section.querySelectorAll("details.run[open]")].map((one) => one.id));
    const isFirst = section.children.length === 0;
    section.replaceChildren(
      ...runs.map((run, index) => runDetails(run, open.has(idOf("details", run.path)) || (isFirst && index === 0))),
    );
  }

  async chosenComparisons() {
    this.remember();
    const paths = [...this.comparisons.chosen];
    const found = await Promise.all(paths.map((path) => ask("/api/comparison", { path }).catch(() => null)));
    const isStill = paths.every((path) => this.comparisons.chosen.has(path));
    if (isStill && paths.length === this.comparisons.chosen.size) {
      byId("reports").replaceChildren(
        ...found
          .filter((one) => one !== null)
          .map((one) =>
            comparisonReport(one, (name) => `/api/picture?${new URLSearchParams({ path: one.path, name })}`),
          ),
      );
      byId("no-reports").hidden = paths.length > 0;
    }
  }

  /** The address leads to what is shown. */
  remember() {
    const shown = new URLSearchParams([
      ...[...this.runs.chosen].map((path) => ["run", path]),
      ...[...this.comparisons.chosen].map((path) => ["comparison", path]),
    ]);
    history.replaceState(null, "", `?${shown}`);
  }

  /** One stream for the list and all runs that are shown. */
  listen(paths) {
    this.source?.close();
    const source = new EventSource(`/api/events?${new URLSearchParams(paths.map((path) => ["run", path]))}`);
    this.source = source;
    const on = (name, act) => source.addEventListener(name, (event) => act(JSON.parse(event.data)));
    on("list", (change) => this.list(change));
    on("curves", ({ path, ...curves }) => {
      const run = this.known.get(path);
      if (run) {
        Object.assign(run, curves);
        this.curves.refresh();
      }
    });
    on("points", ({ path, points }) => {
      const run = this.known.get(path);
      if (!run) {
        return;
      }
      const isLong = extend(run.curves, points);
      this.announce(path, points);
      this.curves.refresh();
      if (isLong) {
        this.listen(paths);
      }
    });
    source.addEventListener("open", () => {
      if (byId("live").textContent === AWAY) {
        this.say("");
      }
    });
    source.addEventListener("error", () => {
      if (this.source !== source) {
        return;
      }
      this.say(AWAY);
      // A browser tries again by itself unless it was refused.
      if (source.readyState === EventSource.CLOSED) {
        this.retry();
      }
    });
  }

  /** Has new values read out, not more often than one can listen to. */
  announce(path, points) {
    const last = points.loss?.at(-1) ?? points.validation_loss?.at(-1);
    if (!last) {
      return;
    }
    const name = points.loss ? "loss" : "validation loss";
    this.announced.set(path, `${path}: step ${last[0]}, ${name} ${formatNumber(last[3])}`);
    if (this.speaking) {
      return;
    }
    const speak = () => {
      if (this.announced.size === 0) {
        this.speaking = null;
        return;
      }
      this.say([...this.announced.values()].slice(0, 5).join(". "));
      this.announced.clear();
      this.speaking = setTimeout(speak, ANNOUNCE);
    };
    speak();
  }

  say(text) {
    if (byId("live").textContent !== text) {
      byId("live").textContent = text;
    }
  }
}

async function ask(path, query = {}) {
  const answer = await fetch(`${path}?${new URLSearchParams(query)}`);
  if (!answer.ok) {
    throw new Error(`${path}: ${answer.status}`);
  }
  return answer.json();
}

setUpTheme();
const inlined = byId("inlined");
if (inlined) {
  new Report(JSON.parse(inlined.textContent));
} else {
  new Board();
}
