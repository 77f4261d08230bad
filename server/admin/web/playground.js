// Asks several models of a tenant at once, as the tenant, with the admin key.

import { all, ask, path } from "./api.js";
import { Answer } from "./answer.js";
import { el, freshId, say } from "./dom.js";
import { count } from "./format.js";
import { button, checkbox, field, form } from "./forms.js";

/** Browsers open six connections to a server: more would wait, and their times would be wrong. */
const AT_ONCE = 5;

export async function show(signal) {
  const tenants = await all("tenants?limit=1000", (item) => path`after=${item.id}`, { signal });
  const page = new Playground(tenants.map(({ id }) => id), signal);
  if (tenants.length === 1) await page.choose(tenants[0].id);
  return { title: "Playground", nodes: page.nodes };
}

class Playground {
  constructor(tenants, signal) {
    this.signal = signal;
    this.stopping = new AbortController();
    signal.addEventListener("abort", () => this.stopping.abort());
    const listId = freshId("tenants");
    this.tenant = field("Tenant", { list: listId, autocomplete: "off", spellcheck: "false" }, { hint: "Its models are asked, and its quota counts." });
    this.tenant.input.addEventListener("change", () => this.choose(this.tenant.input.value.trim()));
    this.models = el("fieldset", { hidden: true });
    this.boxes = [];
    this.system = field("System message", { rows: 2 }, { tag: "textarea", hint: "Empty: none." });
    this.prompt = field("Prompt", { rows: 3, required: true }, { tag: "textarea" });
    this.length = field("Most tokens", { type: "number", min: 1, value: 128 });
    this.temperature = field("Temperature", { type: "number", min: 0, max: 2, step: 0.1, value: 0 });
    this.answers = el("div", { class: "answers" });
    const stop = button("Stop", () => this.stopping.abort());
    const { node } = form({ class: "card" }, () => this.askAll(),
      el("datalist", { id: listId }, tenants.map((value) => el("option", { value }))),
      this.tenant.root, this.models, this.system.root, this.prompt.root,
      el("div", { class: "grid" }, this.length.root, this.temperature.root),
      el("div", { class: "row" }, el("button", {}, "Ask"), stop));
    this.nodes = [node, this.answers];
  }

  async choose(id) {
    this.tenant.error = "";
    this.tenant.input.value = id;
    this.models.hidden = true;
    this.boxes = [];
    if (id === "") return;
    let found;
    try {
      found = await ask("GET", path`tenants/${id}/models`, { signal: this.signal });
    } catch (error) {
      if (error.name !== "AbortError") this.tenant.error = error.message;
      return;
    }
    if (this.tenant.input.value !== id) return; // another one was chosen meanwhile
    this.boxes = found.data.map((model) => ({ model: model.id, ...checkbox(model.id, { checked: found.data.length <= AT_ONCE }) }));
    const pick = (value) => this.boxes.forEach(({ input }) => (input.checked = value));
    this.models.replaceChildren(el("legend", {}, "Models"),
      this.boxes.length ? "" : el("p", {}, "This tenant has no models: its set is empty."),
      el("div", { class: "checks" }, this.boxes.map(({ root }) => root)),
      this.boxes.length < 2 ? "" : el("div", { class: "row" },
        button("All", () => pick(true)), button("None", () => pick(false))));
    this.models.hidden = false;
    say(`${count(found.data.length, "model")} of ${id}.`);
  }

  async askAll() {
    this.tenant.error = this.prompt.error = "";
    const [tenant, prompt] = [this.tenant.input.value.trim(), this.prompt.input.value];
    const wanted = this.boxes.filter(({ input }) => input.checked).map(({ model }) => model);
    if (wanted.length === 0) {
      this.tenant.error = this.boxes.length ? "Tick at least one model." : "Choose a tenant with models.";
      return (this.boxes[0] ?? this.tenant).input.focus();
    }
    if (prompt === "") {
      this.prompt.error = "A prompt is missing.";
      return this.prompt.input.focus();
    }
    this.stopping = new AbortController();
    const system = this.system.input.value;
    const body = {
      messages: [...(system ? [{ role: "system", content: system }] : []), { role: "user", content: prompt }],
      max_tokens: Number(this.length.input.value),
      temperature: Number(this.temperature.input.value),
      stream: true,
      stream_options: { include_usage: true },
    };
    const waiting = wanted.map((model) => new Answer(tenant, model));
    this.answers.replaceChildren(...waiting.map((answer) => answer.node));
    say(`Asking ${count(wanted.length, "model")}.`);
    const lanes = Array.from({ length: AT_ONCE }, async () => {
      for (let next; (next = waiting.shift()); ) await next.run(body, this.stopping.signal);
    });
    await Promise.all(lanes);
    if (!this.signal.aborted) say(`${count(wanted.length, "answer")} ended.`);
  }
}
