// The server's own API. Nothing here touches the page, but to ask for a token.

const BASE = new URL("..", import.meta.url);
const KEY = "limner.token";
let ask = async () => null;  // -> a token, or null
let asking = null;

export class Refused extends Error {
  constructor(status, message, field, after) {
    super(message);
    Object.assign(this, { status, field, after });
  }
}

export const onToken = (heard) => { ask = heard; };
const token = () => sessionStorage.getItem(KEY);
const headers = (more = {}) => (token() ? { Authorization: `Bearer ${token()}`, ...more } : more);
const url = (path) => new URL(path, BASE);

async function send(path, options, again = true) {
  let answer;
  try {
    answer = await fetch(url(path), { cache: "no-store", credentials: "omit", ...options, headers: headers(options.headers) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "The server does not answer.");
  }
  if (answer.status === 401 && again) {
    const had = token();
    asking ??= ask(had !== null).finally(() => { asking = null; });
    const found = await asking;
    if (found) {
      sessionStorage.setItem(KEY, found);
      return send(path, options, false);
    }
  }
  if (!answer.ok) throw await refusal(answer);
  return answer;
}

async function refusal(answer) {
  const body = await answer.json().catch(() => null);
  const error = body?.error ?? {};
  const after = Number(answer.headers.get("Retry-After")) || 0;
  const words = typeof error.message === "string" ? error.message : `The server answered ${answer.status}.`;
  return new Refused(answer.status, after ? `${words} Try again in ${after} s.` : words, error.field, after);
}

async function json(method, path, body) {
  const options = { method };
  if (body !== undefined) Object.assign(options, { body: write(body), headers: { "Content-Type": "application/json" } });
  const answer = await send(path, options);
  return answer.status === 204 ? null : parse(await answer.text());
}

// A seed may have 63 bits and a number of JavaScript 53: larger ones are BigInt here, where the browser shows us their digits.
export const parse = (text) => JSON.parse(text, (_, value, seen) =>
  (typeof value === "number" && Number.isInteger(value) && !Number.isSafeInteger(value) && /^-?\d+$/.test(seen?.source ?? "")
    ? BigInt(seen.source) : value));
export const write = (value, space) => JSON.stringify(value, (_, each) =>
  (typeof each === "bigint" ? JSON.rawJSON?.(String(each)) ?? Number(each) : each), space);

const query = (fields) => new URLSearchParams(Object.entries(fields).filter(([, v]) => v !== "" && v !== null && v !== undefined));
const list = (answer, name) => (Array.isArray(answer) ? answer : answer?.[name] ?? answer?.data ?? []);

export const capabilities = () => json("GET", "v1/capabilities");
export const models = async () => list(await json("GET", "v1/models"), "models");
export const health = () => json("GET", "health");
export const addJob = (recipe, count = 1, more = {}) => json("POST", "v1/jobs", { recipe, count, ...more });
export const jobs = async (fields = {}) => list(await json("GET", `v1/jobs?${query(fields)}`), "jobs");
export const job = (id) => json("GET", `v1/jobs/${encodeURIComponent(id)}`);
export const cancel = (id) => json("POST", `v1/jobs/${encodeURIComponent(id)}/cancel`);
export const move = (id, before) => json("POST", `v1/jobs/${encodeURIComponent(id)}/move`, { before });
export const pictures = async (fields = {}) => list(await json("GET", `v1/pictures?${query(fields)}`), "pictures");
export const picture = (id) => json("GET", `v1/pictures/${encodeURIComponent(id)}`);
export const remove = (id) => json("DELETE", `v1/pictures/${encodeURIComponent(id)}`);
export const restore = (id) => json("POST", `v1/pictures/${encodeURIComponent(id)}/restore`);

export async function upload(blob) {
  return parse(await (await send("v1/uploads", { method: "POST", body: blob, headers: { "Content-Type": blob.type } })).text());
}

const fileOf = (id) => `v1/pictures/${encodeURIComponent(id)}/file`;
export const bytes = async (id) => (await send(fileOf(id), { method: "GET" })).blob();

/** A picture's address for `src`: its own where nobody needs a token, else one of its bytes. */
export async function source(id) {
  return token() ? URL.createObjectURL(await bytes(id)) : url(fileOf(id)).href;
}

/** Show a picture in an img, forgiving a lost one. */
export function show(img, id) {
  source(id).then((from) => {
    img.addEventListener("load", () => from.startsWith("blob:") && URL.revokeObjectURL(from), { once: true });
    img.src = from;
  }, () => img.setAttribute("data-lost", ""));
  return img;
}

const wait = (ms) => new Promise((done) => setTimeout(done, ms));

/** Follow what happens, over restarts of the server. `heard(kind, data)`; `mood("open" | "lost")`. Returns what stops it. */
export function follow(heard, mood) {
  const stop = new AbortController();
  (async () => {
    for (let pause = 250; !stop.signal.aborted; pause = Math.min(pause * 2, 5000)) {
      try {
        const answer = await send("v1/events", { method: "GET", headers: { Accept: "text/event-stream" }, signal: stop.signal });
        mood("open");
        pause = 250;
        await read(answer.body.getReader(), heard);
      } catch (error) {
        if (error.name === "AbortError") return;
        if (error.status === 429) pause = Math.max(pause, error.after * 1000);
      }
      mood("lost");
      await wait(pause);
    }
  })();
  return () => stop.abort();
}

async function read(reader, heard) {
  const text = new TextDecoder();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (rest + text.decode(value, { stream: true })).replaceAll("\r\n", "\n").split("\n\n");
    rest = blocks.pop();
    blocks.forEach((block) => event(block, heard));
  }
}

function event(block, heard) {
  let kind = "message";
  const data = [];
  for (const line of block.split("\n")) {
    if (line.startsWith("event:")) kind = line.slice(6).trim();
    else if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
  }
  if (!data.length) return;
  try {
    heard(kind, parse(data.join("\n")));
  } catch (error) {
    console.error("an event that could not be read", error);
  }
}
