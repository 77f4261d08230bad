// The imported adapters: where they are, what they do, and the import of more.

import { all, ask, path } from "./api.js";
import { el, focusTitle, link, say, section, table } from "./dom.js";
import { count, moment, short, sourceName } from "./format.js";
import { button, confirm } from "./forms.js";
import { importForm } from "./importing.js";
import { pagedTable } from "./list.js";
import { poll } from "./poll.js";
import { engineText, readTraffic, TRAFFIC_COLUMNS, trafficCells } from "./traffic.js";

const behind = (item) => path`after=${item.digest}`;

export async function show(signal) {
  const state = { traffic: await readTraffic(signal), before: null };
  const engine = el("p", { class: "state" }, engineText(state.traffic));
  const rows = new Map();
  const list = await pagedTable({
    caption: "Imported adapters",
    columns: ["Adapter", "Used by", "Tier", "Slot", ...TRAFFIC_COLUMNS, "Action"],
    where: "adapters?limit=50",
    cursor: behind,
    empty: "There are no adapters yet.",
    signal,
    cells: (item) => {
      const live = Array.from({ length: 2 + TRAFFIC_COLUMNS.length }, () => el("span"));
      rows.set(item.digest, live);
      update(live, item, state);
      return [adapterName(item), users(item), ...live, button(`Delete ${short(item.digest)}`, () => remove(item, list))];
    },
  });
  const box = poll(signal, async () => {
    [state.before, state.traffic] = [state.traffic, await readTraffic(signal)];
    engine.textContent = engineText(state.traffic);
    if (list.items.length === 0) return;
    for (const item of await all("adapters?limit=100", behind, { most: list.items.length, signal })) {
      if (rows.has(item.digest)) update(rows.get(item.digest), item, state);
    }
  });
  return {
    title: "Adapters",
    nodes: [
      importForm(signal, async (adapter) => {
        await list.reload();
        say(`${sourceName(adapter.source)} was imported.`);
      }),
      engine,
      box,
      list.root,
      el("p", { class: "hint" }, "Tier, slot, requests and times are of this server, since it started; failed requests are those with another status than 200."),
      await refusedSection(signal),
    ],
  };
}

export function tierText(replica) {
  return replica === null ? "not loaded" : replica.tier;
}

function update(cells, item, { traffic, before }) {
  const slot = item.replica?.slot ?? null;
  const texts = [
    tierText(item.replica),
    slot === null ? "–" : String(slot),
    ...trafficCells(traffic, before, (name) => name.digest === item.digest),
  ];
  texts.forEach((text, index) => (cells[index].textContent = text));
}

function adapterName({ digest, source }) {
  return el("span", {}, link(sourceName(source), "adapters", digest), " ", el("code", {}, short(digest)));
}

function users({ tenants }) {
  const shown = tenants.slice(0, 5).flatMap((tenant) => [link(tenant, "tenants", tenant, "set"), " "]);
  return el("span", {}, shown, tenants.length === 0 ? "nobody" : tenants.length > 5 ? `and ${count(tenants.length - 5, "more", "more")}` : "");
}

async function remove(item, list) {
  const done = await confirmDelete(item);
  if (!done) return;
  await list.reload();
  focusTitle();
  say("The adapter was deleted.");
}

export function confirmDelete({ digest, source }) {
  const body = el("p", {}, `${source} is taken off the list; its files go with the next garbage collection. An adapter that a tenant's set names is not deleted.`);
  return confirm(`Delete the adapter ${short(digest)}?`, body, "Delete", () => ask("DELETE", path`adapters/${digest}`));
}

async function refusedSection(signal) {
  const { data } = await ask("GET", "quarantine", { signal });
  if (data.length === 0) return el("p", { class: "hint" }, "No import was refused.");
  const rows = data.slice(0, 20).map((item) => [item.source, moment(item.at), item.reason]);
  return section("Refused imports", table("What was imported and is no valid adapter", ["Source", "When", "Why"], rows).node);
}
