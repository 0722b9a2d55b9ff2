// Which view the address asks for. A view is a function of where it is drawn, its names and its parameters; it returns what ends it.

import { set, trouble } from "./dom.js";
import { show as list } from "./list.js";
import { show as run } from "./run.js";
import { show as samples } from "./samples.js";
import { show as timeline } from "./timeline.js";
import { show as compare } from "./compare.js";

const place = document.getElementById("view");
let end = () => {};

function route() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  if (path === "view") return; // the link that skips the head
  const names = path.split("/").map(decodeURIComponent);
  const parameters = new URLSearchParams(query);
  end();
  set(place);
  end = choose(names, parameters) ?? (() => {});
}

function choose([view, name, part], parameters) {
  if (!view) return list(place);
  if (view === "compare") return compare(place, parameters);
  if (view === "run" && name) {
    if (!part) return run(place, name);
    if (part === "samples") return samples(place, name, parameters);
    if (part === "timeline") return timeline(place, name);
  }
  set(place, trouble("There is no such page."));
}

addEventListener("hashchange", () => {
  route();
  place.focus({ preventScroll: true });
  scrollTo(0, 0);
});
route();
