// Signs in and out, and shows the view that the address names.

import * as adapter from "./adapter.js";
import * as adapters from "./adapters.js";
import { ApiError, events, forgetKey, signIn } from "./api.js";
import * as audit from "./audit.js";
import { alertBox, el, say } from "./dom.js";
import { button, wait } from "./forms.js";
import * as playground from "./playground.js";
import * as sets from "./sets.js";
import * as tenant from "./tenant.js";
import * as tenants from "./tenants.js";

const ROUTES = [
  [/^#\/tenants$/, tenants],
  [/^#\/tenants\/([^/]+)$/, tenant],
  [/^#\/tenants\/([^/]+)\/set$/, sets],
  [/^#\/adapters$/, adapters],
  [/^#\/adapters\/([^/]+)$/, adapter],
  [/^#\/playground$/, playground],
  [/^#\/audit$/, audit],
];
const START = "#/tenants";

const byId = (id) => document.getElementById(id);
const view = byId("view");
let signedIn = false;
let leaving = new AbortController();

/** A view has `show(signal, ...names)`, which makes its title and nodes; `signal` ends what it began. */
async function navigate() {
  if (!signedIn) return;
  leave();
  leaving = new AbortController();
  const { signal } = leaving;
  const { title, nodes } = await load(signal);
  if (signal.aborted) return;
  const heading = el("h1", { tabindex: "-1" }, title);
  view.replaceChildren(heading, ...nodes);
  document.title = `${title} – remix-serve admin`;
  for (const item of byId("nav").querySelectorAll("a")) {
    const isHere = location.hash.startsWith(item.getAttribute("href"));
    if (isHere) item.setAttribute("aria-current", "page");
    else item.removeAttribute("aria-current");
  }
  heading.focus();
}

async function load(signal) {
  const found = matched();
  if (found === null) {
    return { title: "Not found", nodes: [el("p", {}, "There is no such view. The menu has all of them.")] };
  }
  try {
    return await found.module.show(signal, ...found.names);
  } catch (error) {
    if (!(error instanceof ApiError)) {
      if (error.name === "AbortError") return { title: "", nodes: [] };
      throw error;
    }
    const title = error.status === 404 ? "Not found" : "This could not be shown";
    return { title, nodes: [alertBox(error.message), button("Try again", navigate)] };
  }
}

function matched() {
  for (const [pattern, module] of ROUTES) {
    const match = pattern.exec(location.hash);
    if (match === null) continue;
    try {
      return { module, names: match.slice(1).map(decodeURIComponent) };
    } catch {
      return null; // a half-written escape
    }
  }
  return null;
}

function showSignedIn(is) {
  signedIn = is;
  byId("sign-in").hidden = is;
  for (const id of ["nav", "sign-out", "view"]) byId(id).hidden = !is;
}

/** Ends what the view has begun, and the questions that it asks. */
function leave() {
  leaving.abort();
  for (const dialog of document.querySelectorAll("dialog")) dialog.close();
}

function signOut(message) {
  leave();
  forgetKey();
  view.replaceChildren();
  showSignedIn(false);
  document.title = "Sign in – remix-serve admin";
  byId("sign-in-error").textContent = message;
  byId("key").focus();
}

byId("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  const input = byId("key");
  wait(byId("sign-in"), async () => {
    try {
      await signIn(input.value);
    } catch (error) {
      input.focus();
      throw error.status === 401 ? new Error("The server refused this key. It is REMIX_ADMIN_KEY of the server.") : error;
    }
    input.value = "";
    showSignedIn(true);
    say("Signed in.");
    if (location.hash.startsWith("#/")) await navigate();
    else location.hash = START;
  }, byId("sign-in-error"));
});
byId("sign-out").addEventListener("click", () => {
  signOut("");
  say("Signed out.");
});
byId("skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address names the view
  byId("main").focus();
});
events.addEventListener("refused", () => {
  if (signedIn) signOut("The server no longer takes this key. Sign in again.");
});
addEventListener("hashchange", navigate);
byId("key").focus();
