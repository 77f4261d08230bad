// Parts of forms: a field with its error, a button that waits, a question before what cannot be undone.

import { alertBox, el, freshId, say } from "./dom.js";

/** A labelled input with a hint and a place for its error. `attributes` are the input's. */
export function field(label, attributes = {}, { hint = "", tag = "input", hiddenLabel = false } = {}) {
  const id = freshId("field");
  const input = el(tag, { ...attributes, id });
  const hintNode = el("p", { class: "hint", id: `${id}-hint` }, hint);
  const errorNode = el("p", { class: "error", id: `${id}-error` });
  input.setAttribute("aria-describedby", `${id}-hint ${id}-error`);
  const labelNode = el("label", { for: id, class: hiddenLabel ? "hidden" : null }, label);
  const root = el("div", { class: "field" }, labelNode, input, hintNode, errorNode);
  return {
    root,
    input,
    set hint(text) {
      hintNode.textContent = text;
    },
    set error(text) {
      errorNode.textContent = text;
      if (text) input.setAttribute("aria-invalid", "true");
      else input.removeAttribute("aria-invalid");
    },
  };
}

export function checkbox(label, attributes = {}) {
  const id = freshId("check");
  const input = el("input", { type: "checkbox", ...attributes, id });
  return { root: el("div", { class: "check" }, input, el("label", { for: id }, label)), input };
}

/** Radio buttons; `choices` are pairs of value and label, the first one chosen. */
export function choice(legend, choices, onchange) {
  const name = freshId("choice");
  const buttons = choices.map(([value, label], index) => {
    const id = `${name}-${index}`;
    const input = el("input", { type: "radio", name, id, value, checked: index === 0, onchange: () => onchange(value) });
    return el("span", { class: "check" }, input, el("label", { for: id }, label));
  });
  return el("fieldset", { class: "row" }, el("legend", {}, legend), buttons);
}

/** A button that takes no second click while `action` runs, and shows its failure in `errors`. */
export function button(label, action, { kind = "plain", errors = null, describedby = null } = {}) {
  const node = el("button", { type: "button", class: kind, "aria-describedby": describedby }, label);
  node.addEventListener("click", () => wait(node, action, errors));
  return node;
}

/** Runs `action` once at a time for the element; its failure is shown in `errors`, or told. */
export async function wait(node, action, errors) {
  if (node.getAttribute("aria-disabled") === "true") return;
  node.setAttribute("aria-disabled", "true"); // `disabled` would lose the focus
  if (errors) errors.textContent = "";
  try {
    await action();
  } catch (error) {
    if (error.name === "AbortError") return;
    if (errors) errors.textContent = error.message;
    else say(error.message);
  } finally {
    node.removeAttribute("aria-disabled");
  }
}

/** A form whose submit runs `action`, with a place for its failure. */
export function form(attributes, action, ...children) {
  const errors = alertBox();
  const node = el("form", { novalidate: true, ...attributes }, ...children, errors);
  node.addEventListener("submit", (event) => {
    event.preventDefault();
    wait(node, action, errors);
  });
  return { node, errors };
}

/** Asks before `action` is done. The dialog stays open, with the reason, where it fails. Resolves to
 * whether it was done. */
export function confirm(title, body, label, action) {
  return new Promise((resolve) => {
    const id = freshId("dialog");
    const errors = alertBox();
    let done = false;
    const act = async () => {
      await action();
      done = true;
      dialog.close();
    };
    const dialog = el(
      "dialog",
      { "aria-labelledby": id },
      el("h2", { id }, title),
      ...[body].flat(),
      errors,
      el(
        "div",
        { class: "row" },
        el("button", { type: "button", class: "plain", autofocus: true, onclick: () => dialog.close() }, "Cancel"),
        button(label, act, { kind: "danger", errors }),
      ),
    );
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(done);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}
