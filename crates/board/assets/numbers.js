// Numbers: as text, smoothed, and on an axis.

const NONE = "–";

/** Five digits, in words that are as short as they can be. */
function formatNumber(value) {
  if (typeof value !== "number" || !Number.isFinite(value)) {
    return NONE;
  }
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e15) {
    return value.toLocaleString("en-US");
  }
  if (size < 1e-3 || size >= 1e6) {
    return value.toExponential(3).replace(/\.?0+e/, "e").replace("e+", "e");
  }
  return String(Number(value.toPrecision(5)));
}

/** Beside an axis, where there is little room. */
function formatTick(value) {
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) {
    return value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");
  }
  return String(Number(value.toPrecision(6)));
}

function formatBytes(bytes) {
  if (typeof bytes !== "number" || !Number.isFinite(bytes)) {
    return NONE;
  }
  for (const [unit, size] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) {
    if (bytes >= size) {
      return `${(bytes / size).toFixed(bytes >= 100 * size ? 0 : 1)} ${unit}`;
    }
  }
  return `${bytes} B`;
}

function formatSeconds(seconds) {
  if (typeof seconds !== "number" || !Number.isFinite(seconds)) {
    return NONE;
  }
  if (seconds < 60) {
    return `${seconds.toFixed(1)} s`;
  }
  const minutes = Math.floor(seconds / 60);
  return minutes < 60
    ? `${minutes} min ${Math.floor(seconds % 60)} s`
    : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

function formatTime(since1970) {
  return typeof since1970 === "number" ? new Date(1000 * since1970).toLocaleString() : NONE;
}

/**
 * Exponential means of points [x, y]. Divided by the weight that they have so far, so that
 * the first of them is the first value, and not near zero.
 */
function smooth(points, weight) {
  let sum = 0;
  let left = 1;
  return points.map(([x, y]) => {
    sum = weight * sum + (1 - weight) * y;
    left *= weight;
    return [x, sum / (1 - left)];
  });
}

/** Round numbers between two, about so many. */
function linearTicks(low, high, about) {
  const span = high - low;
  if (!(span > 0)) {
    return [low];
  }
  const rough = span / Math.max(about, 1);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((times) => times * power).find((step) => step >= rough);
  const ticks = [];
  for (let index = Math.ceil(low / step); index * step <= high * (1 + 1e-12); index += 1) {
    ticks.push(index * step);
  }
  return ticks;
}

/** Powers of ten between two numbers above zero, with what is between them if there are few. */
function logTicks(low, high, about) {
  const first = Math.floor(Math.log10(low));
  const last = Math.ceil(Math.log10(high));
  const decades = last - first;
  const between = decades <= 1 ? [1, 2, 3, 5, 7] : decades <= 3 ? [1, 2, 5] : [1];
  const every = Math.max(1, Math.ceil(decades / Math.max(about, 1)));
  const ticks = [];
  for (let power = first; power <= last; power += every) {
    for (const times of between) {
      const tick = times * 10 ** power;
      if (tick >= low * (1 - 1e-12) && tick <= high * (1 + 1e-12)) {
        ticks.push(tick);
      }
    }
  }
  return ticks.length > 1 ? ticks : linearTicks(low, high, about).filter((tick) => tick > 0);
}
