// The list of runs and comparisons to choose from. Its items stay as elements when what
// they say changes, so that whoever is at one with the keyboard stays there.

const ORDERS = {
  newest: (one, other) => (other.started ?? 0) - (one.started ?? 0),
  name: () => 0,
  loss: (one, other) => (one.validation_loss ?? one.loss ?? Infinity) - (other.validation_loss ?? other.loss ?? Infinity),
};

class Chooser {
  /** `kind` is "run" or "comparison"; `words` says what stands below a name; `onChange` is
   * called with what is chosen. */
  constructor(kind, list, words, onChange) {
    this.kind = kind;
    this.list = list;
    this.words = words;
    this.onChange = onChange;
    this.items = new Map();
    this.chosen = new Set();
  }

  /** Takes in entries that are new or have changed, and drops those that are gone. */
  update(changed, gone) {
    for (const entry of changed) {
      const item = this.items.get(entry.path) ?? this.make(entry.path);
      item.entry = entry;
      item.words.textContent = this.words(entry);
    }
    let isLost = false;
    for (const path of gone) {
      this.items.get(path)?.row.remove();
      this.items.delete(path);
      isLost = this.chosen.delete(path) || isLost;
    }
    if (isLost) {
      this.onChange([...this.chosen]);
    }
  }

  make(path) {
    const id = idOf(this.kind, path);
    const words = element("span", { class: "words", id: `${id}-words` });
    const box = element("input", {
      type: "checkbox",
      id,
      "data-path": path,
      "aria-describedby": `${id}-words`,
      change: () => this.choose(path, box.checked),
    });
    box.checked = this.chosen.has(path);
    const row = element("li", {}, box, element("label", { for: id }, path), words);
    const item = { row, box, words, entry: null };
    this.items.set(path, item);
    return item;
  }

  choose(path, isChosen) {
    if (isChosen) {
      this.chosen.add(path);
    } else {
      this.chosen.delete(path);
    }
    const item = this.items.get(path);
    if (item) {
      item.box.checked = isChosen;
    }
    this.onChange([...this.chosen]);
  }

  /** Puts items in order, and shows those whose path has a text in it. Returns how many. */
  arrange(order, text) {
    const words = text.toLowerCase().split(/\s+/).filter((word) => word !== "");
    const sorted = [...this.items.values()].sort(
      (one, other) =>
        ORDERS[order](one.entry, other.entry) || one.entry.path.localeCompare(other.entry.path),
    );
    let shown = 0;
    for (const item of sorted) {
      const said = `${item.entry.path} ${item.entry.name ?? ""} ${item.entry.state ?? ""}`.toLowerCase();
      item.row.hidden = !words.every((word) => said.includes(word));
      shown += item.row.hidden ? 0 : 1;
    }
    const isOther = sorted.some((item, index) => this.list.children[index] !== item.row);
    if (isOther || this.list.children.length !== sorted.length) {
      const focused = document.activeElement;
      this.list.replaceChildren(...sorted.map((item) => item.row));
      if (this.list.contains(focused)) {
        focused.focus();
      }
    }
    return shown;
  }
}

/** What stands below a run's name. */
function runWords(entry) {
  const loss = entry.validation_loss ?? entry.loss;
  const parts = [
    entry.state,
    entry.steps === null ? null : `${formatNumber(entry.steps)} steps`,
    loss === null ? null : `${entry.validation_loss === null ? "" : "validation "}loss ${formatNumber(loss)}`,
    entry.seconds === null ? null : formatSeconds(entry.seconds),
    entry.started === null ? null : `started ${formatTime(entry.started)}`,
    entry.problem === null ? null : `problem: ${entry.problem}`,
  ];
  return parts.filter((part) => part !== null).join(" · ");
}

function comparisonWords(entry) {
  const runs = entry.n_runs === 1 ? "1 finished run" : `${entry.n_runs} finished runs`;
  return `${runs} · ${entry.has_report ? "with a report" : "no report yet"}`;
}
