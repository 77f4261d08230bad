// Makes elements. Text gets into the page as text nodes and nowhere as markup: names, answers and
// errors are whatever others wrote.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) node.append(child);
  }
  return node;
}

/** An element: attributes by name, listeners as `onclick`; children are nodes or texts. */
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

let ids = 0;

/** An id that no other element has. */
export function freshId(prefix) {
  ids += 1;
  return `${prefix}-${ids}`;
}

/** Tells a screen reader, and shows for a moment, what has just been done. */
export function say(text) {
  document.getElementById("status").textContent = text;
}

/** A message that is read out when it appears; nothing while the text is empty. */
export function alertBox(text = "") {
  const box = el("p", { class: "error", role: "alert" });
  box.textContent = text;
  return box;
}

/** Puts the focus on the view's title: what had it is gone, or the view is new. */
export function focusTitle() {
  document.querySelector("#view h1").focus();
}

export function link(text, ...path) {
  return el("a", { href: `#/${path.map(encodeURIComponent).join("/")}` }, text);
}

export function section(title, ...children) {
  const id = freshId("section");
  return el("section", { "aria-labelledby": id }, el("h2", { id }, title), ...children);
}

/** A box that scrolls sideways, by keyboard too, where a table is wider than the page. */
export function scrolling(label, ...children) {
  return el("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": label }, ...children);
}

/** A table with a caption; the first cell of each row is its header. Rows are arrays of cells. */
export function table(caption, columns, rows = []) {
  const body = el("tbody", {}, rows.map(tableRow));
  const head = el("tr", {}, columns.map((name) => el("th", { scope: "col" }, name)));
  const shown = el("table", {}, el("caption", {}, caption), el("thead", {}, head), body);
  return { node: scrolling(caption, shown), body };
}

export function tableRow([first, ...rest]) {
  return el("tr", {}, el("th", { scope: "row" }, first), rest.map((cell) => el("td", {}, cell)));
}

/** Terms and what they are. Nothing for a value of null. */
export function facts(pairs) {
  const known = pairs.filter(([, value]) => value !== null && value !== undefined);
  return el("dl", {}, known.map(([term, value]) => el("div", {}, el("dt", {}, term), el("dd", {}, value))));
}
