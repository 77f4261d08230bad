// How recent traffic uses an adapter's experts, against how the training data did.

import { el, facts, section } from "./dom.js";
import { count, number, percent } from "./format.js";
import { choice, field } from "./forms.js";
import { heatTable, placeOf, projectionsOf } from "./heat.js";

/** Rows that are shown at once before a projection is picked. */
const FEW_ROWS = 60;
const FLAGS = {
  drifted: "▲ Drifted: the routing here differs from that of the training.",
  collapsed: "▼ Collapsed: few experts get nearly all tokens.",
};

/** The section, and `update`, which takes a newer answer of the API. */
export function routingSection(routing) {
  let current = routing;
  let heat = null;
  let mode, projection;
  const [summary, controls, place] = [el("div"), el("div", { class: "row" }), el("div")];

  function shownModules() {
    const wanted = projection.input.value;
    return current.modules.filter((module) => wanted === "All projections" || placeOf(module.module).projection === wanted);
  }

  function rebuild() {
    heat = heatTable(shownModules(), mode);
    place.replaceChildren(heat.node);
  }

  /** What there is to choose from: it changes when the engine loads the adapter. */
  function begin() {
    const projections = projectionsOf(current.modules);
    projection = select(["All projections", ...projections], rebuild);
    if (current.modules.length > FEW_ROWS) projection.input.value = projections[0];
    mode = current.modules.some((module) => module.trained) ? "both" : "live";
    const choices = mode === "both" ? choice("Show", [
      ["both", "Live beside training"], ["live", "Live"], ["trained", "Training"], ["difference", "Difference"],
    ], (value) => {
      mode = value;
      rebuild();
    }) : "";
    controls.replaceChildren(projection.root, choices);
    rebuild();
  }

  function update(newest) {
    const isSame = shape(newest) === shape(current);
    current = newest;
    summary.replaceChildren(...summaryOf(newest));
    if (newest.modules.length === 0) [controls, place].forEach((part) => part.replaceChildren());
    else if (isSame && heat !== null) heat.update(shownModules());
    else begin();
  }

  const node = section("Routing", summary, controls, place);
  update(routing);
  return { node, update };
}

/** What the table is made for: the same shape fits into the same cells. */
function shape({ modules }) {
  return JSON.stringify(modules.map((module) => [module.module, module.activations.length, module.trained !== null]));
}

function select(options, onchange) {
  const made = field("Projection", { onchange }, { tag: "select" });
  made.input.append(...options.map((value) => el("option", { value }, value)));
  return made;
}

function summaryOf({ tokens, enough, entropy, effective_experts, dead_experts, drift, flags, modules }) {
  if (modules.length === 0) {
    return [el("p", {}, "This server's engine does not hold the adapter, or counts nothing for it.")];
  }
  const experts = Math.max(...modules.map((module) => module.activations.length));
  return [
    enough ? null : el("p", { class: "note" }, `${count(tokens, "recent token")}: too few to tell how the experts are used.`),
    flags.length ? el("ul", { class: "flags" }, flags.map((flag) => el("li", {}, FLAGS[flag] ?? flag))) : null,
    facts([
      ["Recent tokens", number(tokens)],
      ["Experts in use", effective_experts === null ? "–" : `${effective_experts.toFixed(1)} of ${experts}`],
      ["Entropy", entropy === null ? "–" : `${percent(entropy)} of an even use`],
      ["Dead experts", enough ? number(dead_experts) : "–"],
      ["Drift from training", drift === null ? "–" : `${drift.toFixed(3)} on a scale from 0 to 1`],
    ]),
    modules.some((module) => module.trained) ? null
      : el("p", { class: "hint" }, "The adapter's folder has no expert load of its training to compare with."),
  ].filter(Boolean);
}
