// What is shown of a comparison: its report, its pictures, its runs.

/** `pictureUrl(name)` is where a picture is. */
function comparisonReport(comparison, pictureUrl) {
  const shown = new Set();
  const picture = (name, alt) => {
    if (!comparison.pictures.includes(name)) {
      return null;
    }
    shown.add(name);
    const text = `${alt || name}. The numbers are in the tables of this report.`;
    return element(
      "figure",
      { class: "picture" },
      element("img", { src: pictureUrl(name), alt: text, loading: "lazy" }),
      element("figcaption", {}, alt || name),
    );
  };
  const about = comparison.report;
  const body =
    about === "missing"
      ? [
          element(
            "p",
            {},
            "There is no report yet. It is written when the comparison ends, or by ",
            element("code", {}, "olora report"),
            " from the runs that are finished.",
          ),
        ]
      : about.error !== undefined
        ? [element("p", { class: "problem" }, about.error)]
        : markdown(about.value, 4, picture);
  const rest = comparison.pictures.filter((name) => !shown.has(name)).map((name) => picture(name, name));
  return element(
    "section",
    { id: idOf("report", comparison.path), class: "report" },
    element("h3", {}, comparison.path),
    comparison.problems.map((reason) => element("p", { class: "problem" }, reason)),
    body,
    rest,
    finishedRuns(comparison),
  );
}

function finishedRuns(comparison) {
  const { cells: runs, path } = comparison;
  if (runs.length === 0) {
    return element("p", {}, "No run of this comparison is finished.");
  }
  return folded(`Finished runs of ${path} (${runs.length})`, () =>
    table(
      `Finished runs of ${path}`,
      ["run", "method", "rank", "learning rate", "seed", "steps", "last validation loss"],
      runs.map((run) => [
        run.name,
        run.variant,
        formatNumber(run.rank),
        formatNumber(run.learning_rate),
        String(run.seed),
        formatNumber(run.steps),
        formatNumber(run.loss),
      ]),
      (column) => column > 1,
    ),
  );
}
