// The admin API. The key is a variable of this module: browsers write what is in sessionStorage to
// the disk, and this key opens everything.

let key = null;

export const events = new EventTarget();

export class ApiError extends Error {
  constructor(status, error = {}) {
    super(error.message ?? `The server answered ${status}.`);
    this.status = status;
    this.param = error.param ?? null;
    this.code = error.code ?? null;
    this.reasons = error.reasons ?? {};
  }
}

export function forgetKey() {
  key = null;
}

/** Tries a key, and keeps it if the server takes it. Raises `ApiError`. */
export async function signIn(given) {
  if (!/^[\x21-\x7e]+$/.test(given)) {
    throw new ApiError(0, { message: "This is no key: keys are letters, digits and signs without spaces." });
  }
  await send("GET", "tenants?limit=1", {}, given);
  key = given;
}

/** A path under /admin/v1; what the template's values hold is escaped. */
export function path(parts, ...values) {
  return String.raw({ raw: parts }, ...values.map((value) => encodeURIComponent(value)));
}

/** The answer of the API, not read yet. Raises as `checked`. */
export async function send(method, where, { body, headers = {}, signal } = {}, as = key) {
  const response = await fetchFrom(`admin/v1/${where}`, {
    method,
    signal,
    headers: {
      Authorization: `Bearer ${as}`,
      ...(body === undefined ? {} : { "Content-Type": "application/json" }),
      ...headers,
    },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  return checked(response, as);
}

/** The answer itself where it is no error. Raises `ApiError`; a refused key is told to `events` too. */
async function checked(response, as = key) {
  if (response.ok) return response;
  const error = await errorOf(response);
  if (response.status === 401 && as === key) events.dispatchEvent(new Event("refused"));
  throw error;
}

async function fetchFrom(where, options) {
  try {
    return await fetch(new URL(where, document.baseURI), {
      cache: "no-store",
      credentials: "omit",
      redirect: "error",
      ...options,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, { message: "The server cannot be reached. Try again." });
  }
}

async function errorOf(response) {
  try {
    return new ApiError(response.status, (await response.json()).error);
  } catch {
    return new ApiError(response.status); // of a proxy on the way
  }
}

/** The JSON of an answer; null of one without a body. */
export async function ask(method, where, options) {
  const response = await send(method, where, options);
  return response.status === 204 ? null : response.json();
}

/** Prometheus' text of `/metrics`, which is not under /admin/v1. */
export async function metricsText(signal) {
  const response = await fetchFrom("metrics", { signal, headers: { Authorization: `Bearer ${key}` } });
  return (await checked(response)).text();
}

/** One page of a list: the first, or the one behind a cursor. */
export function page(where, cursor, options) {
  const sign = where.includes("?") ? "&" : "?";
  return ask("GET", cursor ? `${where}${sign}${cursor}` : where, options);
}

/** All items of a list, page by page, up to `most`. */
export async function all(where, cursor, { most = 5000, signal } = {}) {
  const items = [];
  let next = "";
  for (;;) {
    const { data, has_more } = await page(where, next, { signal });
    items.push(...data);
    if (!has_more || items.length >= most) return items;
    next = cursor(data[data.length - 1]);
  }
}
