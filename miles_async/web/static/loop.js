// The loop as a picture: who is busy, who waits for whom and how long; below it the same in words.

import { el, set, svg, table } from "./dom.js";
import { duration } from "./format.js";

const WIDE = { size: [790, 272], dealer: [5, 40], rollout: [217, 40], router: [429, 40], engine: [641, 40], learner: [217, 192], broadcaster: [429, 192] };
const NARROW = { size: [340, 370], dealer: [5, 10], rollout: [191, 10], learner: [5, 152], router: [191, 152], broadcaster: [5, 294], engine: [191, 294] };
const BOX = [144, 66];
const WAYS = [
  ["dealer", "rollout", "tickets"],
  ["rollout", "router", "prompts"],
  ["router", "engine", ""],
  ["rollout", "learner", "samples"],
  ["learner", "broadcaster", "weights"],
  ["broadcaster", "engine", "weights"],
  ["learner", "dealer", "version"],
];
const TITLES = { dealer: "dealer", rollout: "rollout workers", router: "router", engine: "engines", learner: "learner", broadcaster: "broadcaster" };
const NARROW_BELOW = 560; // pixels

export class Loop {
  constructor() {
    this.picture = svg("svg", { role: "img", class: "loop", "aria-label": "the loop" });
    this.words = el("div");
    this.node = el("div", {}, this.picture, this.words);
    this.watch = new ResizeObserver(() => this.run && this.draw());
    this.watch.observe(this.node);
  }

  show(run) {
    this.run = run;
    this.draw();
  }

  draw() {
    const { actors, waits, state } = this.run;
    const places = this.node.clientWidth < NARROW_BELOW ? NARROW : WIDE;
    const roles = byRole(actors);
    const [width, height] = places.size;
    this.picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const holds = [...longest(waits, actors)].filter(([from, to]) => places[from] && places[to] && from !== to);
    const taken = new Set(holds.flatMap(([from, to]) => [`${from} ${to}`, `${to} ${from}`])); // a wait's word has the place
    set(this.picture, arrowHeads(), WAYS.map(([from, to, text]) => arrow(places, from, to, taken.has(`${from} ${to}`) ? "" : text, "way")));
    for (const [from, to, seconds] of holds) this.picture.append(arrow(places, from, to, duration(seconds), "hold"));
    for (const role of Object.keys(TITLES)) this.picture.append(box(places[role], role, roles[role] ?? []));
    const said = Object.keys(TITLES).map((role) => `${TITLES[role]}: ${inWords(roles[role] ?? [])}`);
    this.picture.setAttribute("aria-label", `the loop. ${said.join("; ")}`);
    this.below(actors, waits, state);
  }

  below(actors, waits, state) {
    const now = JSON.stringify([actors, waits, state]);
    if (now === this.said) return;
    this.said = now;
    if (!actors.length && !waits.length) {
      set(this.words, el("p", { class: "muted small" }, state === "running" ? "nobody has been heard of yet" : "nobody is at work: the run is not running"));
      return;
    }
    const busy = actors.filter((actor) => actor.state === "busy").map((actor) => actor.actor);
    const rows = waits.map((wait) => [wait.who, wait.for, duration(wait.seconds)]);
    set(
      this.words,
      el("p", { class: "small" }, busy.length ? `busy: ${busy.join(", ")}` : "nobody is busy"),
      rows.length ? table("Who waits for whom", ["who", "waits for", "since"], rows) : null,
    );
  }

  end() {
    this.watch.disconnect();
  }
}

function byRole(actors) {
  const found = {};
  for (const actor of actors) (found[actor.role] ??= []).push(actor);
  return found;
}

// The longest wait of each role for each other one: [from, to, seconds].
function longest(waits, actors) {
  const roles = Object.fromEntries(actors.map((actor) => [actor.actor, actor.role]));
  const found = new Map();
  for (const wait of waits) {
    for (const to of new Set(wait.targets.map((name) => roles[name]))) {
      const key = `${roles[wait.who]} ${to}`;
      if (to && (found.get(key)?.[2] ?? -1) < wait.seconds) found.set(key, [roles[wait.who], to, wait.seconds]);
    }
  }
  return found.values();
}

function inWords(actors) {
  if (!actors.length) return "none";
  const counts = ["busy", "waits", "silent"].map((state) => [actors.filter((actor) => actor.state === state).length, state]);
  return counts.filter(([count]) => count).map(([count, state]) => (actors.length > 1 ? `${count} ${state}` : state)).join(", ");
}

function box([x, y], role, actors) {
  const worst = actors.some((a) => a.state === "silent") ? "silent" : actors.length && actors.every((a) => a.state === "waits") ? "waits" : actors.length ? "busy" : "none";
  const wait = Math.max(0, ...actors.map((actor) => (actor.state === "busy" ? 0 : actor.seconds)));
  const title = actors.length > 1 ? `${actors.length} ${TITLES[role]}` : TITLES[role];
  return svg(
    "g",
    { class: `box ${worst}` },
    svg("rect", { x, y, width: BOX[0], height: BOX[1], rx: 8 }),
    svg("text", { x: x + 12, y: y + 26, class: "title" }, title),
    svg("text", { x: x + 12, y: y + 48 }, inWords(actors) + (wait ? `, ${duration(wait)}` : "")),
  );
}

// From the edge of one box to the edge of another, with a word beside its middle.
function arrow(places, from, to, text, kind) {
  const [a, b] = [places[from], places[to]].map(([x, y]) => [x + BOX[0] / 2, y + BOX[1] / 2]);
  const [dx, dy] = [b[0] - a[0], b[1] - a[1]];
  const size = Math.hypot(dx, dy);
  const isHold = kind === "hold";
  if (dy === 0 && Math.abs(dx) > 2 * BOX[0]) return over(a, b, text, kind);
  const aside = isHold ? [(dy / size) * 9, (-dx / size) * 9] : [0, 0];
  const reach = Math.min(Math.abs(BOX[0] / 2 / (dx || 1e-9)), Math.abs(BOX[1] / 2 / (dy || 1e-9)));
  const [x1, y1] = [a[0] + dx * reach + aside[0], a[1] + dy * reach + aside[1]];
  const [x2, y2] = [b[0] - dx * reach + aside[0], b[1] - dy * reach + aside[1]];
  const part = isHold ? 0.3 : 0.5; // of the way, where its word is: not where those of others are
  const [x, y] = [x1 + (x2 - x1) * part, y1 + (y2 - y1) * part];
  const flat = Math.abs(dy) < Math.abs(dx) / 3;
  const flatly = { x: (x1 + x2) / 2, y: y + (isHold && dx > 0 ? -5 : 14), "text-anchor": "middle" };
  const place = flat ? flatly : { x: x + (isHold ? -6 : 6), y: y + 4, "text-anchor": isHold ? "end" : "start" };
  return svg("g", { class: kind }, svg("line", { x1, y1, x2, y2, "marker-end": `url(#head-${kind})` }), text ? svg("text", place, text) : null);
}

// Over the boxes between two of a row.
function over([ax, ay], [bx, by], text, kind) {
  const [begin, end] = [ax + 40 * Math.sign(bx - ax), bx - 40 * Math.sign(bx - ax)];
  const top = ay - BOX[1] / 2;
  const d = `M${begin} ${top}C${begin} ${top - 44} ${end} ${top - 44} ${end} ${by - BOX[1] / 2}`;
  const word = svg("text", { x: begin + (end - begin) * 0.5, y: top - 16, "text-anchor": "middle" }, text);
  return svg("g", { class: kind }, svg("path", { d, "marker-end": `url(#head-${kind})` }), word);
}

function arrowHeads() {
  const head = (kind) =>
    svg("marker", { id: `head-${kind}`, class: kind, viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto-start-reverse" }, svg("path", { d: "M0 0 8 4 0 8Z" }));
  return svg("defs", {}, head("way"), head("hold"));
}
