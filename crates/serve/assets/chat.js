// The chat page of `olora serve`: one message goes to up to four models, and their
// answers stand side by side. There is no framework and no build step. All text from
// models and from the server enters the page as text nodes, never as markup.
"use strict";

// /v1/completions ends after 16 tokens unless told otherwise, which cuts most answers.
const PLAIN_TOKENS = 128;

const byId = (id) => document.getElementById(id);
const form = byId("composer");
const selects = [0, 1, 2, 3].map((column) => byId(`model-${column}`));

let models = []; // as GET /v1/models lists them, base first
const plainModels = new Set(); // those that refused a chat since they have no chat template
let turns = []; // {message, slots, cells}, where `cells` has one answer per column
const running = new Map(); // from a cell that is being answered to its AbortController
let columnsChosen = false;

const columns = () => Number(byId("columns").value);

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function button(label, attributes, act) {
  const node = make("button", { type: "button", ...attributes }, label);
  node.addEventListener("click", () => act(node));
  return node;
}

// ---- The server

const refusal = (error, or) => Object.assign(new Error(error?.message ?? or), { code: error?.code });

// If there is a key, the browser has asked for it and sends it by itself to its own origin.
async function call(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { credentials: "same-origin", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is it still running?");
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  throw refusal(body?.error, `HTTP ${response.status}`);
}

const post = (path, body, signal) =>
  call(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), signal });

// What stands after `data:` in a stream of server-sent events. Every event of this
// interface is one line, but chunks of the network end anywhere, inside a line too.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split(/\r?\n/);
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) yield line.slice(5).trim();
      }
    }
  } finally {
    // After [DONE] or an error nothing more is wanted.
    reader.cancel().catch(() => {});
  }
}

// ---- What a model is sent

// A field that is empty is left to the server.
function sampling() {
  const chosen = {};
  for (const { name, value } of form.elements) {
    if (name !== "" && value !== "") chosen[name] = Number(value);
  }
  return chosen;
}

// Whether an answer is part of the conversation. One that was stopped is, as far as it came.
const isKept = (cell) => cell.status === "done" || (cell.status === "stopped" && cell.text !== "");

// What a column's model has answered before a turn. Another model that stood in the
// column before has a history of its own, so that no model reads another's words as its own.
const history = (turn, column, model) =>
  turns
    .slice(0, turns.indexOf(turn))
    .map((earlier) => earlier.cells[column])
    .filter((cell) => cell && cell.model === model && isKept(cell));

const exchange = (cell) => [
  { role: "user", content: cell.turn.message },
  { role: "assistant", content: cell.text },
];

const systemTurn = (text) => (text === "" ? [] : [{ role: "system", content: text }]);

function request(cell) {
  const common = { model: cell.model, ...cell.sampling, stream: true, stream_options: { include_usage: true } };
  if (cell.plain) return ["/v1/completions", { max_tokens: PLAIN_TOKENS, ...common, prompt: cell.turn.message }];
  const messages = [
    ...systemTurn(cell.system),
    ...history(cell.turn, cell.column, cell.model).flatMap(exchange),
    { role: "user", content: cell.turn.message },
  ];
  return ["/v1/chat/completions", { ...common, messages }];
}

async function stream(cell, signal) {
  const lost = "The connection ended before the answer did.";
  const response = await post(...request(cell), signal);
  try {
    for await (const data of events(response)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw refusal(chunk.error, data);
      cell.usage = chunk.usage ?? cell.usage;
      const choice = chunk.choices?.[0];
      cell.finish = choice?.finish_reason ?? cell.finish;
      append(cell, choice?.delta?.content ?? choice?.text ?? "");
    }
  } catch (error) {
    // So the browser names a connection that broke.
    throw error instanceof TypeError ? new Error(lost) : error;
  }
  throw new Error(lost);
}

// Asks for a column's answer to a turn, in place of the one before, if any.
async function answer(turn, column, model = selects[column].value) {
  const system = byId("system").value;
  const cell = { turn, column, model, system, sampling: sampling(), plain: plainModels.has(model), text: "", status: "running" };
  showCell(cell);
  turn.cells[column] = cell;
  const controller = new AbortController();
  running.set(cell, controller);
  update();
  const started = performance.now();
  try {
    await stream(cell, controller.signal).catch((error) => {
      if (error.code !== "no_chat_template" || cell.plain) throw error;
      plainModels.add(model);
      cell.plain = true;
      showPlainNotice();
      return stream(cell, controller.signal);
    });
    cell.status = "done";
  } catch (error) {
    cell.status = controller.signal.aborted ? "stopped" : "failed";
    cell.error = error.message;
  }
  cell.seconds = (performance.now() - started) / 1000;
  running.delete(cell);
  finishCell(cell);
  update();
}

// Asks the models of all columns for their answers to the last turn.
function ask() {
  say("");
  following = true;
  for (let column = 0; column < columns(); column += 1) answer(turns.at(-1), column);
}

function send() {
  const message = byId("message").value;
  if (running.size > 0 || models.length === 0 || message.trim() === "" || !form.reportValidity()) return;
  // A failure that the conversation passes over stays out of it.
  for (const retry of document.querySelectorAll(".retry")) {
    retry.replaceWith(make("span", { class: "hint" }, "left out of the conversation"));
  }
  turns.push({ message, cells: [] });
  showTurn(turns.at(-1));
  byId("message").value = "";
  ask();
}

const stop = () => running.forEach((controller) => controller.abort());

function newChat() {
  stop();
  turns = [];
  byId("log").replaceChildren();
  say("New chat.");
  update();
  byId("message").focus();
}

// ---- The conversation on the page

function showTurn(turn) {
  const number = turns.length;
  turn.slots = selects.map(() => make("div", { class: "slot" }));
  const heading = make("h3", { class: "unseen" }, `Message ${number}`);
  const said = make("p", { class: "said text", dir: "auto" }, turn.message);
  const attributes = { class: "turn", "data-turn": number - 1, "aria-label": `Message ${number} and its answers` };
  byId("log").append(make("article", attributes, heading, said, make("div", { class: "row" }, ...turn.slots)));
}

function showCell(cell) {
  // One text node grows, which costs the same for every token.
  cell.letters = document.createTextNode("");
  cell.stats = make("span", { class: "stats hint" }, "answering…");
  cell.foot = make("div", { class: "foot" }, cell.stats);
  const text = make("div", { class: "text", dir: "auto" }, cell.letters);
  const attributes = { class: "cell", "data-column": cell.column, "data-model": cell.model, "data-status": "running" };
  cell.node = make("div", attributes, make("h4", {}, cell.model), text, cell.foot);
  cell.turn.slots[cell.column].replaceChildren(cell.node);
  follow();
}

function append(cell, text) {
  if (text === "") return;
  cell.text += text;
  cell.letters.appendData(text);
  follow();
}

function finishCell(cell) {
  const { model, text, status, usage, seconds } = cell;
  cell.node.dataset.status = status;
  const stats = [];
  if (cell.plain) stats.push("as plain text");
  if (usage) stats.push(`${usage.completion_tokens} tokens`);
  stats.push(`${seconds.toFixed(2)} s`);
  if (usage && seconds > 0) stats.push(`${(usage.completion_tokens / seconds).toFixed(1)} tokens/s`);
  if (status === "stopped") stats.push("stopped");
  if (status === "failed") stats.push("failed");
  if (cell.finish === "length") stats.push("cut at max tokens");
  cell.stats.textContent = stats.join(" · ");
  if (text !== "") {
    cell.foot.append(button("Copy", { class: "copy", "aria-label": `Copy the answer of ${model}` }, () => copy(cell)));
  }
  if (status === "failed") cell.foot.before(make("p", { class: "error" }, cell.error));
  if (!isKept(cell)) {
    const again = () => {
      if (!form.reportValidity()) return;
      answer(cell.turn, cell.column, model);
      byId("message").focus();
    };
    cell.foot.append(button("Retry", { class: "retry", "aria-label": `Retry ${model}` }, again));
  }
  follow();
  // Whoever began a new chat does not want to hear of the old one.
  if (!cell.node.isConnected) return;
  const end = { done: `answered: ${text}`, stopped: `was stopped. ${text}`, failed: `failed: ${cell.error}` }[status];
  const spoken = make("p", {}, `${model} ${end}`);
  byId("announcer").append(spoken);
  setTimeout(() => spoken.remove(), 10000);
}

function showPlainNotice() {
  byId("plain-notice").textContent =
    `No chat template: ${[...plainModels].join(", ")}. Each message is continued as plain text (/v1/completions), ` +
    `without the system message and earlier turns; for up to ${PLAIN_TOKENS} tokens if no maximum is set.`;
  byId("plain-notice").hidden = false;
}

// The end stays in sight while answers grow, until the reader scrolls up. The
// conversation scrolls or, on a small page, the page does.
const scrollers = [byId("conversation"), document.documentElement];
let following = true;
let lastTop = 0;
let frame = 0;
function follow() {
  frame ||= requestAnimationFrame(() => {
    frame = 0;
    if (following) for (const box of scrollers) box.scrollTop = box.scrollHeight;
  });
}
function scrolled({ target }) {
  const box = target === document ? scrollers[1] : target;
  if (!scrollers.includes(box)) return;
  const toEnd = box.scrollHeight - box.clientHeight - box.scrollTop;
  // Upwards and still at the end: an answer was replaced by a shorter one.
  if (box.scrollTop < lastTop && toEnd > 2) following = false;
  else if (toEnd < 40) following = true;
  lastTop = box.scrollTop;
}

// A line under the buttons, which is read out too.
const say = (text) => (byId("status").textContent = text);

// What can be done now.
function update() {
  const busy = running.size > 0;
  byId("send").disabled = busy || models.length === 0;
  byId("stop").disabled = !busy;
  byId("retry-last").disabled = busy || turns.length === 0;
  byId("new-chat").disabled = turns.length === 0;
  byId("download").disabled = busy || records().length === 0;
  byId("empty").hidden = turns.length > 0;
  byId("log").setAttribute("aria-busy", busy);
  byId("columns").disabled = busy;
  byId("compare").dataset.columns = columns();
  selects.forEach((select, column) => {
    select.disabled = busy;
    select.parentNode.hidden = column >= columns();
    for (const turn of turns) turn.slots[column].hidden = column >= columns();
  });
}

// ---- Taking answers along

async function copy(cell) {
  try {
    await navigator.clipboard.writeText(cell.text);
  } catch {
    // Over plain HTTP from another machine there is no clipboard but this one.
    getSelection().selectAllChildren(cell.letters.parentNode);
    const done = document.execCommand("copy");
    if (!done) return say("The browser refused to copy. The answer is selected.");
    getSelection().removeAllRanges();
  }
  return say(`Copied the answer of ${cell.model}.`);
}

// One record per conversation, in a layout that `olora train` reads. Models without a
// chat template are not trained on chats: their answers are pairs of prompt and completion.
// Weight 0 passes over answers that were cut, so that nobody learns to end in mid-sentence.
function records() {
  const all = [];
  for (let column = 0; column < columns(); column += 1) {
    const cells = turns.map((turn) => turn.cells[column]).filter((cell) => cell && isKept(cell));
    for (const model of new Set(cells.map((cell) => cell.model))) {
      const own = cells.filter((cell) => cell.model === model);
      const weight = (cell) => (cell.status === "stopped" || cell.finish === "length" ? { weight: 0 } : {});
      if (own.at(-1).plain) {
        for (const cell of own) all.push({ prompt: cell.turn.message, completion: cell.text, ...weight(cell), model });
        continue;
      }
      const messages = own.flatMap((cell) => {
        const [user, assistant] = exchange(cell);
        return [user, { ...assistant, ...weight(cell) }];
      });
      all.push({ messages: [...systemTurn(own.at(-1).system), ...messages], model });
    }
  }
  return all;
}

function download() {
  const lines = records();
  const text = lines.map((record) => `${JSON.stringify(record)}\n`).join("");
  const url = URL.createObjectURL(new Blob([text], { type: "application/jsonl" }));
  const time = new Date().toISOString().slice(0, 19).replaceAll(":", "-");
  make("a", { href: url, download: `olora-chat-${time}.jsonl` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
  const cut = text.includes('"weight":0') ? " Answers that were cut have weight 0: training passes over them." : "";
  say(`Downloaded ${lines.length} record${lines.length === 1 ? "" : "s"}.${cut}`);
}

// ---- Models and adapters

function showError(id, text) {
  byId(id).querySelector(".text").textContent = text;
  byId(id).hidden = text === "";
}

async function loadModels() {
  try {
    models = (await (await call("/v1/models")).json()).data;
  } catch (error) {
    return showError("page-error", error.message);
  }
  showError("page-error", "");
  const shown = columns();
  if (!columnsChosen) byId("columns").value = Math.min(2, models.length);
  selects.forEach((select, column) => {
    const before = select.value;
    const options = (of) => of.map(({ id }) => make("option", { value: id }, id));
    const base = models.filter(({ parent }) => parent === null || parent === undefined);
    const adapters = models.filter((model) => !base.includes(model));
    select.replaceChildren(make("optgroup", { label: "Base model" }, ...options(base)));
    if (adapters.length > 0) select.append(make("optgroup", { label: "Adapters" }, ...options(adapters)));
    // A column that is in use keeps its model, as long as there is one of that name.
    const stays = column < shown && models.some(({ id }) => id === before);
    select.value = stays ? before : models[column % models.length].id;
  });
  return update();
}

async function loadAdapters() {
  try {
    const { data } = await (await call("/v1/adapters")).json();
    byId("adapter-list").replaceChildren(...data.map(adapterRow));
    byId("adapter-none").hidden = data.length > 0;
    showError("adapter-error", "");
  } catch (error) {
    showError("adapter-error", error.message);
  }
}

const refresh = () => Promise.all([loadModels(), loadAdapters()]);

function adapterRow({ id, loaded }) {
  const label = loaded ? "Drop" : "Load";
  const change = async (node) => {
    node.disabled = true;
    node.textContent = loaded ? "Dropping…" : "Loading…";
    try {
      if (loaded) await call(`/v1/models/${encodeURIComponent(id)}`, { method: "DELETE" });
      else await post("/v1/adapters", { name: id });
    } catch (error) {
      node.disabled = false;
      node.textContent = label;
      return showError("adapter-error", error.message);
    }
    // Another adapter may have its name and a template of its own.
    plainModels.delete(id);
    say(`${loaded ? "Dropped" : "Loaded"} ${id}.`);
    await refresh();
    // The button that had the focus is gone; the next one for this adapter takes it.
    return document.querySelector(`[data-adapter="${CSS.escape(id)}"]`)?.focus();
  };
  const act = button(label, { "data-adapter": id, "aria-label": `${label} ${id}` }, change);
  return make("li", { "data-loaded": loaded }, make("span", { class: "name" }, id), act);
}

// ---- Light and dark

const prefersDark = matchMedia("(prefers-color-scheme: dark)");
const systemTheme = () => (prefersDark.matches ? "dark" : "light");
let theme = "";

// Storage may be forbidden. Then a choice lasts as long as the page.
try {
  theme = localStorage.getItem("olora-theme") ?? "";
} catch {}

function showTheme() {
  document.documentElement.dataset.theme = theme;
  byId("theme").textContent = (theme || systemTheme()) === "dark" ? "Light theme" : "Dark theme";
}

function toggleTheme() {
  const next = (theme || systemTheme()) === "dark" ? "light" : "dark";
  // Whoever is back at the system's theme goes on following it.
  theme = next === systemTheme() ? "" : next;
  try {
    localStorage.setItem("olora-theme", theme);
  } catch {}
  showTheme();
}

// ---- What the reader does

form.addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
byId("message").addEventListener("keydown", (event) => {
  // While an input method composes a word, Enter takes the word.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});
// Enter in a setting would send the message by the way.
byId("settings").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && event.target.tagName === "INPUT") event.preventDefault();
});
// The browser cannot show what is wrong in a panel that is closed.
byId("settings").addEventListener("invalid", () => (byId("settings").open = true), true);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.isComposing) stop();
});
document.addEventListener("scroll", scrolled, true);
byId("stop").addEventListener("click", () => {
  stop();
  byId("message").focus();
});
byId("retry-last").addEventListener("click", () => form.reportValidity() && ask());
const clicks = { "new-chat": newChat, download, reload: loadModels, "adapter-refresh": refresh, theme: toggleTheme };
for (const [id, act] of Object.entries(clicks)) byId(id).addEventListener("click", act);
prefersDark.addEventListener("change", showTheme);
byId("columns").addEventListener("change", () => {
  columnsChosen = true;
  update();
});

selects.forEach((select, column) =>
  select.addEventListener("change", () => {
    const before = turns.map((turn) => turn.cells[column]?.model).filter(Boolean);
    const isNew = before.length > 0 && !before.includes(select.value);
    say(isNew ? `${select.value} has not read what this column's model before it was told.` : "");
  }),
);

if (matchMedia("(min-width: 64rem)").matches) byId("settings").open = byId("adapters").open = true;
showTheme();
byId("columns").value = 2;
refresh();
