// The section of curves: its controls, its legend, and a chart for each thing.

class CurvesSection {
  constructor() {
    this.charts = new Map();
    this.runs = [];
    this.isWaiting = false;
    for (const id of ["smoothing", "log-axis", "x-axis"]) {
      byId(id).addEventListener("input", () => this.refresh());
    }
    byId("controls").addEventListener("submit", (event) => event.preventDefault());
  }

  settings() {
    return {
      smoothing: Number(byId("smoothing").value),
      isLog: byId("log-axis").checked,
      xAxis: byId("x-axis").value,
    };
  }

  /** Shows runs { path, slot, curves, entry }. */
  show(runs) {
    this.runs = runs;
    this.refresh();
  }

  /** Draws when the browser next does, however often it is asked to before. */
  refresh() {
    if (this.isWaiting) {
      return;
    }
    this.isWaiting = true;
    requestAnimationFrame(() => {
      this.isWaiting = false;
      this.draw();
    });
  }

  draw() {
    const settings = this.settings();
    byId("smoothing-value").textContent = settings.smoothing.toFixed(2);
    const wanted = [...CHARTS, ...measureCharts(this.runs)];
    for (const [id, chart] of this.charts) {
      if (!wanted.some((one) => one.id === id)) {
        chart.figure.remove();
        this.charts.delete(id);
      }
    }
    for (const one of wanted) {
      let chart = this.charts.get(one.id);
      if (!chart) {
        chart = new Chart(one.id, one.title, one.yName);
        this.charts.set(one.id, chart);
        byId("charts").append(chart.figure);
      }
      const series = seriesOf(one, this.runs, settings);
      chart.update(series, X_AXES[settings.xAxis].name, settings.isLog && one.hasLog);
    }
    this.legend();
    this.notes();
  }

  legend() {
    const rows = this.runs.map(({ path, slot, entry }) => {
      const { class: color, dash } = strokeOf(slot);
      const line = { x1: 0, x2: 36, y1: 6, y2: 6, class: `line smoothed ${color}`, "stroke-dasharray": dash };
      const swatch = drawing(
        "svg",
        { viewBox: "0 0 36 12", class: "swatch", "aria-hidden": "true" },
        drawing("line", line),
      );
      const loss = entry?.loss ?? null;
      const last = loss === null ? "" : `, loss ${formatNumber(loss)}`;
      return element("li", {}, swatch, element("span", {}, `${path} (${entry?.state ?? "…"}${last})`));
    });
    byId("legend").replaceChildren(...rows);
    byId("nothing").hidden = this.runs.length > 0;
    byId("marks").hidden = this.runs.length === 0;
  }

  /** What of the files was left out. */
  notes() {
    const words = this.runs.flatMap(({ path, n_broken: broken, n_not_finite: notFinite }) => [
      broken > 0 ? `${path}: ${lines(broken)} of metrics.jsonl cannot be read and ${isOrAre(broken)} left out.` : null,
      notFinite > 0 ? `${path}: the loss of ${lines(notFinite)} is not a finite number.` : null,
    ]);
    const items = words.filter((word) => word !== null).map((word) => element("li", {}, word));
    byId("notes").replaceChildren(...items);
    byId("notes").hidden = items.length === 0;
  }
}

function lines(n) {
  return n === 1 ? "1 line" : `${n} lines`;
}

function isOrAre(n) {
  return n === 1 ? "is" : "are";
}
