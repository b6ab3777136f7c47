// A chart: lines in an <svg>, what they say in its description and in a table.
//
// A series is { name, slot, raw, smoothed, isMarked }: `raw` and `smoothed` (or null) are
// lists of [x, y] in the order of x, `slot` is which colour and dashes it has, `isMarked`
// whether there are few points, each with a dot.

const HEIGHT = 260;
const MARGIN = { left: 62, right: 14, top: 10, bottom: 42 };
const N_COLORS = 7;
const DASHES = [null, "8 4", "2 3", "8 3 2 3", "14 4"];
const TABLE_ROWS = 20;

/** By slot: 7 colours and 5 dashes have 35 pairs before one comes again. */
function strokeOf(slot) {
  return { class: `series-${slot % N_COLORS}`, dash: DASHES[slot % DASHES.length] };
}

class Chart {
  /** `id` begins the ids of its parts; `yName` says what is up. */
  constructor(id, title, yName) {
    this.title = title;
    this.yName = yName;
    this.model = { series: [], xName: "step", isLog: false };
    this.svg = drawing("svg", {
      id,
      role: "img",
      class: "chart",
      "aria-labelledby": `${id}-title ${id}-description`,
      pointermove: (event) => this.point(event),
      pointerleave: () => this.leave(),
    });
    this.readout = element("p", { class: "readout", id: `${id}-readout` });
    this.note = element("p", { class: "note" });
    this.rows = element("div", {});
    this.table = element(
      "details",
      { id: `${id}-table`, toggle: () => this.tabulate() },
      element("summary", {}, `${title} as a table`),
      this.rows,
    );
    this.figure = element(
      "figure",
      { "aria-labelledby": `${id}-heading` },
      element("figcaption", {}, element("h3", { id: `${id}-heading` }, title)),
      this.svg,
      this.readout,
      this.note,
      this.table,
    );
    this.parts = {
      title: drawing("title", { id: `${id}-title` }, title),
      description: drawing("desc", { id: `${id}-description` }),
      cursor: drawing("line", { class: "cursor", visibility: "hidden" }),
    };
    new ResizeObserver(() => this.draw()).observe(this.figure);
  }

  /** Shows other series. */
  update(series, xName, isLog) {
    const isDrawn = ([x, y]) =>
      Number.isFinite(x) && Number.isFinite(y) && (!isLog || y > 0);
    let left = 0;
    const kept = series.map((one) => {
      const raw = one.raw.filter(isDrawn);
      left += one.raw.length - raw.length;
      return { ...one, raw, smoothed: one.smoothed?.filter(isDrawn) ?? null };
    });
    this.note.textContent =
      isLog && left > 0
        ? `${left} ${left === 1 ? "value is" : "values are"} not above zero, and cannot be shown on a logarithmic axis.`
        : "";
    this.model = { series: kept, xName, isLog };
    this.draw();
    this.tabulate();
  }

  /** Where x and y are in the picture, at its present width. */
  scale() {
    const width = Math.max(240, Math.floor(this.figure.clientWidth));
    const { series, isLog } = this.model;
    let [left, right, low, high] = [Infinity, -Infinity, Infinity, -Infinity];
    for (const one of series) {
      for (const [x, y] of one.raw) {
        left = Math.min(left, x);
        right = Math.max(right, x);
        low = Math.min(low, y);
        high = Math.max(high, y);
      }
    }
    if (!(left <= right)) {
      return null;
    }
    left = Math.min(left, 0);
    if (left === right) {
      right = left + 1;
    }
    if (isLog) {
      const share = low === high ? 2 : (high / low) ** 0.04;
      [low, high] = [low / share, high * share];
    } else {
      const margin = low === high ? Math.abs(low) / 2 || 1 : 0.05 * (high - low);
      [low, high] = [low - margin, high + margin];
    }
    const up = isLog ? Math.log : (y) => y;
    const across = width - MARGIN.left - MARGIN.right;
    const down = HEIGHT - MARGIN.top - MARGIN.bottom;
    return {
      width,
      left,
      right,
      low,
      high,
      x: (x) => MARGIN.left + ((x - left) / (right - left)) * across,
      y: (y) => MARGIN.top + ((up(high) - up(y)) / (up(high) - up(low))) * down,
      back: (place) => left + ((place - MARGIN.left) / across) * (right - left),
    };
  }

  draw() {
    const scale = this.scale();
    const { title, description, cursor } = this.parts;
    description.textContent = this.describe();
    this.place = scale;
    const width = scale?.width ?? Math.max(240, Math.floor(this.figure.clientWidth));
    this.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    if (!scale) {
      const nothing = { x: width / 2, y: HEIGHT / 2, class: "axis-text", "text-anchor": "middle" };
      this.svg.replaceChildren(title, description, drawing("text", nothing, "nothing to show yet"));
      return;
    }
    const { series } = this.model;
    const lines = series.flatMap((one) => this.lines(one, scale));
    cursor.setAttribute("visibility", "hidden");
    this.svg.replaceChildren(title, description, ...this.axes(scale), ...lines, cursor);
  }

  axes(scale) {
    const { isLog, xName } = this.model;
    const bottom = HEIGHT - MARGIN.bottom;
    const made = [];
    const label = (x, y, anchor, text, more = {}) =>
      made.push(drawing("text", { x, y, "text-anchor": anchor, class: "axis-text", ...more }, text));
    const ticks = isLog ? logTicks(scale.low, scale.high, 6) : linearTicks(scale.low, scale.high, 7);
    for (const tick of ticks) {
      const y = scale.y(tick);
      made.push(
        drawing("line", { x1: MARGIN.left, x2: scale.width - MARGIN.right, y1: y, y2: y, class: "grid" }),
      );
      label(MARGIN.left - 6, y + 4, "end", formatTick(tick));
    }
    const room = Math.max(2, Math.floor((scale.width - MARGIN.left) / 65));
    for (const tick of linearTicks(scale.left, scale.right, room)) {
      const x = scale.x(tick);
      made.push(drawing("line", { x1: x, x2: x, y1: bottom, y2: bottom + 4, class: "axis" }));
      // The last stays within the picture.
      label(Math.min(x, scale.width - 18), bottom + 17, "middle", tick.toLocaleString("en-US"));
    }
    made.push(
      drawing("line", { x1: MARGIN.left, x2: scale.width - MARGIN.right, y1: bottom, y2: bottom, class: "axis" }),
    );
    label((MARGIN.left + scale.width) / 2, HEIGHT - 6, "middle", xName);
    const middle = (MARGIN.top + bottom) / 2;
    label(12, middle, "middle", this.yName, { transform: `rotate(-90 12 ${middle})` });
    return made;
  }

  /** The raw line, pale if there is a smoothed one over it. */
  lines(one, scale) {
    const { class: color, dash } = strokeOf(one.slot);
    const path = (points) =>
      points
        .map(([x, y], index) => `${index ? "L" : "M"}${scale.x(x).toFixed(1)} ${scale.y(y).toFixed(1)}`)
        .join("");
    const line = (points, name) =>
      drawing("path", { d: path(points), class: `line ${name} ${color}`, "stroke-dasharray": dash });
    const made = [];
    if (one.smoothed) {
      made.push(drawing("path", { d: path(one.raw), class: `line pale ${color}` }));
      made.push(line(one.smoothed, "smoothed"));
    } else {
      made.push(line(one.raw, one.isMarked ? "thin" : "plain"));
    }
    if (one.isMarked || one.raw.length === 1) {
      for (const [x, y] of one.raw) {
        made.push(drawing("circle", { cx: scale.x(x), cy: scale.y(y), r: 3, class: `mark ${color}` }));
      }
    }
    return made;
  }

  /** What the lines say, in words. */
  describe() {
    const { series, xName, isLog } = this.model;
    const shown = series.filter((one) => one.raw.length > 0);
    if (shown.length === 0) {
      return "Nothing to show yet.";
    }
    const words = shown.map(({ name, raw }) => {
      const [first, last] = [raw[0], raw[raw.length - 1]];
      const lowest = raw.reduce((low, point) => (point[1] < low[1] ? point : low));
      const highest = raw.reduce((high, point) => (point[1] > high[1] ? point : high));
      const at = ([x, y]) => `${formatNumber(y)} at ${formatNumber(x)}`;
      return `${name}: from ${at(first)} to ${at(last)}, lowest ${at(lowest)}, highest ${at(highest)}`;
    });
    const axis = isLog ? "logarithmic" : "linear";
    return `${this.title} by ${xName}, on a ${axis} axis. ${words.join(". ")}.`;
  }

  /** The same numbers as a table, while it is open. */
  tabulate() {
    if (!this.table.open) {
      return;
    }
    const { series, xName } = this.model;
    const shown = series.filter((one) => one.raw.length > 0);
    const all = [...new Set(shown.flatMap((one) => one.raw.map(([x]) => x)))].sort((a, b) => a - b);
    const n = Math.min(TABLE_ROWS, all.length);
    const xs = Array.from({ length: n }, (_, row) =>
      all[n === 1 ? 0 : Math.round((row * (all.length - 1)) / (n - 1))],
    );
    const rows = xs.map((x) => [
      formatNumber(x),
      ...shown.map(({ raw }) => {
        // A run that ended before has no value there.
        const point = x > raw[raw.length - 1][0] ? null : upTo(raw, x);
        return formatNumber(point ? point[1] : null);
      }),
    ]);
    const some = all.length > n ? `, ${n} of ${all.length} places` : "";
    const caption = `${this.title} by ${xName}${some}; each the last value up to there`;
    this.rows.replaceChildren(
      table(caption, [xName, ...shown.map((one) => one.name)], rows, () => true),
    );
  }

  /** What is under the pointer, in words below the chart. */
  point(event) {
    if (!this.place) {
      return;
    }
    const { cursor } = this.parts;
    const box = this.svg.getBoundingClientRect();
    const x = this.place.back(((event.clientX - box.left) * this.place.width) / box.width);
    const shown = this.model.series.filter((one) => one.raw.length > 0);
    const near = shown.map((one) => [one, nearest(one.smoothed ?? one.raw, x)]);
    if (near.length === 0) {
      return;
    }
    const [, closest] = near.reduce((best, one) =>
      Math.abs(one[1][0] - x) < Math.abs(best[1][0] - x) ? one : best,
    );
    const place = this.place.x(closest[0]);
    for (const [name, value] of Object.entries({
      x1: place,
      x2: place,
      y1: MARGIN.top,
      y2: HEIGHT - MARGIN.bottom,
      visibility: "visible",
    })) {
      cursor.setAttribute(name, value);
    }
    // What has ended before, or begins later, says nothing of this place.
    const isThere = ({ raw }) => raw[0][0] <= closest[0] && closest[0] <= raw[raw.length - 1][0];
    const words = near
      .filter(([one]) => isThere(one))
      .map(([one, [, y]]) => `${one.name} ${formatNumber(y)}`);
    this.readout.textContent = `${this.model.xName} ${formatNumber(closest[0])}: ${words.join("; ")}`;
  }

  leave() {
    this.parts.cursor.setAttribute("visibility", "hidden");
    this.readout.textContent = "";
  }
}

/** The last point whose x is not beyond one. */
function upTo(points, x) {
  let [low, high] = [0, points.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle][0] <= x) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low > 0 ? points[low - 1] : null;
}

/** The point whose x is closest to one. */
function nearest(points, x) {
  const before = upTo(points, x) ?? points[0];
  const next = points[points.indexOf(before) + 1] ?? before;
  return Math.abs(next[0] - x) < Math.abs(before[0] - x) ? next : before;
}
