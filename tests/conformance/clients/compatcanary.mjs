// compatcanary: its probes in both profiles, and the score that it gives for them.

import { API_KEY, BASE_URL, MODEL, report } from "./calls.mjs";
import { spawnSync } from "node:child_process";

const statuses = { pass: "ok", warn: "ok" };
const options = ["--base-url", BASE_URL, "--model", MODEL, "--format", "json"];
for (const profile of ["modern", "chat"]) {
  const done = spawnSync(
    "node_modules/.bin/compatcanary",
    ["scan", ...options, "--profile", profile, "--timeout", "120", "--fail-on", "never"],
    { env: { ...process.env, OPENAI_API_KEY: API_KEY }, encoding: "utf8" },
  );
  process.stderr.write(done.stderr);
  const { results, score } = JSON.parse(done.stdout);
  for (const result of results) {
    report(`${profile}: ${result.id}`, statuses[result.status] ?? "failed", result.summary);
  }
  report(`${profile}: the score`, score === 100 ? "ok" : "failed", `${score} of 100`);
}
