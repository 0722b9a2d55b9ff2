// One run, live: its figures, the loop, engines, ledger, curves and events.

import { runPath } from "./api.js";
import { Curves } from "./curves.js";
import { el, set, table, trouble } from "./dom.js";
import { clock, duration, number, share } from "./format.js";
import { head } from "./head.js";
import { badge } from "./list.js";
import { Loop } from "./loop.js";

const STATES = ["waiting", "in_flight", "ready", "batched", "trained"];

export function show(place, name) {
  const parts = {};
  for (const part of ["state", "troubles", "figures", "engines", "ledger", "events"]) parts[part] = el("div");
  parts.state.setAttribute("class", "state");
  const loop = new Loop();
  const curves = new Curves(name);
  const section = (title, ...content) => el("section", {}, el("h2", {}, title), content);
  set(
    place,
    head(name, "Overview", parts.state),
    parts.troubles,
    parts.figures,
    curves.node,
    el("div", { class: "halves" }, section("Loop", loop.node), el("div", {}, section("Engines", parts.engines), section("Ledger", parts.ledger))),
    section("Events", parts.events),
  );
  const drawn = {};
  // draws a part only when what it shows is another one, so that what is selected or focused stays
  const update = (part, value, draw) => {
    const now = JSON.stringify(value);
    if (drawn[part] !== now) set(parts[part], draw(value));
    drawn[part] = now;
  };
  const source = new EventSource(`/api${runPath(name)}/live`);
  source.addEventListener("state", (event) => {
    const run = JSON.parse(event.data);
    update("state", [run.state, run.reason, run.step, run.num_steps], () => progress(run));
    update("troubles", [run.troubles, run.diagnosis], () => troubles(run));
    update("figures", [run.figures, run.curve, run.target], () => figures(run));
    update("engines", run.engines, engines);
    update("ledger", [run.ledger, run.balanced], () => ledger(run));
    update("events", run.events, events);
    loop.show(run);
    curves.follow(run);
  });
  source.addEventListener("trouble", (event) => set(parts.troubles, trouble(JSON.parse(event.data).message)));
  source.addEventListener("error", () => {
    drawn.troubles = null;
    const gone = source.readyState === EventSource.CLOSED;
    set(parts.troubles, trouble(gone ? `There is no run "${name}" here, or it takes a key.` : "The server does not answer; this is what it said last."));
  });
  return () => {
    source.close();
    curves.end();
    loop.end();
  };
}

function progress(run) {
  const steps = run.num_steps ? `step ${run.step} of ${run.num_steps}` : `step ${run.step}`;
  const bar = run.num_steps ? el("progress", { max: run.num_steps, value: run.step, "aria-label": "steps" }) : null;
  return [badge(run.state), bar, el("span", { id: "steps" }, steps), run.reason ? el("span", { class: "muted" }, run.reason) : null];
}

function troubles(run) {
  const culprit = run.diagnosis ? el("p", { class: "culprit", role: "status" }, run.diagnosis) : null;
  return [...run.troubles.filter((text) => text !== run.diagnosis).map(trouble), culprit];
}

function figures(run) {
  const of = run.figures;
  const target = run.target === null ? "" : `target ${number(run.target)}`;
  const tiles = [
    [run.curve, number(of.reward), target || "last steps"],
    ["lag", number(of.mean_lag, 2), `oldest token ${number(of.max_lag, 0)}, engines ${number(of.publish_lag, 0)} behind`],
    ["samples/s", number(of.samples_per_s, 1), `${number(of.tokens_per_s, 0)} tokens/s`],
    ["busy", share(of.learner_busy), `learner; engines ${share(of.engine_busy)}`],
    of.eta_s === null ? ["time", duration(of.wall_s), "of all its starts"] : ["to go", duration(of.eta_s), `after ${duration(of.wall_s)}`],
    ...Object.entries(run.evals).map(([name, points]) => {
      const [version, value] = points[points.length - 1];
      return [`eval ${name}`, number(value), `version ${version}`];
    }),
  ];
  const tile = ([title, value, below]) => el("div", { class: "tile" }, el("dt", {}, title), el("dd", {}, value, el("small", {}, below)));
  return el("dl", { class: "tiles" }, tiles.map(tile));
}

function engines(known) {
  if (!known.length) return el("p", { class: "muted" }, "none has been reported");
  const rows = known.map((engine) => [
    engine.name,
    engine.version === null ? "–" : `v${engine.version}${engine.behind ? `, ${engine.behind} behind` : ""}`,
    engine.state || "–",
    number(engine.running, 0),
    number(engine.tokens_per_s, 0),
    number(engine.requests_per_s, 1),
    share(engine.busy),
    engine.why ? `${clock(engine.why.time)} ${engine.why.kind} ${engine.why.text}` : "–",
  ]);
  return table("Engines", ["engine", "version", "state", "running", "tokens/s", "requests/s", "busy", "last event"], rows);
}

function ledger(run) {
  if (run.ledger === null || run.ledger === undefined) return el("p", { class: "muted" }, "not known");
  const dropped = Object.values(run.ledger.dropped).reduce((a, b) => a + b, 0);
  const of = { ...run.ledger, dropped };
  const rows = ["dealt", ...STATES, "dropped"].map((state) => [state.replace("_", " "), number(of[state])]);
  const bar = el("div", { class: "share", "aria-hidden": "true" }, [...STATES, "dropped"].map((state, n) => part(of, state, n)));
  const reasons = Object.entries(run.ledger.dropped).map(([reason, count]) => `${reason} ${count}`).join(", ");
  return [
    bar,
    table("Ledger", ["groups", "count"], rows),
    reasons ? el("p", { class: "small" }, `dropped: ${reasons}`) : null,
    run.balanced ? null : trouble("The ledger does not account for every group."),
  ];
}

function part(of, state, n) {
  const made = el("span", { class: `fill${n + 1}` });
  made.style.flexGrow = String(of[state]);
  return made;
}

function events(known) {
  if (!known.length) return el("p", { class: "muted" }, "none yet");
  const rows = known.toReversed().map((event) => [clock(event.time), event.actor, event.kind, event.text]);
  const made = table("Events", ["time", "actor", "event", ""], rows);
  made.classList.add("low");
  return made;
}
