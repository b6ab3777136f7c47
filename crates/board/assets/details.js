// What is shown of runs beside curves: where recipes differ, memory, samples, data.

/** Keys of recipes in which chosen runs differ; nothing for less than two. */
function differences(runs) {
  const known = runs.filter((run) => run.recipe?.value);
  const broken = runs
    .filter((run) => run.recipe?.error)
    .map((run) => element("p", { class: "problem" }, `${run.path}: ${run.recipe.error}`));
  if (known.length < 2) {
    return [...broken, element("p", {}, "Choose two runs or more to see where their recipes differ.")];
  }
  const keys = [...new Set(known.flatMap((run) => Object.keys(run.recipe.value)))].sort();
  const rows = keys
    .map((key) => [key, ...known.map((run) => run.recipe.value[key] ?? NONE)])
    .filter(([, ...values]) => new Set(values).size > 1)
    .map(([key, ...values]) => [element("code", {}, key), ...values]);
  if (rows.length === 0) {
    return [...broken, element("p", {}, "The recipes of these runs are the same.")];
  }
  const head = ["key", ...known.map((run) => run.path)];
  return [...broken, table("Keys in which the recipes differ", head, rows)];
}

/** All of a run, folded together under its name. */
function runDetails(run, isOpen) {
  const name = run.name && run.name !== run.path ? ` (${run.name})` : "";
  return folded(
    element("h3", {}, `${run.path}${name}`),
    () =>
      element(
        "div",
        {},
        run.problem ? element("p", { class: "problem" }, run.problem) : null,
        overview(run),
        heading("Memory"),
        memory(run),
        heading("Samples before and after"),
        samples(run),
        heading("Data"),
        dataReport(run),
        heading("Recipe"),
        recipe(run),
      ),
    { id: idOf("details", run.path), class: "run", open: isOpen },
  );
}

function heading(text) {
  return element("h4", {}, text);
}

/** What a file holds, or why that is not shown. */
function contentOf(content, name, show) {
  if (content === "missing" || content === undefined) {
    return element("p", {}, `There is no ${name}.`);
  }
  if (content.error !== undefined) {
    return element("p", { class: "problem" }, content.error);
  }
  return show(content.value);
}

function overview(run) {
  const summary = run.summary?.value ?? {};
  const versions = Object.entries(summary.versions ?? {}).map((pair) => pair.join(" "));
  const count = (value) => (value === undefined ? NONE : formatNumber(value));
  const before = summary.validation_loss_before;
  const after = summary.validation_loss ?? run.validation_loss;
  const rows = [
    ["state", summary.stopped_early ? `${run.state}, stopped early` : run.state],
    ["steps", formatNumber(run.steps)],
    ["training loss, last", formatNumber(run.loss)],
    ["validation loss before the first step", formatNumber(before)],
    ["validation loss, last", formatNumber(after)],
    ["tokens", count(summary.tokens)],
    ["time of training", formatSeconds(run.seconds)],
    ["started", formatTime(run.started)],
    ["parameters", count(summary.n_params)],
    ["parameters that are trained", count(summary.n_trained_params)],
    ["device", summary.device ?? NONE],
    ["versions", versions.join(", ") || NONE],
  ];
  const known = rows.filter(([, value]) => value !== NONE);
  return table(`${run.path} in short`, null, known);
}

const MEMORY = {
  weights: "weights",
  trained: "what is trained, with its gradients and optimiser",
  activations: "activations",
  workspace: "workspace",
  logits: "logits",
  process: "the process itself",
};

function memory(run) {
  const summary = run.summary?.value;
  const measured = summary?.peak_memory ?? run.peak_memory;
  const device = summary?.peak_device_memory ?? run.device_memory;
  const rows = [];
  if (summary?.estimated_memory) {
    for (const [key, bytes] of Object.entries(summary.estimated_memory)) {
      rows.push([`predicted: ${MEMORY[key] ?? key}`, formatBytes(bytes)]);
    }
    rows.push(["predicted: peak", formatBytes(summary.estimated_peak)]);
  }
  rows.push(["measured: peak of the process", formatBytes(measured)]);
  rows.push(["measured: peak of the device's allocator", formatBytes(device)]);
  const made = [table(`Memory of ${run.path}`, null, rows, (column) => column === 1)];
  if (!summary?.estimated_memory) {
    made.push(
      element("p", {}, "What was predicted stands in summary.json, which is written when a run ends."),
    );
  }
  return element("div", {}, made);
}

function samples(run) {
  if (run.samples === "missing") {
    return element(
      "p",
      {},
      "There is no samples.json in this run's directory: its recipe has no samples.prompts, or it was made before samples were kept.",
    );
  }
  return contentOf(run.samples, "samples.json", (list) => {
    const prompts = new Map();
    for (const { when, prompt, text } of Array.isArray(list) ? list : []) {
      prompts.set(prompt, { ...prompts.get(prompt), [when]: text });
    }
    const text = (value) => element("span", { class: "sample" }, value ?? NONE);
    const rows = [...prompts].map(([prompt, { before, after }]) => [text(prompt), text(before), text(after)]);
    return rows.length > 0
      ? table(`Samples of ${run.path}`, ["prompt", "before training", "after training"], rows)
      : element("p", {}, "The recipe has no prompts for samples.");
  });
}

function dataReport(run) {
  const sets = Array.isArray(run.data?.value) ? run.data.value : [];
  const report = contentOf(run.data, "data.json", () =>
    element("div", {}, sets.map((set, index) => dataSet(run, set, index))),
  );
  return element("div", {}, report, hasExamples(sets) ? null : howToSee(run));
}

/** What of a report on data comes first; counts that are zero are left out of the rest. */
const FIRST = [
  "format",
  "prompt_style",
  "n_records",
  "n_samples",
  "n_tokens",
  "n_trained_tokens",
  "max_length",
  "longest",
  "n_truncated",
  "n_dropped",
  "n_empty",
];

/** One data set: the numbers of its report, then its lists. */
function dataSet(run, set, index) {
  const report = set?.report ?? {};
  const name = `${set?.role ?? "data"}: ${set?.name ?? NONE}`;
  const caption = `${name} (${run.path}, data set ${index + 1})`;
  const all = { ...report.reading, ...report };
  const isCount = (value) => value === null || typeof value !== "object";
  const rest = Object.keys(all).filter((key) => !FIRST.includes(key) && all[key] !== 0);
  const rows = [...FIRST, ...rest]
    .filter((key) => all[key] !== undefined && isCount(all[key]))
    .map((key) => [wordsOf(key), typeof all[key] === "number" ? formatNumber(all[key]) : String(all[key] ?? NONE)]);
  const lists = Object.entries(all).filter(([, value]) => Array.isArray(value) && value.length > 0);
  return element(
    "div",
    {},
    table(caption, null, rows, (column) => column === 1),
    element("p", { class: "note" }, "All other counts of this report are 0."),
    lists.map(([key, value]) => listTable(`${wordsOf(key)}, ${caption}`, value)),
    examplesOf(set).map((example) => shownExample(example, caption)),
  );
}

function listTable(caption, list) {
  const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
  const text = (value) =>
    value === undefined ? NONE : typeof value === "string" ? value : JSON.stringify(value);
  if (!list.every(isObject)) {
    return table(caption, null, list.map((value) => [text(value)]));
  }
  const keys = [...new Set(list.flatMap((value) => Object.keys(value)))];
  return table(caption, keys.map(wordsOf), list.map((value) => keys.map((key) => text(value[key]))));
}

/** `n_trained_tokens` is "trained tokens". */
function wordsOf(key) {
  return key.replace(/^n_/, "").replaceAll("_", " ");
}

function examplesOf(set) {
  return Array.isArray(set?.examples) ? set.examples : [];
}

function hasExamples(sets) {
  return sets.some((set) => examplesOf(set).length > 0);
}

/** A sample as the model reads it. What is trained is marked, by more than its colour, and
 * in words for those who hear it. */
function shownExample(example, caption) {
  const { pieces, n_tokens, n_trained_tokens, n_shown_tokens, preferred, index } = example ?? {};
  const judged = preferred === true ? ", a good answer" : preferred === false ? ", a bad answer" : "";
  const count = `${formatNumber(n_tokens)} tokens, ${formatNumber(n_trained_tokens)} of them trained (marked)`;
  const cut = n_shown_tokens < n_tokens ? `; the first ${formatNumber(n_shown_tokens)} are shown` : "";
  const aside = (words) => element("span", { class: "heard" }, words);
  const parts = (Array.isArray(pieces) ? pieces : []).map((piece) => {
    const { text, trained, weight } = piece ?? {};
    if (!trained) {
      return String(text ?? "");
    }
    const counts = weight === 1 ? "" : `×${formatNumber(weight)}`;
    return [
      element("mark", {}, aside(" [trained: "), String(text ?? ""), aside("] ")),
      counts && element("sub", {}, counts),
    ];
  });
  return element(
    "figure",
    { class: "example" },
    element("figcaption", {}, `Sample ${index} of ${caption}${judged}: ${count}${cut}`),
    element("p", { class: "sample" }, parts.flat()),
  );
}

/** How to see what runs from before there were examples do not have. */
function howToSee(run) {
  const recipe = run.recipe?.value ?? {};
  const data = recipe["data.train"] ?? "DATA";
  const model = recipe["model.path"] ?? "MODEL";
  return element(
    "p",
    {},
    "No example can be shown from this run's files. This command shows a sample with the tokens marked that are trained: ",
    element("code", {}, `olora inspect data ${quoted(data)} --model ${quoted(model)}`),
  );
}

/** A word of a command line. */
function quoted(word) {
  return /^[\w./:@#-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}

function recipe(run) {
  return contentOf(run.recipe, "recipe.toml", (values) =>
    folded("All keys", () =>
      table(
        `Recipe of ${run.path}`,
        ["key", "value"],
        Object.entries(values).map(([key, value]) => [element("code", {}, key), value]),
      ),
    ),
  );
}
