// The heat map of one adapter: a table with a row for each adapted linear and a column for each expert.

import { diverging, paint, sequential } from "./colours.js";
import { el, scrolling } from "./dom.js";
import { number } from "./format.js";

const GROUPS = {
  both: ["live", "trained"],
  live: ["live"],
  trained: ["trained"],
  difference: ["difference"],
};
const TITLES = { live: "Live", trained: "Training", difference: "Live − training" };

/** The layer and the projection that a module's name tells; the layer is null where it has none. */
export function placeOf(module) {
  const layer = /(?:^|\.)(\d+)\./.exec(module);
  return { layer: layer && Number(layer[1]), projection: module.split(".").at(-1) };
}

/** The values of a module's experts in each group; null where there are none. */
function valuesOf(module) {
  const total = module.activations.reduce((sum, count) => sum + count, 0);
  const live = total > 0 ? module.activations.map((count) => count / total) : null;
  const { trained } = module;
  return { live, trained, difference: live && trained && live.map((share, expert) => share - trained[expert]) };
}

/** Makes the table of the modules. `update` shows newer counts of the same modules in its cells. */
export function heatTable(modules, mode) {
  const groups = GROUPS[mode];
  const experts = Math.max(0, ...modules.map((module) => module.activations.length));
  const rows = new Map(modules.map((module) => [module.module, makeRow(module, groups)]));
  const head = el("thead", {},
    el("tr", {},
      el("th", { rowspan: 2, scope: "col" }, "Layer"),
      groups.map((group) => el("th", { colspan: experts, scope: "colgroup", class: "group" }, TITLES[group])),
      ["Experts in use", "Drift", "Dead"].map((title) => el("th", { rowspan: 2, scope: "col" }, title))),
    el("tr", {}, groups.flatMap((group) => Array.from({ length: experts }, (_, expert) =>
      el("th", { scope: "col", class: expert === 0 ? "first" : null }, String(expert))))));
  const legend = el("p", { class: "legend" });
  const caption = `Share of the activations by layer and expert, in percent${mode === "difference" ? " points" : ""}`;
  const bodies = projectionsOf(modules).map((projection) => el("tbody", {},
    el("tr", {}, el("th", { colspan: 4 + groups.length * experts, scope: "rowgroup", class: "projection" }, projection)),
    modules.filter((module) => placeOf(module.module).projection === projection).map((module) => rows.get(module.module).node)));
  const shown = el("table", { class: "heat" }, el("caption", {}, caption), head, bodies);

  function update(newest) {
    const end = endOfScale(newest, groups);
    const most = Math.max(...newest.map((module) => module.drift ?? 0));
    for (const module of newest) rows.get(module.module)?.update(module, end, most);
    fillLegend(legend, mode, end, experts);
  }

  update(modules);
  return { node: el("div", {}, legend, scrolling(caption, shown)), update };
}

export function projectionsOf(modules) {
  return [...new Set(modules.map((module) => placeOf(module.module).projection))];
}

function endOfScale(modules, groups) {
  const values = modules.flatMap((module) => groups.flatMap((group) => valuesOf(module)[group] ?? []));
  return Math.max(0.01, ...values.map(Math.abs));
}

function makeRow(module, groups) {
  const { layer } = placeOf(module.module);
  const cells = groups.map((group) => module.activations.map((_, expert) => ({
    group, expert, node: el("td", { class: expert === 0 ? "cell first" : "cell" }),
  })));
  const [use, drift, dead] = [el("td"), el("td"), el("td")];
  const name = layer === null ? module.module : String(layer);
  const node = el("tr", {}, el("th", { scope: "row", title: module.module }, name),
    cells.flat().map((cell) => cell.node), use, drift, dead);

  function update(newest, end, most) {
    const values = valuesOf(newest);
    for (const { group, expert, node: cell } of cells.flat()) {
      const isDead = group === "live" && newest.dead_experts.includes(expert);
      fillCell(cell, values[group]?.[expert] ?? null, { end, isDead, signed: group === "difference" });
    }
    use.textContent = newest.effective_experts === null ? "–" : newest.effective_experts.toFixed(1);
    const isMost = newest.drift !== null && newest.drift > 0 && newest.drift === most;
    drift.textContent = newest.drift === null ? "–" : `${newest.drift.toFixed(3)}${isMost ? " ▲ most" : ""}`;
    const isKnown = newest.effective_experts !== null; // else there are too few tokens to tell
    dead.textContent = !isKnown ? "–" : newest.dead_experts.length ? newest.dead_experts.join(", ") : "none";
  }

  return { node, update };
}

function fillCell(cell, value, { end, isDead, signed }) {
  cell.classList.toggle("dead", isDead);
  if (value === null) {
    cell.textContent = "–";
    cell.removeAttribute("style");
    return;
  }
  const points = 100 * value;
  const text = Math.abs(points) < 9.95 ? points.toFixed(1) : points.toFixed(0);
  cell.textContent = `${signed && Number(text) > 0 ? "+" : ""}${text.replace("-", "−")}${isDead ? " ✕" : ""}`;
  paint(cell, signed ? diverging(value / end) : sequential(value / end));
}

function fillLegend(legend, mode, end, experts) {
  const steps = mode === "difference" ? [-1, -0.5, 0, 0.5, 1] : [0, 0.25, 0.5, 0.75, 1];
  const swatches = steps.map((step) => {
    const swatch = el("span", { class: "swatch" }, `${number(Math.round(1000 * step * end) / 10)} %`);
    paint(swatch, mode === "difference" ? diverging(step) : sequential(step));
    return swatch;
  });
  const even = experts ? `An even share is ${number(Math.round(1000 / experts) / 10)} %. ` : "";
  legend.replaceChildren("Colours: ", ...swatches, ` ${even}✕ is a dead expert.`);
}
