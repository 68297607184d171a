// How one message looks, while it grows and after.

import { el, button, copyButton } from "./dom.js";
import { MarkdownView } from "./markdown.js";

const FINISH = {
  stop: "complete",
  length: "cut off at the token limit",
  stopped: "stopped by you",
  interrupted: "interrupted",
  tool_calls: "asks for a tool",
  content_filter: "withheld",
};

const MEASURABLE_MS = 30;

const count = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;
const seconds = (ms) => `${(ms / 1000).toFixed(ms < 9_950 ? 2 : 1)} s`;

// The first token belongs to the prompt's time, so the rate is of those after it; but a short
// answer may arrive all at once, and then only the whole wait says anything.
function rate(tokens, { started, first, last }) {
  const apart = last - first >= MEASURABLE_MS;
  const perSecond = ((tokens - (apart ? 1 : 0)) * 1000) / (last - (apart ? first : started));
  const digits = perSecond < 100 ? 1 : 0;
  return `${perSecond.toLocaleString("en", { maximumFractionDigits: digits })} tokens/s`;
}

/// The line under an answer. The server's count of tokens is used as soon as it is known.
export function statistics(message) {
  const { usage, pieces = 0, first, started } = message;
  const parts = [];
  const tokens = usage?.completion_tokens;
  if (tokens !== undefined) parts.push(count(tokens, "token"));
  else if (pieces > 0) parts.push(`about ${count(pieces, "token")}`);
  if (pieces > 0) parts.push(rate(tokens ?? pieces, message));
  if (usage) {
    const cached = usage.prompt_tokens_details?.cached_tokens;
    const prompt = count(usage.prompt_tokens, "prompt token");
    parts.push(cached ? `${prompt} (${cached.toLocaleString("en")} cached)` : prompt);
  }
  if (first) parts.push(`first after ${seconds(first - started)}`);
  if (message.seed !== undefined) parts.push(`seed ${message.seed}`);
  if (message.finish) parts.push(FINISH[message.finish] ?? message.finish);
  return parts.join(" \u00b7 ");
}

// Text that only grows is appended, so a long thought is never laid out from its start by us.
function grow(node, text) {
  if (text.startsWith(node.data)) node.appendData(text.slice(node.data.length));
  else node.data = text;
}

export class UserView {
  constructor(message) {
    this.message = message;
    this.foot = el("div", { class: "actions" });
    this.body = el("div", { class: "said" }, message.content);
    this.node = el("article", { class: "user", "aria-label": "You" }, this.body, this.foot);
  }

  /// Sets the buttons beneath the message: those whose action is given.
  offer({ regenerate, edit, remove }) {
    this.foot.replaceChildren(copyButton(() => this.message.content));
    if (edit) this.foot.append(button("Edit", edit));
    if (regenerate) this.foot.append(button("Answer", regenerate));
    if (remove) this.foot.append(button("Delete", remove));
  }

  /// Puts a field in the place of the message; resolves to the new text, or null.
  edit(text) {
    return new Promise((resolve) => {
      const area = el("textarea", { "aria-label": "Edit the message", rows: "3" });
      const row = el("div", { class: "row" });
      const box = el("div", { class: "editing" }, area, row);
      const end = (value) => {
        box.replaceWith(this.body);
        this.foot.hidden = false;
        resolve(value);
      };
      const accept = () => area.value.trim() !== "" && end(area.value.trim());
      row.append(button("Cancel", () => end(null)));
      row.append(button("Send", accept, { class: "primary small" }));
      area.value = text;
      area.addEventListener("keydown", (event) => {
        if (event.key === "Escape") end(null);
        else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
          event.preventDefault();
          accept();
        }
      });
      this.foot.hidden = true;
      this.body.replaceWith(box);
      area.focus();
    });
  }
}

export class AnswerView {
  constructor(message) {
    this.message = message;
    this.label = el("span");
    this.thought = document.createTextNode("");
    const summary = el("summary", {}, this.label);
    this.thinking = el("details", { class: "thinking" }, summary);
    this.thinking.append(el("div", { class: "thought" }, this.thought));
    // A reader who folds or unfolds it decides from then on.
    summary.addEventListener("click", () => (this.decided = true));
    this.body = el("div", { class: "md" });
    this.trouble = el("div", { class: "trouble", role: "alert", hidden: true });
    const words = "It was cut off in its thinking: a larger \u201cMax tokens\u201d helps.";
    this.hint = el("p", { class: "muted", hidden: true }, words);
    this.figures = el("p", { class: "figures" });
    this.foot = el("div", { class: "actions" });
    this.markdown = new MarkdownView(this.body);
    this.node = el("article", { class: "assistant", "aria-label": "Answer" });
    this.node.append(this.thinking, this.body, this.hint, this.trouble, this.figures, this.foot);
  }

  update(final = false) {
    const { reasoning = "", content } = this.message;
    this.thinking.hidden = reasoning === "";
    if (reasoning !== "") {
      grow(this.thought, reasoning);
      const thinking = !final && content === "";
      this.label.textContent = this.thinkingLabel(thinking);
      if (!this.decided) this.thinking.open = thinking;
    }
    this.markdown.update(content, final);
    this.node.classList.toggle("waiting", !final && content === "" && reasoning === "");
    this.figures.textContent = statistics(this.message);
  }

  thinkingLabel(thinking) {
    const { reasoning, first, answered, last, usage } = this.message;
    const tokens = usage?.completion_tokens_details?.reasoning_tokens;
    const words = reasoning.match(/\S+/g)?.length ?? 0;
    const length = tokens ? count(tokens, "token") : count(words, "word");
    if (thinking) return `Thinking \u00b7 ${length}`;
    const took = (answered ?? last) - first;
    const time = took >= MEASURABLE_MS ? ` for ${seconds(took)}` : "";
    return `Thought${time} \u00b7 ${length}`;
  }

  /// Shows the message as ended, and the buttons whose action is given; null while it runs.
  offer(actions) {
    this.node.setAttribute("aria-busy", String(actions === null));
    this.update(actions !== null);
    this.foot.replaceChildren();
    this.trouble.hidden = true;
    if (actions === null) return;
    const { regenerate, remove } = actions;
    const { error, content, finish } = this.message;
    if (error) this.showError(error, regenerate);
    this.hint.hidden = !(finish === "length" && content === "");
    if (content !== "") this.foot.append(copyButton(() => content));
    if (!error && regenerate) this.foot.append(button("Regenerate", regenerate));
    if (remove) this.foot.append(button("Delete", remove));
  }

  showError(error, retry) {
    this.trouble.hidden = false;
    this.trouble.replaceChildren(el("p", {}, error));
    if (retry) this.trouble.append(button("Try again", retry, { class: "primary small" }));
  }
}
