
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
const SHOWN = 12, RECOMMENDED = 6, CANDIDATES = 24, ADVERTISED = 6, TRIES = 3;

const shop = { models: [], samples: null, products: [], byId: new Map(), counts: new Map(), history: [], exclude: [], order: {}, isSample: true, named: false };
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
  if ($("access").open) return;  // each panel comes here
  const had = sessionStorage.getItem("token");
  sessionStorage.removeItem("token");
  if (had) $("access-note").textContent = "The server does not know this token.";
  $("access-note").className = had ? "failed" : "soft";
  $("token").value = "";
  $("access").showModal();
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

// A sample search brings its list. Else what a word search finds, rare words first, and where that is
// little a spread of the shop: the models see meanings where no word agrees.
function candidates(query) {
  const most = Math.min(CANDIDATES, shop.samples.max_candidates, shop.products.length);
  const sample = shop.isSample && shop.samples.searches.find(one => one.query === query);
  if (sample) return { rows: sample.item_ids.slice(0, most).map(id => shop.byId.get(id)), gains: sample.gains };
  const wanted = [...new Set(split(query))].map(word => [word, Math.log(shop.products.length / shop.counts.get(word))]);
  const weight = product => wanted.reduce((sum, [word, rarity]) => (product.words.has(word) ? sum + rarity : sum), 0);
  const found = shop.products.map(product => [weight(product), product]).filter(([sum]) => sum > 0).sort((a, b) => b[0] - a[0]);
  const taken = new Set(found.slice(0, most).map(([, product]) => product)), num_found = taken.size;
  const step = Math.max(1, Math.floor(shop.products.length / most));
  for (let n = 0; taken.size < most; n = n + step < shop.products.length ? n + step : (n + step) % shop.products.length + 1) taken.add(shop.products[n % shop.products.length]);
  return { rows: [...taken], num_found };
}

// DCG of an order of gains over that of the best order.
function ndcg(gains) {
  const dcg = list => list.slice(0, 10).reduce((sum, gain, n) => sum + gain / Math.log2(n + 2), 0);
  return dcg(gains) / dcg([...gains].sort((a, b) => b - a));
}

function now() {
  const device = matchMedia("(max-width: 40rem)").matches ? "mobile" : "desktop";
  return { hour: new Date().getHours(), device, position: 0 };
}

const PANELS = {
  rank() {
    const found = candidates(words);
    return { body: { query: words, candidates: found.rows.map(row => known("rank", row.given)) }, show: answer => showRanked(answer, found) };
  },
  recommend() {
    const user = known("recommend", { history: shop.history, exclude: shop.exclude });
    return { body: { history: shop.history, ...user, k: RECOMMENDED }, show: showRecommended };
  },
  ctr() {
    const slogans = shop.isSample ? shop.samples.slogans : [""], place = now();
    const ads = candidates(words).rows.slice(0, Math.max(1, Math.min(ADVERTISED, Math.floor(shop.samples.max_candidates / slogans.length))))
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
    const options = { model: chosen().name, route: document.querySelector("[name=route]:checked").value, timings: true, cost: true };
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
