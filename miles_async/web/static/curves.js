// The curves of a run, as they grow: those that matter first, and any other by its name.

import { get, runPath } from "./api.js";
import { Chart } from "./chart.js";
import { el, keep, kept, set, trouble } from "./dom.js";

const LAG = "lag";
const FIRST = [
  { title: "reward", names: ["raw_reward"] },
  { title: LAG, names: ["mean_token_lag", "max_token_lag"], zero: true },
  { title: "samples/s", names: ["rate/samples_per_s"], zero: true },
  { title: "tokens/s", names: ["rate/tokens_per_s"], zero: true },
  { title: "loss", names: ["loss"] },
  { title: "entropy", names: ["entropy_loss"] },
  { title: "response length, tokens", names: ["response_lengths"] },
  { title: "gradient norm", names: ["grad_norm"] },
  { title: "log-prob distance, learner to engine", names: ["train_rollout_logprob_abs_diff"] },
];
const AGAIN = 1500; // points of a curve before it is asked for as a whole again

export class Curves {
  constructor(name) {
    this.name = name;
    this.generation = -1;
    this.step = -1;
    this.columns = {};
    this.charts = [];
    this.evals = {};
    this.asking = false;
    this.slider = el("input", { type: "range", min: 0, max: 0.98, step: 0.02, value: kept("smoothing", "0.6"), oninput: () => this.smooth() });
    this.choice = el("select", { onchange: () => this.add() });
    this.troubles = el("div");
    this.grid = el("div", { class: "charts" });
    const controls = el("div", { class: "bar" }, el("h2", {}, "Curves"), el("label", {}, "smoothing ", this.slider), el("label", {}, "add ", this.choice));
    this.node = el("section", {}, controls, this.troubles, this.grid);
  }

  get weight() {
    return Number(this.slider.value);
  }

  smooth() {
    keep("smoothing", this.slider.value);
    this.draw();
  }

  // The run is at that state: ask for what is new.
  async follow(run) {
    this.evals = run.evals;
    if (this.asking || this.ended || (run.generation === this.generation && run.step === this.step)) return;
    this.asking = true;
    try {
      await this.ask(run);
      set(this.troubles);
    } catch (error) {
      set(this.troubles, trouble(error.message));
    }
    this.asking = false;
  }

  async ask(run) {
    const grown = Math.max(0, ...Object.values(this.columns).map((column) => column[0].length));
    const whole = run.generation !== this.generation || run.step < this.step || grown > AGAIN;
    const names = this.charts.length ? this.charts.flatMap(({ spec }) => spec.names) : FIRST.flatMap((spec) => spec.names);
    const found = await get(`${runPath(this.name)}/curves`, { curve: names, first: whole ? 0 : this.step + 1 });
    if (this.ended) return;
    if (!whole && found.generation !== this.generation) return; // rewritten meanwhile: the next state asks for all of it
    for (const [name, columns] of Object.entries(found.curves)) {
      this.columns[name] = whole || !this.columns[name] ? columns : this.columns[name].map((column, n) => column.concat(columns[n]));
    }
    this.generation = found.generation;
    this.step = found.step;
    if (!this.charts.length) FIRST.forEach((spec) => this.columns[spec.names[0]]?.[0].length && this.begin(spec));
    this.offer(found.names);
    this.draw();
  }

  begin(spec) {
    const chart = new Chart(spec.title, { zero: spec.zero });
    this.charts.push({ spec, chart });
    this.grid.append(chart.node);
  }

  offer(names) {
    const shown = new Set(this.charts.flatMap(({ spec }) => spec.names));
    const options = names.filter((name) => !shown.has(name));
    if (this.choice.options.length === options.length + 1) return;
    set(this.choice, el("option", { value: "" }, "a curve …"), options.map((name) => el("option", { value: name }, name)));
  }

  async add() {
    const name = this.choice.value;
    if (!name) return;
    try {
      const found = await get(`${runPath(this.name)}/curves`, { curve: name, last: Math.max(0, this.step) });
      this.columns[name] = found.curves[name];
      this.begin({ title: name, names: [name] });
      this.offer(found.names);
      this.draw();
    } catch (error) {
      set(this.troubles, trouble(error.message));
    }
  }

  draw() {
    for (const { spec, chart } of this.charts) chart.show(this.of(spec), this.weight);
  }

  of(spec) {
    const columns = spec.names.map((name) => this.columns[name] ?? [[], [], [], []]);
    if (spec.title === LAG) {
      const [mean, most] = columns;
      return [{ label: "mean, and up to the oldest token", color: 2, x: mean[0], y: mean[1], low: mean[2], high: most[3].slice(0, mean[0].length) }];
    }
    const made = columns.map((column, n) => ({ label: spec.names[n], color: n + 1, x: column[0], y: column[1], low: column[2], high: column[3] }));
    if (spec.title !== "reward") return made;
    const evals = Object.entries(this.evals).map(([name, points], n) => ({
      label: `eval ${name}`,
      color: n + 4,
      dots: true,
      x: points.map(([version]) => version),
      y: points.map(([, value]) => value),
    }));
    return [...made, ...evals];
  }

  end() {
    this.ended = true;
    this.charts.forEach(({ chart }) => chart.end());
  }
}
