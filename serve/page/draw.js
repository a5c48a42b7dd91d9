
// --- drawing -----------------------------------------------------------------------------------

function make(tag, props = {}, ...children) {
  const { style = {}, ...rest } = props, node = document.createElement(tag);
  for (const [name, value] of Object.entries(rest)) name in node ? (node[name] = value) : node.setAttribute(name, value);
  for (const [name, value] of Object.entries(style)) node.style.setProperty(name, value);
  node.append(...children.filter(child => child !== null && child !== undefined));
  return node;
}

const percent = share => `${(100 * share).toFixed(share < .1 ? 1 : 0)}%`;
const costText = cost => `${cost.currency} ${Number(cost.per_1000.toPrecision(3))} per 1,000`;
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
    make("span", { className: "ms" }, answer.cost ? `${costText(answer.cost)} · ${msText(ms)}` : msText(ms)));
  const bar = make("div", { className: "time", ariaHidden: "true" }, ...spans.map(([kind, , span]) => make("i", { className: `t-${kind}`, style: { "flex-grow": span / ms } })));
  const rows = spans.map(([kind, name, span]) => [make("span", {}, make("i", { className: `dot t-${kind}` }), name), msText(span)]);
  if (answer.cost) rows.push(["1,000 such answers", costText(answer.cost)]);
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

function line(item, product, place) {
  const name = product ? product.text : item.item_id;
  const score = make("span", { className: `by ${item.by}`, title: `by the ${item.by} model; its scores only order` }, `${item.by} ${item.score.toFixed(2)}`);
  return make("li", {}, make("span", { className: "place", ariaHidden: "true" }, place), tile(product),
    make("span", { className: "what" }, make("b", {}, name), make("span", { className: "meta" }, ...meta(product?.given || {}), score)),
    product ? make("button", { type: "button", ariaLabel: `Buy ${name}`, onclick: () => buy(product) }, "Buy") : null);
}

// The large model orders the head; below it the small one's order stands, in scores of its own.
function lines(items, find) {
  return items.map((item, n) => {
    const row = line(item, find(item), n + 1);
    if (n && item.by !== items[n - 1].by) row.classList.add("below");
    return row;
  });
}

function showRanked(answer, { rows, gains, num_found }) {
  const items = answer.items.slice(0, SHOWN);
  $("rank").querySelector(".products").replaceChildren(...lines(items, item => rows[item.index]));
  const whole = `${shop.products.length.toLocaleString("en")} products`;
  $("rank-note").textContent = gains
    ? `a sample list of ${rows.length}; nDCG@10 ${ndcg(answer.items.map(item => gains[item.index])).toFixed(2)} by the simulation’s truth`
    : num_found === rows.length ? `best ${items.length} of ${rows.length} found by their words in ${whole}`
      : `best ${items.length} of ${rows.length}: ${num_found} share a word with it, the others are any of ${whole}`;
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
    make("div", { className: "gauge", ariaHidden: "true" }, make("i", { style: { left: percent(probability) } })), make("p", {}, facts.join(", ") || o.item_text));
  return `Risk ${percent(probability)}.`;
}
