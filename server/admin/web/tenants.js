// The list of tenants.

import { ask, path } from "./api.js";
import { el, focusTitle, link, say } from "./dom.js";
import { moment } from "./format.js";
import { button, confirm, field, form } from "./forms.js";
import { pagedTable } from "./list.js";

export async function show(signal) {
  const list = await pagedTable({
    caption: "Tenants",
    columns: ["Tenant", "Created", "Adapter set", "Action"],
    where: "tenants?limit=100",
    cursor: (tenant) => path`after=${tenant.id}`,
    empty: "There are no tenants yet.",
    signal,
    cells: (tenant) => [
      link(tenant.id, "tenants", tenant.id),
      moment(tenant.created),
      el("a", { href: `#/tenants/${encodeURIComponent(tenant.id)}/set` }, "Set of ", tenant.id),
      button(`Delete ${tenant.id}`, () => remove(tenant.id, list)),
    ],
  });
  return { title: "Tenants", nodes: [createForm(list), list.root] };
}

function createForm(list) {
  const name = field("New tenant", { autocomplete: "off", spellcheck: "false", required: true }, {
    hint: "Letters, digits, dots, dashes or underscores.",
  });
  const { node } = form({ class: "card" }, async () => {
    name.error = "";
    const id = name.input.value.trim();
    try {
      await ask("POST", "tenants", { body: { id } });
    } catch (error) {
      name.error = error.message;
      name.input.focus();
      return;
    }
    name.input.value = "";
    await list.reload();
    say(`Tenant ${id} was created.`);
  }, el("div", { class: "row" }, name.root, el("button", {}, "Create")));
  return node;
}

async function remove(id, list) {
  const body = el("p", {}, "Its keys, its quota and its adapter set go with it at once. Adapters stay imported.");
  const done = await confirm(`Delete the tenant ${id}?`, body, `Delete ${id}`, () => ask("DELETE", path`tenants/${id}`));
  if (!done) return;
  await list.reload();
  focusTitle();
  say(`Tenant ${id} was deleted.`);
}
