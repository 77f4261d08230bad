// The difference between two sets of adapters.

import { el, table } from "./dom.js";
import { short } from "./format.js";

const MARKS = { added: "+ added", changed: "± changed", removed: "− removed" };

/** Names that differ, in order: `[{name, kind, before, after}]`. Sets are names to digests. */
export function compare(before, after) {
  const [from, to] = [new Map(Object.entries(before)), new Map(Object.entries(after))];
  return [...new Set([...from.keys(), ...to.keys()])]
    .sort()
    .filter((name) => from.get(name) !== to.get(name))
    .map((name) => ({
      name,
      kind: !from.has(name) ? "added" : !to.has(name) ? "removed" : "changed",
      before: from.get(name) ?? null,
      after: to.get(name) ?? null,
    }));
}

/** A table of the difference, or a sentence where there is none. */
export function differenceTable(caption, before, after, catalogue) {
  const found = compare(before, after);
  if (found.length === 0) return el("p", {}, `${caption}: no difference.`);
  const rows = found.map(({ name, kind, before: from, after: to }) => [
    name,
    el("span", { class: `mark ${kind}` }, MARKS[kind]),
    adapterText(from, catalogue),
    adapterText(to, catalogue),
  ]);
  return table(caption, ["Name", "Difference", "Before", "After"], rows).node;
}

export function adapterText(digest, catalogue) {
  if (digest === null) return "–";
  return el("a", { href: `#/adapters/${encodeURIComponent(digest)}` }, catalogue.label(digest) || short(digest));
}
