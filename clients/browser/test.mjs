// The page of a running server, as a person and an attacker would use it, in headless Chromium.
//
//   node clients/browser/test.mjs BASE_URL [SCREENSHOT.png]
//
// BASE_URL may come from the environment too. API_KEY is typed in when the server asks for one,
// PROMPT overrides what is asked, CHROMIUM names the browser. Ends with 1 and says what failed.

import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Chrome } from "./chrome.mjs";
import { hostileChecks } from "./hostile.mjs";

const base = (process.argv[2] ?? process.env.BASE_URL ?? "").replace(/\/+$/, "");
const shot = process.argv[3] ?? process.env.SCREENSHOT;
const DEADLINE_MS = 60_000;

if (!/^https?:\/\//.test(base)) {
  console.error("usage: node clients/browser/test.mjs BASE_URL [SCREENSHOT.png]");
  process.exit(2);
}

const chrome = new Chrome(process.env.CHROMIUM ?? "chromium");
const problems = [];
// A check that provokes an error names what the browser may log about it.
let expected = null;

function hear(method, params) {
  let text = null;
  if (method === "Runtime.exceptionThrown") {
    const { text: brief, exception } = params.exceptionDetails;
    text = exception?.description ?? brief;
  } else if (method === "Runtime.consoleAPICalled" && /error|warning|assert/.test(params.type)) {
    text = params.args.map((arg) => arg.value ?? arg.description).join(" ");
  } else if (method === "Log.entryAdded" && /error|warning/.test(params.entry.level)) {
    text = `${params.entry.source}: ${params.entry.text} ${params.entry.url ?? ""}`;
  }
  if (text !== null && !(expected && expected.test(text))) problems.push(text);
}

async function until(what, script, ...args) {
  const end = Date.now() + DEADLINE_MS;
  for (;;) {
    const value = await chrome.run(script, ...args);
    if (value) return value;
    if (Date.now() > end) throw new Error(`${what}: not within ${DEADLINE_MS / 1000} s`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

const ended = () => until("an answer", () => {
  const last = [...document.querySelectorAll(".assistant")].pop();
  return last?.getAttribute("aria-busy") === "false" && document.querySelector("#stop").hidden;
});

async function send(text) {
  await chrome.run(() => document.querySelector("#prompt").focus());
  await chrome.type(text);
  await chrome.key("Enter");
}

const lastAnswer = () => chrome.run(() => {
  const last = [...document.querySelectorAll(".assistant")].pop();
  const thinking = last.querySelector(".thinking");
  return {
    answer: last.querySelector(".md").textContent,
    thought: last.querySelector(".thought").textContent,
    label: thinking.querySelector("summary").textContent,
    folded: !thinking.hidden && !thinking.open,
    figures: last.querySelector(".figures").textContent,
    trouble: last.querySelector(".trouble").textContent,
  };
});

const emulate = (features) => chrome.send("Emulation.setEmulatedMedia", {
  features: Object.entries(features).map(([name, value]) => ({ name, value })),
});

const size = (width, height, mobile = false) => chrome.send("Emulation.setDeviceMetricsOverride",
  { width, height, deviceScaleFactor: 1, mobile });

async function openPage() {
  await chrome.goto(`${base}/`);
  await until("the model list or a question for the key", () =>
    document.querySelector("#model").value || document.querySelector("#ask").open);
  if (await chrome.run(() => document.querySelector("#ask").open)) {
    assert.ok(process.env.API_KEY, "the server asks for a key: set API_KEY");
    // The browser itself logs the first, refused, call.
    problems.length = 0;
    await chrome.type(process.env.API_KEY);
    await chrome.key("Enter");
    await until("the model list", () => document.querySelector("#model").value);
  }
}

async function loadsCleanly() {
  await openPage();
  const headers = await chrome.run(async () => {
    const { headers } = await fetch("/", { cache: "no-store" });
    return { csp: headers.get("content-security-policy") ?? "", type: headers.get("content-type") };
  });
  for (const rule of ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"]) {
    assert.ok(headers.csp.includes(rule), `Content-Security-Policy lacks ${rule}: ${headers.csp}`);
  }
  assert.doesNotMatch(headers.csp, /unsafe|\*/);
  assert.match(headers.type, /^text\/html/);
  await size(360, 740, true);
  await size(1280, 860);
}

// Everything from here to the answer is done by keys, from the top of the document.
async function answersByKeyboard(prompt) {
  await chrome.run(() => document.activeElement.blur());
  await chrome.key("Tab");
  assert.equal(await chrome.run(() => document.activeElement.id), "skip", "the first stop");
  await chrome.key("Enter");
  await until("focus in the message field", () => document.activeElement.id === "prompt");
  await chrome.type("two");
  await chrome.key("Enter", 8);
  await chrome.type("lines");
  const text = () => document.querySelector("#prompt").value;
  assert.equal(await chrome.run(text), "two\nlines", "Shift+Enter makes a new line");
  await chrome.run(() => document.querySelector("#prompt").select());
  await chrome.type(prompt);
  await chrome.key("Enter");
  assert.equal(await chrome.run(text), "", "the field is empty once sent");
  await ended();
  const { answer, thought, label, folded, figures, trouble } = await lastAnswer();
  assert.equal(trouble, "", "no error");
  assert.ok(answer.trim() + thought.trim() !== "", "the answer is not empty");
  if (thought !== "") {
    assert.ok(folded, "the thinking is folded");
    assert.match(label, /^Thought.*\d/);
  }
  assert.match(figures, /\d+ tokens?.*first after/);
}

// The tab order reaches every control, and each one shows that it has the focus.
async function everyControlByKeyboard() {
  await chrome.run(() => document.querySelector("#skip").focus());
  const seen = new Set();
  for (let at = 0; at < 60; at += 1) {
    const stop = await chrome.run(() => {
      const node = document.activeElement;
      if (node === document.body) return null;
      const frame = node.closest(".field") ?? node;
      const { outlineStyle, boxShadow } = getComputedStyle(frame);
      const drawn = outlineStyle !== "none" || boxShadow !== "none";
      const shown = node.matches(":focus-visible") && drawn;
      const name = node.getAttribute("aria-label") ?? node.labels?.[0]?.textContent ?? "";
      return { key: node.id || node.textContent, shown, name: name || node.textContent };
    });
    if (stop === null || (stop.key === "skip" && at > 0)) break;
    seen.add(stop.key);
    assert.ok(stop.shown, `focus is not visible on ${stop.key}`);
    assert.ok(stop.name.trim() !== "", `no name for ${stop.key}`);
    await chrome.key("Tab");
  }
  const controls = ["skip", "tab-chat", "tab-load", "theme", "open-settings", "new", "rename",
    "export", "delete", "scroll", "prompt", "send", "Copy", "Edit", "Regenerate"];
  for (const key of controls) assert.ok(seen.has(key), `Tab never reaches ${key}: ${[...seen]}`);
}

async function keptOverReload() {
  const said = () =>
    [...document.querySelectorAll(".said, .md, .thought")].map((node) => node.textContent);
  const before = await chrome.run(said);
  await chrome.goto();
  await until("the model list", () => document.querySelector("#model").value);
  assert.deepEqual(await chrome.run(said), before, "the same messages after a reload");
  assert.equal(await chrome.run(() => document.querySelectorAll("#conversations li").length), 1);
}

async function regenerates() {
  const answers = () => document.querySelectorAll(".assistant").length;
  const before = await chrome.run(answers);
  await chrome.run(() => {
    const buttons = [...document.querySelectorAll(".assistant:last-child button")];
    document.querySelector(".assistant:last-child").dataset.old = "yes";
    buttons.find((button) => button.textContent === "Regenerate").click();
  });
  await ended();
  assert.equal(await chrome.run(answers), before, "one answer took the place of the other");
  assert.ok(await chrome.run(() => !document.querySelector("[data-old]")), "it is a new one");
  assert.equal((await lastAnswer()).trouble, "");
}

// A small model has a short context: most checks begin a conversation of their own.
async function begin() {
  await chrome.run(() => document.querySelector("#new").click());
  await until("an empty conversation", () => document.querySelector(".empty"));
}

// The answer's stream is held after its first event, so that even a very quick model can be
// stopped half-way; the server must then have no request left.
async function stops(prompt) {
  await begin();
  await chrome.run(() => {
    const real = window.fetch;
    window.restore = () => (window.fetch = real);
    window.fetch = async (url, options) => {
      const response = await real(url, options);
      if (!String(url).endsWith("/chat/completions")) return response;
      const gone = new Promise((resolve) => options.signal.addEventListener("abort", resolve));
      const hold = new TransformStream({
        async transform(piece, controller) {
          const end = new TextDecoder("latin1").decode(piece).indexOf("\n\n") + 2;
          controller.enqueue(piece.slice(0, end));
          await gone;
        },
      });
      return new Response(response.body.pipeThrough(hold), response);
    };
  });
  await send(prompt);
  await until("the stop button", () => !document.querySelector("#stop").hidden);
  await chrome.key("Escape");
  await ended();
  assert.match((await lastAnswer()).figures, /stopped by you/);
  await send(prompt);
  await until("the stop button", () => !document.querySelector("#stop").hidden);
  await chrome.click("#stop");
  await ended();
  assert.match((await lastAnswer()).figures, /stopped by you/);
  await chrome.run(() => window.restore());
  await until("no request running on the server", async () => {
    const { metrics } = await import("/page/api.js");
    const { parseMetrics, figures } = await import("/page/load.js");
    return figures(parseMetrics(await metrics())).running === 0;
  });
}

async function editsAndDeletes(prompt) {
  await begin();
  await send(prompt);
  await ended();
  const count = () => document.querySelectorAll("article").length;
  const before = await chrome.run(count);
  await chrome.run(() => {
    const buttons = [...document.querySelectorAll(".user button")];
    buttons.filter((button) => button.textContent === "Edit").pop().click();
  });
  await chrome.run(() => document.querySelector(".editing textarea").select());
  await chrome.type(`${prompt} `);
  await chrome.key("Enter");
  await ended();
  assert.equal(await chrome.run(count), before, "the edited message took the old one's place");
  await chrome.run(() => {
    const buttons = [...document.querySelectorAll(".assistant:last-child button")];
    buttons.find((button) => button.textContent === "Delete").click();
  });
  assert.equal(await chrome.run(count), before - 1);
  const said = "Answer";
  await chrome.run((said) => {
    const buttons = [...document.querySelectorAll(".user:last-child button")];
    buttons.find((button) => button.textContent === said).click();
  }, said);
  await ended();
  assert.equal(await chrome.run(count), before);
}

async function settingsAreCheckedAndSent(prompt) {
  await begin();
  await chrome.click("#open-settings");
  await chrome.run(() => document.querySelector("#set-temperature").focus());
  await chrome.type("3");
  const invalid = () => document.querySelector("#set-temperature").getAttribute("aria-invalid");
  assert.equal(await chrome.run(invalid), "true", "a temperature of 3 is refused");
  await chrome.run(() => document.querySelector("#set-temperature").select());
  await chrome.type("0");
  assert.equal(await chrome.run(invalid), "false");
  await chrome.run(() => document.querySelector("#set-seed").focus());
  await chrome.type("7");
  await chrome.key("Escape");
  await chrome.run(() => {
    const real = window.fetch;
    window.fetch = (url, options) => {
      window.fetch = real;
      window.sent = JSON.parse(options.body);
      return real(url, options);
    };
  });
  await send(prompt);
  await ended();
  const sent = await chrome.run(() => window.sent);
  assert.equal(sent.temperature, 0);
  assert.equal(sent.seed, 7);
  assert.equal(sent.stream, true);
  assert.deepEqual(sent.messages.at(-1), { role: "user", content: prompt });
  assert.ok(!("top_p" in sent), "an empty field is not sent");
  const first = await lastAnswer();
  await regenerates();
  const { answer, thought } = await lastAnswer();
  assert.deepEqual([answer, thought], [first.answer, first.thought], "a seed repeats an answer");
}

// Two conversations may be answered at once, and neither loses a word to the other.
async function answersTwoAtOnce(prompt) {
  await begin();
  await send(prompt);
  const first = await chrome.run(() => location.hash);
  await begin();
  await send(prompt);
  await ended();
  const second = await lastAnswer();
  await chrome.run((hash) => (location.hash = hash), first);
  await until("the first conversation", (hash) =>
    document.querySelector(`#conversations [aria-current]`)?.getAttribute("href") === hash, first);
  await ended();
  const { answer, thought, trouble } = await lastAnswer();
  assert.equal(trouble, "");
  assert.deepEqual([answer, thought], [second.answer, second.thought], "the same seed, both whole");
}

// A server that still loads is waited for, in its own words, and then used without a reload.
async function waitsForTheServer() {
  expected = /503/;
  const listener = (method, { requestId }) => {
    if (method !== "Fetch.requestPaused") return;
    const body = btoa(JSON.stringify({ error: { message: "The model is still being read." } }));
    chrome.send("Fetch.fulfillRequest", { requestId, responseCode: 503, body });
  };
  chrome.listeners.push(listener);
  await chrome.send("Fetch.enable", { patterns: [{ urlPattern: "*/v1/models" }] });
  await chrome.goto();
  await until("the server's words", () =>
    /still being read/.test(document.querySelector("#banner").textContent));
  await chrome.send("Fetch.disable");
  chrome.listeners.splice(chrome.listeners.indexOf(listener), 1);
  await until("the model list", () => document.querySelector("#model").value);
  assert.ok(await chrome.run(() => document.querySelector("#banner").hidden));
  expected = null;
}

async function exportsJson(prompt) {
  const folder = mkdtempSync(join(tmpdir(), "bruchteil-download-"));
  const options = { behavior: "allow", downloadPath: folder, eventsEnabled: true };
  await chrome.send("Browser.setDownloadBehavior", options);
  const done = new Promise((resolve) => chrome.listeners.push((method, { state }) => {
    if (method === "Browser.downloadProgress" && state === "completed") resolve();
  }));
  await chrome.click("#export");
  await done;
  const [name] = readdirSync(folder);
  const { messages } = JSON.parse(readFileSync(join(folder, name), "utf8"));
  assert.deepEqual(messages.map(({ role }) => role), ["user", "assistant"]);
  assert.equal(messages[0].content, prompt);
  rmSync(folder, { recursive: true });
}

// The request is broken on its way, so that the real server has something to complain of.
async function errorsAreShown(prompt) {
  await begin();
  expected = /400/;
  await chrome.run(() => {
    const real = window.fetch;
    window.fetch = (url, options) => {
      window.fetch = real;
      const body = JSON.stringify({ ...JSON.parse(options.body), temperature: "hot" });
      return real(url, { ...options, body });
    };
  });
  await send(prompt);
  await ended();
  assert.match((await lastAnswer()).trouble, /temperature/, "the server's words are shown");
  await chrome.click(".trouble button");
  await ended();
  assert.equal((await lastAnswer()).trouble, "", "trying again succeeds");
  expected = null;
}

async function keyIsAskedFor() {
  await chrome.run(() => {
    const real = window.fetch;
    window.fetch = (url, options) => {
      if (options?.headers?.authorization === "Bearer secret") return real(url, { method: "GET" });
      const error = { message: "No key.", type: "invalid_request_error", param: null };
      return Promise.resolve(new Response(JSON.stringify({ error }), { status: 401 }));
    };
    window.asked = import("/page/api.js").then(({ models }) => models());
    window.restore = () => (window.fetch = real);
  });
  await until("the question for the key", () => document.querySelector("#ask").open);
  await chrome.type("secret");
  await chrome.key("Enter");
  assert.ok((await chrome.run(() => window.asked)).length > 0);
  const kept = await chrome.run(() => {
    window.restore();
    const local = JSON.stringify({ ...localStorage });
    const session = JSON.stringify({ ...sessionStorage });
    sessionStorage.clear();
    return { local: local.includes("secret"), session: session.includes("secret") };
  });
  assert.deepEqual(kept, { local: false, session: true }, "the key lives in sessionStorage alone");
}

async function showsLoad() {
  await chrome.run(() => (location.hash = "#load"));
  await until("figures of the load", () => {
    const values = [...document.querySelectorAll(".tile .value")].map((node) => node.textContent);
    return values.length === 6 && values.slice(0, 5).every((value) => /^[\d.,]+$/.test(value));
  });
  const running = () => document.querySelector("#tile-running .value").textContent;
  assert.equal(await chrome.run(running), "0");
  await until("a drawn history", () => {
    const line = document.querySelector("#tile-generated polyline");
    return line.getAttribute("points").split(" ").length > 2;
  });
  await noSidewaysScroll("load");
  await chrome.run(() => document.querySelector("#tab-chat").click());
}

async function noSidewaysScroll(where) {
  await size(360, 740, true);
  const wide = await chrome.run(() => {
    const inside = (node) => node.closest(".code pre, .table, .sidebar, .unseen, .skip, svg");
    const out = [...document.querySelectorAll("body *")].filter((node) =>
      node.getBoundingClientRect().right > 360.5 && !inside(node) && node.getClientRects().length);
    const width = document.documentElement.scrollWidth;
    return { width, out: out.map((node) => node.outerHTML.slice(0, 80)) };
  });
  assert.ok(wide.width <= 360, `${where}: ${wide.width} px wide at 360`);
  assert.deepEqual(wide.out, [], `${where}: nothing reaches over the edge at 360 px`);
  await size(1280, 860);
}

// Text must stand out by 4.5 to 1 (WCAG AA) from what is behind it, in both themes.
async function readableInBothThemes() {
  for (const scheme of ["light", "dark"]) {
    await emulate({ "prefers-color-scheme": scheme });
    const { paper, faint } = await chrome.run(() => {
      const parse = (color) => color.match(/[\d.]+/g).map(Number);
      const light = ([r, g, b]) => {
        const part = (c) => (c <= 10 ? c / 3294.6 : ((c / 255 + 0.055) / 1.055) ** 2.4);
        return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
      };
      const behind = (node) => {
        for (let at = node; at; at = at.parentElement) {
          const color = parse(getComputedStyle(at).backgroundColor);
          if (color.length === 3 || color[3] === 1) return color;
        }
        return [255, 255, 255];
      };
      const texts = [...document.querySelectorAll("body *")].filter((node) =>
        node.getClientRects().length > 0 &&
        [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim() !== ""));
      const faint = texts.map((node) => {
        const [a, b] = [light(parse(getComputedStyle(node).color)), light(behind(node))];
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        return ratio < 4.5 ? `${node.outerHTML.slice(0, 60)}: ${ratio.toFixed(2)}` : null;
      });
      const paper = light(behind(document.body));
      return { paper, faint: faint.filter((text) => text !== null) };
    });
    assert.ok(scheme === "dark" ? paper < 0.1 : paper > 0.8, `${scheme} paper: ${paper}`);
    assert.deepEqual(faint, [], `too faint in the ${scheme}`);
  }
  const background = () => getComputedStyle(document.body).backgroundColor;
  const dark = await chrome.run(background);
  await chrome.click("#theme");
  assert.notEqual(await chrome.run(background), dark, "the toggle overrules the system");
  await chrome.goto();
  assert.notEqual(await chrome.run(background), dark, "the chosen theme outlives a reload");
  await chrome.run(() => document.querySelector("#theme").click());
  await chrome.run(() => document.querySelector("#theme").click());
  await emulate({ "prefers-reduced-motion": "reduce" });
  await until("the model list", () => document.querySelector("#model").value);
}

// Should markup ever get past the renderer, the policy is the second wall.
async function policyHolds() {
  expected = /Content Security Policy|content-security-policy/i;
  const hit = await chrome.run(async () => {
    const div = document.createElement("div");
    div.innerHTML = "<img src='data:,' onerror='window.hit = 1'><a href='javascript:hit=2'>x</a>";
    document.body.append(div);
    const script = document.createElement("script");
    script.textContent = "window.hit = 3";
    document.body.append(script);
    div.querySelector("a").click();
    await new Promise((resolve) => setTimeout(resolve, 300));
    div.remove();
    return window.hit ?? null;
  });
  assert.equal(hit, null, "inline script does not run");
  expected = null;
}

async function removesAConversation() {
  const kept = () => Object.keys(localStorage).filter((key) => key.startsWith("bruchteil.chat."));
  const before = await chrome.run(kept);
  await chrome.click("#delete");
  await chrome.click("#ask-ok");
  await until("an empty conversation", () => document.querySelector(".empty"));
  assert.equal((await chrome.run(kept)).length, before.length - 1, "it is gone from the browser");
}

// The picture for the README: the answer with its thinking unfolded.
async function picture(path) {
  await size(1120, 620);
  await chrome.run(() => (document.querySelector(".thinking").open = true));
  writeFileSync(path, await chrome.screenshot());
  await chrome.run(() => (document.querySelector(".thinking").open = false));
  await size(1280, 860);
}

async function check(name, run) {
  const start = Date.now();
  try {
    await run();
    assert.deepEqual(problems, [], "errors in the browser's console");
    console.log(`ok    ${name} (${Date.now() - start} ms)`);
  } catch (error) {
    console.error(`FAIL  ${name}\n${error.message}`);
    if (problems.length > 0) console.error(`in the console:\n${problems.join("\n")}`);
    if (shot) writeFileSync(shot, await chrome.screenshot());
    throw error;
  }
}

// Nothing here may hang the tests around it; Chromium ends with its pipe.
setTimeout(() => {
  console.error("FAIL  not done within five minutes");
  process.exit(1);
}, 300_000).unref();

async function main() {
  await chrome.attach();
  chrome.listeners.push(hear);
  await size(1280, 860);
  await emulate({ "prefers-color-scheme": "light", "prefers-reduced-motion": "reduce" });
  await check("the page loads without an error and under its policy", loadsCleanly);
  const example = await chrome.run(() => document.querySelector(".example")?.textContent);
  const prompt = process.env.PROMPT ?? example ?? "69 64 4 20";
  await check("a question is answered, by keys alone", () => answersByKeyboard(prompt));
  if (shot) await picture(shot);
  await check("every control is reached by Tab", everyControlByKeyboard);
  await check("a reload keeps the conversation", keptOverReload);
  await check("regenerate", regenerates);
  await check("stop, by key and by button", () => stops(prompt));
  await check("edit and delete", () => editsAndDeletes(prompt));
  await check("settings are checked and sent", () => settingsAreCheckedAndSent(prompt));
  await check("two conversations at once", () => answersTwoAtOnce(prompt));
  await check("export", () => exportsJson(prompt));
  await check("a server that is not ready is waited for", waitsForTheServer);
  await check("the server's errors are shown", () => errorsAreShown(prompt));
  if (!process.env.API_KEY) await check("a key is asked for", keyIsAskedFor);
  await check("the load view", showsLoad);
  for (const [name, run] of hostileChecks(chrome)) await check(name, run);
  await check("the policy blocks inline script", policyHolds);
  await check("no sideways scroll at 360 px", () => noSidewaysScroll("chat"));
  await check("readable in the light and the dark", readableInBothThemes);
  await check("a conversation is deleted", removesAConversation);
}

main().then(() => console.log("The page passed."), () => (process.exitCode = 1))
  .finally(() => chrome.close());
