// The rows of a set that is edited: a name and an adapter each.

import { el, focusTitle } from "./dom.js";
import { button, field } from "./forms.js";

export class SetRows {
  constructor(catalogue) {
    this.catalogue = catalogue;
    this.rows = [];
    this.list = el("ol", { class: "rows", "aria-label": "Names and their adapters" });
  }

  fill(adapters) {
    this.rows = [];
    this.list.replaceChildren();
    for (const [name, digest] of Object.entries(adapters)) this.add(name, digest);
  }

  add(name = "", digest = null) {
    const row = {
      name: field("Name", { value: name, autocomplete: "off", spellcheck: "false" }),
      adapter: field("Adapter", {
        value: digest === null ? "" : this.catalogue.label(digest),
        list: this.catalogue.id, autocomplete: "off", spellcheck: "false",
      }),
    };
    row.describe = () => {
      const found = this.catalogue.find(row.adapter.input.value.trim());
      row.adapter.hint = found === null ? "Pick one, or type the beginning of its name or digest." : this.catalogue.describe(found);
    };
    row.adapter.input.addEventListener("input", row.describe);
    row.adapter.input.addEventListener("change", () => {
      const found = this.catalogue.find(row.adapter.input.value.trim());
      if (found !== null) row.adapter.input.value = this.catalogue.label(found);
    });
    row.describe();
    const remove = button("Remove", () => this.remove(row));
    const describeRemove = () => remove.setAttribute("aria-label", `Remove ${row.name.input.value || "the row"}`);
    row.name.input.addEventListener("input", describeRemove);
    describeRemove();
    row.root = el("li", { class: "row card" }, row.name.root, row.adapter.root, remove);
    this.rows.push(row);
    this.list.append(row.root);
    return row;
  }

  remove(row) {
    const next = this.rows[this.rows.indexOf(row) + 1] ?? this.rows[this.rows.indexOf(row) - 1];
    this.rows = this.rows.filter((other) => other !== row);
    row.root.remove();
    if (next) next.name.input.focus();
    else focusTitle();
  }

  /** The set that the rows say, names to digests. Raises an error where a row is
   * wrong, which is shown at the row too. */
  read() {
    this.clearErrors();
    const adapters = Object.create(null); // any name is a name, `constructor` too
    for (const row of this.rows) {
      const name = row.name.input.value.trim();
      const digest = this.catalogue.find(row.adapter.input.value.trim());
      if (name === "") row.name.error = "A name is missing.";
      else if (Object.hasOwn(adapters, name)) row.name.error = "Another row has this name.";
      if (digest === null) row.adapter.error = "This is none of the imported adapters.";
      adapters[name] = digest;
    }
    this.focusFirstError();
    return adapters;
  }

  /** Shows why the server refused adapters, by their names. Returns the reasons that have no row. */
  showReasons(reasons) {
    const left = { ...reasons };
    for (const row of this.rows) {
      const name = row.name.input.value.trim();
      if (Object.hasOwn(left, name)) {
        row.adapter.error = left[name];
        delete left[name];
      }
    }
    return left;
  }

  focusFirstError() {
    const wrong = this.list.querySelector("[aria-invalid]");
    if (wrong === null) return;
    wrong.focus();
    throw new Error("Some rows are not right yet.");
  }

  clearErrors() {
    for (const row of this.rows) row.name.error = row.adapter.error = "";
  }
}
