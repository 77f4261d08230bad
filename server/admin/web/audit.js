// Who changed what, newest first.

import { path } from "./api.js";
import { el } from "./dom.js";
import { moment } from "./format.js";
import { field, form } from "./forms.js";
import { pagedTable } from "./list.js";

export async function show(signal) {
  const place = el("div", {}, await rows("", signal));
  const tenant = field("Of one tenant", { autocomplete: "off", spellcheck: "false" }, { hint: "Deleted ones too. Empty: of all." });
  const { node } = form({ class: "card" }, async () => {
    tenant.error = "";
    try {
      place.replaceChildren(await rows(tenant.input.value.trim(), signal));
    } catch (error) {
      if (error.param !== "tenant") throw error;
      tenant.error = error.message;
      tenant.input.focus();
    }
  }, el("div", { class: "row" }, tenant.root, el("button", {}, "Show")));
  return { title: "Audit", nodes: [node, place] };
}

async function rows(tenant, signal) {
  const list = await pagedTable({
    caption: tenant ? `Changes of ${tenant}` : "Changes",
    columns: ["When", "Who", "What", "Tenant", "Detail"],
    where: tenant ? path`audit?limit=50&tenant=${tenant}` : "audit?limit=50",
    cursor: (row) => path`before=${row.id}`,
    empty: "There are no changes.",
    signal,
    cells: (row) => [
      moment(row.at), row.actor, row.action, row.tenant ?? "–",
      el("code", { class: "detail" }, JSON.stringify(row.detail)),
    ],
  });
  return list.root;
}
