// The OpenAI-compatible API of the server that this page came from.

import { ask } from "./dom.js";

const KEY = "bruchteil.key";
let asking = null;

export class ApiError extends Error {
  constructor(message, status = 0, param = null) {
    super(message);
    this.status = status;
    this.param = param;
  }
}

// The key lives for the tab alone: a key in localStorage would outlive the person's visit.
function storedKey() {
  try {
    return sessionStorage.getItem(KEY);
  } catch {
    return null;
  }
}

/// Asks for the server's key once, however many calls found that they need it.
export function askForKey(refused) {
  asking ??= ask({
    title: "API key",
    text: refused
      ? "The server did not take this key. Please check it."
      : "This server asks for a key. It is kept until this tab is closed.",
    ok: "Use key",
    input: "",
    secret: true,
  }).then((key) => {
    asking = null;
    if (!key) return false;
    // A header cannot carry anything but visible ASCII; fetch would throw on it.
    if (!/^[\x21-\x7e]+$/.test(key)) return askForKey(true);
    sessionStorage.setItem(KEY, key);
    return true;
  });
  return asking;
}

async function errorOf(response) {
  const text = await response.text().catch(() => "");
  try {
    const error = JSON.parse(text).error;
    return new ApiError(error.message ?? String(error), response.status, error.param);
  } catch {
    const words = text.slice(0, 500) || response.statusText || "no reason given";
    return new ApiError(words, response.status);
  }
}

/// Calls the server. On 401 it asks for a key and tries again, unless `quiet`.
export async function call(path, { body, signal, quiet = false } = {}) {
  for (;;) {
    const key = storedKey();
    const headers = {};
    if (key) headers.authorization = `Bearer ${key}`;
    if (body) headers["content-type"] = "application/json";
    let response;
    try {
      const method = body ? "POST" : "GET";
      const text = body && JSON.stringify(body);
      response = await fetch(path, { method, headers, body: text, signal, cache: "no-store" });
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new ApiError("The server cannot be reached. Is it still running?");
    }
    if (response.ok) return response;
    if (response.status === 401 && !quiet && (await askForKey(key !== null))) continue;
    throw await errorOf(response);
  }
}

/// Yields the JSON objects of a server-sent event stream until `[DONE]`.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read().catch(() => ({ done: true }));
      if (done) throw new ApiError("The connection ended before the answer did.");
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data:")) continue;
        const data = line.slice(5).trim();
        if (data === "[DONE]") return;
        yield parseEvent(data);
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parseEvent(data) {
  let event;
  try {
    event = JSON.parse(data);
  } catch {
    throw new ApiError("The server sent something that is not JSON.");
  }
  if (event.error) {
    const error = event.error;
    throw new ApiError(error.message ?? String(error), error.code ?? 0, error.param);
  }
  return event;
}

/// Streams a chat completion: yields chunks as the API sends them.
export async function* chat(body, signal) {
  const stream = { stream: true, stream_options: { include_usage: true } };
  const response = await call("/v1/chat/completions", { body: { ...body, ...stream }, signal });
  yield* events(response);
}

export async function models() {
  const list = (await (await call("/v1/models")).json()).data;
  if (!Array.isArray(list) || list.length === 0) throw new ApiError("The server has no model.");
  return list;
}

export const metrics = async () => (await call("/metrics", { quiet: true })).text();
