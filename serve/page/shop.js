
// --- what the shopper does ---------------------------------------------------------------------

function buy(product) {
  shop.history = [...shop.history, product.text].slice(-50);
  shop.exclude = [...shop.exclude, product.given.item_id].slice(-200);
  const price = product.given.price, quantity = 1;
  shop.order = { ...shop.order, item_text: product.text, category: product.given.category, price, quantity, amount: price, p_true: undefined };
  $("order").replaceChildren(...orderOptions(), new Option("just bought", "bought", true, true));
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
  return shop.samples.orders.map((order, n) => new Option(`sample ${n + 1}`, n));
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
  shop.counts = new Map();
  for (const product of shop.products) for (const word of product.words) shop.counts.set(word, (shop.counts.get(word) || 0) + 1);
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
    $("file-note").textContent = `${rows.length.toLocaleString("en")} products of ${file.name}`;
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
  $("queries").replaceChildren(...samples.searches.map(({ query }) => make("button", { type: "button", onclick: () => search(query) }, query)));
  choose("shopper", 0);
  choose("order", samples.orders.length - 1);
  $("order").value = samples.orders.length - 1;
  drawFacts();
  drawRoute();
}

// Whether one may choose: a large model, and a server that lets one.
const drawRoute = () => { $("route").hidden = !chosen().versions.large || !chosen().routes.includes("large"); };

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
  search($("query").value || shop.samples.searches[0].query);
  return ask("recommend", "risk");
}

const ready = act => event => { event.preventDefault(); return shop.samples ? act(event) : start(); };
$("ask").addEventListener("submit", ready(() => search($("query").value)));
$("route").addEventListener("change", ready(() => ask()));
$("model").addEventListener("change", ready(() => { shop.named = !shop.isSample || shop.samples.named.includes(chosen().name); drawRoute(); drawOrder(); ask(); }));
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
$("file").addEventListener("change", ready(({ target }) => {
  const [file] = target.files;
  target.value = "";  // the same file, mended, may be picked again
  if (file) readProducts(file);
}));
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
