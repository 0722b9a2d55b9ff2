// A picture of curves: bands, thin lines of what was measured, thick ones of what is smoothed. A pointer, or the arrow keys, read it.

import { el, set, svg } from "./dom.js";
import { number, ticks } from "./format.js";

const HEIGHT = 190;
const LEFT = 48;
const RIGHT = 10;
const TOP = 8;
const BOTTOM = 22;

// Exponential mean without the weight of its beginning; weight 0: the values themselves.
export function smoothed(values, weight) {
  let sum = 0;
  let seen = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = sum * weight + value * (1 - weight);
    seen = seen * weight + (1 - weight);
    return sum / seen;
  });
}

// curves: [{label, color (1..8), x, y, low?, high?, dots?}], all of one length, null where nothing is known.
export class Chart {
  constructor(title, { below = "step", zero = false } = {}) {
    this.title = title;
    this.below = below;
    this.zero = zero;
    this.curves = [];
    this.weight = 0;
    this.cursor = null;
    this.picture = svg("svg", { role: "img", tabindex: 0, class: "chart", height: HEIGHT });
    this.reading = el("p", { class: "reading", "aria-live": "polite" });
    this.key = el("span", { class: "key" });
    this.node = el("figure", {}, el("figcaption", {}, el("strong", {}, title), this.key), this.picture, this.reading);
    this.picture.addEventListener("pointermove", (event) => this.point(event));
    this.picture.addEventListener("pointerleave", () => this.read(null));
    this.picture.addEventListener("keydown", (event) => this.press(event));
    this.watch = new ResizeObserver(() => this.draw());
    this.watch.observe(this.picture);
  }

  show(curves, weight = this.weight) {
    this.curves = curves;
    this.weight = weight;
    this.draw();
  }

  draw() {
    const width = this.picture.clientWidth || 320;
    const known = this.curves.filter((curve) => curve.x.length);
    this.picture.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    set(this.picture);
    set(this.key, known.length > 1 ? known.map((c) => el("span", { class: `ink${c.color}` }, c.label)) : null);
    if (!known.length) {
      this.picture.setAttribute("aria-label", `${this.title}: nothing yet`);
      this.picture.append(svg("text", { x: width / 2, y: HEIGHT / 2, class: "tick", "text-anchor": "middle" }, "nothing yet"));
      return;
    }
    this.bounds(known, width);
    this.axes(width);
    for (const curve of known) this.line(curve);
    this.mark = svg("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
    this.picture.append(this.mark);
    this.picture.setAttribute("aria-label", `${this.title}: ${known.map(says).join("; ")}`);
    this.read(this.cursor);
  }

  bounds(known, width) {
    const xs = known.flatMap((curve) => [curve.x[0], curve.x[curve.x.length - 1]]);
    const ys = known.flatMap((c) => [...c.y, ...(c.low ?? []), ...(c.high ?? [])]).filter((value) => value !== null);
    if (this.zero || !ys.length) ys.push(0);
    let [least, most] = [Math.min(...ys), Math.max(...ys)];
    if (least === most) [least, most] = [least - (this.zero ? 0 : 0.5), most + 0.5];
    const [first, last] = [Math.min(...xs), Math.max(...xs)];
    const spread = last - first || 1;
    this.limits = { first, last, least, most };
    this.across = (x) => LEFT + ((x - first) / spread) * (width - LEFT - RIGHT);
    this.up = (y) => HEIGHT - BOTTOM - ((y - least) / (most - least)) * (HEIGHT - TOP - BOTTOM);
  }

  axes(width) {
    const { first, last, least, most } = this.limits;
    for (const value of ticks(least, most, 4)) {
      const y = this.up(value);
      this.picture.append(svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y, y2: y }));
      this.picture.append(svg("text", { class: "tick", x: LEFT - 5, y: y + 4, "text-anchor": "end" }, number(value)));
    }
    for (const value of ticks(first, last, Math.max(4, Math.floor(width / 110)))) {
      const anchor = this.across(value) > width - 30 ? "end" : "middle";
      this.picture.append(svg("text", { class: "tick", x: this.across(value), y: HEIGHT - 7, "text-anchor": anchor }, number(value)));
    }
  }

  line(curve) {
    const { x, low, high, color } = curve;
    if (low && high) this.picture.append(svg("path", { class: `band fill${color}`, d: this.band(x, low, high) }));
    if (curve.dots) {
      x.forEach((step, n) => this.picture.append(svg("circle", { class: `fill${color}`, r: 3, cx: this.across(step), cy: this.up(curve.y[n]) })));
    }
    if (this.weight > 0) this.picture.append(svg("path", { class: `line thin stroke${color}`, d: this.path(x, curve.y) }));
    this.picture.append(svg("path", { class: `line stroke${color}`, d: this.path(x, smoothed(curve.y, this.weight)) }));
  }

  path(x, y) {
    let pen = "M";
    let found = "";
    x.forEach((step, n) => {
      if (y[n] === null) {
        pen = "M";
        return;
      }
      found += `${pen}${this.across(step).toFixed(1)} ${this.up(y[n]).toFixed(1)}`;
      pen = "L";
    });
    return found;
  }

  band(x, low, high) {
    const there = [...x.keys()].filter((n) => low[n] !== null && high[n] !== null);
    const at = (n, y) => `${this.across(x[n]).toFixed(1)} ${this.up(y[n]).toFixed(1)}`;
    const points = [...there.map((n) => at(n, high)), ...there.reverse().map((n) => at(n, low))];
    return points.length ? `M${points.join("L")}Z` : "";
  }

  point(event) {
    if (!this.across) return;
    const box = this.picture.getBoundingClientRect();
    const { first, last } = this.limits;
    const inside = (event.clientX - box.left - LEFT) / (box.width - LEFT - RIGHT);
    this.read(first + Math.min(1, Math.max(0, inside)) * (last - first));
  }

  press(event) {
    const longest = this.curves.reduce((a, b) => (b.x.length > a.length ? b.x : a), []);
    if (!longest.length || !["ArrowLeft", "ArrowRight", "Home", "End"].includes(event.key)) return;
    event.preventDefault();
    const now = this.cursor === null ? longest.length - 1 : nearest(longest, this.cursor);
    const next = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: longest.length - 1 }[event.key];
    this.read(longest[Math.min(longest.length - 1, Math.max(0, next))]);
  }

  read(x) {
    this.cursor = x;
    if (!this.mark) return;
    this.mark.setAttribute("visibility", x === null ? "hidden" : "visible");
    if (x === null) {
      this.reading.textContent = "";
      return;
    }
    const parts = this.curves.filter((curve) => curve.x.length).map((curve) => {
      const n = nearest(curve.x, x);
      const range = curve.low && curve.high && curve.high[n] !== null ? ` (${number(curve.low[n])} to ${number(curve.high[n])})` : "";
      return `${this.curves.length > 1 ? `${curve.label} ` : ""}${number(curve.y[n])}${range}`;
    });
    const longest = this.curves.reduce((a, b) => (b.x.length > a.length ? b.x : a), []);
    const at = longest[nearest(longest, x)];
    this.mark.setAttribute("x1", this.across(at));
    this.mark.setAttribute("x2", this.across(at));
    this.reading.textContent = `${this.below} ${number(at)}: ${parts.join(", ")}`;
  }

  end() {
    this.watch.disconnect();
  }
}

function nearest(sorted, value) {
  let [low, high] = [0, sorted.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < value) low = middle;
    else high = middle;
  }
  return Math.abs(sorted[low] - value) <= Math.abs(sorted[high] - value) ? low : high;
}

function says(curve) {
  const known = curve.y.filter((value) => value !== null);
  const [from, to] = [curve.x[0], curve.x[curve.x.length - 1]].map((x) => number(x));
  if (!known.length) return `${curve.label}: nothing is known`;
  return `${curve.label} from ${from} to ${to}: at last ${number(known[known.length - 1])}, least ${number(Math.min(...known))}, most ${number(Math.max(...known))}`;
}
