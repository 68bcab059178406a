// The admin page: asks the router for its figures once a second and shows them.
// Whatever comes from the network becomes text, never markup.

const PERIOD_MS = 1000;
const HISTORY = 120; // polls that a sparkline shows
const RATE_POLLS = 10; // polls that a rate is taken over
const SVG = "http://www.w3.org/2000/svg";
const history = new Map();

function element(tag, className = "", ...children) {
  const made = document.createElement(tag);
  made.className = className;
  made.append(...children);
  return made;
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// ---- figures as words

const count = (n) => Math.round(n).toLocaleString("en");
const percent = (share) => (share === null ? "–" : `${(100 * share).toFixed(1)} %`);
const whole = (share) => `${Math.round(100 * share)} %`;
const ratio = (part, whole) => (whole > 0 ? part / whole : null);
const tokens = (hits) => `${short(hits.hit_tokens)} of ${short(hits.asked_tokens)} tokens`;

function short(n) {
  if (n < 10_000) return count(n);
  return n < 1e6 ? `${(n / 1e3).toFixed(n < 1e5 ? 1 : 0)} k` : `${(n / 1e6).toFixed(n < 1e8 ? 1 : 0)} M`;
}

function bytes(n) {
  return n < 10_000 ? `${count(n)} B` : `${short(n)}B`;
}

function seconds(s) {
  if (s === null || s === undefined) return "–";
  if (s < 0.01) return `${(s * 1e3).toFixed(1)} ms`;
  return s < 1 ? `${Math.round(s * 1e3)} ms` : `${s.toFixed(2)} s`;
}

function age(s) {
  if (s < 60) return `${Math.floor(s)} s`;
  return s < 3600 ? `${Math.floor(s / 60)} min` : `${Math.floor(s / 3600)} h`;
}

// ---- small drawings

function sparkline() {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "spark");
  svg.setAttribute("viewBox", `0 0 ${HISTORY - 1} 1`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  for (const name of ["area", "stroke"]) {
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("class", name);
    svg.append(path);
  }
  return svg;
}

function draw(svg, values, most) {
  const top = Math.max(most ?? 0, ...values, 1e-9);
  const first = HISTORY - values.length;
  const line = values.map((v, i) => `${first + i} ${(0.97 - (0.92 * v) / top).toFixed(4)}`).join("L");
  svg.children[0].setAttribute("d", line && `M${first} 1L${line}L${HISTORY - 1} 1Z`);
  svg.children[1].setAttribute("d", line && `M${line}`);
}

function remember(key, value) {
  const values = history.get(key) ?? [];
  values.push(value);
  if (values.length > HISTORY) values.shift();
  history.set(key, values);
  return values;
}

function bar(...kinds) {
  return element("div", "bar", ...kinds.map((kind) => element("i", kind)));
}

function fill(node, share) {
  node.style.width = `${Math.min(100, Math.max(0, 100 * share)).toFixed(1)}%`;
}

// ---- tables whose rows are kept and only changed where figures changed

class Rows {
  constructor(table, make, update) {
    Object.assign(this, { body: table.tBodies[0], make, update, rows: new Map() });
    this.empty = table.parentElement.querySelector(".empty");
    this.labels = [...table.tHead.rows[0].cells].map((cell) => cell.textContent.trim());
    this.table = table;
  }

  show(entries, keyOf) {
    const kept = new Map();
    for (const entry of entries) {
      const row = this.rows.get(keyOf(entry)) ?? this.create();
      this.update(row.parts, entry);
      kept.set(keyOf(entry), row);
    }
    const order = [...kept.values()].map((row) => row.node);
    if (order.length !== this.body.rows.length || order.some((node, i) => node !== this.body.rows[i])) {
      this.body.replaceChildren(...order);
    }
    this.rows = kept;
    this.table.hidden = order.length === 0;
    this.empty.hidden = order.length > 0;
  }

  create() {
    const parts = {};
    const node = document.createElement("tr");
    this.make(parts).forEach((cell, i) => {
      cell.dataset.label = this.labels[i];
      node.append(cell);
    });
    return { node, parts };
  }
}

function cell(className, ...children) {
  return element("td", className, element("div", "", ...children));
}

function meter(parts, name, drawing) {
  parts[name] = drawing;
  parts[`${name}Figure`] = element("span", "figure");
  parts[`${name}Sub`] = element("span", "sub");
  return cell("", element("div", "meter", parts[`${name}Figure`], drawing), parts[`${name}Sub`]);
}

function makeWorker(parts) {
  for (const name of ["name", "state", "load", "ttft", "requests"]) parts[name] = element("span");
  parts.name.className = "worker";
  parts.address = element("span", "sub mono");
  parts.presence = element("span", "sub");
  const blocks = meter(parts, "blocks", bar("fill"));
  blocks.firstChild.append(parts.presence);
  return [
    cell("", parts.name, " ", parts.state, parts.address),
    meter(parts, "minute", sparkline()),
    meter(parts, "total", bar("fill")),
    blocks,
    cell("number", parts.load),
    cell("number", parts.ttft),
    meter(parts, "share", bar("fill")),
  ];
}

function showWorker(parts, w) {
  setText(parts.name, w.worker);
  setText(parts.state, w.state);
  parts.state.className = `state ${w.state}`;
  setText(parts.address, w.address);
  const { minute, total } = w.hit_rate;
  setText(parts.minuteFigure, percent(minute.rate));
  setText(parts.minuteSub, tokens(minute));
  draw(parts.minute, remember(`worker ${w.worker}`, minute.rate ?? 0), 1);
  setText(parts.totalFigure, percent(total.rate));
  setText(parts.totalSub, tokens(total));
  fill(parts.total.firstChild, total.rate ?? 0);
  const held = ratio(w.held_blocks, w.total_blocks);
  setText(parts.blocksFigure, percent(held));
  setText(parts.blocksSub, `${count(w.held_blocks)} / ${count(w.total_blocks)}`);
  fill(parts.blocks.firstChild, held ?? 0);
  setText(parts.presence, presence(w));
  setText(parts.load, `${count(w.running)} + ${count(w.waiting)}`);
  setText(parts.ttft, `${seconds(w.ttft_p50_s)} / ${seconds(w.ttft_p95_s)}`);
  setText(parts.shareFigure, percent(w.share));
  setText(parts.shareSub, `${count(w.placements)} placed`);
  fill(parts.share.firstChild, w.share);
}

// How far the blocks of a worker can be believed; nothing where all is as its events told.
function presence(w) {
  const guess = w.presence === "guessed" ? `guessed, ${whole(w.confidence)} true` : "";
  const contradicted = w.agreement !== null && w.agreement < 0.995; // below it the figure says "0 %"
  const events = contradicted ? `events disagree: ${whole(1 - w.agreement)}` : "";
  return [guess, events].filter(Boolean).join(" · ");
}

function makePlacement(parts) {
  for (const name of ["when", "worker", "prompt", "reason", "ending"]) parts[name] = element("span");
  parts.request = element("button", "mono");
  parts.request.addEventListener("click", () => explain(parts.booking));
  for (const name of ["policy", "terms", "ttft", "overlapSub"]) parts[name] = element("span", "sub");
  parts.overlap = bar("available", "expected", "delivered");
  return [
    cell("", parts.when),
    cell("", parts.request),
    cell("", parts.worker),
    cell("number", parts.prompt),
    cell("", parts.overlap, parts.overlapSub),
    cell("", parts.reason, parts.terms),
    cell("", parts.ending, parts.ttft),
  ];
}

function showPlacement(parts, p) {
  setText(parts.when, age(p.age_s));
  setText(parts.request, p.request_id || p.booking);
  parts.booking = p.booking;
  setText(parts.worker, p.worker);
  setText(parts.prompt, count(p.prompt_tokens));
  const overlaps = [p.available_tokens, p.expected_tokens, p.delivered_tokens ?? 0];
  overlaps.forEach((n, i) => fill(parts.overlap.children[i], ratio(n, p.prompt_tokens) ?? 0));
  const delivered = p.delivered_tokens === null ? "–" : count(p.delivered_tokens);
  setText(parts.overlapSub, `${delivered} / ${count(p.expected_tokens)} / ${count(p.available_tokens)}`);
  setText(parts.reason, p.reason);
  const terms = p.terms.filter((term) => term.seconds).map((term) => `${term.name} ${seconds(term.seconds)}`);
  setText(parts.terms, [p.policy, ...terms].join(" · "));
  setText(parts.ending, p.ending || "running");
  parts.ending.className = `ending ${p.ending}`;
  setText(parts.ttft, p.ttft_s === null ? "" : `TTFT ${seconds(p.ttft_s)}`);
}

function makePull(parts) {
  for (const name of ["source", "target", "pulls", "moved", "ahead", "saved", "wasted", "failures"]) {
    parts[name] = element("span");
  }
  parts.rate = element("span", "sub");
  parts.rescued = element("span", "sub");
  return [
    cell("", parts.source),
    cell("", parts.target),
    cell("number", parts.pulls),
    cell("number", parts.moved, parts.rate),
    cell("number", parts.ahead, parts.rescued),
    cell("number", parts.saved),
    cell("number", parts.wasted),
    cell("", parts.failures),
  ];
}

function showPull(parts, p) {
  setText(parts.source, p.source);
  setText(parts.target, p.target);
  setText(parts.pulls, count(p.pulls));
  setText(parts.moved, bytes(p.bytes));
  setText(parts.rate, `${p.gb_per_s.toFixed(2)} GB/s`);
  setText(parts.ahead, bytes(p.ahead_bytes));
  setText(parts.rescued, p.evacuated_bytes ? `${bytes(p.evacuated_bytes)} rescued` : "");
  setText(parts.saved, seconds(p.saved_prefill_s));
  setText(parts.wasted, bytes(p.wasted_bytes));
  setText(parts.failures, Object.entries(p.failures).map(([why, n]) => `${n} ${why}`).join(" · ") || "–");
}

// ---- the fleet's tiles

const tiles = new Map();

function tile(name, value, detail, values, most) {
  let parts = tiles.get(name);
  if (!parts) {
    parts = { value: element("div", "value"), detail: element("div", "detail"), spark: sparkline() };
    tiles.set(name, parts);
    const node = element("div", "tile", element("div", "name", name), parts.value, parts.detail, parts.spark);
    document.getElementById("tiles").append(node);
  }
  setText(parts.value, value);
  setText(parts.detail, detail);
  draw(parts.spark, values, most);
}

function perSecond(placements) {
  const now = performance.now() / 1e3;
  const seen = remember("placements", [now, placements]);
  const [then, before] = seen[Math.max(0, seen.length - 1 - RATE_POLLS)];
  return now > then ? Math.max(0, placements - before) / (now - then) : 0;
}

function showFleet(f) {
  const { minute, total } = f.hit_rate;
  const busy = f.running + f.waiting;
  const held = ratio(f.held_blocks, f.total_blocks);
  const rate = perSecond(f.placements);
  tile("hit rate, last minute", percent(minute.rate), tokens(minute), remember("minute", minute.rate ?? 0), 1);
  tile("hit rate, since start", percent(total.rate), tokens(total), remember("total", total.rate ?? 0), 1);
  tile("TTFT p50", seconds(f.ttft_p50_s), `p95 ${seconds(f.ttft_p95_s)}`, remember("ttft", f.ttft_p50_s ?? 0));
  tile("requests a second", rate.toFixed(rate < 10 ? 1 : 0), `${count(f.placements)} placed`, remember("rate", rate));
  tile("requests in flight", count(busy), `${count(f.running)} running, ${count(f.waiting)} waiting`,
    remember("busy", busy));
  tile("blocks held", percent(held), `${count(f.held_blocks)} of ${count(f.total_blocks)}`,
    remember("held", held ?? 0), 1);
  document.getElementById("alarm").hidden = f.index_native;
  const models = f.models.length ? f.models.join(", ") : "no model yet";
  const healthy = `${f.healthy} of ${f.workers} workers healthy${f.panic ? " (panic)" : ""}`;
  setText(document.getElementById("about"),
    `${models} · ${healthy} · policy ${f.policy} · up ${age(f.uptime_s)}`);
}

// ---- why one request went where it went, or would go

const form = document.getElementById("ask");
form.addEventListener("submit", (event) => {
  event.preventDefault();
  explain(form.elements.what.value.trim());
});

async function explain(what) {
  if (!what) return;
  form.elements.what.value = what;
  const verdict = document.getElementById("verdict");
  try {
    const { explanations } = await explanation(what);
    const [first] = explanations;
    verdict.className = "";
    setText(verdict, `${first.worker}: ${first.reason}. ${count(first.available_tokens)} of ` +
      `${count(first.prompt_tokens)} prompt tokens are held somewhere, ${count(first.expected_tokens)} there.`);
    showCandidates(first.candidates);
  } catch (error) {
    verdict.className = "bad";
    setText(verdict, error.message);
    showCandidates([]);
  }
  verdict.scrollIntoView({ block: "nearest" });
}

async function explanation(what) {
  if (what.startsWith("{")) {
    const headers = { "Content-Type": "application/json" };
    return answerOf(await fetch("explain", { method: "POST", headers, body: what }));
  }
  const name = /^[0-9a-f]{16}$/.test(what) ? "booking" : "request_id";
  return answerOf(await fetch(`explain?${new URLSearchParams({ [name]: what })}`, { cache: "no-store" }));
}

async function answerOf(response) {
  const body = await response.json();
  if (!response.ok) throw new Error(body.error?.message ?? `status ${response.status}`);
  return body;
}

function showCandidates(candidates) {
  const table = document.getElementById("candidates");
  table.tBodies[0].replaceChildren(...candidates.map((c) => {
    const row = element("tr", c.chosen ? "chosen" : "", cell("", element("span", "worker", c.worker)),
      cell("number", seconds(c.price_s)), cell("", c.says, element("span", "sub", c.why)));
    ["worker", "price", "why it costs that"].forEach((label, i) => { row.cells[i].dataset.label = label; });
    return row;
  }));
  table.hidden = candidates.length === 0;
}

function showSources(sources, aliases) {
  const list = document.getElementById("sources");
  const lines = sources.map((s) => {
    const says = s.ok ? "" : `: ${s.why}. What it named before stays.`;
    return element("li", s.ok ? "" : "bad", `${s.source}: ${count(s.found)} found${says}`);
  });
  for (const [alias, models] of Object.entries(aliases)) {
    const parts = Object.entries(models).map(([model, share]) => `${percent(share)} ${model}`);
    lines.push(element("li", "", `${alias}: ${parts.join(", ")}`));
  }
  list.hidden = lines.length === 0;
  list.replaceChildren(...lines);
}

// ---- the loop

const workers = new Rows(document.getElementById("workers"), makeWorker, showWorker);
const placements = new Rows(document.getElementById("placements"), makePlacement, showPlacement);
const pulls = new Rows(document.getElementById("pulls"), makePull, showPull);

async function ask(path) {
  const answer = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(3000) });
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
}

function showLink(live) {
  const link = document.getElementById("link");
  link.className = live ? "live" : "gone";
  setText(link, live ? "live" : "disconnected");
  document.body.classList.toggle("gone", !live);
}

async function refresh() {
  try {
    const [fleet, placed, pulled] = await Promise.all([ask("workers"), ask("placements"), ask("pulls")]);
    showFleet(fleet.fleet);
    workers.show(fleet.workers, (w) => w.worker);
    showSources(fleet.discovery, fleet.aliases);
    placements.show(placed.placements, (p) => p.booking);
    pulls.show(pulled.pulls, (p) => `${p.source} ${p.target}`);
    showLink(true);
  } catch (error) {
    console.warn(error);
    showLink(false);
  }
}

async function run() {
  for (;;) {
    if (!document.hidden) await refresh();
    await new Promise((wake) => setTimeout(wake, PERIOD_MS));
  }
}

run();
