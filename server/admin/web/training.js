// The curves of an adapter's training, as its folder has them.

import { lineChart } from "./chart.js";
import { el, section } from "./dom.js";

export function trainingSection({ curves }) {
  const charts = curves ? chartsOf(curves) : [];
  if (charts.length === 0) {
    return section("Training", el("p", { class: "hint" }, "The adapter's folder has no curves of its training."));
  }
  return section("Training", el("div", { class: "charts" }, charts));
}

/** The losses in one chart, every other series in one of its own. */
function chartsOf({ step = [], loss = [], held_out_loss = [], ...others }) {
  const charts = [];
  const losses = [
    { name: "Loss", points: alongSteps(step, loss) },
    { name: "Held-out loss", points: pairs(held_out_loss) },
  ];
  if (losses.some(({ points }) => points.length)) {
    charts.push(lineChart({ title: "Loss by step", xLabel: "Step", yLabel: "", series: losses }));
  }
  for (const [name, values] of Object.entries(others)) {
    const points = Array.isArray(values?.[0]) ? pairs(values) : alongSteps(step, values);
    if (points.length) {
      const title = name.replaceAll("_", " ");
      charts.push(lineChart({ title, xLabel: "Step", yLabel: "", series: [{ name: title, points }] }));
    }
  }
  return charts;
}

function alongSteps(step, values) {
  return Array.isArray(values) ? pairs(step.map((at, index) => [at, values[index]])) : [];
}

function pairs(values) {
  return values.filter(([x, y]) => Number.isFinite(x) && Number.isFinite(y));
}
