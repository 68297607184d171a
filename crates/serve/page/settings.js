// The sampling settings: one table says how each is shown, checked and sent.

import { $, el } from "./dom.js";
import { loadSettings, saveSettings } from "./store.js";

const number = (words, takes) => {
  const read = (text) => Number(text.trim().replace(",", "."));
  return { words, parse: (text) => (takes(read(text)) ? read(text) : null) };
};
const between = (least, most) =>
  number(`A number from ${least} to ${most}.`, (value) => value >= least && value <= most);
const whole = (least) =>
  number(`A whole number from ${least}.`, (value) => Number.isSafeInteger(value) && value >= least);
const share = number("More than 0, at most 1.", (value) => value > 0 && value <= 1);
const unescaped = (line) => line.replaceAll("\\n", "\n").replaceAll("\\t", "\t");
const stops = (text) => text.split("\n").filter((line) => line !== "").map(unescaped);

const FIELDS = [
  { key: "system", label: "System prompt", rows: 3, hint: "", parse: (text) => text },
  { key: "temperature", label: "Temperature", hint: "0 always takes the likeliest token",
    ...between(0, 2) },
  { key: "top_p", label: "Top-p", hint: "share of probability to draw from", ...share },
  { key: "top_k", label: "Top-k", hint: "how many tokens to draw from", ...whole(1) },
  { key: "min_p", label: "Min-p", hint: "least share of the likeliest token",
    ...between(0, 1) },
  { key: "max_tokens", label: "Max tokens", hint: "thinking included", ...whole(1) },
  { key: "seed", label: "Seed", hint: "the same seed gives the same bytes", ...whole(0) },
  { key: "stop", label: "Stop at", rows: 2, hint: "one a line, \\n for a new line", parse: stops },
];

// The text of each field, and only text that its field takes.
let texts = loadSettings();
const inputs = new Map();

// The value of a field's text: undefined where it is empty, null where it is wrong.
const valueOf = (field, text) => (text.trim() === "" ? undefined : field.parse(text));

/// The request fields that the settings ask for; `system` is a message, not a field.
export function samplingFields() {
  const fields = {};
  for (const field of FIELDS) {
    const value = valueOf(field, String(texts[field.key] ?? ""));
    if ((value ?? null) !== null && field.key !== "system") fields[field.key] = value;
  }
  return fields;
}

export const systemPrompt = () => String(texts.system ?? "").trim();

function fieldRow(field) {
  const id = `set-${field.key}`;
  const described = { "aria-describedby": `${id}-note`, autocomplete: "off", spellcheck: "false" };
  const input = field.rows
    ? el("textarea", { id, rows: field.rows, ...described })
    : el("input", { id, inputmode: "decimal", placeholder: "default", ...described });
  const note = el("p", { class: "note", id: `${id}-note` }, field.hint);
  input.addEventListener("input", () => {
    const wrong = valueOf(field, input.value) === null;
    input.setAttribute("aria-invalid", String(wrong));
    note.classList.toggle("wrong", wrong);
    note.textContent = wrong ? `${field.words} The last good value stays in use.` : field.hint;
    if (wrong) return;
    texts[field.key] = input.value;
    if (!saveSettings(texts)) note.textContent = "The browser will not keep this setting.";
  });
  inputs.set(field.key, input);
  const row = el("div", { class: field.rows ? "set tall" : "set" });
  row.append(el("label", { for: id }, field.label), input, note);
  return row;
}

function fill() {
  for (const [key, input] of inputs) {
    input.value = texts[key] ?? "";
    input.dispatchEvent(new Event("input"));
  }
}

export function startSettings() {
  const dialog = $("#settings");
  $("#fields").append(...FIELDS.map(fieldRow));
  $("#open-settings").addEventListener("click", () => {
    fill();
    dialog.showModal();
  });
  $("#close-settings").addEventListener("click", () => dialog.close());
  $("#settings-form").addEventListener("submit", (event) => {
    event.preventDefault();
    dialog.close();
  });
  $("#reset-settings").addEventListener("click", () => {
    texts = {};
    saveSettings(texts);
    fill();
  });
  // A click on the backdrop lands on the dialog itself.
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
}
