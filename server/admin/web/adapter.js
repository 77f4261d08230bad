// One adapter: what it is, who uses it, what it does, its routing and its training.

import { ask, path } from "./api.js";
import { confirmDelete, tierText } from "./adapters.js";
import { el, facts, link, say, section, table } from "./dom.js";
import { bytes, moment, number, seconds, sourceName } from "./format.js";
import { button } from "./forms.js";
import { poll } from "./poll.js";
import { routingSection } from "./routing.js";
import { readTraffic, TRAFFIC_COLUMNS, trafficCells } from "./traffic.js";
import { trainingSection } from "./training.js";

export async function show(signal, digest) {
  const where = path`adapters/${digest}`;
  const [adapter, traffic, routing, training] = await Promise.all([
    ask("GET", where, { signal }),
    readTraffic(signal),
    ask("GET", `${where}/routing`, { signal }),
    ask("GET", `${where}/training`, { signal }),
  ]);
  const heat = routingSection(routing);
  const box = poll(signal, async () => heat.update(await ask("GET", `${where}/routing`, { signal })));
  heat.node.querySelector("h2").after(box);
  return {
    title: sourceName(adapter.source),
    nodes: [description(adapter), use(adapter, traffic), heat.node, trainingSection(training), removal(adapter)],
  };
}

function description({ digest, source, num_bytes, created, description: is, replica }) {
  return facts([
    ["Digest", el("code", {}, digest)],
    ["Source", source],
    ["Base", is.base_model_name_or_path],
    ["Experts", is.num_experts && `${is.num_experts}, of which each token activates ${is.top_k}`],
    ["Rank", is.r && String(is.r)],
    ["Parameters", is.num_parameters && `${number(is.num_parameters)}, ${number(is.num_active_parameters)} active per token`],
    ["Adapted", is.target_modules?.join(", ")],
    ["Size", bytes(num_bytes)],
    ["Imported", moment(created)],
    ["Tier on this server", tierText(replica)],
    ["Slot", replica && String(replica.slot ?? "–")],
    ["Requests in the engine", replica && String(replica.requests)],
    ["Last used", replica && moment(replica.last_used)],
    ["Load took", replica?.load_seconds ? seconds(replica.load_seconds) : null],
  ]);
}

function use({ digest, tenants }, traffic) {
  if (tenants.length === 0) return section("Use", el("p", {}, "No tenant's set names this adapter."));
  const names = traffic.names.filter((name) => name.digest === digest);
  const served = new Set(names.map((name) => name.tenant));
  const rows = [
    ...names.map((name) => [
      link(name.tenant, "tenants", name.tenant, "set"), name.name,
      ...trafficCells(traffic, null, (other) => other === name),
    ]),
    ...tenants.filter((tenant) => !served.has(tenant)).map((tenant) => [
      link(tenant, "tenants", tenant, "set"), "not live here", ...TRAFFIC_COLUMNS.map(() => "–")]),
  ].map((cells) => cells.toSpliced(4, 1)); // a rate needs two readings
  const columns = ["Tenant", "Name", ...TRAFFIC_COLUMNS].toSpliced(4, 1);
  return section("Use", table("Tenants whose set names this adapter", columns, rows).node);
}

function removal(adapter) {
  return section("Delete", button("Delete this adapter", async () => {
    if (!(await confirmDelete(adapter))) return;
    location.hash = "#/adapters";
    say("The adapter was deleted.");
  }, { kind: "danger" }));
}
