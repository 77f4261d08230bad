// One model's answer, as it comes, with its times.

import { path, send } from "./api.js";
import { el, freshId } from "./dom.js";
import { count, number, seconds, short } from "./format.js";
import { chunks } from "./stream.js";

export class Answer {
  constructor(tenant, model) {
    this.tenant = tenant;
    this.model = model;
    const id = freshId("answer");
    this.text = el("pre", { tabindex: "0", "aria-labelledby": id });
    this.error = el("p", { class: "error" });
    this.times = el("p", { class: "hint" }, "Waits for its turn.");
    this.from = el("code");
    this.node = el("article", { class: "card", "aria-labelledby": id },
      el("h2", { id }, model), this.text, this.error, this.times, this.from);
  }

  /** Asks, and ends with the answer: an error is shown in its place. */
  async run(body, signal) {
    const began = performance.now();
    const times = { first: null, last: null, tokens: 0 };
    this.times.textContent = "Waits for the first token.";
    try {
      const response = await send("POST", path`tenants/${this.tenant}/chat/completions`, {
        body: { ...body, model: this.model }, signal,
      });
      for await (const chunk of chunks(response)) {
        if (chunk.error) throw new Error(chunk.error.message);
        this.take(chunk, times, began);
      }
    } catch (error) {
      this.error.textContent = error.name === "AbortError" ? "Stopped." : error.message;
    }
    this.times.textContent = times.first === null ? "No token came." : this.summary(times);
  }

  take(chunk, times, began) {
    const delta = chunk.choices[0]?.delta ?? {};
    const text = (delta.reasoning_content ?? "") + (delta.content ?? "");
    if (text) {
      this.text.append(text);
      times.last = (performance.now() - began) / 1000;
      times.first ??= times.last;
      times.tokens += 1; // until the usage tells
    }
    times.tokens = chunk.usage?.completion_tokens ?? times.tokens;
    if (chunk.system_fingerprint) this.from.textContent = short(chunk.system_fingerprint);
    if (times.first !== null) this.times.textContent = this.summary(times);
  }

  summary({ first, last, tokens }) {
    const rate = tokens > 1 && last > first ? `, ${number(Math.round((10 * (tokens - 1)) / (last - first)) / 10)} tokens/s` : "";
    return `First token after ${seconds(first)}, ${count(tokens, "token")}${rate}`;
  }
}
