// What the adapters of this server do, from its metrics: requests, tokens, latency.

import { metricsText } from "./api.js";
import { number, percent, seconds } from "./format.js";
import { parseMetrics, quantile } from "./prometheus.js";

const FIRST = "remix_time_to_first_token_seconds_bucket";
const BETWEEN = "remix_inter_token_latency_seconds_bucket";
const REQUESTS = "remix_requests_total";
const TOKENS = "remix_generated_tokens_total";
const INFO = "remix_adapter_info";
const GAUGES = {
  running: "remix_requests_running",
  waiting: "remix_requests_waiting",
  slotsUsed: "remix_adapter_slots_used",
  slots: "remix_adapter_slots",
  kvUsed: "remix_kv_used_tokens",
  kv: "remix_kv_capacity_tokens",
};

/** The columns that `trafficCells` fills. */
export const TRAFFIC_COLUMNS = ["Requests", "Failed", "Tokens/s", "First token, median", "First token, 95 %", "Per token, median"];

/** Reads the metrics now: `{at, names, gauges}`; `names` is a list of what each tenant's name did. */
export async function readTraffic(signal) {
  const found = parseMetrics(await metricsText(signal), [FIRST, BETWEEN, REQUESTS, TOKENS, INFO, ...Object.values(GAUGES)]);
  const names = new Map();
  for (const { labels } of found.get(INFO)) {
    const [tenant, name] = [labels.get("tenant"), labels.get("adapter")];
    names.set(keyOf(labels), {
      tenant, name, digest: labels.get("digest"),
      requests: 0, failed: 0, tokens: 0, first: new Map(), between: new Map(),
    });
  }
  const each = (series, take) => {
    for (const { labels, value } of found.get(series)) {
      const sums = names.get(keyOf(labels));
      if (sums) take(sums, value, labels);
    }
  };
  each(REQUESTS, (sums, value, labels) => {
    sums.requests += value;
    if (labels.get("status") !== "200") sums.failed += value;
  });
  each(TOKENS, (sums, value) => (sums.tokens += value));
  each(FIRST, (sums, value, labels) => add(sums.first, labels, value));
  each(BETWEEN, (sums, value, labels) => add(sums.between, labels, value));
  const gauges = Object.fromEntries(Object.entries(GAUGES).map(([name, series]) => [name, found.get(series)[0]?.value ?? 0]));
  return { at: performance.now(), names: [...names.values()], gauges };
}

function keyOf(labels) {
  return `${labels.get("tenant") ?? ""}\n${labels.get("adapter")}`;
}

function add(buckets, labels, value) {
  const text = labels.get("le");
  const bound = text === "+Inf" ? Infinity : Number(text);
  buckets.set(bound, (buckets.get(bound) ?? 0) + value);
}

/** The sums of the names for which `isWanted`. */
function sumOf(traffic, isWanted) {
  const sums = { requests: 0, failed: 0, tokens: 0, first: new Map(), between: new Map() };
  for (const name of traffic.names.filter(isWanted)) {
    for (const field of ["requests", "failed", "tokens"]) sums[field] += name[field];
    for (const field of ["first", "between"]) {
      for (const [bound, value] of name[field]) sums[field].set(bound, (sums[field].get(bound) ?? 0) + value);
    }
  }
  return sums;
}

/** Cells for `TRAFFIC_COLUMNS`. `before` is an earlier reading, or null: then there is no rate yet. */
export function trafficCells(traffic, before, isWanted) {
  const sums = sumOf(traffic, isWanted);
  const timed = (share, buckets) => {
    const found = quantile(share, buckets);
    return found === null ? "–" : seconds(found);
  };
  return [
    number(sums.requests),
    number(sums.failed),
    before === null ? "–" : number(rate(traffic, before, sums.tokens, sumOf(before, isWanted).tokens)),
    timed(0.5, sums.first), timed(0.95, sums.first), timed(0.5, sums.between),
  ];
}

function rate(traffic, before, now, then) {
  const elapsed = (traffic.at - before.at) / 1000;
  return elapsed > 0 ? Math.max(now - then, 0) / elapsed : 0; // a restart counts from 0 again
}

/** The engine in one sentence. */
export function engineText({ gauges }) {
  const kv = gauges.kv ? `, KV memory ${percent(gauges.kvUsed / gauges.kv)} used` : "";
  return `${number(gauges.running)} running, ${number(gauges.waiting)} waiting, ${number(gauges.slotsUsed)} of ${number(gauges.slots)} adapter slots used${kv}.`;
}
