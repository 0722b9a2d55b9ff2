// Elements of the page. What a run or a model wrote becomes text and nothing else: no function here takes HTML.

const SVG = "http://www.w3.org/2000/svg";

// An element; attributes that begin with "on" are listeners, null and false ones are left out. Children: nodes, text, null.
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  put(node, ...children);
  return node;
}

export function put(node, ...children) {
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined) node.append(child instanceof Node ? child : String(child));
  }
  return node;
}

// Replaces what is in a node.
export function set(node, ...children) {
  node.replaceChildren();
  return put(node, ...children);
}

// One clear line about what is wrong.
export function trouble(text) {
  return el("p", { class: "trouble", role: "alert" }, text);
}

// A table that can be scrolled sideways by keyboard, too.
export function table(caption, heads, rows) {
  const head = heads.map((text) => el("th", { scope: "col" }, text));
  const body = rows.map((cells) =>
    el("tr", {}, cells.map((cell, n) => (n ? el("td", {}, cell) : el("th", { scope: "row" }, cell)))),
  );
  const made = el("table", {}, el("caption", { class: "unseen" }, caption), el("thead", {}, el("tr", {}, head)), el("tbody", {}, body));
  return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption }, made);
}

// What the reader chose stays chosen, where the browser keeps such things.
export function kept(name, fallback) {
  try {
    return localStorage.getItem(name) ?? fallback;
  } catch {
    return fallback;
  }
}

export function keep(name, value) {
  try {
    localStorage.setItem(name, value);
  } catch {
    // it is forgotten, then
  }
}
