// A table of a paged list of the API.

import { page } from "./api.js";
import { el, say, table, tableRow } from "./dom.js";
import { button } from "./forms.js";

/**
 * Shows the first page, and a button for the next while there is one.
 *
 * `where` is the list's path, `cursor` makes the query of the page behind an item, `cells` makes an
 * item's row. Returns the node, the items that are shown, and `reload`.
 */
export async function pagedTable({ caption, columns, where, cursor, cells, empty, signal, onitems }) {
  const { node, body } = table(caption, columns);
  const nothing = el("p", { class: "hint" }, empty);
  const items = [];
  const more = button("Show more", async () => {
    const before = items.length;
    await load(cursor(items[items.length - 1]));
    say(`${items.length - before} more shown.`);
  });
  const root = el("div", {}, node, nothing, more);

  async function load(query) {
    const { data, has_more } = await page(where, query, { signal });
    items.push(...data);
    body.append(...data.map((item) => tableRow(cells(item))));
    more.hidden = !has_more;
    node.hidden = items.length === 0;
    nothing.hidden = items.length > 0;
    onitems?.(items);
  }

  async function reload() {
    items.length = 0;
    body.replaceChildren();
    await load("");
  }

  await load("");
  return { root, items, reload };
}
