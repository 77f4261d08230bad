// The canaries of a tenant's set: adapters that get a share of the requests for a name, what was seen
// of them and of the live ones beside them, and the way to end one.

import { ask, path } from "./api.js";
import { adapterText } from "./difference.js";
import { el, focusTitle, say, section, table } from "./dom.js";
import { moment, number, percent, seconds } from "./format.js";
import { button, confirm } from "./forms.js";
import { poll } from "./poll.js";

const STATES = { promoted: "promoted", rolled_back: "rolled back", superseded: "superseded" };
const ARMS = [["canary", "Canary"], ["live", "Live adapter"]];
const TIMES = [
  ["First token, median", "first_token_median_seconds"],
  ["First token, 95 %", "first_token_p95_seconds"],
  ["Per token, median", "token_median_seconds"],
  ["Per token, 95 %", "token_p95_seconds"],
];

/** The section. `onend` is called when a canary has ended: it may have changed the set. */
export async function canarySection(tenant, catalogue, signal, { onend }) {
  const where = path`tenants/${tenant}/canary`;
  const [running, ended] = [el("div"), el("div")];
  const cards = new Map();
  let shown = null;

  async function look() {
    const { data } = await ask("GET", where, { signal });
    const now = data.filter(({ state }) => state === "running");
    const isNew = now.length !== cards.size || now.some(({ id }) => !cards.has(id));
    const hasEnded = [...cards.keys()].some((id) => !now.some((canary) => canary.id === id));
    const kept = now.map((canary) => [canary.id, cards.get(canary.id) ?? makeCard(canary, catalogue, end)]);
    cards.clear();
    for (const [id, card] of kept) cards.set(id, card);
    now.forEach((canary) => cards.get(canary.id).update(canary));
    if (isNew || shown === null) { // else what has the focus keeps it
      running.replaceChildren(...kept.map(([, card]) => card.node));
      if (now.length === 0) running.append(el("p", { class: "hint" }, "No canary runs. `remix publish` and `remix set canary begin` start one."));
    }
    const over = data.filter(({ state }) => state !== "running");
    const key = over.map(({ id }) => id).join();
    if (key !== shown) ended.replaceChildren(...(over.length ? [endedTable(over, catalogue)] : []));
    shown = key;
    if (hasEnded) await onend();
  }

  async function end(name) {
    const body = el("p", {}, "The live adapter gets all requests again. Requests that run finish on what they began with.");
    let canary;
    const done = await confirm(`End the canary of ${name}?`, body, "End it", async () => {
      canary = await ask("DELETE", `${where}?${path`name=${name}`}`);
    });
    if (!done) return;
    await look();
    focusTitle();
    say(`The canary of ${name} is ${STATES[canary.state] ?? canary.state}.`);
  }

  await look();
  return section("Canaries", poll(signal, look), running, ended);
}

function makeCard({ name, digest, share, created, actor }, catalogue, end) {
  const waits = el("p", { class: "state" });
  const rows = ARMS.map(([arm, title]) => [arm, [title, ...Array.from({ length: 2 + TIMES.length }, () => el("span"))]]);
  const columns = ["Answered by", "Requests", "Failed", ...TIMES.map(([title]) => title)];
  const node = el("article", { class: "card" },
    el("h3", {}, name),
    el("p", {}, adapterText(digest, catalogue), ` gets ${percent(share)} of the requests since ${moment(created)}, by ${actor}.`),
    waits,
    table(`What was seen of ${name}`, columns, rows.map(([, cells]) => cells)).node,
    button(`End the canary of ${name}`, () => end(name), { kind: "danger" }));

  function update({ figures, waits_for }) {
    waits.textContent = `It waits for: ${waits_for}.`;
    for (const [arm, [, ...cells]] of rows) {
      const seen = figures[arm] ?? {};
      const counts = [seen.requests, seen.failures].map((value) => number(value ?? 0));
      const times = TIMES.map(([, field]) => (seen[field] == null ? "–" : seconds(seen[field])));
      [...counts, ...times].forEach((text, index) => (cells[index].textContent = text));
    }
  }

  return { node, update };
}

function endedTable(canaries, catalogue) {
  const rows = canaries.map((canary) => [
    canary.name, adapterText(canary.digest, catalogue), STATES[canary.state] ?? canary.state,
    moment(canary.ended), canary.reason,
    ...ARMS.map(([arm]) => failedText(canary.figures[arm])),
  ]);
  return table("The last canary of each name", ["Name", "Adapter", "State", "Ended", "Why", "Failed", "Failed of the live adapter"], rows).node;
}

function failedText(seen) {
  return seen ? `${number(seen.failures)} of ${number(seen.requests)}` : "–";
}
