// What every Node client's script uses: calls by name, one JSON line for each on standard output.

export const BASE_URL = process.env.CONFORMANCE_BASE_URL ?? "http://127.0.0.1:8000/v1";
export const API_KEY = process.env.CONFORMANCE_API_KEY ?? "none";
export const MODEL = process.env.CONFORMANCE_MODEL ?? "";
export const QUESTION = "What is the capital of France? Answer in one sentence.";
export const WEATHER = "What is the weather in Paris?";
const CALL_SECONDS = Number(process.env.CONFORMANCE_CALL_SECONDS ?? 120);

const calls = new Map();

/** Registers a function as the call `name`; what it returns is the row's detail. */
export function call(name, body) {
  calls.set(name, body);
}

/** Makes every call, or those named on the command line, and prints how each ended. */
export async function run() {
  const wanted = process.argv.slice(2);
  for (const name of wanted.length ? wanted : calls.keys()) {
    let timer;
    const late = new Promise((_, reject) => {
      const error = new Error(`no end after ${CALL_SECONDS} s`);
      timer = setTimeout(() => reject(error), CALL_SECONDS * 1000);
    });
    try {
      const detail = await Promise.race([calls.get(name)(), late]);
      report(name, "ok", detail ?? "");
    } catch (error) {
      report(name, ...refusedOrFailed(error));
    } finally {
      clearTimeout(timer);
    }
  }
  process.exit(0); // a connection that a client keeps must not keep the process
}

export function check(condition, message) {
  if (!condition) throw new Error(message);
}

export function report(call, status, detail) {
  const text = typeof detail === "string" ? detail : JSON.stringify(detail);
  const line = { call, status, detail: text.replace(/\s+/g, " ").slice(0, 300) };
  process.stdout.write(JSON.stringify(line) + "\n");
}

/** A 400 that names its field is a refusal, wherever in the chain of causes it stands. */
function refusedOrFailed(error) {
  for (let cause = error; cause; cause = cause.cause ?? cause.lastError) {
    if ((cause.status ?? cause.statusCode) !== 400) continue;
    const found = cause.error ?? parsed(cause.responseBody)?.error;
    if (found?.param) return ["refused", `${found.param}: ${found.message}`];
  }
  return ["failed", `${error?.name}: ${error?.message}`];
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
