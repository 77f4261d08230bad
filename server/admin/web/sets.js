// A tenant's adapter set: edit it, look at what a swap would do, swap, go back, and its canaries.

import { ask, path } from "./api.js";
import { canarySection } from "./canaries.js";
import { readCatalogue } from "./catalogue.js";
import { differenceTable } from "./difference.js";
import { el, link, say, section } from "./dom.js";
import { count, seconds } from "./format.js";
import { button, form } from "./forms.js";
import { revisionsSection } from "./revisions.js";
import { SetRows } from "./set_rows.js";

export async function show(signal, tenant) {
  const where = path`tenants/${tenant}/set`;
  const [set, catalogue] = await Promise.all([
    ask("GET", where, { signal }),
    readCatalogue(signal),
  ]);
  const editor = new Editor(tenant, where, catalogue, set);
  const revisions = await revisionsSection(tenant, where, catalogue, signal, {
    newest: () => editor.base,
    onchange: (after) => editor.take(after),
  });
  editor.onswap = () => revisions.reload();
  const canaries = await canarySection(tenant, catalogue, signal, { onend: () => revisions.reload() });
  return {
    title: `Adapter set of ${tenant}`,
    nodes: [el("p", {}, link(`Tenant ${tenant}`, "tenants", tenant)), catalogue.list, editor.node, canaries, revisions.node],
  };
}

/** The rows of the set, on the revision that they began with. */
class Editor {
  constructor(tenant, where, catalogue, set) {
    this.where = where;
    this.catalogue = catalogue;
    this.rows = new SetRows(catalogue);
    this.state = el("p", { class: "state" });
    this.conflict = el("div");
    this.result = el("div", { class: "result", "aria-live": "polite" });
    this.onswap = () => {};
    this.take(set);
    const { node, errors } = form({}, () => this.put({ dryRun: true }),
      this.rows.list,
      el("div", { class: "row" },
        button("Add a row", () => this.rows.add().name.input.focus()),
        button("Discard my changes", () => this.run(() => this.reset())),
        el("button", { class: "plain" }, "Dry run"),
        button("Swap", () => this.run(() => this.put({ dryRun: false })), { kind: "primary" })));
    this.errors = errors;
    this.node = section("Live set", this.state, node, this.conflict, this.result);
    this.tenant = tenant;
  }

  /** Edits on from this revision. */
  take(set) {
    this.base = set;
    this.rows.fill(set.adapters);
    this.describe(set.live_revision ?? set.revision);
    this.conflict.replaceChildren();
  }

  describe(live) {
    const behind = live === this.base.revision ? "" : ` This server still serves revision ${live} while it loads it.`;
    this.state.textContent = `Revision ${this.base.revision}, ${count(Object.keys(this.base.adapters).length, "adapter")}.${behind}`;
  }

  async reset() {
    this.take(await ask("GET", this.where));
    this.result.replaceChildren();
    this.errors.textContent = "";
    say(`The rows are those of revision ${this.base.revision} again.`);
  }

  async run(action) {
    this.errors.textContent = "";
    try {
      await action();
    } catch (error) {
      this.errors.textContent = error.message;
    }
  }

  async put({ dryRun }) {
    this.result.replaceChildren();
    const adapters = this.rows.read();
    let swap;
    try {
      swap = await ask("PUT", `${this.where}${dryRun ? "?dry_run=true" : ""}`, {
        body: { adapters },
        headers: { "If-Match": `"${this.base.revision}"` },
      });
    } catch (error) {
      if (error.status === 412) return this.explainConflict();
      if (error.status !== 422) throw error;
      return this.explainRefusal(error);
    }
    if (!dryRun) {
      this.take(swap.after);
      await this.onswap();
    }
    this.result.replaceChildren(this.outcome(swap));
  }

  outcome(swap) {
    const { added, changed, removed } = swap;
    const sums = `${added.length} added, ${changed.length} changed, ${removed.length} removed`;
    const same = added.length + changed.length + removed.length === 0;
    const took = seconds(swap.seconds);
    const text = swap.dry_run
      ? `Dry run: every adapter was loaded and checked, nothing was changed. A swap would be: ${sums}. It took ${took}.`
      : same
        ? `The set already was like this: revision ${swap.after.revision}.`
        : `Revision ${swap.after.revision} is live: ${sums}. It took ${took}.`;
    const caption = swap.dry_run ? "What a swap would change" : "What the swap changed";
    return el("div", { class: swap.dry_run ? "note" : "note good" }, el("p", {}, text),
      same ? null : differenceTable(caption, swap.before.adapters, swap.after.adapters, this.catalogue));
  }

  explainRefusal(error) {
    const left = Object.entries(this.rows.showReasons(error.reasons));
    this.result.replaceChildren(el("div", { class: "note bad" },
      el("p", {}, `Refused: ${error.message} The set that was live goes on.`),
      el("ul", {}, left.map(([name, reason]) => el("li", {}, `${name}: ${reason}`)))));
    this.rows.list.querySelector("[aria-invalid]")?.focus();
  }

  /** Somebody was faster: what they changed, and the two ways on. */
  async explainConflict() {
    const newest = await ask("GET", this.where);
    const mine = this.base.revision;
    const heading = el("h3", { tabindex: "-1" }, "Somebody else changed this set meanwhile");
    this.conflict.replaceChildren(el("div", { class: "note bad", role: "group", "aria-label": "Conflict" },
      heading,
      el("p", {}, `Your rows began with revision ${mine}; now the set is at revision ${newest.revision}, by ${newest.actor}. Nothing of yours was written.`),
      differenceTable(`What changed from revision ${mine} to ${newest.revision}`, this.base.adapters, newest.adapters, this.catalogue),
      el("div", { class: "row" },
        button("Keep my rows", () => {
          this.base = newest;
          this.describe(newest.live_revision);
          this.conflict.replaceChildren();
          this.rows.list.querySelector("input")?.focus();
          say(`A swap now replaces revision ${newest.revision} with your rows.`);
        }),
        button(`Take revision ${newest.revision}`, () => {
          this.take(newest);
          this.rows.list.querySelector("input")?.focus();
          say(`The rows are those of revision ${newest.revision}.`);
        }))));
    heading.focus();
    await this.onswap();
  }
}
