// One response token by token, coloured by what is known of each.

import { el, keep, kept, set } from "./dom.js";
import { number } from "./format.js";

const EDGES = [-0.05, -0.3, -0.7, -1.4, -2.5, -4, -7]; // nats: between the colours of a log-prob
const APART = [-2, -0.7, -0.15, 0.15, 0.7, 2]; // nats: of a difference
const NEAR = [-0.5, -0.1, -0.02, 0.02, 0.1, 0.5]; // of one between two that should be the same

const WAYS = {
  version: { title: "weight version", class: (t, n) => `age${Math.min(7, t.newest - (t.version[n] ?? t.newest))}`, key: ["newest version of it", "7 versions older"], shades: "age" },
  logprob: { title: "log-prob of the engine", class: (t, n) => shade("odd", EDGES, t.logprob[n]), key: ["likely", "unlikely"], shades: "odd" },
  teacher: { title: "log-prob, teacher minus engine", class: (t, n) => apart(APART, t.teacher[n], t.logprob[n]), key: ["less likely to the teacher", "more likely"], shades: "gap" },
  learner: { title: "log-prob, learner minus engine", class: (t, n) => apart(NEAR, t.learner[n], t.logprob[n]), key: ["less likely to the learner", "more likely"], shades: "gap" },
  mask: { title: "trained on", class: (t, n) => (t.trained[n] ? "kept" : "masked"), key: null },
};

function shade(name, edges, value) {
  if (value === null) return "";
  return `${name}${edges.filter((edge) => value < edge).length}`;
}

function apart(edges, one, other) {
  if (one === null || other === null) return "";
  return `gap${edges.filter((edge) => one - other > edge).length}`;
}

// found: what /sample answered.
export function tokens(found) {
  const of = found.tokens;
  of.newest = Math.max(...of.version.filter((version) => version !== null), 0);
  const ways = Object.keys(WAYS).filter((way) => !["teacher", "learner"].includes(way) || of[way].length);
  const before = kept("colour", "version");
  const choice = el("select", { onchange: () => paint() }, ways.map((way) => el("option", { value: way, selected: way === before }, WAYS[way].title)));
  const key = el("span", { class: "small" });
  const reading = el("p", { class: "reading", "aria-live": "polite" });
  const spans = of.text.map((text) => el("span", {}, text));
  const text = el("pre", { class: "tokens", tabindex: 0, role: "group", "aria-label": "tokens of the response; arrow keys go from one to the next" }, spans);
  const places = new Map(spans.map((span, n) => [span, n]));
  let now = -1;

  function paint() {
    const way = WAYS[choice.value];
    keep("colour", choice.value);
    spans.forEach((span, n) => span.setAttribute("class", way.class(of, n)));
    const scale = way.shades ? [0, 2, 4, 6].map((n) => el("span", { class: `swatch ${way.shades}${n}` })) : null;
    set(key, scale ? [way.key[0], " ", scale, " ", way.key[1]] : [el("span", { class: "kept" }, "trained"), " ", el("span", { class: "masked" }, "masked out")]);
    if (spans[now]) spans[now].classList.add("at");
  }

  function read(n) {
    spans[now]?.classList.remove("at");
    now = n;
    spans[now]?.classList.add("at");
    reading.textContent = spans[n] ? says(of, n) : "";
  }

  text.addEventListener("pointermove", (event) => places.has(event.target) && read(places.get(event.target)));
  text.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10 }[event.key];
    if (!by || !spans.length) return;
    event.preventDefault();
    read(Math.min(spans.length - 1, Math.max(0, now + by)));
    spans[now].scrollIntoView({ block: "nearest" });
  });
  paint();
  return [el("p", { class: "bar" }, el("label", {}, "colour by ", choice), key), text, reading];
}

function says(of, n) {
  const version = of.version[n] === null ? "no policy's" : `version ${of.version[n]}`;
  const teacher = of.teacher.length ? `, teacher ${number(of.teacher[n])}` : "";
  const learner = of.learner.length ? `, learner ${number(of.learner[n], 4)}` : "";
  return `${n + 1} of ${of.text.length} ${JSON.stringify(of.text[n])}: ${version}, log-prob ${number(of.logprob[n])}${learner}${teacher}, ${of.trained[n] ? "trained on" : "masked out"}`;
}
