// The list of runs, looked at again every few seconds; those that are ticked can be compared.

import { get, link } from "./api.js";
import { el, set, table, trouble } from "./dom.js";
import { number, when } from "./format.js";

const AGAIN_MS = 3000;
const HEADS = ["run", "state", "step", "reward", "lag (mean, max)", "samples/s", "tokens/s", "changed"];

export function show(place) {
  document.title = "miles-async";
  const chosen = new Set();
  const troubles = el("div");
  const rows = el("div");
  const compare = el("button", { type: "button", disabled: true, onclick: () => go(chosen) }, "Compare");
  const bar = el("div", { class: "bar" }, el("h1", {}, "Runs"), compare);
  set(place, bar, troubles, rows);
  let timer = 0;
  let last = "";

  function tick(name, on) {
    if (on) chosen.add(name);
    else chosen.delete(name);
    compare.disabled = chosen.size < 2;
    compare.textContent = chosen.size < 2 ? "Compare" : `Compare ${chosen.size} runs`;
  }

  async function look() {
    try {
      const found = await get("/runs");
      document.getElementById("place").textContent = found.place;
      set(troubles);
      const now = JSON.stringify(found.runs);
      if (now !== last) draw(rows, found, chosen, tick);
      last = now;
    } catch (error) {
      set(troubles, trouble(error.message));
    }
    timer = setTimeout(look, AGAIN_MS);
  }
  look();
  return () => clearTimeout(timer);
}

function go(chosen) {
  location.hash = `/compare?${new URLSearchParams([...chosen].map((name) => ["run", name]))}`;
}

function draw(place, found, chosen, tick) {
  if (!found.runs.length) {
    set(place, trouble(`There is no run in ${found.place} yet: a launch makes one there (miles-async launch run.toml).`));
    return;
  }
  const focused = document.activeElement?.getAttribute("aria-label");
  set(place, table("Runs", HEADS, found.runs.map((run) => cells(run, chosen, tick))));
  place.querySelectorAll("input").forEach((input) => input.getAttribute("aria-label") === focused && input.focus());
}

function cells(run, chosen, tick) {
  const box = el("input", {
    type: "checkbox",
    "aria-label": `compare ${run.run}`,
    checked: chosen.has(run.run),
    onchange: (event) => tick(run.run, event.target.checked),
  });
  const name = el("span", { class: "name" }, box, el("a", { href: link("run", run.run) }, run.run));
  const state = [badge(run.state), run.trouble ? el("div", { class: "bad small" }, run.trouble) : null];
  const step = run.num_steps ? `${run.step ?? 0} of ${run.num_steps}` : (run.step ?? "–");
  const reward = run.reward === null && run.loss !== null ? `loss ${number(run.loss)}` : number(run.reward);
  const lag = `${number(run.lag, 2)}, ${number(run.max_lag, 0)}`;
  return [name, state, step, reward, lag, number(run.samples_per_s, 1), number(run.tokens_per_s, 0), when(run.changed)];
}

export function badge(state) {
  return el("span", { class: `badge ${state}` }, state);
}
