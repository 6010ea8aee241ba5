// The server, and the key it is asked with: kept for this tab alone, sent nowhere else.

const root = document.documentElement.dataset.root;
const KEY = "cleanplate-key";

export class Refused extends Error {
  constructor(status, detail, wait = null) {
    super(detail.message || `The server answered ${status}.`);
    this.status = status;
    this.detail = detail;
    this.wait = wait;
  }
}

export function use(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

export async function ask(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = key ? { ...options.headers, Authorization: `Bearer ${key}` } : options.headers;
  const answer = await fetch(root + path, { ...options, headers, credentials: "omit" });
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => ({}));
  throw new Refused(answer.status, body.error || {}, answer.headers.get("Retry-After"));
}

export function post(path, body, options = {}) {
  return ask(path, { ...options, method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
}

// Server-sent events of an answer, one by one.
export async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5)).join("\n");
      if (data) yield JSON.parse(data);
    }
  }
}
