// The live load view: reads /metrics each second while it can be seen, and draws two minutes.

import { $, el, button } from "./dom.js";
import { metrics, askForKey } from "./api.js";

const POINTS = 120;
const SVG = "http://www.w3.org/2000/svg";
const TILES = [
  { key: "running", label: "Requests running", digits: 0 },
  { key: "waiting", label: "Requests waiting", digits: 0 },
  { key: "generated", label: "Generated", unit: "tokens/s" },
  { key: "prompted", label: "Prompt", unit: "tokens/s" },
  { key: "cache", label: "Cache in use", unit: "%", most: 100 },
  { key: "hits", label: "Prefix cache hits", unit: "%", most: 100 },
];

/// Reads Prometheus text into name -> sum over label sets.
export function parseMetrics(text) {
  const sums = new Map();
  for (const line of text.split("\n")) {
    if (line === "" || line[0] === "#") continue;
    const brace = line.indexOf("{");
    const close = line.lastIndexOf("}");
    const labelled = brace > 0 && close > brace;
    const [bare, ...values] = line.split(" ");
    const name = labelled ? line.slice(0, brace) : bare;
    const value = Number(labelled ? line.slice(close + 1).trim().split(" ")[0] : values[0]);
    if (Number.isFinite(value)) sums.set(name, (sums.get(name) ?? 0) + value);
  }
  return sums;
}

/// What the tiles show, from a reading, the one before it and the seconds between. A server that
/// started anew counts from zero again: a negative difference is no rate.
export function figures(now, before, elapsed) {
  const get = (name) => now.get(`vllm:${name}`);
  const gained = (name) => {
    const old = before?.get(`vllm:${name}`);
    return old === undefined || get(name) === undefined ? undefined : get(name) - old;
  };
  const perSecond = (name) => {
    const more = gained(name);
    return more === undefined || more < 0 || elapsed <= 0 ? undefined : more / elapsed;
  };
  const percent = (part, all) => (all > 0 ? (100 * part) / all : undefined);
  return {
    running: get("num_requests_running"),
    waiting: get("num_requests_waiting"),
    generated: perSecond("generation_tokens_total"),
    prompted: perSecond("prompt_tokens_total"),
    cache: percent(get("kv_cache_usage_perc"), 1),
    hits: percent(get("prefix_cache_hits_total"), get("prefix_cache_queries_total")),
    preemptions: get("num_preemptions_total"),
  };
}

function format(value, digits) {
  if (value === undefined || Number.isNaN(value)) return "\u2013";
  const places = digits ?? (value > 0 && value < 100 ? 1 : 0);
  const options = { minimumFractionDigits: places, maximumFractionDigits: places };
  return value.toLocaleString("en", options);
}

class Tile {
  constructor({ key, label, unit = "", digits, most }) {
    Object.assign(this, { key, label, unit, digits, most, history: [] });
    this.value = el("span", { class: "value" }, "\u2013");
    this.peak = el("span", { class: "peak" });
    this.svg = document.createElementNS(SVG, "svg");
    this.svg.setAttribute("viewBox", `0 0 ${POINTS - 1} 40`);
    this.svg.setAttribute("preserveAspectRatio", "none");
    this.svg.setAttribute("role", "img");
    this.area = this.svg.appendChild(document.createElementNS(SVG, "polygon"));
    this.line = this.svg.appendChild(document.createElementNS(SVG, "polyline"));
    const figure = el("p", {}, this.value, " ", el("span", { class: "unit" }, unit));
    this.node = el("section", { class: "tile", id: `tile-${key}` }, el("h2", {}, label), figure);
    this.node.append(this.svg, this.peak);
  }

  add(value) {
    this.history.push(value);
    if (this.history.length > POINTS) this.history.shift();
    this.value.textContent = format(value, this.digits);
    const highest = Math.max(0, ...this.history.map((point) => point ?? 0));
    this.draw(this.most ?? (highest || 1));
    const top = format(highest, this.digits);
    this.peak.textContent = `highest ${top}`;
    const drawn = `${this.label}: the last two minutes, highest ${top} ${this.unit}`;
    this.svg.setAttribute("aria-label", drawn);
  }

  draw(most) {
    const from = POINTS - this.history.length;
    const points = this.history.map((value, at) => {
      const height = 38 - (36 * Math.min(value || 0, most)) / most;
      return `${from + at},${height.toFixed(2)}`;
    });
    this.line.setAttribute("points", points.join(" "));
    this.area.setAttribute("points", [`${from},40`, ...points, `${POINTS - 1},40`].join(" "));
  }
}

export class LoadView {
  constructor() {
    this.tiles = TILES.map((tile) => new Tile(tile));
    $("#tiles").append(...this.tiles.map((tile) => tile.node));
    this.shown = false;
    this.timer = 0;
    this.before = null;
    document.addEventListener("visibilitychange", () => this.schedule(0));
  }

  show(shown) {
    this.shown = shown;
    this.schedule(0);
  }

  // One timer at a time, and none while nobody can see the figures.
  schedule(ms) {
    clearTimeout(this.timer);
    if (this.shown && document.visibilityState === "visible") {
      this.timer = setTimeout(() => this.read(), ms);
    }
  }

  async read() {
    if (this.reading) return;
    this.reading = true;
    try {
      const sums = parseMetrics(await metrics());
      const now = performance.now();
      const elapsed = this.before ? (now - this.before.now) / 1000 : 0;
      this.take(figures(sums, this.before?.sums, elapsed));
      this.before = { sums, now };
    } catch (error) {
      this.fail(error);
    }
    this.reading = false;
    this.schedule(1000);
  }

  take(values) {
    for (const tile of this.tiles) tile.add(values[tile.key]);
    const preempted = `Preempted since the start: ${format(values.preemptions, 0)}.`;
    this.note(`Read each second, drawn over two minutes. ${preempted}`, false);
  }

  fail(error) {
    this.before = null;
    this.note(error.message, true);
    if (error.status === 401 && !$("#load-note button")) {
      $("#load-note").append(" ", button("Enter the key", () => askForKey()));
    }
  }

  note(text, wrong) {
    const note = $("#load-note");
    // Written only when it changes, so that a button in it keeps the keyboard's focus.
    if (note.dataset.text === text) return;
    note.dataset.text = text;
    note.textContent = text;
    note.classList.toggle("wrong", wrong);
  }
}
