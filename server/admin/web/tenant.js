// One tenant: its keys and its quota.

import { ask, path } from "./api.js";
import { el, facts, focusTitle, link, say, section } from "./dom.js";
import { moment } from "./format.js";
import { button, checkbox, confirm, field, form } from "./forms.js";
import { pagedTable } from "./list.js";

const LIMITS = [
  ["requests_per_minute", "Requests per minute"],
  ["tokens_per_minute", "Tokens per minute"],
  ["max_concurrent", "Sequences at once"],
];

export async function show(signal, id) {
  const [tenant, quota, keys] = await Promise.all([
    ask("GET", path`tenants/${id}`, { signal }),
    ask("GET", path`tenants/${id}/quota`, { signal }),
    keySection(id, signal),
  ]);
  return {
    title: `Tenant ${id}`,
    nodes: [
      facts([["Created", moment(tenant.created)], ["Adapter set", link(`Set of ${id}`, "tenants", id, "set")]]),
      keys,
      quotaSection(id, quota),
    ],
  };
}

async function keySection(id, signal) {
  const secret = el("div", { class: "secret" });
  const list = await pagedTable({
    caption: `Keys of ${id}`,
    columns: ["Key begins with", "Created", "Revoked", "Action"],
    where: path`tenants/${id}/keys?limit=100`,
    cursor: (key) => path`after=${key.id}`,
    empty: "There are no keys yet.",
    signal,
    cells: (key) => [
      el("code", {}, key.prefix),
      moment(key.created),
      key.revoked ? moment(key.revoked) : "no",
      key.revoked ? "" : button(`Revoke ${key.prefix}`, () => revoke(id, key, list)),
    ],
  });
  const create = button("Create a key", async () => {
    const key = await ask("POST", path`tenants/${id}/keys`);
    await list.reload();
    showSecret(secret, key.secret);
  }, { kind: "primary" });
  return section("Keys", create, secret, list.root);
}

function showSecret(place, secret) {
  const shown = field("The new key", { readonly: true, value: secret, spellcheck: "false" }, {
    hint: "It is shown only now: the server keeps a hash. Copy it before you go on.",
  });
  const copy = button("Copy", async () => {
    try {
      await navigator.clipboard.writeText(secret);
      say("The key was copied.");
    } catch {
      shown.input.select(); // no clipboard without https
      say("The key is selected; copy it with Ctrl+C.");
    }
  });
  place.replaceChildren(el("div", { class: "row card" }, shown.root, copy));
  shown.input.focus();
  shown.input.select();
}

async function revoke(id, key, list) {
  const body = el("p", {}, "Requests with it are refused from then on. It cannot be made good again.");
  const done = await confirm(`Revoke the key ${key.prefix}?`, body, "Revoke", () =>
    ask("DELETE", path`tenants/${id}/keys/${key.id}`));
  if (!done) return;
  await list.reload();
  focusTitle();
  say(`The key ${key.prefix} was revoked.`);
}

function quotaSection(id, quota) {
  const limits = Object.fromEntries(LIMITS.map(([name, label]) => [name, field(label, {
    inputmode: "numeric", autocomplete: "off", value: quota[name] ?? "", name,
  }, { hint: "Empty: no limit." })]));
  const base = checkbox("May use the base model without an adapter", { checked: quota.may_use_base });
  const { node, errors } = form({ class: "card" }, async () => {
    for (const limit of Object.values(limits)) limit.error = "";
    // A PUT replaces all of a quota: what this form does not know goes back as it came.
    const body = { ...quota, may_use_base: base.input.checked };
    for (const [name, limit] of Object.entries(limits)) {
      const text = limit.input.value.trim();
      body[name] = text === "" ? null : Number.isFinite(Number(text)) ? Number(text) : text;
    }
    try {
      quota = await ask("PUT", path`tenants/${id}/quota`, { body });
    } catch (error) {
      if (!Object.hasOwn(limits, error.param ?? "")) throw error;
      limits[error.param].error = error.message;
      limits[error.param].input.focus();
      return;
    }
    say("The quota was saved. It holds from the next request on.");
  }, el("div", { class: "grid" }, Object.values(limits).map((limit) => limit.root)), base.root, el("button", {}, "Save the quota"));
  node.append(errors);
  return section("Quota", node);
}
