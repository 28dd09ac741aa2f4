"use strict";

const TYPING_MS = 350;
const SLIDING_MS = 90;
const SHOWN = 50;
const LONG = 420;
const BUSY_RETRIES = 5;
const KEY = "mrr-api-key";

const element = (id) => document.getElementById(id);
const sample = JSON.parse(element("sample-data").textContent);
const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");

let facts = null; // what /page.json says of the model
let apiKey = stored();
let request = null; // the AbortController of the ranking that is under way
let full = null; // {texts, controller, answer}: the same texts at full size, to compare with
let answer = null; // what is shown
let items = new Map(); // the shown documents' elements by index
let itemsOf = null; // the texts that they belong to
let limit = SHOWN;
let timer = null;
let retry = null;
let busyRetries = 0;
let pending = null; // what failed, to be done again

// -- Requests

class Failure extends Error {
  constructor(status, message, retryAfter) {
    super(message);
    Object.assign(this, { status, retryAfter });
  }
}

async function call(path, body, signal) {
  const headers = body ? { "Content-Type": "application/json" } : {};
  if (apiKey) headers.Authorization = `Bearer ${apiKey}`;
  const started = performance.now();
  let response, text;
  try {
    const options = { method: body ? "POST" : "GET", headers, signal, credentials: "same-origin" };
    response = await fetch(path, body ? { ...options, body: JSON.stringify(body) } : options);
    text = await response.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure(0, "", null);
  }
  const trip = performance.now() - started;
  let data = null;
  try {
    data = JSON.parse(text);
  } catch {
    // not JSON: a proxy's page, for example
  }
  if (!response.ok || data === null) {
    const after = Number(response.headers.get("Retry-After"));
    throw new Failure(response.ok ? 0 : response.status, messageOf(data), after > 0 ? after : null);
  }
  return { data, trip, timing: timingOf(response.headers.get("Server-Timing")) };
}

function messageOf(data) {
  const found = [data?.message, data?.error?.message, data?.error, data?.detail].find((each) => typeof each === "string");
  return found ?? "";
}

// "queue;dur=1.5, model;dur=20" -> {queue: 1.5, model: 20}
function timingOf(header) {
  const parts = [...(header ?? "").matchAll(/([\w-]+)\s*;[^,]*?dur=([\d.]+)/g)];
  return Object.fromEntries(parts.map(([, name, duration]) => [name, Number(duration)]));
}

async function rank(query, documents, setting, signal) {
  const knobs = Object.fromEntries(Object.entries(setting).filter(([name]) => allows(name)));
  const body = { model: facts.model, query, documents, ...knobs };
  const { data, trip, timing } = await call("v2/rerank", body, signal);
  return { results: data.results, setting: data.setting, trip, timing, documents };
}

async function run() {
  stopWaiting();
  request?.abort();
  const { query, documents } = texts();
  const key = JSON.stringify([query, documents]);
  if (full !== null && full.texts !== key) {
    full.controller.abort();
    full = null;
  }
  if (facts === null) return;
  if (query === "" || documents.length === 0) {
    showNothing(query, documents);
    return;
  }
  if (documents.length > facts.max_documents) {
    tell(`This server takes at most ${number(facts.max_documents)} documents per request; there are ${number(documents.length)}.`);
    return;
  }
  const controller = new AbortController();
  request = controller;
  busy(true);
  try {
    const setting = chosen();
    const ranked = await rank(query, documents, setting, controller.signal);
    if (controller.signal.aborted) return;
    busyRetries = 0;
    tell("");
    answer = { ...ranked, texts: key };
    if (isFull(setting)) full = { texts: key, controller, answer };
    show();
    if (full === null && comparable()) await compare(query, documents, key);
  } catch (error) {
    if (!controller.signal.aborted) fail(error, run);
  } finally {
    if (request === controller) busy(false);
  }
}

// The same texts at full size, once: moving the sliders does not stop it, other texts do.
async function compare(query, documents, key) {
  const own = { texts: key, controller: new AbortController(), answer: null };
  full = own;
  try {
    own.answer = await rank(query, documents, fullSize(), own.controller.signal);
    if (full === own) show();
  } catch (error) {
    if (full !== own) return; // it was aborted, as the texts are others now
    full = null;
    fail(error, run);
  }
}

function later(milliseconds) {
  clearTimeout(timer);
  timer = setTimeout(run, milliseconds);
}

// -- What is chosen

function allows(knob) {
  return facts.allowed.includes(knob);
}

function comparable() {
  return allows("depth") && allows("keep_ratio");
}

function fullSize() {
  return { depth: facts.exits.at(-1), keep_ratio: 1, cascade: null };
}

function isFull(setting) {
  return comparable() && setting.depth === facts.exits.at(-1) && setting.keep_ratio === 1 && setting.cascade === null;
}

function chosen() {
  const ratio = Number(element("keep").value) / 100;
  const layer = mergeLayer();
  return {
    depth: depth(),
    keep_ratio: ratio === 1 || layer === facts.default_merge_layer ? ratio : { [layer]: ratio },
    cascade: element("cascade").checked ? cascadePoint().cascade : null,
  };
}

function depth() {
  return facts.exits[Number(element("depth").value)];
}

function mergeLayer() {
  return element("merge").value === "" ? facts.default_merge_layer : Number(element("merge").value);
}

// The cascade that the page offers, and the setting that it was measured at: the server's own, else the profile's first.
function cascadePoint() {
  if (facts.default.cascade !== null) return facts.default;
  return facts.profile?.points.find((point) => point.cascade !== null) ?? null;
}

function put(setting) {
  const ratio = setting.keep_ratio;
  const [layer, share] = typeof ratio === "number" ? [facts.default_merge_layer, ratio] : Object.entries(ratio).at(-1);
  const index = facts.exits.findLastIndex((exit) => exit <= (setting.depth ?? facts.exits.at(-1)));
  element("depth").value = Math.max(index, 0);
  element("keep").value = Math.round(100 * share);
  if (share < 1 && layer !== null) element("merge").value = String(layer);
  element("cascade").checked = setting.cascade !== null && !element("cascade-control").hidden;
}

function texts() {
  const separator = document.querySelector("input[name=split]:checked").value === "line" ? /\r?\n/ : /\r?\n[^\S\n]*\r?\n/;
  const documents = element("documents").value.split(separator).map((text) => text.trim()).filter(Boolean);
  return { query: element("query").value.trim(), documents };
}

// -- What is shown

function number(value, digits = 0) {
  return value.toLocaleString("en", { maximumFractionDigits: digits, minimumFractionDigits: digits });
}

function percent(share, digits = 0) {
  return `${number(100 * share, digits)}%`;
}

function milliseconds(value) {
  return number(value, value < 10 ? 1 : 0);
}

function setText(id, text) {
  if (element(id).textContent !== text) element(id).textContent = text;
}

function setFigure(id, figure, unit, note, noteId) {
  const small = document.createElement("small");
  small.textContent = unit;
  element(id).classList.toggle("words", figure === "not measured");
  element(id).replaceChildren(figure, ...(unit ? ["\u00a0", small] : []));
  setText(noteId, note);
}

function showControls() {
  const layers = facts.layers;
  const ratio = Number(element("keep").value) / 100;
  const [runs, layer] = [depth(), mergeLayer()];
  const merges = ratio < 1 && layer !== null && layer < runs;
  setText("depth-value", `${runs} of ${layers} layers`);
  setText("keep-value", percent(ratio));
  element("depth").setAttribute("aria-valuetext", `${runs} of ${layers} layers`);
  element("keep").setAttribute("aria-valuetext", `${percent(ratio)} of the tokens`);
  for (const id of ["depth", "keep"]) {
    const { min, max, value } = element(id);
    const share = max === min ? 1 : (value - min) / (max - min);
    element(id).style.setProperty("--filled", `calc(0.625rem + ${share} * (100% - 1.25rem))`);
  }
  [...element("layers").children].forEach((column, index) => {
    column.classList.toggle("idle", index >= runs);
    column.style.height = percent(merges && index >= layer ? ratio : 1, 1);
  });
  const fixed = runs === layers ? `All ${layers} layers run` : `${runs} of ${layers} layers run`;
  const run = element("cascade").checked ? `Up to ${runs} of ${layers} layers run` : fixed;
  const tokens = merges
    ? `from layer ${layer + 1} on, ${percent(ratio)} of a passage’s tokens are left.`
    : ratio < 1
      ? `the merge after layer ${layer} comes too late to save anything.`
      : "all tokens stay.";
  setText("layers-caption", `${run}; ${tokens}`);
  const count = texts().documents.length;
  const noun = create("span", "hidden", count === 1 ? " document" : " documents");
  element("count").replaceChildren(...(count === 0 ? ["none yet"] : [number(count), noun]));
  const query = element("query").value;
  for (const button of element("suggestions").children) {
    button.setAttribute("aria-pressed", String(button.textContent === query));
  }
}

function showNothing(query, documents) {
  answer = null;
  request = null;
  busy(false);
  items = new Map();
  itemsOf = null;
  element("ranking").replaceChildren();
  element("more").hidden = true;
  element("figures").hidden = true;
  element("empty").hidden = documents.length > 0 || query !== "";
  const missing = documents.length > 0 ? "Type a query to rank the documents." : "Paste documents to rank, or load the sample.";
  setText("status", element("empty").hidden ? missing : "");
}

function show() {
  element("empty").hidden = true;
  element("figures").hidden = false;
  const reference = full !== null && full.texts === answer.texts ? full.answer : null;
  showFigures(reference);
  const ranks = reference && new Map(reference.results.map(({ index }, rank) => [index, rank]));
  showRanking(ranks);
  setText("status", summary(ranks));
}

function showFigures(reference) {
  const { setting, timing, trip } = answer;
  const compared = reference !== null && reference !== answer && reference.timing.model !== undefined;
  const [modelMs, queueMs] = [timing.model, timing.queue];
  setFigure(
    "model-ms",
    modelMs === undefined ? "–" : milliseconds(modelMs),
    modelMs === undefined ? "" : "ms",
    compared ? `at full size: ${milliseconds(reference.timing.model)} ms` : "on the server",
    "model-note",
  );
  setFigure("trip-ms", milliseconds(trip), "ms", queueMs === undefined ? "" : `${milliseconds(queueMs)} ms in the queue`, "queue-note");
  const point = setting.cascade === null ? null : facts.profile?.points.find(({ cascade }) => same(cascade, setting.cascade));
  const share = setting.flops_share;
  const saved = point ? `${percent(point.flops_share)} on the profile’s data` : "less, as documents stop early";
  setFigure("flops", share == null ? "not measured" : (setting.cascade ? "≤ " : "") + percent(share), "", setting.cascade ? saved : "of full size", "flops-note");
  const kept = setting.quality_kept;
  const { profile } = facts;
  const why = profile ? "the profile lacks this setting" : "the model has no profile";
  setFigure("quality", kept == null ? "not measured" : percent(kept, 1), "", kept == null ? why : `of full size’s ${profile?.metric ?? "quality"}`, "quality-note");
  element("quality-note").title = profile ? `Measured on ${profile.data}` : "";
}

function same(one, other) {
  return one !== null && JSON.stringify(one.stages) === JSON.stringify(other.stages) && one.by === other.by;
}

function summary(ranks) {
  const { results, setting } = answer;
  const whole = ranks !== null && full.answer === answer;
  const why = setting.chosen_by === "request" ? "" : ` The server chose this setting: ${setting.reason}.`;
  const documents = results.length === 1 ? "1 document" : `${number(results.length)} documents`;
  if (whole) return `${documents} at full size. Move a slider to do less.`;
  if (ranks === null) return comparable() ? `${documents}. Comparing with full size …` : `${documents}.${why}`;
  const moved = results.filter(({ index }, rank) => ranks.get(index) !== rank).length;
  if (moved === 0) return `${documents}, in the order of full size.${why}`;
  const best = ranks.get(results[0].index);
  const first = best === 0 ? "The top document is also full size’s" : `The top document is number ${number(best + 1)} at full size`;
  const top = Math.min(10, Math.floor(results.length / 2));
  const common = results.slice(0, top).filter(({ index }) => ranks.get(index) < top).length;
  const shared = top > 1 ? `, and ${common === top ? "all" : common} of the first ${top} are the same` : "";
  return `${first}${shared}. ${number(moved)} of ${documents} moved.${why}`;
}

function showRanking(ranks) {
  if (itemsOf !== answer.texts) {
    items = new Map();
    itemsOf = answer.texts;
    limit = SHOWN;
  }
  const list = element("ranking");
  const before = new Map([...items].map(([index, item]) => [index, item.getBoundingClientRect().top]));
  const shown = answer.results.slice(0, limit);
  const elements = shown.map(({ index, relevance_score: score }, rank) => {
    if (!items.has(index)) items.set(index, newItem(answer.documents[index]));
    const item = items.get(index);
    fillItem(item, rank, score, score / answer.results[0].relevance_score, ranks?.get(index));
    return item;
  });
  for (const index of [...items.keys()]) if (!elements.includes(items.get(index))) items.delete(index);
  if (elements.some((item, place) => list.children[place] !== item) || list.children.length !== elements.length) {
    list.replaceChildren(...elements);
    if (!reducedMotion.matches) move(before);
  }
  const hidden = answer.results.length - shown.length;
  element("more").hidden = hidden === 0;
  setText("more", `Show ${number(hidden)} more`);
}

// Each document slides from where it was, also in the middle of an earlier move.
function move(before) {
  const after = [...items].map(([index, item]) => {
    item.getAnimations().forEach((animation) => animation.cancel());
    return [index, item, item.getBoundingClientRect().top];
  });
  for (const [index, item, top] of after) {
    const from = before.get(index);
    if (from === undefined) {
      item.animate([{ opacity: 0 }, { opacity: 1 }], { duration: 200 });
    } else if (from !== top) {
      const frames = [{ transform: `translateY(${from - top}px)` }, { transform: "none" }];
      item.animate(frames, { duration: 450, easing: "cubic-bezier(0.2, 0.8, 0.2, 1)" });
    }
  }
}

function create(name, className, ...children) {
  const made = document.createElement(name);
  made.className = className;
  made.append(...children);
  return made;
}

function newItem(text) {
  const passage = create("div", "text", text);
  if (text.length > LONG) {
    const start = `${text.slice(0, LONG).replace(/\s+\S*$/, "")} …`;
    const toggle = create("button", "quiet", "Show all");
    toggle.type = "button";
    toggle.setAttribute("aria-expanded", "false");
    toggle.addEventListener("click", () => {
      const open = toggle.getAttribute("aria-expanded") !== "true";
      toggle.setAttribute("aria-expanded", String(open));
      toggle.textContent = open ? "Show less" : "Show all";
      passage.firstChild.textContent = open ? text : start;
    });
    passage.replaceChildren(start, toggle);
  }
  const bar = create("span", "bar", create("i", ""));
  bar.setAttribute("aria-hidden", "true");
  return create("li", "", create("span", "rank"), passage, create("span", "move"), create("span", "score", create("span", ""), bar));
}

function fillItem(item, rank, score, ofBest, rankAtFull) {
  const [place, , moved, scored] = item.children;
  place.textContent = String(rank + 1);
  scored.firstChild.replaceChildren(create("span", "hidden", "score "), score > 0 && score < 0.0005 ? "<\u200a0.001" : number(score, 3));
  scored.querySelector("i").style.transform = `scaleX(${Math.max(0, Math.min(1, ofBest))})`;
  const places = rankAtFull === undefined ? 0 : rankAtFull - rank;
  moved.className = `move ${places > 0 ? "up" : places < 0 ? "down" : ""}`;
  if (places === 0) {
    moved.replaceChildren();
    return;
  }
  const arrow = create("span", "", `${places > 0 ? "▲" : "▼"} ${Math.abs(places)}`);
  arrow.setAttribute("aria-hidden", "true");
  const unit = Math.abs(places) === 1 ? "place" : "places";
  const words = `${Math.abs(places)} ${unit} ${places > 0 ? "higher" : "lower"} than at full size`;
  moved.title = words;
  moved.replaceChildren(arrow, create("span", "hidden", words));
}

let busyTimer = null;
function busy(on) {
  clearTimeout(busyTimer);
  const mark = () => {
    document.body.classList.toggle("busy", on);
    if (on && answer === null) setText("status", "Ranking …");
  };
  if (on) busyTimer = setTimeout(mark, 250);
  else mark();
  element("ranking").setAttribute("aria-busy", String(on));
}

// -- Errors, in words

function tell(text, again = false) {
  setText("banner-text", text);
  element("banner").hidden = text === "";
  element("again").hidden = !again;
}

function stopWaiting() {
  clearTimeout(timer);
  clearTimeout(retry);
}

function fail(error, what) {
  if (!(error instanceof Failure)) throw error;
  pending = what;
  const { status, message, retryAfter } = error;
  const said = message ? ` ${message}` : "";
  if (status === 401) {
    tell(apiKey ? "The server did not accept this API key." : "");
    element("key-form").hidden = false;
    element("key").focus();
  } else if (status === 503 || (status === 429 && busyRetries < BUSY_RETRIES)) {
    const seconds = Math.max(1, Math.ceil(retryAfter ?? 2));
    if (status === 429) busyRetries += 1;
    const why = status === 503 ? "The server is not ready:" : "The server is busy:";
    tell(`${why}${said || (status === 503 ? " the model may still be loading." : " its queue is full.")} Trying again in ${seconds} s.`);
    clearTimeout(retry);
    retry = setTimeout(what, 1000 * seconds);
  } else {
    const words = {
      0: "The server does not answer. It may have stopped, or the connection is broken.",
      403: `The server does not allow this setting.${said}`,
      413: `This is too much text for one request.${said}`,
      422: `The server cannot use this request.${said}`,
      429: `The server is still busy.${said}`,
      504: `The ranking took too long and was stopped.${said}`,
    };
    tell(words[status] ?? `The server answered with an error (status ${status}).${said}`, true);
  }
}

function stored() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return "";
  }
}

function store(key) {
  try {
    sessionStorage.setItem(KEY, key);
  } catch {
    // storage is switched off: the key is kept until the page is left
  }
}

// -- Set-up

async function load() {
  stopWaiting();
  try {
    facts = (await call("page.json")).data;
  } catch (error) {
    fail(error, load);
    return;
  }
  tell("");
  prepare();
  showControls();
  await run();
}

function ticks(id, marks) {
  const made = marks.map(([label, share]) => {
    const mark = create("span", "", label);
    mark.style.left = percent(share, 2);
    return mark;
  });
  element(id).replaceChildren(...made);
}

function prepare() {
  const { exits, layers, merge_layers: merges, default: own } = facts;
  setText("model", facts.model);
  element("model").hidden = false;
  element("depth").max = String(exits.length - 1);
  element("depth").disabled = !allows("depth") || exits.length === 1;
  element("keep").disabled = !allows("keep_ratio") || merges.length === 0;
  const every = Math.ceil(exits.length / 7);
  const last = exits.length - 1;
  const labelled = exits.map((exit, index) => [String(exit), last ? index / last : 0]);
  ticks("depth-ticks", labelled.filter((_, index) => (last - index) % every === 0));
  ticks("keep-ticks", [25, 50, 75, 100].map((share) => [`${share}%`, (share - 10) / 90]));
  element("merge").replaceChildren(
    ...merges.map((layer) => new Option(layer === facts.default_merge_layer ? `${layer} (usual)` : String(layer), String(layer))),
  );
  if (merges.length > 0) element("merge").value = String(facts.default_merge_layer);
  element("merge-control").hidden = merges.length < 2 || !allows("keep_ratio");
  const point = cascadePoint();
  element("cascade-control").hidden = point === null || !allows("cascade") || !comparable();
  if (point !== null) {
    const tokens = point.keep_ratio === 1 ? "all tokens" : "fewer tokens";
    setText("cascade-hint", `Documents that fall behind stop early. For depth ${point.depth} with ${tokens}.`);
  }
  const refused = ["depth", "keep_ratio"].filter((name) => !allows(name));
  const several = typeof own.keep_ratio !== "number" && Object.keys(own.keep_ratio).length > 1;
  const notes = [];
  if (refused.length > 0) notes.push(`This server chooses ${refused.join(" and ").replace("_", " ")} itself.`);
  if (several) notes.push("The server’s default merges more than once; the slider merges once.");
  setText("fixed-hint", notes.join(" "));
  element("fixed-hint").hidden = notes.length === 0;
  element("layers").replaceChildren(...Array.from({ length: layers }, () => create("span", "")));
  element("default").hidden = !comparable();
  put(own);
}

function loadSample() {
  document.querySelector("input[name=split][value=line]").checked = true;
  element("documents").value = sample.documents.join("\n");
  if (element("query").value.trim() === "") element("query").value = sample.queries[0];
  element("suggestions").hidden = false;
  showControls();
  run();
}

element("suggestions").append(
  ...sample.queries.map((query) => {
    const button = create("button", "", query);
    button.type = "button";
    button.addEventListener("click", () => {
      element("query").value = query;
      showControls();
      run();
    });
    return button;
  }),
);
for (const id of ["sample", "start"]) {
  element(id).addEventListener("click", () => {
    loadSample();
    if (id === "start") element("query").focus({ preventScroll: true });
  });
}
for (const id of ["query", "documents"]) {
  element(id).addEventListener("input", () => {
    if (facts) showControls();
    later(TYPING_MS);
  });
}
element("query").addEventListener("keydown", (event) => {
  if (event.key === "Enter") run();
});
for (const id of ["depth", "keep", "merge"]) {
  element(id).addEventListener("input", () => {
    element("cascade").checked = false;
    showControls();
    later(SLIDING_MS);
  });
}
element("cascade").addEventListener("change", () => {
  if (element("cascade").checked) put(cascadePoint());
  showControls();
  later(0);
});
element("default").addEventListener("click", () => {
  put(facts.default);
  showControls();
  later(0);
});
for (const radio of document.querySelectorAll("input[name=split]")) {
  radio.addEventListener("change", () => {
    if (facts) showControls();
    later(0);
  });
}
element("more").addEventListener("click", () => {
  limit += 4 * SHOWN;
  show();
});
element("again").addEventListener("click", () => pending?.());
element("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  apiKey = element("key").value.trim();
  store(apiKey);
  element("key-form").hidden = true;
  element("query").focus();
  pending?.();
});

load();
