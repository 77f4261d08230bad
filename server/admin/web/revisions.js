// The revisions of a set: the difference between any two, and the way back to one.

import { ask, path } from "./api.js";
import { differenceTable } from "./difference.js";
import { el, focusTitle, freshId, say, section } from "./dom.js";
import { moment } from "./format.js";
import { button, confirm } from "./forms.js";
import { pagedTable } from "./list.js";

/**
 * `newest()` is the revision that the page knows as the newest; `onchange` gets the one that a
 * rollback made. Returns the node and `reload`.
 */
export async function revisionsSection(tenant, where, catalogue, signal, { newest, onchange }) {
  const comparison = compareForm(catalogue);
  const list = await pagedTable({
    caption: `Revisions of ${tenant}`,
    columns: ["Revision", "Made", "By", "Adapters", "Rolled back from", "Action"],
    where: `${where}/revisions?limit=20`,
    cursor: (item) => path`before=${item.revision}`,
    empty: "There are no revisions yet.",
    signal,
    onitems: (items) => comparison.offer(items),
    cells: (item) => [
      String(item.revision), moment(item.created), item.actor,
      String(Object.keys(item.adapters).length), String(item.rolled_back_from ?? "–"),
      button(`Roll back to ${item.revision}`, () => rollBack(item)),
    ],
  });

  async function rollBack(item) {
    const before = newest();
    const body = [
      el("p", {}, `Its adapters become the newest revision again. Requests that run finish on what they began with.`),
      differenceTable(`From revision ${before.revision} to ${item.revision}`, before.adapters, item.adapters, catalogue),
    ];
    let swap;
    const done = await confirm(`Roll back to revision ${item.revision}?`, body, "Roll back", async () => {
      swap = await attempt(item, before);
    });
    if (!done) return;
    onchange(swap.after);
    await list.reload();
    focusTitle();
    say(`Revision ${swap.after.revision} has the adapters of revision ${item.revision}.`);
  }

  async function attempt(item, before) {
    try {
      return await ask("POST", `${where}/rollback`, {
        body: { revision: item.revision },
        headers: { "If-Match": `"${before.revision}"` },
      });
    } catch (error) {
      const reasons = Object.entries(error.reasons ?? {}).map(([name, reason]) => ` ${name}: ${reason}`).join("");
      if (error.status === 412) {
        throw new Error(`Somebody else changed the set: it is no longer at revision ${before.revision}. Nothing was changed. Load this page again and look at the difference anew.`);
      }
      throw new Error(error.message + reasons);
    }
  }

  return { node: section("Revisions", comparison.node, list.root), reload: list.reload };
}

function compareForm(catalogue) {
  let items = [];
  const result = el("div", { "aria-live": "polite" });
  const from = select("From revision");
  const to = select("to revision");
  const compareThem = () => {
    const [a, b] = [from, to].map(({ input }) => items.find((item) => String(item.revision) === input.value));
    if (a && b) {
      result.replaceChildren(differenceTable(
        `From revision ${a.revision} to ${b.revision}`, a.adapters, b.adapters, catalogue));
    }
  };
  const node = el("div", { class: "card" },
    el("div", { class: "row" }, from.root, to.root, button("Show the difference", compareThem)), result);
  return {
    node,
    /** Offers these, the newest first: the last two, unless only older ones came. */
    offer(known) {
      const kept = known[0] === items[0] ? [from.input.value, to.input.value] : [];
      items = [...known];
      node.hidden = items.length < 2;
      result.replaceChildren();
      for (const { input } of [from, to]) {
        input.replaceChildren(...items.map(({ revision }) => el("option", { value: revision }, String(revision))));
      }
      if (items.length < 2) return;
      from.input.value = kept[0] ?? String(items[1].revision);
      to.input.value = kept[1] ?? String(items[0].revision);
    },
  };
}

function select(label) {
  const id = freshId("select");
  const input = el("select", { id });
  return { input, root: el("div", { class: "field" }, el("label", { for: id }, label), input) };
}
