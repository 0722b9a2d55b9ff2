// What every view of a run begins with: its name, and the way to its other views.

import { link } from "./api.js";
import { el } from "./dom.js";

export function head(name, current, ...more) {
  document.title = `${name} · miles-async`;
  const views = [["Overview"], ["Samples", "samples"], ["Timeline", "timeline"]];
  const links = views.map(([title, part]) => {
    const to = part ? link("run", name, part) : link("run", name);
    return el("a", { href: to, "aria-current": title === current ? "page" : null }, title);
  });
  return [el("div", { class: "bar" }, el("h1", {}, name), ...more), el("nav", { class: "tabs", "aria-label": "views of the run" }, links)];
}
