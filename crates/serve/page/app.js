// The page's frame: which view is shown, the theme, the model, and keys that work everywhere.

import { $, el, button, say } from "./dom.js";
import { models } from "./api.js";
import { Chat } from "./chat.js";
import { LoadView } from "./load.js";
import { startSettings } from "./settings.js";

const RETRY_MS = 3000;

function banner(text, ...more) {
  $("#banner").replaceChildren(text ?? "", ...more);
  $("#banner").hidden = text === null;
}

const chat = new Chat(banner);
const load = new LoadView();

function route() {
  const [view, id] = location.hash.slice(1).split("/");
  const isLoad = view === "load";
  $("#view-chat").hidden = isLoad;
  $("#view-load").hidden = !isLoad;
  for (const [tab, on] of [["#tab-chat", !isLoad], ["#tab-load", isLoad]]) {
    if (on) $(tab).setAttribute("aria-current", "page");
    else $(tab).removeAttribute("aria-current");
  }
  $("#menu").hidden = isLoad;
  menu(false);
  load.show(isLoad);
  if (isLoad) document.title = "Load \u00b7 Bruchteil";
  else chat.open(id);
}

function menu(open) {
  document.body.classList.toggle("menu-open", open);
  $("#menu").setAttribute("aria-expanded", String(open));
}

function startMenu() {
  $("#menu").addEventListener("click", () => {
    const open = !document.body.classList.contains("menu-open");
    menu(open);
    if (open) $("#new").focus();
  });
  $(".talk").addEventListener("click", () => menu(false));
  $("#sidebar").addEventListener("click", (event) => event.target.closest("a") && menu(false));
  $("#new").addEventListener("click", () => {
    // The same address again changes nothing by itself.
    if (location.hash === "#chat") route();
    else location.hash = "#chat";
    menu(false);
    $("#prompt").focus();
  });
}

function startKeys() {
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
    if (document.body.classList.contains("menu-open")) {
      menu(false);
      $("#menu").focus();
    } else if (!event.target.closest(".editing")) chat.stop();
  });
  $("#skip").addEventListener("click", (event) => {
    event.preventDefault();
    if ($("#view-chat").hidden) location.hash = chat.address;
    setTimeout(() => $("#prompt").focus());
  });
}

function startTheme() {
  const root = document.documentElement;
  const order = ["auto", "light", "dark"];
  const name = () => `Theme: ${root.dataset.theme ?? "auto"}`;
  const label = () => {
    $("#theme").setAttribute("aria-label", name());
    $("#theme").title = name();
  };
  $("#theme").addEventListener("click", () => {
    const next = order[(order.indexOf(root.dataset.theme ?? "auto") + 1) % order.length];
    if (next === "auto") delete root.dataset.theme;
    else root.dataset.theme = next;
    try {
      localStorage.setItem("bruchteil.theme", next);
    } catch {
      // The theme then lasts for this visit.
    }
    label();
    say(name());
  });
  label();
}

function showModels(list) {
  const select = $("#model");
  select.replaceChildren(...list.map(({ id }) => el("option", { value: id }, id)));
  select.disabled = list.length < 2;
  const choose = () => {
    chat.model = list.find(({ id }) => id === select.value);
    const most = chat.model.max_model_len;
    select.title = most ? `Prompt and answer: up to ${most.toLocaleString("en")} tokens` : "";
    chat.show();
  };
  select.onchange = choose;
  choose();
}

// A server that still loads its model, or is being restarted, is waited for.
async function connect() {
  try {
    showModels(await models());
    banner(null);
  } catch (error) {
    const retry = button("Try again", connect);
    banner(error.message, " ", retry);
    if (error.status === 0 || error.status === 503) {
      retry.remove();
      setTimeout(connect, RETRY_MS);
    }
  }
}

startSettings();
startMenu();
startKeys();
startTheme();
window.addEventListener("hashchange", route);
route();
connect();
