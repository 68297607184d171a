// Conversations and settings in localStorage. One key per conversation, so that two open tabs
// never write over each other's. What cannot be kept is said, and the page goes on without it.

const CHAT = "bruchteil.chat.";

function read(key) {
  try {
    return JSON.parse(localStorage.getItem(key));
  } catch {
    return null;
  }
}

/// Returns whether the browser kept the value.
export function write(key, value) {
  try {
    localStorage.setItem(key, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

const isMessage = (message) =>
  (message?.role === "user" || message?.role === "assistant") &&
  typeof message.content === "string";

const isConversation = (value) =>
  typeof value?.id === "string" &&
  typeof value.title === "string" &&
  Array.isArray(value.messages) &&
  value.messages.every(isMessage);

export function loadConversations() {
  let keys = [];
  try {
    keys = Object.keys(localStorage).filter((key) => key.startsWith(CHAT));
  } catch {
    return [];
  }
  return keys.map(read).filter(isConversation).sort(newestFirst);
}

export const newestFirst = (a, b) => b.updated - a.updated;
export const saveConversation = (conversation) => write(CHAT + conversation.id, conversation);

export function dropConversation(conversation) {
  try {
    localStorage.removeItem(CHAT + conversation.id);
  } catch {
    // Nothing was kept, so nothing is left behind.
  }
}

export function newConversation() {
  const id = [...crypto.getRandomValues(new Uint8Array(8))]
    .map((byte) => byte.toString(16).padStart(2, "0"))
    .join("");
  return { id, title: "New conversation", created: Date.now(), updated: Date.now(), messages: [] };
}

export const loadSettings = () => read("bruchteil.settings") ?? {};
export const saveSettings = (settings) => write("bruchteil.settings", settings);
