
"use strict";
// Every score on this page comes from the served models; products, shoppers and orders are inputs.
const $ = id => document.getElementById(id);
const TASKS = { rank: "search_ranking", recommend: "recommendation", ctr: "ad_ctr", risk: "risk" };
const WHY = {
  confident: "sure enough", doubtful: "in doubt", over_budget: "in doubt, but the large model’s share is used up",
  overload: "in doubt, but the large model is busy", deadline: "in doubt, but too little time was left",
  unavailable: "in doubt, but the large model did not answer", not_asked: "small only, as you chose",
  asked: "large, as you chose", no_large: "there is no large model", no_policy: "no rule says when to ask the large model",
};
const SHOWN = 12, RECOMMENDED = 6, CANDIDATES = 120, ADVERTISED = 6, TRIES = 3;

const shop = { models: [], samples: null, products: [], byId: new Map(), history: [], exclude: [], order: {}, isSample: true, named: false };
const tally = { small: 0, large: 0, ms: [] };
const running = {};  // panel -> what stops its request
let words = "";  // of the search that the page shows

// --- asking ------------------------------------------------------------------------------------

class Failure extends Error {
  constructor(message, { status = 0, code = "", wait_s = null } = {}) {
    super(message);
    Object.assign(this, { status, code, wait_s });
  }
}

async function call(path, { body, signal } = {}) {
  const token = sessionStorage.getItem("token");
  const headers = { ...(body && { "Content-Type": "application/json" }), ...(token && { Authorization: `Bearer ${token}` }) };
  let response, answer;
  try {
    response = await fetch(path, { method: body ? "POST" : "GET", headers, signal, body: body && JSON.stringify(body) });
    answer = await response.json().catch(() => ({}));
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The server does not answer.");
  }
  if (response.ok) return answer;
  const wait_s = Number(response.headers.get("Retry-After")) || null;
  throw new Failure(answer.message || `The server failed (${response.status}).`, { status: response.status, code: answer.code, wait_s });
}

function askForToken() {
  const had = sessionStorage.getItem("token");
  sessionStorage.removeItem("token");
  if (had) $("access-note").textContent = "The server does not know this token.";
  $("access-note").className = had ? "failed" : "soft";
  $("token").value = "";
  if (!$("access").open) $("access").showModal();
}

function chosen() {
  return shop.models.find(one => one.name === $("model").value);
}

// Only what the model has fields for: another one may know no price.
function known(path, row) {
  const fields = chosen().fields[path];
  return Object.fromEntries(Object.entries(row).filter(([name, value]) => fields.includes(name) && value !== null && value !== undefined && value !== ""));
}

// --- what is asked -----------------------------------------------------------------------------

const split = text => text.toLowerCase().split(/[^\p{L}\p{N}]+/u).filter(word => word.length > 2);

// What a shop's word search would find, then a spread of the rest, so that other words get a chance.
function candidates(query) {
  const wanted = split(query), most = Math.min(CANDIDATES, shop.samples.max_candidates, shop.products.length);
  const hits = product => wanted.filter(word => product.words.has(word)).length;
  const found = shop.products.map(product => [hits(product), product]).filter(([count]) => count).sort((a, b) => b[0] - a[0]);
  const taken = new Set(found.slice(0, Math.ceil(most / 2)).map(([, product]) => product));
  const step = Math.max(1, Math.floor(shop.products.length / most));
  for (let n = 0; taken.size < most && n < shop.products.length; n++) taken.add(shop.products[(n * step + Math.floor(n * step / shop.products.length)) % shop.products.length]);
  return [...taken];
}

function now() {
  const device = matchMedia("(max-width: 40rem)").matches ? "mobile" : "desktop";
  return { hour: new Date().getHours(), device, position: 0 };
}

const PANELS = {
  rank() {
    const rows = candidates(words);
    return { body: { query: words, candidates: rows.map(row => known("rank", row.given)) }, show: answer => showRanked(answer, rows) };
  },
  recommend() {
    const user = known("recommend", { history: shop.history, exclude: shop.exclude });
    return { body: { history: shop.history, ...user, k: RECOMMENDED }, show: showRecommended };
  },
  ctr() {
    const slogans = shop.isSample ? shop.samples.slogans : [""], place = now();
    const ads = candidates(words).slice(0, Math.max(1, Math.min(ADVERTISED, Math.floor(shop.samples.max_candidates / slogans.length))))
      .flatMap(product => slogans.map(slogan => ({ slogan, product })))
      .slice(0, shop.samples.max_candidates);
    const rows = ads.map(({ slogan, product }) => known("ctr", { ...product.given, ...place, item_text: `${slogan} ${product.text}`.trim() }));
    return { body: { ...known("ctr", { context: words, history: shop.history }), candidates: rows }, show: answer => showAd(answer, ads, place) };
  },
  risk() {
    return { body: { candidates: [known("risk", shop.order)] }, show: showRisk };
  },
};

async function ask(...paths) {
  paths = paths.length ? paths : Object.keys(PANELS);
  const answers = await Promise.all(paths.map(path => askPanel(path)));
  const [said] = answers.filter(Boolean);
  if (said) $("status").textContent = answers.filter(Boolean).join(" ");
}

async function askPanel(path, attempt = 1) {
  running[path]?.abort();
  const stop = running[path] = new AbortController(), panel = $(path);
  if (!chosen().fields[path]) return refuse(path, new Failure("These models have no such task.", { code: "no_task" }));
  panel.setAttribute("aria-busy", "true");
  try {
    const { body, show } = PANELS[path](), begun = performance.now();
    const options = { model: chosen().name, route: document.querySelector("[name=route]:checked").value, timings: true };
    const answer = await call(`v1/${path}`, { body: { ...body, options }, signal: stop.signal });
    const ms = performance.now() - begun;
    count(answer, ms);
    showPath(path, answer, ms);
    return show(answer);
  } catch (error) {
    if (error.name === "AbortError") return "";
    if (!(error instanceof Failure)) throw error;
    return refuse(path, error, attempt);
  } finally {
    if (running[path] === stop) panel.removeAttribute("aria-busy");
  }
}

// --- drawing -----------------------------------------------------------------------------------

function make(tag, props = {}, ...children) {
  const { style = {}, ...rest } = props, node = document.createElement(tag);
  for (const [name, value] of Object.entries(rest)) name in node ? (node[name] = value) : node.setAttribute(name, value);
  for (const [name, value] of Object.entries(style)) node.style.setProperty(name, value);
  node.append(...children.filter(child => child !== null && child !== undefined));
  return node;
}

const percent = share => `${(100 * share).toFixed(share < .1 ? 1 : 0)} %`;
const msText = ms => `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;

function showPath(path, answer, ms) {
  const t = answer.timings, spans = [
    ["way", "network, proxy and the rest", Math.max(0, ms - t.queue_ms - t.small_ms - t.large_ms)], ["queue", "waiting for the small model", t.queue_ms],
    ["small", "small model", t.small_ms], ["large", "large model, with the way there", t.large_ms],
  ].filter(([, , span]) => span > 0);
  const by = size => make("span", { className: `model ${size}` }, size);
  const sure = answer.confidence === null ? "" : ` · confidence ${answer.confidence.toFixed(2)}`;
  const way = make("p", { className: "way" }, by("small"), ...(answer.deferred ? [make("span", { className: "arrow", ariaLabel: "then" }, "→"), by("large")] : []),
    make("span", { className: "why" }, `${WHY[answer.reason] || answer.reason}${sure}${answer.cached ? " · cached" : ""}`),
    make("span", { className: "ms" }, msText(ms)));
  const bar = make("div", { className: "time", ariaHidden: "true" }, ...spans.map(([kind, , span]) => make("i", { className: `t-${kind}`, style: { "flex-grow": span / ms } })));
  const rows = spans.map(([kind, name, span]) => [make("span", {}, make("i", { className: `dot t-${kind}` }), name), msText(span)]);
  rows.push(["reason", answer.reason], ["small model", answer.versions.small.slice(0, 12)]);
  if (answer.versions.large) rows.push(["large model", answer.versions.large.slice(0, 12)]);
  const wasOpen = $(path).querySelector(".path details")?.open;
  $(path).querySelector(".path").replaceChildren(way, bar, make("details", { open: Boolean(wasOpen) }, make("summary", {}, "Where the time went"),
    make("table", {}, make("tbody", {}, ...rows.map(([name, value]) => make("tr", {}, make("td", {}, name), make("td", {}, value)))))));
}

function count(answer, ms) {
  tally[answer.deferred ? "large" : "small"] += 1;
  tally.ms = [...tally.ms, ms].sort((a, b) => a - b);
  const all = tally.ms.length;
  $("tally").textContent = `${all} answers, ${percent(tally.small / all)} by the small model alone; median ${msText(tally.ms[Math.floor((all - 1) / 2)])}`;
}

function refuse(path, failure, attempt = 1) {
  const body = $(path).querySelector(".products, .ad, .verdict"), note = make("p", { className: "failed" }, failure.message);
  $(path).querySelector(".path").replaceChildren(note);
  $(`${path}-note`) && ($(`${path}-note`).textContent = "");
  body.replaceChildren();
  if (failure.status === 401) { note.textContent = "A token is needed."; askForToken(); return ""; }
  const again = make("button", { type: "button", onclick: () => askPanel(path) }, "Try again");
  if (failure.code === "no_index") {
    note.classList.add("none");
    note.textContent = "This package has no catalogue to recommend from. ";
    note.append(make("code", {}, "python -m jobs.publish --refresh-index --output PACKAGE --data DATA"), " adds one.");
  } else if (failure.code === "no_task") {
    note.classList.add("none");
  } else if (failure.wait_s && attempt < TRIES) {
    wait(path, failure, attempt, note, again);
  } else if (failure.status !== 422) {
    note.append(again);
  }
  return failure.message;
}

// Not before the server says, and not for ever.
function wait(path, failure, attempt, note, again) {
  const stop = running[path], end = performance.now() + 1000 * failure.wait_s;
  note.classList.add("soon");
  const tick = () => {
    if (running[path] !== stop) return;
    const left = Math.ceil((end - performance.now()) / 1000);
    if (left <= 0) { askPanel(path, attempt + 1); return; }
    note.replaceChildren(`The server is busy: ${failure.message}. Asking again in ${left} s.`, again);
    setTimeout(tick, 250);
  };
  tick();
}

function tile(product) {
  const colour = [...(product?.words || [])].find(word => CSS.supports("color", word)), letter = (product?.given.category || product?.text || "#")[0];
  const hue = colour || `hsl(${[...String(product?.given.category || product?.text || "")].reduce((sum, c) => (sum * 31 + c.charCodeAt(0)) % 360, 7)} 55% 55%)`;
  return make("span", { className: "tile", ariaHidden: "true", style: { "--hue": hue } }, letter.toUpperCase());
}

function meta({ category, rating, price }) {
  const facts = [category, rating && `★ ${rating}`, price !== undefined && Number(price).toFixed(2)].filter(Boolean);
  return facts.map(fact => make("span", {}, fact));
}

function line(item, product, place, share) {
  const name = product ? product.text : item.item_id;
  const score = make("span", { className: "score", title: `score ${item.score.toFixed(4)}, by the ${item.by} model` },
    make("meter", { min: 0, max: 1, value: share, ariaHidden: "true" }), make("span", { className: "hidden" }, "score "), item.score.toFixed(2), make("span", { className: `model ${item.by}` }, item.by));
  return make("li", { className: `by-${item.by}` }, make("span", { className: "place", ariaHidden: "true" }, place), tile(product),
    make("span", { className: "what" }, make("b", {}, name), make("span", { className: "meta" }, ...meta(product?.given || {}), score)),
    product ? make("button", { type: "button", ariaLabel: `Buy ${name}`, onclick: () => buy(product) }, "Buy") : null);
}

function lines(items, find) {
  const scores = items.map(item => item.score), low = Math.min(...scores), high = Math.max(...scores);
  return items.map((item, n) => line(item, find(item), n + 1, high > low ? .08 + .92 * (item.score - low) / (high - low) : 1));
}

function showRanked(answer, rows) {
  const items = answer.items.slice(0, SHOWN);
  $("rank").querySelector(".products").replaceChildren(...lines(items, item => rows[item.index]));
  $("rank-note").textContent = `best ${items.length} of ${rows.length} candidates from ${shop.products.length.toLocaleString("en")} products`;
  return `${items.length} results for ${words}, first ${rows[items[0].index].text}.`;
}

function showRecommended(answer) {
  const find = item => (shop.named ? shop.byId.get(item.item_id) : undefined), list = $("recommend").querySelector(".products");
  list.replaceChildren(...lines(answer.items, find));
  $("recommend-note").textContent = "from the whole catalogue";
  if (!answer.items.length) list.append(make("li", { className: "empty" }, "Nothing is left to recommend."));
  else if (!answer.items.some(find)) $("recommend-note").textContent = "ids of the catalogue; show your own products to see names";
  return "";
}

function showAd(answer, ads, place) {
  const best = answer.items.reduce((a, b) => (b.probability > a.probability ? b : a)), { slogan, product } = ads[best.index];
  const chance = make("span", { className: "chance" }, make("b", {}, percent(best.probability)), make("span", {}, "chance of a click"));
  $("ctr").querySelector(".ad").replaceChildren(make("div", { className: "card" }, tile(product),
    make("span", { className: "what" }, slogan ? make("span", { className: "slogan" }, slogan) : null, make("b", {}, product.text), make("span", { className: "meta" }, ...meta(product.given))), chance));
  $("ctr-note").textContent = `best of ${ads.length}${chosen().fields.ctr.includes("device") ? `, ${place.device}, ${place.hour}:00` : ""}`;
  return "";
}

function showRisk(answer) {
  const { probability } = answer.items[0], truth = shop.order.p_true, o = shop.order;
  const facts = [o.quantity && `${o.quantity} × ${o.item_text}`, o.amount && `${Number(o.amount).toFixed(2)} in all`, o.payment && `by ${o.payment}`, o.country && `to ${o.country}`,
    o.account_age_days !== undefined && `account ${o.account_age_days} days old`, o.num_past_orders !== undefined && `${o.num_past_orders} orders before`].filter(Boolean);
  $("risk").querySelector(".verdict").replaceChildren(
    make("div", { className: "line" }, make("span", { className: "big" }, percent(probability)), make("p", {}, "chance of fraud or a return",
      truth !== undefined && shop.named ? make("span", {}, `; the simulation’s own: ${percent(truth)}`) : null)),
    make("div", { className: "gauge", ariaHidden: "true" }, make("i", { style: { left: percent(probability).replace(" ", "") } })), make("p", {}, facts.join(", ") || o.item_text));
  return `Risk ${percent(probability)}.`;
}

// --- what the shopper does ---------------------------------------------------------------------

function buy(product) {
  shop.history = [...shop.history, product.text].slice(-50);
  shop.exclude = [...shop.exclude, product.given.item_id].slice(-200);
  const price = product.given.price, quantity = 1;
  shop.order = { ...shop.order, item_text: product.text, category: product.given.category, price, quantity, amount: price, p_true: undefined };
  $("order").replaceChildren(...orderOptions(), new Option("what was just bought", "bought", true, true));
  drawShopper();
  drawOrder();
  ask("recommend", "ctr", "risk");
}

function drawShopper() {
  $("bought").textContent = shop.history.length;
  $("history").replaceChildren(...shop.history.map((text, n) => make("li", {}, text,
    make("button", { type: "button", ariaLabel: `Forget ${text}`, onclick: () => { shop.history = shop.history.filter((_, m) => m !== n); drawShopper(); $("bought-text").focus(); ask("recommend", "ctr"); } }, "×"))).reverse());
}

function drawOrder() {
  const fields = (chosen().fields.risk || []).filter(name => !["user_id", "item_id"].includes(name) && (name in shop.order || name === "item_text"));
  $("order-fields").replaceChildren(...fields.map(name => make("label", { className: name === "item_text" ? "wide" : "" }, name.replaceAll("_", " "),
    make("input", { name, value: shop.order[name] ?? "", type: typeof shop.order[name] === "number" ? "number" : "text", step: "any", autocomplete: "off" }))));
}

function orderOptions() {
  return shop.samples.orders.map((order, n) => new Option(`sample ${n + 1}: ${order.item_text}`, n));
}

function choose(kind, value) {
  if (kind === "shopper") {
    const shopper = shop.samples.shoppers[value] || { history: [], exclude: [] };
    shop.history = [...shopper.history];
    shop.exclude = shop.named ? [...shopper.exclude] : [];
    drawShopper();
  } else if (value !== "bought") {
    shop.order = { ...shop.samples.orders[value] };
    drawOrder();
  }
}

function search(query) {
  words = query.trim();
  if (!words) return;
  $("query").value = words;
  for (const chip of $("queries").children) chip.setAttribute("aria-pressed", String(chip.textContent === words));
  ask("rank", "ctr");
}

function stock(rows, isSample) {
  shop.products = rows.map(given => ({ given, text: given.item_text, words: new Set(split(given.item_text)) }));
  shop.byId = new Map(shop.products.map(product => [product.given.item_id, product]));
  shop.isSample = isSample;
  shop.named = !isSample || shop.samples.named.includes(chosen().name);
}

async function readProducts(file) {
  const text = (await file.text()).trim();
  try {
    const rows = text.startsWith("[") ? JSON.parse(text) : text.split("\n").filter(row => row.trim()).map(row => JSON.parse(row));
    if (!rows.length || !rows.every(row => typeof row.item_text === "string" && row.item_text && row.item_id !== undefined)) throw new SyntaxError("each product needs item_id and item_text");
    stock(rows.map(row => ({ ...row, item_id: String(row.item_id) })), false);
    say("");
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
    return say(`${file.name}: ${error.message}`);
  }
  $("queries").replaceChildren();
  return ask();
}

function say(message) {
  $("notice").textContent = message;
  $("notice").hidden = !message;
}

// --- starting ----------------------------------------------------------------------------------

function drawFacts() {
  $("facts").replaceChildren(...shop.models.map(one => {
    const rules = Object.entries(TASKS).filter(([, task]) => one.policy[task]).map(([path, task]) => `${path} ≤ ${percent(one.policy[task].budget)}`);
    return make("p", { className: "pair" }, make("b", {}, one.name), make("span", {}, make("span", { className: "model small" }, "small"), ` ${one.versions.small.slice(0, 12)} on ${one.small_backend}`),
      one.versions.large ? make("span", {}, make("span", { className: "model large" }, "large"), ` ${one.versions.large.slice(0, 12)}`) : make("span", { className: "soft" }, "no large model"),
      rules.length ? make("span", { className: "soft" }, `deferred at most: ${rules.join(", ")}`) : null);
  }));
}

async function load() {
  const [models, samples] = await Promise.all([call("v1/models"), call("samples")]);
  Object.assign(shop, { models, samples });
  $("model").replaceChildren(...models.map(one => new Option(one.name, one.name, one.is_default, one.is_default)));
  $("models").hidden = models.length < 2;
  $("shopper").replaceChildren(...samples.shoppers.map((one, n) => new Option(`sample ${n + 1}${one.country ? `, ${one.country}` : ""}`, n)), new Option("nobody known", "none"));
  $("order").replaceChildren(...orderOptions());
  const { item_id } = samples.products, names = Object.keys(samples.products);
  stock(item_id.map((_, n) => Object.fromEntries(names.map(name => [name, samples.products[name][n]]))), true);
  $("queries").replaceChildren(...samples.queries.map(text => make("button", { type: "button", onclick: () => search(text) }, text)));
  choose("shopper", 0);
  choose("order", samples.orders.length - 1);
  $("order").value = samples.orders.length - 1;
  drawFacts();
}

async function start() {
  say("");
  try {
    await load();
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    if (error.status === 401) return askForToken();
    say(`${error.message} `);
    $("notice").append(make("button", { type: "button", onclick: start }, "Try again"));
    return undefined;
  }
  search($("query").value || shop.samples.queries[0] || "gift");
  return ask("recommend", "risk");
}

const ready = act => event => { event.preventDefault(); return shop.samples ? act(event) : start(); };
$("ask").addEventListener("submit", ready(() => search($("query").value)));
$("route").addEventListener("change", ready(() => ask()));
$("model").addEventListener("change", ready(() => { shop.named = !shop.isSample || shop.samples.named.includes(chosen().name); drawOrder(); ask(); }));
$("shopper").addEventListener("change", ready(event => { choose("shopper", event.target.value); ask("recommend", "ctr"); }));
$("order").addEventListener("change", ready(event => { choose("order", event.target.value); ask("risk"); }));
$("order-fields").addEventListener("submit", event => event.preventDefault());
$("order-fields").addEventListener("change", ({ target }) => {
  shop.order = { ...shop.order, [target.name]: target.type === "number" && target.value !== "" ? Number(target.value) : target.value, p_true: undefined };
  ask("risk");
});
$("buy").addEventListener("submit", ready(() => {
  const text = $("bought-text").value.trim();
  if (!text) return;
  shop.history = [...shop.history, text];
  $("bought-text").value = "";
  drawShopper();
  ask("recommend", "ctr");
}));
$("file").addEventListener("change", ready(event => event.target.files.length && readProducts(event.target.files[0])));
$("token-form").addEventListener("submit", event => {
  event.preventDefault();
  sessionStorage.setItem("token", $("token").value);
  $("access").close();
  shop.samples ? ask() : start();
});
document.addEventListener("keydown", event => {
  if (event.key !== "/" || event.target.closest("input, select, dialog")) return;
  event.preventDefault();
  $("query").select();
});
start();
