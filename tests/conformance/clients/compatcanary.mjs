// compatcanary: its seven probes.

import { API_KEY, BASE_URL, MODEL, report } from "./calls.mjs";
import { spawnSync } from "node:child_process";

const statuses = { pass: "ok", warn: "ok" };
const options = ["--base-url", BASE_URL, "--model", MODEL, "--format", "json"];
const done = spawnSync(
  "node_modules/.bin/compatcanary",
  ["scan", ...options, "--timeout", "120", "--fail-on", "never"],
  { env: { ...process.env, OPENAI_API_KEY: API_KEY }, encoding: "utf8" },
);
process.stderr.write(done.stderr);
for (const result of JSON.parse(done.stdout).results) {
  report(result.id, statuses[result.status] ?? "failed", result.summary);
}
