// Conversations: what was said, what is being said, and the buttons that change it.

import { $, el, button, ask, say, download } from "./dom.js";
import { chat } from "./api.js";
import { samplingFields, systemPrompt } from "./settings.js";
import { UserView, AnswerView } from "./message.js";
import {
  loadConversations, newConversation, saveConversation, dropConversation, newestFirst,
} from "./store.js";

const SAVE_EVERY_MS = 2000;

// One answer under way. It draws at most once a frame, and never more than a quarter of the time:
// the longer a drawing takes, the longer the next one waits, so a huge answer cannot freeze the
// page.
class Run {
  constructor(draw) {
    this.controller = new AbortController();
    this.draw = draw;
    this.waiting = false;
    this.again = false;
    this.rest = 0;
  }

  paint() {
    this.again = this.waiting;
    if (this.waiting) return;
    this.waiting = true;
    setTimeout(() => requestAnimationFrame(() => this.frame()), this.rest);
  }

  frame() {
    const start = performance.now();
    if (!this.over) this.draw();
    // A task queued in a frame runs after the browser has laid the page out.
    setTimeout(() => {
      this.rest = Math.min(3 * (performance.now() - start), 3000);
      this.waiting = false;
      if (this.again && !this.over) this.paint();
    });
  }
}

function receive(message, event) {
  if (event.usage) message.usage = event.usage;
  if (event.seed !== undefined) message.seed = event.seed;
  const choice = event.choices?.[0];
  if (!choice) return;
  // Servers send the thinking under one name, the other, or both with the same text.
  const thought = choice.delta?.reasoning ?? choice.delta?.reasoning_content ?? "";
  const content = choice.delta?.content ?? "";
  if (thought !== "" || content !== "") {
    message.pieces += 1;
    message.last = performance.now();
    message.first ??= message.last;
  }
  if (content !== "") message.answered ??= message.last;
  message.reasoning += thought;
  message.content += content;
  if (choice.finish_reason) message.finish = choice.finish_reason;
}

function inWords(error) {
  const named = !error.param || error.message.includes(error.param);
  return named ? error.message : `${error.message} (${error.param})`;
}

function titleOf(text) {
  const line = text.trim().split("\n", 1)[0];
  return line.length > 60 ? `${line.slice(0, 57)}\u2026` : line;
}

export class Chat {
  constructor(banner) {
    this.banner = banner;
    this.model = null;
    this.conversations = loadConversations();
    this.current = newConversation();
    this.runs = new Map();
    this.views = new WeakMap();
    this.listen();
  }

  listen() {
    const prompt = $("#prompt");
    $("#composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    prompt.addEventListener("input", () => this.fitPrompt());
    prompt.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.submit();
    });
    $("#stop").addEventListener("click", () => this.stop());
    $("#rename").addEventListener("click", () => this.rename());
    $("#delete").addEventListener("click", () => this.deleteCurrent());
    $("#export").addEventListener("click", () => {
      download(`conversation-${this.current.id}.json`, this.current);
    });
    $("#export-all").addEventListener("click", () => {
      download("conversations.json", this.conversations);
    });
    window.addEventListener("storage", () => this.syncWithOtherTabs());
    window.addEventListener("pagehide", () => {
      this.conversations.filter(({ id }) => this.runs.has(id)).forEach(saveConversation);
    });
  }

  // --- which conversation ---

  /// Opens the conversation of that id, or a new one.
  open(id) {
    const kept = this.conversations.find((conversation) => conversation.id === id);
    if (kept || this.current.messages.length > 0) this.current = kept ?? newConversation();
    this.show();
    this.toEnd();
  }

  get address() {
    return this.current.messages.length > 0 ? `#chat/${this.current.id}` : "#chat";
  }

  syncWithOtherTabs() {
    const mine = (one) => this.runs.has(one.id) || one.id === this.current.id;
    const theirs = loadConversations().filter((one) => !mine(one));
    this.conversations = [...this.conversations.filter(mine), ...theirs].sort(newestFirst);
    this.showList();
  }

  save(conversation) {
    conversation.updated = Date.now();
    if (!this.conversations.includes(conversation)) this.conversations.push(conversation);
    this.conversations.sort(newestFirst);
    const full = !saveConversation(conversation);
    const words = "The browser's storage is full: export or delete conversations to keep this one.";
    if (full || this.full) this.banner(full ? words : null);
    this.full = full;
  }

  async rename() {
    const conversation = this.current;
    const title = await ask({ title: "Rename", ok: "Rename", input: conversation.title });
    if (!title) return;
    conversation.title = title.slice(0, 200);
    this.save(conversation);
    this.show();
  }

  async deleteCurrent() {
    const conversation = this.current;
    const text = `\u201c${conversation.title}\u201d will be gone from this browser.`;
    if (!(await ask({ title: "Delete the conversation?", text, ok: "Delete" }))) return;
    this.runs.get(conversation.id)?.controller.abort();
    this.conversations = this.conversations.filter((other) => other !== conversation);
    dropConversation(conversation);
    location.hash = "#chat";
    say("Conversation deleted.");
    $("#prompt").focus();
  }

  // --- what is said ---

  submit() {
    const prompt = $("#prompt");
    const text = prompt.value.trim();
    if (text === "" || !this.isReady()) return;
    prompt.value = "";
    this.fitPrompt();
    this.send(text);
  }

  isReady() {
    if (!this.model) say("There is no model to answer yet.");
    return this.model !== null && !this.runs.has(this.current.id);
  }

  send(text) {
    const conversation = this.current;
    if (conversation.messages.length === 0) conversation.title = titleOf(text);
    conversation.messages.push({ role: "user", content: text });
    return this.answer(conversation);
  }

  stop() {
    const run = this.runs.get(this.current.id);
    run?.controller.abort();
    return Boolean(run);
  }

  request(conversation) {
    const system = systemPrompt();
    const messages = system === "" ? [] : [{ role: "system", content: system }];
    for (const { role, content, error } of conversation.messages) {
      // An answer that failed or never began is no part of what was said.
      if (role === "user" || (content !== "" && !error)) messages.push({ role, content });
    }
    return { model: this.model.id, messages, ...samplingFields() };
  }

  async answer(conversation) {
    const body = this.request(conversation);
    const message = { role: "assistant", content: "", reasoning: "", pieces: 0 };
    Object.assign(message, { model: body.model, started: performance.now() });
    conversation.messages.push(message);
    const run = new Run(() => this.draw(message));
    this.runs.set(conversation.id, run);
    this.save(conversation);
    if (conversation === this.current) {
      history.replaceState(null, "", this.address);
      this.show();
      this.toEnd();
    }
    say("The answer is being written.");
    await this.follow(conversation, message, body, run);
    run.over = true;
    this.runs.delete(conversation.id);
    // A conversation that was deleted meanwhile must not come back.
    if (this.conversations.includes(conversation)) this.save(conversation);
    this.settle(conversation, message);
  }

  async follow(conversation, message, body, run) {
    const { signal } = run.controller;
    let saved = performance.now();
    try {
      for await (const event of chat(body, signal)) {
        receive(message, event);
        run.paint();
        if (performance.now() - saved < SAVE_EVERY_MS) continue;
        saveConversation(conversation);
        saved = performance.now();
      }
    } catch (error) {
      if (signal.aborted) message.finish = "stopped";
      else message.error = inWords(error);
    }
  }

  settle(conversation, message) {
    if (message.error) say("The answer failed.");
    else say(message.finish === "stopped" ? "Stopped." : "The answer is complete.");
    if (conversation !== this.current) return this.showList();
    const atEnd = this.isAtEnd();
    this.show();
    if (atEnd) this.toEnd();
  }

  regenerate() {
    if (!this.isReady()) return;
    const { messages } = this.current;
    if (messages[messages.length - 1].role === "assistant") messages.pop();
    this.answer(this.current);
    $("#prompt").focus();
  }

  async edit(message) {
    const conversation = this.current;
    const text = await this.views.get(message).edit(message.content);
    const at = conversation.messages.indexOf(message);
    $("#prompt").focus();
    if (text === null || at < 0 || conversation !== this.current || !this.isReady()) return;
    conversation.messages.length = at;
    this.send(text);
  }

  remove(message) {
    const { messages } = this.current;
    messages.splice(messages.indexOf(message), 1);
    this.save(this.current);
    this.show();
    say("Message deleted.");
    $("#prompt").focus();
  }

  // --- how it is shown ---

  view(message) {
    if (!this.views.has(message)) {
      const view = message.role === "user" ? new UserView(message) : new AnswerView(message);
      this.views.set(message, view);
    }
    return this.views.get(message);
  }

  actions(message, at) {
    const { messages } = this.current;
    const last = at === messages.length - 1;
    const laterUser = messages.slice(at + 1).some(({ role }) => role === "user");
    return {
      remove: () => this.remove(message),
      regenerate: last ? () => this.regenerate() : undefined,
      edit: laterUser ? undefined : () => this.edit(message),
    };
  }

  show() {
    const { messages, title, id } = this.current;
    const busy = this.runs.has(id);
    const focused = $("#messages").contains(document.activeElement) && document.activeElement;
    const nodes = messages.map((message, at) => {
      const view = this.view(message);
      const running = busy && at === messages.length - 1;
      if (message.role === "assistant" && !running && !message.error) {
        // What has no ending was cut short, by a reload for instance.
        message.finish ??= "interrupted";
      }
      if (running) view.offer(null);
      else view.offer(busy ? {} : this.actions(message, at));
      return view.node;
    });
    $("#messages").replaceChildren(...(nodes.length > 0 ? nodes : [this.emptyState()]));
    // The buttons were made anew: the keyboard must not fall back to the top of the page.
    if (focused && document.activeElement !== focused) $("#scroll").focus();
    $("#title-row").hidden = nodes.length === 0;
    $("#title").textContent = title;
    document.title = nodes.length === 0 ? "Bruchteil" : `${title} \u00b7 Bruchteil`;
    $("#tab-chat").setAttribute("href", this.address);
    this.showButtons(busy);
    this.showList();
  }

  showButtons(busy) {
    const [hide, shown] = busy ? [$("#send"), $("#stop")] : [$("#stop"), $("#send")];
    const focused = document.activeElement === hide;
    hide.hidden = true;
    shown.hidden = false;
    if (focused) shown.focus();
  }

  showList() {
    const entries = this.conversations.map((conversation) => {
      const current = conversation === this.current ? "page" : undefined;
      const running = this.runs.has(conversation.id) ? "running" : undefined;
      const props = { href: `#chat/${conversation.id}`, "aria-current": current, class: running };
      return el("li", {}, el("a", props, conversation.title));
    });
    $("#conversations").replaceChildren(...entries);
    $("#export-all").hidden = entries.length === 0;
  }

  emptyState() {
    const box = el("div", { class: "empty" }, el("h1", {}, "Ask a question"));
    const examples = Array.isArray(this.model?.examples) ? this.model.examples : [];
    const texts = examples.filter((text) => typeof text === "string").slice(0, 6);
    const note = texts.length > 0 ? "Write a message, or try one of these." : "Write a message.";
    box.append(el("p", { class: "muted" }, note));
    const choices = texts.map((text) => button(text, () => this.send(text), { class: "example" }));
    box.append(el("div", { class: "examples" }, ...choices));
    return box;
  }

  draw(message) {
    const atEnd = this.isAtEnd();
    this.view(message).update();
    if (atEnd) this.toEnd();
  }

  isAtEnd() {
    const { scrollTop, scrollHeight, clientHeight } = $("#scroll");
    return scrollHeight - scrollTop - clientHeight < 60;
  }

  toEnd() {
    $("#scroll").scrollTop = $("#scroll").scrollHeight;
  }

  fitPrompt() {
    const { style } = $("#prompt");
    style.height = "auto";
    style.height = `${$("#prompt").scrollHeight}px`;
  }
}
