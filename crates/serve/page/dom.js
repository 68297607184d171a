// The document is built from nodes and text alone; no string is ever parsed as markup.

export const $ = (selector) => document.querySelector(selector);

export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (typeof value === "function") node.addEventListener(name, value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

export const button = (label, click, props = {}) =>
  el("button", { type: "button", class: "quiet small", click, ...props }, label);

/// Tells a screen reader about events, never about single tokens.
export function say(text) {
  $("#status").textContent = text;
}

/// Asks in a dialog: resolves to the text (or true without a field), or to null if dismissed.
export function ask({ title, text = "", ok, input = null, secret = false }) {
  const dialog = $("#ask");
  const field = $("#ask-input");
  $("#ask-title").textContent = title;
  $("#ask-text").textContent = text;
  $("#ask-label").textContent = title;
  $("#ask-ok").textContent = ok;
  field.hidden = input === null;
  field.type = secret ? "password" : "text";
  field.value = input ?? "";
  return new Promise((resolve) => {
    let answer = null;
    $("#ask-form").onsubmit = (event) => {
      event.preventDefault();
      answer = input === null ? true : field.value.trim();
      dialog.close();
    };
    $("#ask-cancel").onclick = () => dialog.close();
    dialog.onclose = () => {
      field.value = "";
      resolve(answer);
    };
    dialog.showModal();
    if (input !== null) field.select();
  });
}

/// Copies text; outside a secure context the Clipboard API is missing and the old way serves.
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = el("textarea", { class: "unseen", "aria-hidden": "true" });
    area.value = text;
    const focused = document.activeElement;
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    focused?.focus();
    if (!copied) return say("The browser did not allow copying.");
  }
  say("Copied.");
}

export function copyButton(read) {
  const node = button("Copy", async () => {
    await copyText(read());
    node.textContent = "Copied";
    setTimeout(() => (node.textContent = "Copy"), 1500);
  });
  return node;
}

export function download(name, value) {
  const blob = new Blob([JSON.stringify(value, null, 2)], { type: "application/json" });
  const url = URL.createObjectURL(blob);
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
