// The imported adapters, to pick from by name.

import { all, path } from "./api.js";
import { el, freshId } from "./dom.js";
import { count, short, sourceName } from "./format.js";

const MOST = 5000;

/** Reads the imported adapters: their labels, and what a label or the beginning of a digest means. */
export async function readCatalogue(signal) {
  const adapters = await all("adapters?limit=100", (item) => path`after=${item.digest}`, { most: MOST, signal });
  const labels = new Map(adapters.map((item) => [item.digest, `${sourceName(item.source)} · ${short(item.digest)}`]));
  const digests = new Map([...labels].map(([digest, label]) => [label, digest]));
  const described = new Map(adapters.map((item) => [item.digest, description(item)]));
  const id = freshId("adapters");
  return {
    id,
    /** The suggestions of every input with `list` of this id. */
    list: el("datalist", { id }, [...labels.values()].map((value) => el("option", { value }))),
    label: (digest) => labels.get(digest) ?? digest,
    describe: (digest) => described.get(digest) ?? "",
    /** The digest that a text means: a label, a digest, or the beginning of one of either. null
     * where it is none or more than one. */
    find(text) {
      if (digests.has(text)) return digests.get(text);
      if (/^[0-9a-f]{64}$/.test(text)) return text;
      if (text === "") return null;
      const meant = [...labels].filter(([digest, label]) => digest.startsWith(text) || label.startsWith(text));
      return meant.length === 1 ? meant[0][0] : null;
    },
  };
}

function description({ source, description: is }) {
  const experts = is.num_experts ? `${count(is.num_experts, "expert")}, ${is.top_k} of them per token, rank ${is.r}. ` : "";
  return `${experts}From ${source}`;
}
