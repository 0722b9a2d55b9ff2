// Runs beside each other: rewards by steps, tokens and time, lag, figures, and what is configured otherwise.

import { get, link } from "./api.js";
import { Chart } from "./chart.js";
import { el, set, table, trouble } from "./dom.js";

const STEP = 0;
const TOKENS = 1;
const SECONDS = 2;
const REWARD = 3;
const LAG = 4;
const OLDEST = 5;

export function show(place, parameters) {
  document.title = "compare · miles-async";
  const runs = parameters.getAll("run");
  const content = el("div", {}, el("p", { class: "muted" }, "reading …"));
  set(place, el("h1", {}, "Compare"), content);
  const charts = [];
  draw(content, runs, charts).catch((error) => set(content, trouble(error.message)));
  return () => charts.forEach((chart) => chart.end());
}

async function draw(content, runs, charts) {
  const found = await get("/compare", { run: runs });
  const links = runs.map((name, n) => el("a", { href: link("run", name), class: `ink${(n % 8) + 1}` }, name));
  const pictures = [
    ["reward by step", "step", STEP, REWARD],
    ["reward by tokens trained on", "tokens", TOKENS, REWARD],
    ["reward by seconds of the learner", "seconds", SECONDS, REWARD],
    ["lag, versions", "step", STEP, LAG],
  ];
  for (const [title, below, x, y] of pictures) {
    const chart = new Chart(title, { below, zero: y === LAG });
    charts.push(chart);
    chart.show(found.curves.map((curve, n) => column(curve, n, x, y)));
  }
  const heads = ["", ...found.names];
  set(
    content,
    el("p", { class: "key" }, links),
    el("div", { class: "charts" }, charts.map((chart) => chart.node)),
    el("h2", {}, "Figures"),
    table("Figures", heads, found.rows),
    el("h2", {}, "Configured otherwise"),
    found.differences.length ? table("Configured otherwise", heads, found.differences) : el("p", { class: "muted" }, "nothing: they are configured alike"),
    found.replays.map((name) => el("p", { class: "small" }, `${name} is a replay: its rewards are those of the recorded data, its time is without generation.`)),
    found.simulations.map((name) => el("p", { class: "small" }, `${name} is a simulation: it has no rewards.`)),
  );
}

function column(curve, n, x, y) {
  const made = { label: curve.name, color: (n % 8) + 1, x: curve.points.map((point) => point[x]), y: curve.points.map((point) => point[y]) };
  if (y === LAG) Object.assign(made, { low: made.y, high: curve.points.map((point) => point[OLDEST]) });
  return made;
}
