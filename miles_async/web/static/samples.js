// What the model wrote in a step: filtered, sorted, searched, and each sample token by token.

import { get, link, runPath } from "./api.js";
import { el, set, trouble } from "./dom.js";
import { duration, number } from "./format.js";
import { head } from "./head.js";
import { tokens } from "./tokens.js";

const SORTS = [["place", "as trained"], ["reward", "reward"], ["length", "length"], ["lag", "lag"]];
const BOUNDS = ["reward", "length", "lag"];
const SOON_MS = 250;

export function show(place, name, parameters) {
  const troubles = el("div");
  const count = el("p", { role: "status", class: "muted" });
  const rows = el("div", { class: "samples" });
  const more = el("button", { type: "button", hidden: true, onclick: () => look(rows.childElementCount) }, "More");
  const form = controls(parameters);
  set(place, head(name, "Samples"), form, troubles, count, rows, more);
  let timer = 0;
  let asking = new AbortController();
  let all = null;

  async function look(offset = 0) {
    asking.abort();
    asking = new AbortController();
    const wanted = Object.fromEntries([...new FormData(form)].filter(([, value]) => value !== ""));
    try {
      const found = await get(`${runPath(name)}/samples`, { ...wanted, offset }, asking.signal);
      history.replaceState(null, "", `${link("run", name, "samples")}?${new URLSearchParams(wanted)}`);
      set(troubles, found.missing.map(trouble), found.trouble ? trouble(found.trouble) : null);
      all = found;
      offerFinishes(form, found.of_all.finishes);
      form.elements.step.max = found.last;
      form.elements.step.min = found.first;
      if (!form.elements.step.value) form.elements.step.value = found.step;
      count.textContent = `${found.found} of the ${found.samples} samples of step ${found.step}; on record: steps ${found.first} to ${found.last}`;
      const made = found.rows.map((row) => card(name, row, found.step));
      if (offset) rows.append(...made);
      else set(rows, made);
      more.hidden = rows.childElementCount >= found.found;
    } catch (error) {
      if (error.name === "AbortError") return;
      set(troubles, trouble(error.message));
      set(rows);
      count.textContent = "";
      more.hidden = true;
    }
  }

  const soon = () => {
    clearTimeout(timer);
    timer = setTimeout(look, SOON_MS);
  };
  form.addEventListener("input", soon);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    look();
  });
  form.addEventListener("go", (event) => {
    const step = form.elements.step;
    const now = Number(step.value || all?.step || 1) + event.detail;
    step.value = all ? Math.min(all.last, Math.max(all.first, now)) : now;
    look();
  });
  look();
  return () => {
    clearTimeout(timer);
    asking.abort();
  };
}

function controls(parameters) {
  const field = (name, attributes) => el("input", { name, value: parameters.get(name) ?? "", ...attributes });
  const go = (by) => (event) => event.target.form.dispatchEvent(new CustomEvent("go", { detail: by }));
  const descending = el("input", { type: "checkbox", name: "descending", value: "true", checked: parameters.get("descending") === "true" });
  const sorts = SORTS.map(([value, title]) => el("option", { value, selected: parameters.get("sort") === value }, title));
  const wanted = parameters.get("finish") ?? "";
  const finish = el("select", { name: "finish" }, el("option", { value: "" }, "any end"), wanted ? el("option", { value: wanted, selected: true }, wanted) : null);
  const bounds = BOUNDS.map((name) =>
    el("fieldset", {}, el("legend", {}, name), field(`${name}_min`, { type: "number", step: "any", placeholder: "from", "aria-label": `least ${name}` }), field(`${name}_max`, { type: "number", step: "any", placeholder: "to", "aria-label": `greatest ${name}` })),
  );
  return el(
    "form",
    { class: "controls", role: "search" },
    el("span", { class: "steps" }, el("button", { type: "button", onclick: go(-1), "aria-label": "the step before" }, "‹"), el("label", {}, "step ", field("step", { type: "number", class: "short" })), el("button", { type: "button", onclick: go(1), "aria-label": "the next step" }, "›")),
    el("label", {}, "search ", field("text", { type: "search", placeholder: "in prompts and responses" })),
    el("label", {}, "sort by ", el("select", { name: "sort" }, sorts)),
    el("label", {}, descending, " descending"),
    el("label", {}, "ended by ", finish),
    bounds,
  );
}

function offerFinishes(form, finishes) {
  const select = form.elements.finish;
  const known = new Set([...select.options].map((option) => option.value));
  finishes.filter((finish) => !known.has(finish)).forEach((finish) => select.append(el("option", { value: finish }, finish)));
}

function text(title, content) {
  return el("div", {}, el("h3", {}, title), el("pre", {}, content));
}

function card(name, row, step) {
  const facts = [
    ["reward", number(row.reward)],
    ...Object.entries(row.parts).map(([part, value]) => [part, number(value)]),
    ["length", `${row.length} tokens${row.trained < row.length ? `, ${row.trained} trained` : ""}`],
    ["lag", row.lag === null ? "–" : String(row.lag)],
    ...Object.entries(row.ages).map(([moment, age]) => [`age, ${moment.replace("_", " ")}`, String(age)]),
    ["versions", row.versions.map(([version, count]) => `v${version}: ${count}`).join(", ") || "–"],
    ["ended by", row.finish],
    ["group took", duration(row.seconds)],
    ...(row.label === null ? [] : [["label", row.label]]),
  ];
  const detail = el("div");
  const open = el("button", { type: "button", "aria-expanded": "false" }, "Tokens");
  open.addEventListener("click", async () => {
    if (detail.hasChildNodes()) {
      set(detail);
    } else {
      try {
        const found = await get(`${runPath(name)}/sample`, { group: row.group, index: row.index, step });
        set(detail, tokens(found));
      } catch (error) {
        set(detail, trouble(error.message));
      }
    }
    open.setAttribute("aria-expanded", String(detail.hasChildNodes()));
  });
  return el(
    "article",
    { "aria-label": `group ${row.group}, sample ${row.index}` },
    el("h2", {}, `${row.group} / ${row.index}`),
    el("dl", { class: "facts" }, facts.map(([title, value]) => el("div", {}, el("dt", {}, title), el("dd", {}, value)))),
    el("div", { class: "halves" }, text("prompt", row.prompt), text("response", row.response)),
    open,
    detail,
  );
}
