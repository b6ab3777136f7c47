// From a run's curves, as the server has them, to the series of charts.
//
// The server's points are [step, tokens, seconds, value]. A long curve is given as the
// lowest and highest point of each stretch, with the means of stretches beside them.

const X_AXES = {
  step: { index: 0, name: "step" },
  tokens: { index: 1, name: "tokens" },
  seconds: { index: 2, name: "seconds of training" },
};

/** A curve may grow by so many points before the server is asked for fewer. */
const MOST_POINTS = 4000;

/** The charts that every board has: which curves are in each. */
const CHARTS = [
  {
    id: "chart-loss",
    title: "Loss",
    yName: "loss",
    curves: [
      { name: "loss", label: "training", isSmoothed: true },
      { name: "validation_loss", label: "validation", isMarked: true },
    ],
    hasLog: true,
  },
  {
    id: "chart-learning-rate",
    title: "Learning rate",
    yName: "rate",
    curves: [{ name: "learning_rate" }],
    hasLog: true,
  },
  {
    id: "chart-grad-norm",
    title: "Gradient norm",
    yName: "norm before clipping",
    curves: [{ name: "grad_norm", isSmoothed: true }],
    hasLog: true,
  },
  {
    id: "chart-tokens-per-second",
    title: "Tokens per second",
    yName: "tokens per second",
    curves: [{ name: "tokens_per_second", isSmoothed: true }],
    hasLog: true,
  },
];

/** A chart for each thing that an objective measures beside its loss. Some are below zero,
 * so that their axis stays linear. */
function measureCharts(runs) {
  const names = new Set();
  for (const run of runs) {
    for (const name of Object.keys(run.curves)) {
      const found = name.match(/^(?:validation_)?measures\/(.+)$/);
      if (found) {
        names.add(found[1]);
      }
    }
  }
  return [...names].sort().map((name) => ({
    id: idOf("chart-measure", name),
    title: name,
    yName: "",
    curves: [
      { name: `measures/${name}`, label: "training", isSmoothed: true },
      { name: `validation_measures/${name}`, label: "validation", isMarked: true },
    ],
    hasLog: false,
  }));
}

/** The series of a chart, for runs { path, slot, curves }. */
function seriesOf(chart, runs, settings) {
  const { index } = X_AXES[settings.xAxis];
  const across = (points) =>
    points
      .map((point) => [point[index], point[3]])
      .filter(([x]) => x !== null)
      .sort((one, other) => one[0] - other[0]);
  return runs.flatMap((run) =>
    chart.curves
      .filter((curve) => run.curves[curve.name])
      .map((curve) => {
        const { points, means } = run.curves[curve.name];
        const isSmoothed = curve.isSmoothed && settings.smoothing > 0;
        return {
          name: curve.label ? `${run.path}, ${curve.label}` : run.path,
          slot: run.slot,
          raw: across(points),
          smoothed: isSmoothed ? smooth(across(means ?? points), settings.smoothing) : null,
          isMarked: curve.isMarked === true && points.length <= 200,
        };
      }),
  );
}

/** Adds points to curves. Returns whether one of them has become too long. */
function extend(curves, added) {
  let isLong = false;
  for (const [name, points] of Object.entries(added)) {
    curves[name] ??= { points: [] };
    curves[name].points.push(...points);
    curves[name].means?.push(...points);
    isLong ||= curves[name].points.length > MOST_POINTS;
  }
  return isLong;
}
