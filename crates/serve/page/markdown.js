// Markdown to DOM nodes, for text that nobody has vetted. Three promises hold for any input:
// markup in the text stays text, the work is linear in its length, and a streamed text gives the
// same nodes as the whole one. Regular expressions here never rescan what they have rejected.

import { el, copyButton } from "./dom.js";

const MAX_DEPTH = 8;
const MAX_COLUMNS = 64;
// Elements per message: beyond it the browser's layout, not this parser, would be the slow part.
const MAX_ELEMENTS = 12_000;
const SLICE = 200;
const MAX_PARAGRAPH_LINES = 5 * SLICE;

const MARKER = /^([ \t]*)([-*+]|\d{1,9}[.)])(?=[ \t]|$)/;
const QUOTE = /^ {0,3}> ?/;
const HEADING = /^ {0,3}(#{1,6})(?=\s|$)/;
const FENCE = /^[ \t]*(`{3,}|~{3,})/;
const CELL_RULE = /^:?-+:?$/;
const INLINE = /[\\`[\]<]|!\[|\*+|_+|~+|https?:\/\//g;
const TARGET = /\(([^\s()<>[\]]*(?:\([^\s()<>[\]]*\)[^\s()<>[\]]*)*)(?:\s+"[^"[\]]*")?\s*\)/y;
const BARE_URL = /https?:\/\/[^\s<>"'`[\]()]+/y;
const ESCAPABLE = /[\\`*_~#|<>!\-+.{}\n]/;

const isBlank = (line) => line.trim() === "";

const indentation = (line) => /^[ \t]*/.exec(line)[0];
const indentOf = (line) => indentation(line).replaceAll("\t", "    ").length;

function dedent(line, columns) {
  const rest = line.slice(indentation(line).length);
  return " ".repeat(Math.max(0, indentOf(line) - columns)) + rest;
}

function isRule(line) {
  const first = line.trimStart()[0];
  if (first !== "-" && first !== "*" && first !== "_") return false;
  return /^(?:-{3,}|\*{3,}|_{3,})$/.test(line.replace(/\s/g, ""));
}

function fenceOf(line) {
  const match = FENCE.exec(line);
  if (!match) return null;
  const info = line.slice(match[0].length).trim();
  if (match[1][0] === "`" && info.includes("`")) return null;
  return { mark: match[1], indent: indentOf(line), language: info.split(/\s/, 1)[0] };
}

function markerOf(line) {
  const match = MARKER.exec(line);
  if (!match || isRule(line)) return null;
  const indent = indentOf(match[1]);
  const rest = line.slice(match[0].length);
  const gap = Math.min(indentOf(rest), 4) || 1;
  const number = /\d/.test(match[2]) ? parseInt(match[2], 10) : null;
  return { indent, number, width: indent + match[2].length + gap, rest: rest.trimStart() };
}

function cells(line) {
  const row = line.trim().replace(/^\|/, "");
  const open = row.endsWith("|") && !row.endsWith("\\|") ? row.slice(0, -1) : row;
  return open.split(/(?<!\\)\|/).map((cell) => cell.replaceAll("\\|", "|").trim());
}

function alignments(lines, at) {
  const rule = lines[at + 1];
  if (rule === undefined || !rule.includes("-") || !/^[\s|:-]+$/.test(rule)) return null;
  if (!lines[at].includes("|") || !rule.includes("|")) return null;
  const marks = cells(rule);
  if (marks.length > MAX_COLUMNS || !marks.every((mark) => CELL_RULE.test(mark))) return null;
  if (cells(lines[at]).length !== marks.length) return null;
  return marks.map((mark) => (mark.endsWith(":") ? (mark[0] === ":" ? "center" : "end") : null));
}

// Whether a line ends the paragraph above it. Only "1." may, so that a year at a line's start
// does not become a list.
function interrupts(lines, at) {
  const line = lines[at];
  if (QUOTE.test(line) || HEADING.test(line) || fenceOf(line) || isRule(line)) return true;
  const marker = markerOf(line);
  if (marker && marker.rest !== "" && (marker.number ?? 1) === 1) return true;
  return alignments(lines, at) !== null;
}

function fenceBlock(lines, start, fence) {
  let end = start + 1;
  const closes = (line) => {
    const mark = line.trim();
    return mark.startsWith(fence.mark) && mark === fence.mark[0].repeat(mark.length);
  };
  while (end < lines.length && !closes(lines[end])) end += 1;
  const body = lines.slice(start + 1, end).map((line) => dedent(line, fence.indent));
  return { kind: "fence", end: Math.min(end + 1, lines.length), body, fence };
}

function quoteBlock(lines, start) {
  const body = [];
  let end = start;
  for (; end < lines.length && !isBlank(lines[end]); end += 1) {
    const mark = QUOTE.exec(lines[end]);
    if (!mark && interrupts(lines, end)) break;
    body.push(lines[end].slice(mark ? mark[0].length : 0));
  }
  return { kind: "quote", end, body };
}

// One item's lines, without their indentation. Two columns nest, as people write it.
function listItem(lines, start, marker) {
  const body = [marker.rest];
  let end = start + 1;
  for (let blank = false; end < lines.length; end += 1) {
    const line = lines[end];
    if (isBlank(line)) {
      blank = true;
      body.push("");
      continue;
    }
    if (indentOf(line) >= marker.indent + 2) body.push(dedent(line, marker.width));
    else if (blank || markerOf(line) || interrupts(lines, end)) break;
    else body.push(line);
    blank = false;
  }
  return { end, body };
}

function listBlock(lines, start, first) {
  const items = [];
  let end = start;
  while (end < lines.length) {
    const marker = markerOf(lines[end]);
    if (!marker || (marker.number === null) !== (first.number === null)) break;
    const item = listItem(lines, end, marker);
    items.push(item.body);
    end = item.end;
  }
  return { kind: "list", end, items, first: first.number };
}

function tableBlock(lines, start, align) {
  let end = start + 2;
  while (end < lines.length && !isBlank(lines[end]) && lines[end].includes("|")) end += 1;
  return { kind: "table", end, align, head: lines[start], rows: lines.slice(start + 2, end) };
}

function blockAt(lines, start, depth) {
  const line = lines[start];
  const fence = fenceOf(line);
  if (fence) return fenceBlock(lines, start, fence);
  const heading = HEADING.exec(line);
  if (heading) {
    const text = line.slice(heading[0].length).trim();
    return { kind: "heading", end: start + 1, level: heading[1].length, text };
  }
  if (isRule(line)) return { kind: "rule", end: start + 1 };
  if (depth < MAX_DEPTH && QUOTE.test(line)) return quoteBlock(lines, start);
  const marker = depth < MAX_DEPTH ? markerOf(line) : null;
  if (marker) return listBlock(lines, start, marker);
  const align = alignments(lines, start);
  if (align) return tableBlock(lines, start, align);
  let end = start + 1;
  while (end < lines.length && !isBlank(lines[end]) && !interrupts(lines, end)) end += 1;
  return { kind: "paragraph", end, body: lines.slice(start, end) };
}

function skipBlank(lines, at) {
  while (at < lines.length && isBlank(lines[at])) at += 1;
  return at;
}

/// The links that a model may give: nothing that runs, nothing of this server.
export function safeUrl(url) {
  return /^(?:https?:\/\/|mailto:)[^\s\x00-\x1f]+$/i.test(url) ? url : null;
}

class Renderer {
  constructor() {
    this.left = MAX_ELEMENTS;
  }

  make(tag, props, ...children) {
    this.left -= 1;
    return el(tag, props, ...children);
  }

  lines(lines, parent, depth) {
    for (let at = skipBlank(lines, 0); at < lines.length; ) {
      if (this.left <= 0) return void parent.append(plainText(lines.slice(at)));
      const block = blockAt(lines, at, depth);
      parent.append(this.block(block, depth));
      at = skipBlank(lines, block.end);
    }
  }

  block(block, depth) {
    if (block.kind === "fence") return this.fence(block);
    if (block.kind === "rule") return this.make("hr");
    if (block.kind === "table") return this.table(block);
    if (block.kind === "list") return this.list(block, depth);
    if (block.kind === "quote") {
      const quote = this.make("blockquote");
      this.lines(block.body, quote, depth + 1);
      return quote;
    }
    if (block.body?.length > MAX_PARAGRAPH_LINES) return plainText(block.body);
    // The page's own headings come first, so an answer's begin at the third level.
    const node = this.make(block.level ? `h${Math.min(block.level + 2, 6)}` : "p");
    this.inline(block.text ?? block.body.join("\n").trim(), node);
    return node;
  }

  fence({ body, fence }) {
    const text = document.createTextNode(body.join("\n"));
    const code = this.make("code", {}, text);
    const head = this.make("div", { class: "code-head" }, el("span", {}, fence.language));
    head.append(copyButton(() => text.data));
    const label = fence.language ? `Code, ${fence.language}` : "Code";
    const pre = this.make("pre", { tabindex: "0", role: "region", "aria-label": label }, code);
    const node = this.make("div", { class: "code" }, head, pre);
    Object.assign(node, { code: text, language: fence.language });
    return node;
  }

  list({ items, first }, depth) {
    const start = first === null || first === 1 ? undefined : first;
    const list = this.make(first === null ? "ul" : "ol", { start });
    for (let at = 0; at < items.length; at += 1) {
      if (this.left <= 0) {
        list.append(el("li", {}, plainText(items.slice(at).flat())));
        break;
      }
      const body = items[at];
      body[0] = body[0].replace(/^\[ \] /, "\u2610 ").replace(/^\[[xX]\] /, "\u2611 ");
      const item = this.make("li");
      this.lines(body, item, depth + 1);
      list.append(item);
    }
    return list;
  }

  table({ align, head, rows }) {
    const row = (line, tag) => {
      const texts = cells(line);
      const node = this.make("tr");
      align.forEach((side, at) => {
        const cell = this.make(tag, { class: side && `to-${side}` });
        this.inline(texts[at] ?? "", cell);
        node.append(cell);
      });
      return node;
    };
    const body = this.make("tbody");
    const table = this.make("table", {}, el("thead", {}, row(head, "th")), body);
    const props = { class: "table", tabindex: "0", role: "region", "aria-label": "Table" };
    const node = this.make("div", props, table);
    for (let at = 0; at < rows.length; at += 1) {
      if (this.left <= 0) {
        node.append(plainText(rows.slice(at)));
        break;
      }
      body.append(row(rows[at], "td"));
    }
    return node;
  }

  inline(text, node) {
    new Inline(this, text, node).run();
  }
}

// Very many lines as they stand, in slices that the browser lays out only once they are seen.
function plainText(lines) {
  const node = el("div", { class: "plain" });
  for (let at = 0; at < lines.length; at += SLICE) {
    node.append(el("div", {}, lines.slice(at, at + SLICE).join("\n") + "\n"));
  }
  return node;
}

// One pass over a paragraph. At most one frame per mark is open, so the stack is short and a node
// moves outward a bounded number of times: this is what keeps "*a **b *a **b" linear.
class Inline {
  constructor(renderer, text, node) {
    this.renderer = renderer;
    this.text = text;
    this.frames = [{ mark: "", node }];
    this.buffer = "";
    this.lastTicks = null;
  }

  run() {
    let at = 0;
    while (at < this.text.length && this.renderer.left > 0) {
      INLINE.lastIndex = at;
      const match = INLINE.exec(this.text);
      if (!match) break;
      this.buffer += this.text.slice(at, match.index);
      at = this.token(match[0], match.index);
    }
    this.buffer += this.text.slice(at);
    this.flatten(1);
    this.flush();
  }

  get top() {
    return this.frames[this.frames.length - 1];
  }

  flush() {
    if (this.buffer !== "") this.top.node.append(this.buffer);
    this.buffer = "";
  }

  find(mark) {
    return this.frames.findIndex((frame) => frame.mark === mark);
  }

  open(mark) {
    this.flush();
    this.frames.push({ mark, node: document.createDocumentFragment() });
  }

  // Turns the frames from `depth` up back into their literal marks and what followed them.
  flatten(depth) {
    while (this.frames.length > depth) {
      this.flush();
      const { mark, node } = this.frames.pop();
      this.renderer.left -= 1;
      this.top.node.append(mark, node);
    }
  }

  close(depth, wrap) {
    this.flatten(depth + 1);
    this.flush();
    const { node } = this.frames.pop();
    this.top.node.append(wrap(node));
  }

  token(token, at) {
    const next = at + token.length;
    if (token === "\\") return this.escape(at);
    if (token === "`") return this.codeSpan(at);
    if (token === "[" || token === "![") {
      const outer = this.frames.findIndex((frame) => frame.mark.endsWith("["));
      if (outer > 0) this.flatten(outer);
      this.open(token);
      return next;
    }
    if (token === "]") return this.closeLink(next);
    if (token === "<" || token[0] === "h") return this.bareUrl(token, at);
    this.emphasis(token, at);
    return next;
  }

  escape(at) {
    const char = this.text[at + 1];
    if (char === undefined || !ESCAPABLE.test(char)) {
      // "\(" and "\[" begin formulas, which are shown as they were written.
      this.buffer += "\\" + (char ?? "");
    } else this.buffer += char;
    return at + 2;
  }

  codeSpan(at) {
    const { text } = this;
    let end = at;
    while (text[end] === "`") end += 1;
    const ticks = text.slice(at, end);
    // Knowing where each length of run occurs last spares a search that would find nothing.
    this.lastTicks ??= new Map([...text.matchAll(/`+/g)].map((m) => [m[0].length, m.index]));
    if (!(this.lastTicks.get(ticks.length) > at)) {
      this.buffer += ticks;
      return end;
    }
    let close = end;
    for (let run = 0; run !== ticks.length; ) {
      close = text.indexOf("`", close + run);
      run = 1;
      while (text[close + run] === "`") run += 1;
    }
    const inner = text.slice(end, close);
    const padded = inner.startsWith(" ") && inner.endsWith(" ") && !isBlank(inner);
    this.flush();
    const code = this.renderer.make("code", {}, padded ? inner.slice(1, -1) : inner);
    this.top.node.append(code);
    return close + ticks.length;
  }

  closeLink(next) {
    const depth = this.frames.findIndex((frame) => frame.mark.endsWith("["));
    if (depth < 1) {
      this.buffer += "]";
      return next;
    }
    TARGET.lastIndex = next;
    const target = TARGET.exec(this.text);
    const url = target && safeUrl(target[1]);
    if (!url) {
      this.flatten(depth);
      this.buffer += "]";
      return next;
    }
    this.close(depth, (node) => this.link(url, node));
    return TARGET.lastIndex;
  }

  link(url, ...children) {
    const props = { href: url, rel: "noopener noreferrer", target: "_blank" };
    return this.renderer.make("a", props, ...children);
  }

  bareUrl(token, at) {
    const start = token === "<" ? at + 1 : at;
    BARE_URL.lastIndex = start;
    const match = BARE_URL.exec(this.text);
    const inLink = this.frames.some((frame) => frame.mark.endsWith("["));
    if (!match || inLink) {
      this.buffer += token;
      return at + token.length;
    }
    const angled = token === "<" && this.text[BARE_URL.lastIndex] === ">";
    let url = match[0];
    while (/[.,;:!?*_~]/.test(url[url.length - 1])) url = url.slice(0, -1);
    if (!angled && token === "<") this.buffer += "<";
    this.flush();
    this.top.node.append(this.link(url, url));
    return start + url.length + (angled && url === match[0] ? 1 : 0);
  }

  emphasis(run, at) {
    const before = this.text[at - 1] ?? " ";
    const after = this.text[at + run.length] ?? " ";
    const word = (char) => /[\p{L}\p{N}]/u.test(char);
    // "2*3*4" and "snake_case" are meant as they stand.
    const within = run[0] === "_" ? word(before) && word(after) : /\d\d/.test(before + after);
    const odd = run[0] === "~" ? run.length !== 2 : run.length > 3;
    const marks = odd || within ? [] : this.marksIn(run);
    const closes = before.trim() !== "" && marks.every((mark) => this.find(mark) > 0);
    if (marks.length > 0 && closes) {
      for (const mark of marks) this.close(this.find(mark), (node) => this.styled(mark, node));
    } else if (!odd && !within && after.trim() !== "" && this.find(run) < 0) this.open(run);
    else this.buffer += run;
  }

  // "***" may close "**" and "*" that were opened apart, the inner one first; and opened as one,
  // it may be closed by them apart.
  marksIn(run) {
    const [one, two, three] = [1, 2, 3].map((length) => run[0].repeat(length));
    if (this.find(run) > 0) return [run];
    if (run === three && this.find(one) > 0 && this.find(two) > 0) {
      return this.find(one) > this.find(two) ? [one, two] : [two, one];
    }
    const outer = run === one ? two : one;
    const depth = run === three ? -1 : this.find(three);
    if (depth > 0 && this.find(outer) < 0) {
      this.frames[depth].mark = run;
      const node = document.createDocumentFragment();
      this.frames.splice(depth, 0, { mark: outer, node });
    }
    return [run];
  }

  styled(mark, node) {
    if (mark === "~~") return this.renderer.make("del", {}, node);
    if (mark.length === 1) return this.renderer.make("em", {}, node);
    if (mark.length === 2) return this.renderer.make("strong", {}, node);
    return this.renderer.make("strong", {}, this.renderer.make("em", {}, node));
  }
}

/// Shows a growing text: finished blocks stay, only the unfinished end is built anew.
export class MarkdownView {
  constructor(root) {
    this.root = root;
    this.renderer = new Renderer();
    this.offset = 0;
    this.tail = [];
  }

  /// `text` must begin with every text shown before; `final` says that no more will come.
  update(text, final = false) {
    if (this.finished) return;
    this.finished = final;
    const lines = text.slice(this.offset).split("\n");
    const whole = final ? Infinity : lines.length - 1;
    let at = skipBlank(lines, 0);
    let counted = 0;
    const built = [];
    while (at < lines.length && this.renderer.left > 0) {
      const block = blockAt(lines, at, 0);
      const next = skipBlank(lines, block.end);
      // A block is settled when the first two lines of the next one are: a table needs both.
      if (next + 2 > whole) break;
      built.push(this.renderer.block(block, 0));
      for (; counted < next && counted < lines.length; counted += 1) {
        this.offset += lines[counted].length + 1;
      }
      at = next;
    }
    this.replaceTail(built, lines.slice(at));
  }

  replaceTail(built, lines) {
    const first = skipBlank(lines, 0);
    const open = first < lines.length ? blockAt(lines, first, 0) : null;
    const live = this.tail.length === 1 ? this.tail[0] : null;
    // A code block that only grows keeps its node, and so the reader's selection and focus.
    if (built.length === 0 && open?.fence && open.end >= lines.length && live?.code) {
      const code = open.body.join("\n");
      const grows = live.language === open.fence.language && code.startsWith(live.code.data);
      if (grows) return live.code.appendData(code.slice(live.code.data.length));
    }
    for (const node of this.tail) node.remove();
    this.root.append(...built);
    const { left } = this.renderer;
    const fragment = document.createDocumentFragment();
    this.renderer.lines(lines, fragment, 0);
    this.renderer.left = left;
    this.tail = [...fragment.childNodes];
    this.root.append(fragment);
  }
}

export function renderMarkdown(text) {
  const root = el("div", { class: "md" });
  new MarkdownView(root).update(text, true);
  return root;
}
