// A headless Chromium driven over the DevTools protocol, through a pipe: no port, no packages.

import { spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const FLAGS = [
  "--headless=new", "--no-sandbox", "--remote-debugging-pipe", "--disable-gpu", "--no-first-run",
  "--disable-dev-shm-usage", "--disable-background-networking", "--disable-extensions",
  "--hide-scrollbars", "--force-device-scale-factor=1", "--window-size=1280,860", "about:blank",
];
const KEYS = {
  Enter: [13, "\r"], Escape: [27, ""], Tab: [9, ""], Space: [32, " "],
};

export class Chrome {
  constructor(binary) {
    this.profile = mkdtempSync(join(tmpdir(), "bruchteil-browser-"));
    const args = [`--user-data-dir=${this.profile}`, ...FLAGS];
    const stdio = ["ignore", "ignore", "ignore", "pipe", "pipe"];
    this.process = spawn(binary, args, { stdio });
    this.calls = new Map();
    this.listeners = [];
    this.next = 1;
    this.ended = new Promise((resolve) => this.process.on("close", resolve));
    this.process.on("error", (error) => this.fail(`${binary} did not start: ${error.message}`));
    this.process.on("close", () => this.fail("Chromium ended"));
    this.process.stdio[3].on("error", () => this.fail("Chromium closed its pipe"));
    let rest = "";
    this.process.stdio[4].setEncoding("utf8").on("data", (text) => {
      const messages = (rest + text).split("\0");
      rest = messages.pop();
      for (const message of messages) this.receive(JSON.parse(message));
    });
  }

  fail(reason) {
    for (const { reject } of this.calls.values()) reject(new Error(reason));
    this.calls.clear();
  }

  receive({ id, method, params, result, error }) {
    if (id === undefined) {
      for (const listener of this.listeners) listener(method, params);
      return;
    }
    const { resolve, reject } = this.calls.get(id);
    this.calls.delete(id);
    if (error) reject(new Error(error.message));
    else resolve(result);
  }

  send(method, params = {}) {
    const id = this.next++;
    const call = { id, method, params, sessionId: this.session };
    return new Promise((resolve, reject) => {
      this.calls.set(id, { resolve, reject });
      this.process.stdio[3].write(`${JSON.stringify(call)}\0`);
    });
  }

  /// Attaches to the first tab and hears of its errors.
  async attach() {
    const { targetInfos } = await this.send("Target.getTargets");
    const { targetId } = targetInfos.find(({ type }) => type === "page");
    const options = { targetId, flatten: true };
    this.session = (await this.send("Target.attachToTarget", options)).sessionId;
    for (const domain of ["Page", "Runtime", "Log", "Network"]) await this.send(`${domain}.enable`);
  }

  /// Runs a function in the page and returns what it returns, awaited.
  async run(script, ...args) {
    const expression = `(${script})(...${JSON.stringify(args)})`;
    const options = { expression, awaitPromise: true, returnByValue: true, userGesture: true };
    const { result, exceptionDetails } = await this.send("Runtime.evaluate", options);
    if (exceptionDetails) {
      throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
    }
    return result.value;
  }

  async goto(url) {
    const loaded = new Promise((resolve) => {
      const listener = (method) => {
        if (method !== "Page.loadEventFired") return;
        this.listeners.splice(this.listeners.indexOf(listener), 1);
        resolve();
      };
      this.listeners.push(listener);
    });
    const { errorText } = await this.send(url ? "Page.navigate" : "Page.reload", { url });
    if (errorText) throw new Error(`${url} did not open: ${errorText}`);
    await loaded;
  }

  async key(key, modifiers = 0) {
    const [code, text] = KEYS[key];
    const event = { key: key === "Space" ? " " : key, code: key, modifiers };
    event.windowsVirtualKeyCode = code;
    const down = text === "" ? { type: "rawKeyDown" } : { type: "keyDown", text };
    await this.send("Input.dispatchKeyEvent", { ...event, ...down });
    await this.send("Input.dispatchKeyEvent", { ...event, type: "keyUp" });
  }

  type(text) {
    return this.send("Input.insertText", { text });
  }

  async click(selector) {
    const box = await this.run((selector) => {
      const node = document.querySelector(selector);
      if (!node || node.getClientRects().length === 0) return null;
      node.scrollIntoView({ block: "nearest" });
      const { x, y, width, height } = node.getBoundingClientRect();
      return { x: x + width / 2, y: y + height / 2 };
    }, selector);
    if (!box) throw new Error(`nothing to click at ${selector}`);
    const event = { ...box, button: "left", clickCount: 1 };
    await this.send("Input.dispatchMouseEvent", { ...event, type: "mousePressed" });
    await this.send("Input.dispatchMouseEvent", { ...event, type: "mouseReleased" });
  }

  async screenshot() {
    const { data } = await this.send("Page.captureScreenshot", { format: "png" });
    return Buffer.from(data, "base64");
  }

  async close() {
    this.session = undefined;
    await this.send("Browser.close").catch(() => {});
    const timer = setTimeout(() => this.process.kill("SIGKILL"), 5000);
    await this.ended;
    clearTimeout(timer);
    rmSync(this.profile, { recursive: true, force: true, maxRetries: 5 });
  }
}
