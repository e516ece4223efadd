// What the page knows: capabilities, living jobs, and who wants to hear of changes.

import * as api from "./api.js";
import { $ } from "./dom.js";

export const known = { capabilities: null, models: [] };
const living = new Map();  // id -> Job, queued or running
const past = new Set();  // ids of jobs whose end was heard
const heard = new Map();  // name -> listeners
const ENDED = new Set(["done", "failed", "cancelled"]);

export function on(name, listener) {
  if (!heard.has(name)) heard.set(name, new Set());
  heard.get(name).add(listener);
  return () => heard.get(name).delete(listener);
}
export const emit = (name, ...told) => [...(heard.get(name) ?? [])].forEach((listener) => listener(...told));

export const running = () => [...living.values()].filter((job) => job.state === "running");
export const queued = () => [...living.values()].filter((job) => job.state === "queued")
  .sort((a, b) => (a.ahead ?? 0) - (b.ahead ?? 0) || a.created - b.created);
export const isLiving = (id) => living.has(id);

export function mood(name, text) {
  $("status").dataset.mood = name;
  $("status").textContent = text;
}

/** Take a job in as it now is; tell of its end once. */
export function take(job) {
  if (ENDED.has(job.state)) {
    past.add(job.id);
    if (living.delete(job.id)) emit("ended", job);
  } else {
    const before = living.get(job.id);
    if (job.state === "running" && before?.state !== "running") emit("started", job);
    living.set(job.id, { ...before, ...job });
  }
  emit("jobs");
}

let asked = null;
/** Ask for the living jobs soon; many reasons make one question. */
export function refresh(delay = 80) {
  asked ??= setTimeout(async () => {
    asked = null;
    try {
      await now();
    } catch { /* the stream of events tells of a lost server */ }
  }, delay);
}

/** Lists of the living may be older than an end that was heard while they were on their way: they start nothing again. */
async function now() {
  const [works, waits] = await Promise.all([api.jobs({ state: "running", limit: 100 }), api.jobs({ state: "queued", limit: 200 })]);
  const found = new Map([...works, ...waits].map((job) => [job.id, job]));
  for (const id of past) found.delete(id);
  const gone = [...living.keys()].filter((id) => !found.has(id));
  for (const job of found.values()) take(job);
  for (const id of gone) await settle(id);
  emit("jobs");
}

/** Learn how a job stands that is in no list of the living. */
async function settle(id) {
  try {
    take(await api.job(id));
  } catch (error) {
    if (error.status === 404) {
      living.delete(id);
      emit("jobs");
    }
  }
}

const idOf = (data) => (typeof data.job === "object" ? data.job?.id : data.job) ?? data.id;

/** Begin to listen; every (re)connection asks for everything anew, so that a restart of the server is lived through. */
export function listen() {
  let lost = 0;
  api.follow((kind, data) => {
    if (kind === "step" || kind === "preview") {
      if (!living.has(idOf(data))) refresh();
      emit(kind, idOf(data), data);
    } else if (kind === "state") hearState(data);
    else if (kind === "worker") hearWorker(data);
  }, (state) => {
    clearTimeout(lost);
    if (state === "open") {
      refresh(0);
      learn();
      emit("connected");
    } else lost = setTimeout(() => mood("bad", "The server is away; waiting for it"), 700);
  });
}

function hearState(data) {
  for (const each of Array.isArray(data) ? data : data.jobs ?? [data]) {
    const whole = each.job && typeof each.job === "object" ? each.job : each;
    const id = idOf(each);
    if (whole.recipe && whole.pictures) take(whole);
    else if (ENDED.has(whole.state)) settle(id);
    else refresh();
  }
}

/** A worker tells of itself: it loads a model, has loaded one, is ready, or died and is started again. */
function hearWorker({ event, model }) {
  if (event === "loading") mood("wait", `Loading ${model ?? "the model"}`);
  else if (event === "died") mood("bad", "The painter stopped and is being started again");
  else learn();
}

/** Wait for one job's end. */
export function ended(id) {
  return new Promise((done) => {
    const off = on("ended", (job) => {
      if (job.id !== id) return;
      off();
      done(job);
    });
  });
}

/** Send a job; it lives from now on. */
export async function paint(recipe, count = 1, more = {}) {
  const job = await api.addJob(recipe, count, more);
  take(job);
  refresh();
  return job;
}

let loading = null;
/** Ask for what the server can do until it knows. */
export async function learn() {
  clearTimeout(loading);
  try {
    const found = await api.capabilities();
    if (found?.models?.length) {
      known.capabilities = found;
      known.models = found.models;
      mood("good", `Ready \u00b7 ${[found.device, found.dtype].filter(Boolean).join(", ")}`);
      emit("capabilities");
      return;
    }
    mood("wait", "The model is being loaded; you can already write");
  } catch (error) {
    mood(error.status === 503 ? "wait" : "bad", error.status === 503 ? "The model is being loaded; you can already write" : error.message);
  }
  loading = setTimeout(learn, 700);
}

export const modelOf = (name) => known.models.find((model) => model.name === name) ?? known.models[0] ?? null;
