// Imports an adapter and shows how far it is.

import { ApiError, send } from "./api.js";
import { el, say } from "./dom.js";
import { bytes } from "./format.js";
import { button, field, form } from "./forms.js";
import { documents } from "./stream.js";

/** The form; `onimported` gets the adapter. Leaving the view ends an import that runs. */
export function importForm(signal, onimported) {
  const source = field("Import an adapter from", { autocomplete: "off", spellcheck: "false", required: true }, {
    hint: "hf://OWNER/NAME, an s3, gs, az or https URL, or a folder under the server's import root.",
  });
  const bar = el("progress", { "aria-label": "Import" });
  const text = el("span");
  let stopping = new AbortController();
  const stop = button("Stop", () => stopping.abort());
  const progress = el("div", { class: "row", hidden: true }, bar, text, stop);
  signal.addEventListener("abort", () => stopping.abort());

  const { node } = form({ class: "card" }, async () => {
    source.error = "";
    stopping = new AbortController();
    progress.hidden = false;
    bar.removeAttribute("value");
    text.textContent = "Looking at the source";
    try {
      const adapter = await run(source.input.value.trim(), stopping.signal, (done, total) => {
        if (total) bar.max = total;
        if (total) bar.value = done;
        text.textContent = total ? `${bytes(done)} of ${bytes(total)}` : bytes(done);
      });
      source.input.value = "";
      await onimported(adapter);
    } catch (error) {
      if (error.name === "AbortError") {
        say("The import was stopped. Importing the same again goes on where it was.");
        return;
      }
      source.error = error.message;
      source.input.focus();
    } finally {
      progress.hidden = true;
    }
  }, el("div", { class: "row" }, source.root, el("button", {}, "Import")), progress);
  return node;
}

async function run(source, signal, onprogress) {
  const response = await send("POST", "adapters", {
    body: { source },
    headers: { Accept: "application/x-ndjson" },
    signal,
  });
  for await (const line of documents(response)) {
    if (line.error) throw new ApiError(200, line.error);
    if (line.adapter) return line.adapter;
    onprogress(line.progress.done, line.progress.total);
  }
  throw new ApiError(0, { message: "The server ended the import without a result. Import it again to go on." });
}
