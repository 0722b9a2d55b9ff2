// Who did what when. The wheel, a drag, the buttons and the keys zoom and move; what is seen is asked for anew each time.

import { get, runPath } from "./api.js";
import { el, set, table, trouble } from "./dom.js";
import { duration, moments, share } from "./format.js";
import { head } from "./head.js";

const KINDS = { generate: 3, busy: 3, train: 1, wait: 8, save: 5, push: 2, pause: 4 };
const LEFT = 104;
const TOP = 24;
const LANE = 12;
const BAND = 28; // pixels of a track whose spans are too many to be shown one by one
const GAP = 8;
const SOON_MS = 120;

export function show(place, name) {
  const view = new View(name);
  const button = (title, text, act) => el("button", { type: "button", "aria-label": title, onclick: act }, text);
  const keys = Object.entries(KINDS).filter(([kind]) => kind !== "busy");
  set(
    place,
    head(name, "Timeline"),
    el(
      "div",
      { class: "bar" },
      button("nearer", "+", () => view.zoom(0.5)),
      button("farther", "−", () => view.zoom(2)),
      button("earlier", "←", () => view.move(-0.3)),
      button("later", "→", () => view.move(0.3)),
      button("all of it", "All", () => view.all()),
      el("span", { class: "key" }, keys.map(([kind, color]) => el("span", { class: `ink${color}` }, kind))),
      el("a", { href: `/api${runPath(name)}/trace`, download: "" }, "Trace for Perfetto"),
    ),
    view.troubles,
    view.canvas,
    view.reading,
    view.words,
  );
  view.ask();
  return () => view.end();
}

class View {
  constructor(name) {
    this.name = name;
    this.troubles = el("div");
    this.reading = el("p", { class: "reading", "aria-live": "polite" });
    this.words = el("div", {}, el("p", { class: "muted" }, "reading …"));
    this.canvas = el("canvas", { class: "timeline", tabindex: 0, role: "img", "aria-label": "timeline; plus, minus and the arrow keys zoom and move" });
    this.asking = new AbortController();
    this.window = null;
    const on = (type, act, options) => this.canvas.addEventListener(type, act, options);
    on("wheel", (event) => this.wheel(event), { passive: false });
    on("keydown", (event) => this.press(event));
    on("pointerdown", (event) => this.grab(event));
    on("pointermove", (event) => this.point(event));
    on("pointerup", () => (this.held = null));
    on("pointercancel", () => (this.held = null));
    this.watch = new ResizeObserver(() => this.draw());
    this.watch.observe(this.canvas);
    this.scheme = matchMedia("(prefers-color-scheme: dark)");
    this.redraw = () => this.draw();
    this.scheme.addEventListener("change", this.redraw);
  }

  async ask() {
    this.asking.abort();
    this.asking = new AbortController();
    const [first, last] = this.window ?? [];
    try {
      this.found = await get(`${runPath(this.name)}/timeline`, { first, last }, this.asking.signal);
      this.window ??= [this.found.first, this.found.last];
      set(this.troubles, this.found.tracks.length ? null : trouble("This run has left no times yet: they come with its first steps."));
      this.draw();
      this.tell();
    } catch (error) {
      if (error.name !== "AbortError") set(this.troubles, trouble(error.message));
    }
  }

  soon() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.ask(), SOON_MS);
    this.draw();
  }

  // Keeps the moment `at` (0 to 1 of the window) where it is.
  zoom(by, at = 0.5) {
    if (!this.window) return;
    const [first, last] = this.window;
    const whole = this.found.end - this.found.begin || 1;
    const size = Math.min(whole * 1.1, Math.max(0.01, (last - first) * by));
    const begin = first + (last - first) * at - size * at;
    this.window = [begin, begin + size];
    this.soon();
  }

  move(by) {
    if (!this.window) return;
    const [first, last] = this.window;
    const shift = (last - first) * by;
    this.window = [first + shift, last + shift];
    this.soon();
  }

  all() {
    this.window = null;
    this.ask();
  }

  wheel(event) {
    if (!event.ctrlKey && Math.abs(event.deltaY) > Math.abs(event.deltaX) && !event.shiftKey && document.activeElement !== this.canvas) return;
    event.preventDefault();
    const across = (event.offsetX - LEFT) / this.width;
    if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) this.move((event.deltaX || event.deltaY) / 1000);
    else this.zoom(1.002 ** event.deltaY, Math.min(1, Math.max(0, across)));
  }

  press(event) {
    const act = { "+": () => this.zoom(0.5), "=": () => this.zoom(0.5), "-": () => this.zoom(2), ArrowLeft: () => this.move(-0.2), ArrowRight: () => this.move(0.2), Home: () => this.all() }[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  }

  grab(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.held = event.offsetX;
  }

  point(event) {
    if (this.held !== null && this.held !== undefined && this.width) {
      this.move((this.held - event.offsetX) / this.width);
      this.held = event.offsetX;
    } else if (this.found) {
      this.read(event.offsetX, event.offsetY);
    }
  }

  get width() {
    return this.canvas.clientWidth - LEFT;
  }

  across(time) {
    const [first, last] = this.window;
    return LEFT + ((time - first) / (last - first)) * this.width;
  }

  // The tracks from top to bottom: [track, y, height].
  rows() {
    let y = TOP;
    return this.found.tracks.map((track) => {
      const height = track.spans ? LANE * (1 + Math.max(0, ...track.spans.map((span) => span[5]))) : BAND;
      const row = [track, y, Math.max(height, 16)];
      y += row[2] + GAP;
      return row;
    });
  }

  draw() {
    if (!this.found || !this.window) return;
    const rows = this.rows();
    const [, y, tall] = rows[rows.length - 1] ?? [null, TOP, 0];
    const [width, height] = [this.canvas.clientWidth, y + tall + GAP];
    const dots = devicePixelRatio || 1;
    this.canvas.style.height = `${height}px`;
    [this.canvas.width, this.canvas.height] = [width * dots, height * dots];
    const pen = this.canvas.getContext("2d");
    pen.scale(dots, dots);
    pen.font = "12px system-ui, sans-serif";
    const colors = getComputedStyle(this.canvas);
    const color = (name) => colors.getPropertyValue(`--${name}`).trim();
    this.marks(pen, color, height);
    for (const row of rows) this.track(pen, color, ...row);
    pen.clearRect(0, 0, LEFT - 4, height);
    pen.fillStyle = color("ink");
    rows.forEach(([track, top, size]) => pen.fillText(track.name, 2, top + Math.min(size / 2 + 4, 14), LEFT - 8));
  }

  marks(pen, color, height) {
    const [first, last] = this.window;
    const origin = this.found.begin;
    for (const value of moments(first - origin, last - origin, Math.max(3, this.width / 120))) {
      const x = this.across(origin + value);
      pen.fillStyle = color("rule");
      pen.fillRect(x, 16, 1, height);
      pen.fillStyle = color("muted");
      pen.fillText(duration(value), x + 3, 12);
    }
    pen.fillStyle = color("bad");
    for (const [time] of this.found.marks) pen.fillRect(this.across(time), 16, 1.5, 7);
  }

  track(pen, color, track, y, height) {
    if (track.spans) {
      for (const [begin, end, kind, , part, lane] of track.spans) {
        const x = Math.max(LEFT - 4, this.across(begin));
        pen.globalAlpha = kind === "busy" ? 0.15 + 0.45 * part : 0.9;
        pen.fillStyle = color(`c${KINDS[kind] ?? 7}`);
        pen.fillRect(x, y + lane * LANE, Math.max(1, this.across(end) - x - 0.5), LANE - 2);
      }
    } else {
      this.levels(pen, color, track, y, height);
    }
    pen.globalAlpha = 1;
  }

  levels(pen, color, track, y, height) {
    const { first, last } = this.found;
    const kinds = Object.entries(track.levels);
    const count = kinds[0]?.[1].length ?? 0;
    let most = 1; // of all kinds together: they are drawn on top of each other
    for (let n = 0; n < count; n++) most = Math.max(most, kinds.reduce((sum, [, levels]) => sum + levels[n], 0));
    for (let n = 0; n < count; n++) {
      const x = this.across(first + ((last - first) * n) / count);
      const wide = this.across(first + ((last - first) * (n + 1)) / count) - x;
      let bottom = y + height;
      for (const [kind, levels] of kinds) {
        const tall = (levels[n] / most) * height;
        pen.fillStyle = color(`c${KINDS[kind] ?? 7}`);
        pen.globalAlpha = 0.9;
        pen.fillRect(x, bottom - tall, wide + 0.3, tall);
        bottom -= tall;
      }
    }
  }

  read(x, y) {
    const [first, last] = this.window;
    const time = first + ((x - LEFT) / this.width) * (last - first);
    const mark = this.found.marks.find(([at]) => Math.abs(this.across(at) - x) < 4);
    const row = this.rows().find(([, top, height]) => y >= top && y < top + height);
    const at = `${duration(time - this.found.begin)}`;
    if (y < TOP && mark) {
      this.reading.textContent = `${duration(mark[0] - this.found.begin)}: ${mark[1]} ${mark[2]}`;
      return;
    }
    const lane = row ? Math.floor((y - row[1]) / LANE) : 0;
    const span = row?.[0].spans?.find(([begin, end, , , , of]) => begin <= time && time <= end && of === lane);
    this.reading.textContent = !row ? "" : span ? `${row[0].name}: ${span[2]} ${duration(span[1] - span[0])}, ${span[3]}` : `${row[0].name} at ${at}`;
  }

  // The same in words: how much of the window each actor spent how.
  tell() {
    const { first, last, tracks, begin } = this.found;
    const rows = tracks.map((track) => [track.name, spent(track, first, last).map(([kind, part]) => `${kind} ${part > 1 ? `${part.toFixed(1)} at a time` : share(part)}`).join(", ") || "–"]);
    set(this.words, el("h2", {}, `From ${duration(first - begin)} to ${duration(last - begin)}`), rows.length ? table("Shares of the window", ["actor", "spent its time so"], rows) : null);
  }

  end() {
    clearTimeout(this.timer);
    this.asking.abort();
    this.watch.disconnect();
    this.scheme.removeEventListener("change", this.redraw);
  }
}

function spent(track, first, last) {
  if (track.levels) return Object.entries(track.levels).map(([kind, levels]) => [kind, levels.reduce((a, b) => a + b, 0) / levels.length]);
  const sums = {};
  for (const [begin, end, kind, , part] of track.spans) {
    sums[kind] = (sums[kind] ?? 0) + (Math.max(0, Math.min(end, last) - Math.max(begin, first)) * part) / (last - first);
  }
  return Object.entries(sums);
}
