// Line charts as SVG, each with a text and a table that say the same.

import { el, freshId, svg, table } from "./dom.js";
import { number } from "./format.js";

const [WIDTH, HEIGHT] = [640, 280];
const MARGIN = { left: 56, right: 16, top: 12, bottom: 40 };
const MOST_ROWS = 100;

/**
 * A figure with `series`, `[{name, points: [[x, y], …]}]`, up to three, that differ by dash and by
 * mark as well as by colour.
 */
export function lineChart({ title, xLabel, yLabel, series }) {
  const drawn = series.filter(({ points }) => points.length > 0);
  const xs = drawn.flatMap(({ points }) => points.map(([x]) => x));
  const ys = drawn.flatMap(({ points }) => points.map(([, y]) => y));
  const x = axis(Math.min(...xs), Math.max(...xs), MARGIN.left, WIDTH - MARGIN.right, { tight: true });
  const y = axis(Math.min(...ys), Math.max(...ys), HEIGHT - MARGIN.bottom, MARGIN.top);
  const id = freshId("chart");
  const image = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-labelledby": id, class: "chart" },
    svg("title", { id }, `${title}. ${drawn.map(described).join(" ")}`),
    x.ticks.map((tick) => [
      svg("line", { x1: x.at(tick), x2: x.at(tick), y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom, class: "grid-line" }),
      svg("text", { x: x.at(tick), y: HEIGHT - MARGIN.bottom + 16, "text-anchor": "middle" }, number(tick)),
    ]),
    y.ticks.map((tick) => [
      svg("line", { x1: MARGIN.left, x2: WIDTH - MARGIN.right, y1: y.at(tick), y2: y.at(tick), class: "grid-line" }),
      svg("text", { x: MARGIN.left - 6, y: y.at(tick) + 4, "text-anchor": "end" }, number(tick)),
    ]),
    svg("text", { x: (MARGIN.left + WIDTH - MARGIN.right) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, xLabel),
    drawn.map(({ points }, index) => curve(points.map(([px, py]) => [x.at(px), y.at(py)]), index)));
  return el("figure", {},
    el("figcaption", {}, title, yLabel ? ` (${yLabel})` : "", legend(drawn)),
    image,
    el("details", {}, el("summary", {}, "The same as a table"), dataTable(title, xLabel, drawn)));
}

function described({ name, points }) {
  const [first, last] = [points[0], points[points.length - 1]];
  const least = points.reduce((best, point) => (point[1] < best[1] ? point : best));
  return `${name}: from ${number(first[1])} at ${number(first[0])} to ${number(last[1])} at ${number(last[0])}, lowest ${number(least[1])} at ${number(least[0])}.`;
}

function curve(places, index) {
  const line = svg("polyline", { points: places.map((place) => place.map((v) => v.toFixed(1)).join(",")).join(" "), class: `curve curve-${index}` });
  // Few points are marked each; many would hide the line.
  const marks = places.length > 60 ? [] : places.map(([cx, cy]) => svg("circle", { cx: cx.toFixed(1), cy: cy.toFixed(1), r: index === 0 ? 2 : 3.5, class: `point point-${index}` }));
  return [line, marks];
}

function legend(series) {
  return el("span", { class: "legend" }, series.map(({ name }, index) => el("span", {},
    svg("svg", { viewBox: "0 0 28 10", width: 28, height: 10, "aria-hidden": "true" },
      svg("line", { x1: 0, x2: 28, y1: 5, y2: 5, class: `curve curve-${index}` })), " ", name)));
}

function dataTable(title, xLabel, series) {
  const steps = [...new Set(series.flatMap(({ points }) => points.map(([x]) => x)))].sort((a, b) => a - b);
  const stride = Math.ceil(steps.length / MOST_ROWS);
  const values = series.map(({ points }) => new Map(points));
  // Rows of the sparse series stay: they are the ones that are compared.
  const kept = steps.filter((step, index) => index % stride === 0 || index === steps.length - 1 || values.slice(1).some((map) => map.has(step)));
  const rows = kept.map((step) => [number(step), ...values.map((map) => (map.has(step) ? number(map.get(step)) : "–"))]);
  return table(title, [xLabel, ...series.map(({ name }) => name)], rows).node;
}

/** Round ticks over a range, and where a value is between two places of the picture. `tight` ends with
 * the range and not with a tick. */
function axis(low, high, from, to, { tight = false } = {}) {
  if (low === high) [low, high] = [low - Math.abs(low || 1) * 0.1, high + Math.abs(high || 1) * 0.1];
  const rough = (high - low) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const [start, end] = tight ? [low, high] : [Math.floor(low / step) * step, Math.ceil(high / step) * step];
  const first = Math.ceil(start / step - 1e-9);
  const ticks = Array.from({ length: Math.floor(end / step + 1e-9) - first + 1 }, (_, i) => (first + i) * step);
  return { ticks, at: (value) => from + ((value - start) / (end - start)) * (to - from) };
}
