// The form and the easel: from words to a job, and from its events to a picture that forms.

import * as api from "./api.js";
import { $, button, h, image, openDialogs, say } from "./dom.js";
import { emit, isLiving, known, modelOf, on, paint, refresh, running } from "./store.js";
import { again, seconds } from "./words.js";

const IDEAS = ["a red apple", "a house at night", "a cat with a hat", "a golden key", "a rocket"];
const NUMBERS = ["steps", "cfg_scale"];
const HINTS = { sampler: "The way from noise to picture.", schedule: "Where the steps are spent." };
const CHANGE = { edit: 0.6, inpaint: 1, outpaint: 1, upscale: 0.3 };  // how much each task changes, where nobody says
const OURS = new Set(["task", "prompt", "negative", "model", "style", "seed", "width", "height", "steps", "sampler", "schedule",
  "cfg_scale", "best_of", "hires", "seamless", "image", "mask", "strength", "feather", "extend", "scale", "effort", "precision", "engine"]);
const CHOICES = ["model", "style", "negative", "sampler", "schedule", "effort", "precision", "engine"];
const KEEP = "limner.form";
const NARROW = 860;  // pixels, as in style.css: the easel is below the form
const MOST = 9;  // pictures that the easel shows

let extra = {};  // fields of a used recipe that the form has no control for
let source = null;  // {ref, name, width, height, show(img), mask}
let easel = { job: null, slots: new Map(), pictures: [], chosen: null };
let pace = { job: null, since: 0, from: 0, each: 0 };

export function begin() {
  $("ideas").append(...IDEAS.map((idea) => button(idea, () => {
    $("prompt").value = idea;
    $("prompt").focus();
    keep();
  }, { class: "quiet" })));
  const form = $("controls");
  form.addEventListener("submit", (event) => { event.preventDefault(); submit(); });
  form.addEventListener("input", () => { seen(); keep(); });
  document.addEventListener("keydown", keys);
  $("stop").addEventListener("click", stop);
  $("anew").addEventListener("click", reset);
  $("source-drop").addEventListener("click", () => { startFrom(null); $("prompt").focus(); });
  form.querySelectorAll("[name=task]").forEach((one) => one.addEventListener("change", () => { $("strength").value = CHANGE[one.value]; seen(); }));
  $("model").addEventListener("change", () => { offer(); seen(); });
  on("capabilities", () => { models(); recall(); });
  on("step", step);
  on("preview", preview);
  on("started", (job) => { if (!isLiving(easel.job?.id)) lay(job); });
  on("jobs", buttons);
  on("ended", ended);
  on("removed", (id) => { if (easel.pictures.some((one) => one.id === id)) clear(); });
  recall();
  seen();
}

function keys(event) {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !openDialogs().length) {
    event.preventDefault();
    submit();
  }
}

// ---- the form

const option = (value, label) => h("option", { value }, label);
function options(select, pairs) {
  const had = select.value;
  select.replaceChildren(...pairs.map(([value, label]) => option(value, label)));
  if (pairs.some(([value]) => value === had)) select.value = had;
}

function models() {
  options($("model"), known.models.map((model) => [model.name, model.name]));
  offer();
}

/** What the chosen model offers. */
function offer() {
  const model = modelOf($("model").value);
  if (!model) return;
  const likes = model.defaults ?? {};
  const name = (each) => (typeof each === "string" ? each : each.name);
  options($("style"), [["", "Any"], ...(model.styles ?? []).map((style) => [style, style])]);
  $("style-field").hidden = !model.styles?.length;
  for (const [id, list] of [["sampler", known.capabilities.samplers], ["schedule", known.capabilities.schedules]]) {
    options($(id), [["", "Automatic"], ...(list ?? []).map((each) => [name(each), name(each)])]);
    $(`${id}-hint`).textContent = `${HINTS[id]}${likes[id] ? ` The model likes ${likes[id]}.` : ""}`;
  }
  options($("effort"), Object.keys(known.capabilities.efforts ?? {}).map((word) => [word === "exact" ? "" : word, capital(word)]));
  options($("precision"), [["", "Automatic"], ...(known.capabilities.precisions ?? []).map((each) => [each, each])]);
  options($("engine"), [["", "Automatic"], ...(known.capabilities.engines ?? []).map((each) => [each, each])]);
  for (const id of NUMBERS) $(id).placeholder = likes[id] ?? "";
  $("size").replaceChildren(...sizes(model).map(([w, ht, label]) => option(`${w}x${ht}`, label)), option("", "Other\u2026"));
  const grain = model.multiple ?? 16;
  for (const id of ["width", "height"]) $(id).step = $(id).min = grain;
  if (!$("width").value) [$("width").value, $("height").value] = [likes.width ?? 512, likes.height ?? 512];
  for (const one of $("controls").querySelectorAll("[name=task]")) one.disabled = !!model.tasks && !model.tasks.includes(one.value);
  $("seamless-field").hidden = !!model.tasks && !model.tasks.includes("tile");
  seen();
}

/** A handful of sizes about as large as the model likes, and larger ones that it can. */
export function sizes(model) {
  const { width: w = 512, height: ht = 512 } = model.defaults ?? {};
  const grain = model.multiple ?? 16, [least, most] = limits(model);
  const snap = (side) => Math.round(side / grain) * grain;
  const side = Math.sqrt(w * ht);
  const shapes = [[w, ht], [snap(side * 0.86), snap(side * 1.16)], [snap(side * 1.16), snap(side * 0.86)], [snap(side * 1.5), snap(side * 1.5)],
    [snap(side * 2), snap(side * 2)]];
  return shapes.filter(([a, b]) => Math.min(a, b) >= least && Math.max(a, b) <= most).map(([a, b]) => [a, b, `${a} \u00d7 ${b}`]);
}

function limits(model) {
  const told = model.sizes ?? model.size_limits ?? model.limits ?? [16, 8192];
  return Array.isArray(told) ? told : [told.min ?? told.least ?? 16, told.max ?? told.most ?? 8192];
}

const task = () => (source ? $("controls").querySelector("[name=task]:checked").value : $("seamless").checked ? "tile" : "paint");

/** Show what belongs to the task that is chosen. */
function seen() {
  const now = task();
  $("source").hidden = !source;
  $("size-field").hidden = !!source;
  $("seamless-field").classList.toggle("unseen", !!source);
  $("hires-field").hidden = !!source;
  $("sides").hidden = !!source || $("size").value !== "";
  $("ideas").hidden = !!$("prompt").value || !!source;
  for (const each of $("source").querySelectorAll("[data-task]")) each.hidden = !each.dataset.task.split(" ").includes(now);
  $("strength-out").textContent = `${Math.round($("strength").value * 100)} %`;
  if (source) $("mask-state").textContent = source.mask ? "The part is marked." : "Nothing is marked yet.";
  const named = Object.keys(extra);
  $("extra").hidden = !named.length;
  $("extra").replaceChildren(named.length ? `Also from the picture: ${named.join(", ")}. ` : "",
    ...(named.length ? [button("Leave that out", () => { extra = {}; seen(); }, { class: "quiet" })] : []));
}

const digits = (text) => (Number.isSafeInteger(Number(text)) ? Number(text) : BigInt(text));

/** What the form wishes: only what somebody set, so that the model's own likings fill the rest. */
export function read() {
  const recipe = { ...extra, task: task(), prompt: $("prompt").value.trim() };
  for (const id of CHOICES) if ($(id).value.trim()) recipe[id] = $(id).value.trim();
  for (const id of NUMBERS) if ($(id).value) recipe[id] = Number($(id).value);
  if (/^\d+$/.test($("seed").value)) recipe.seed = digits($("seed").value);
  if (Number($("best_of").value) > 1) recipe.best_of = Number($("best_of").value);
  if (source) startedFrom(recipe);
  else {
    const [width, height] = ($("size").value || `${$("width").value}x${$("height").value}`).split("x").map(Number);
    if (width && height) Object.assign(recipe, { width, height });
    if (recipe.task === "tile") recipe.seamless = extra.seamless ?? "xy";
    else if (Number($("hires").value) > 1) recipe.hires = Number($("hires").value);
  }
  return { recipe, count: Number($("count").value) || 1 };
}

function startedFrom(recipe) {
  recipe.image = source.ref;
  if (recipe.task !== "outpaint") recipe.strength = Number($("strength").value);
  if (recipe.task === "outpaint") recipe.extend = ["left", "right", "up", "down"].map((id) => Number($(id).value) || 0);
  if (recipe.task === "upscale") recipe.scale = Number($("scale").value) || 2;
  if (recipe.task === "inpaint") {
    if (source.mask) recipe.mask = source.mask.ref;
    if ($("feather").value) recipe.feather = Number($("feather").value);
  }
}

/** What is missing before a job can be sent, in a sentence; the control that it is about takes the focus. */
function missing(recipe) {
  const wrong = [...$("controls").elements].find((each) => !each.closest("[hidden]") && each.willValidate && !each.checkValidity());
  if (wrong) {
    if ($("more").contains(wrong)) $("more").open = true;
    return [wrong, `${wrong.labels?.[0]?.textContent.trim() ?? wrong.id}: ${wrong.validationMessage}`];
  }
  if (["paint", "tile"].includes(recipe.task) && !recipe.prompt && !recipe.negative) return [$("prompt"), "Write a few words first, for example: a red apple"];
  if (recipe.task === "inpaint" && !recipe.mask) return [$("mask-open"), "Mark the part to repaint first."];
  return null;
}

export async function submit() {
  const { recipe, count } = read();
  const lack = missing(recipe);
  $("said").textContent = "";
  if (lack) {
    lack[0].focus();
    $("said").textContent = lack[1];
    return;
  }
  await send(recipe, count);
}

/** Send wishes from anywhere in the page; a refusal is said beside the button. */
export async function send(recipe, count = 1) {
  try {
    const job = await paint(recipe, count);
    const before = job.ahead ?? 0;
    say(before ? `In the queue, ${before} before it.` : "Painting begins.");
    $("said").textContent = "";
    if (!running().length || !isLiving(easel.job?.id)) lay(job);
    if (window.innerWidth <= NARROW) $("easel").scrollIntoView({ block: "nearest" });
    return job;
  } catch (error) {
    $("said").textContent = error.message;
    const field = error.field && $(String(error.field).split(".").pop());
    if (field && $("controls").contains(field)) {
      if ($("more").contains(field)) $("more").open = true;
      field.focus();
    }
    return null;
  }
}

/** Fill the form from a recipe; what it has no control for goes along unseen, and is told. */
export function use(recipe, from = null) {
  const asked = again(recipe);
  const put = (id, value) => { if ($(id)) $(id).value = value === undefined || value === null ? "" : String(value); };
  if (asked.model && known.models.some((model) => model.name === asked.model)) put("model", asked.model);
  offer();
  const [effort, spent] = effortOf(asked);
  asked.effort = effort;
  for (const id of ["prompt", "seed", ...CHOICES.slice(1), ...NUMBERS]) put(id, asked[id]);
  put("best_of", asked.best_of ?? 1);
  put("hires", asked.hires ?? 1);
  $("seamless").checked = asked.task === "tile";
  if (asked.width && asked.height) {
    put("width", asked.width);
    put("height", asked.height);
    put("size", `${asked.width}x${asked.height}`);  // where there is no such size, none is chosen
    if ($("size").selectedIndex < 0) put("size", "");
  }
  extra = Object.fromEntries(Object.entries(asked).filter(([name, value]) => !OURS.has(name) && !(name in spent) && unusual(value)));
  if (asked.task === "tile" && asked.seamless && asked.seamless !== "xy") extra.seamless = asked.seamless;
  startFrom(from, asked.task);
  if (from) {
    put("strength", asked.strength ?? CHANGE[asked.task]);
    put("scale", asked.scale ?? 2);
    put("feather", asked.feather);
    ["left", "right", "up", "down"].forEach((id, i) => put(id, asked.extend?.[i] ?? 0));
    if (asked.mask && source) source.mask = { ref: asked.mask };
  }
  $("count").value = 1;
  if (CHOICES.slice(2).some((id) => $(id).value) || $("steps").value || $("cfg_scale").value) $("more").open = true;
  seen();
  keep();
  $("prompt").focus();
  $("controls").scrollIntoView({ block: "start" });
  say("The settings are in the form.");
}

/** The word for a recipe's effort, and the fields that it stands for; none where no word means what it says. */
function effortOf(asked) {
  const means = (fields) => Object.entries(fields).every(([name, value]) => (asked[name] ?? value) === value);
  const words = Object.entries(known.capabilities.efforts ?? {}).filter(([word]) => word !== "exact");
  return (asked.ask_apart && words.find(([, fields]) => means(fields))) || ["", {}];
}

const capital = (word) => word[0].toUpperCase() + word.slice(1);
const unusual = (value) => !(value === "" || value === null || value === false || (Array.isArray(value) && !value.length));

/** Start from a picture: {ref, name, width, height, show(img)}; null lets go of it. */
export function startFrom(from, what = "edit") {
  source = from;
  if (from) {
    $("source-name").textContent = from.name || "A picture of yours";
    $("source-image").removeAttribute("src");
    from.show($("source-image"));
    const one = $("controls").querySelector(`[name=task][value="${CSS.escape(what)}"]`);
    if (one) {
      one.checked = true;
      $("strength").value = CHANGE[what];
    }
    $("controls").scrollIntoView({ block: "start" });
  }
  seen();
}
export const sourceNow = () => source;
export function setMask(mask) {
  if (source) source.mask = mask;
  seen();
}

function keep() {
  const ids = ["prompt", "negative", "seed", "style", "model", "size", "width", "height", "count", "sampler", "schedule", "best_of", "hires", "effort", "precision", "engine",
    ...NUMBERS];
  localStorage.setItem(KEEP, JSON.stringify(Object.fromEntries(ids.map((id) => [id, $(id).value]))));
}

function recall() {
  try {
    for (const [id, value] of Object.entries(JSON.parse(localStorage.getItem(KEEP)) ?? {})) {
      const el = $(id);
      if (!el || typeof value !== "string" || (el === document.activeElement && el.value)) continue;
      if (el.tagName === "SELECT" && ![...el.options].some((each) => each.value === value)) continue;
      el.value = value;
    }
  } catch { localStorage.removeItem(KEEP); }
  seen();
}

function reset() {
  localStorage.removeItem(KEEP);
  extra = {};
  $("controls").reset();
  for (const id of ["width", "height"]) $(id).value = "";
  startFrom(null);
  offer();
  $("prompt").focus();
}

// ---- the easel

const shapeOf = (job) => {
  const { width, height } = job.recipe ?? {};
  return width && height ? [width, height] : source ? [source.width || 1, source.height || 1] : [1, 1];
};

/** Clear the easel for a job: a blank for each of its pictures. */
function lay(job) {
  const count = Math.min(job.count ?? 1, MOST), [w, ht] = shapeOf(job);
  easel = { job, slots: new Map(), pictures: [], chosen: null };
  $("easel").replaceChildren();
  $("easel").className = `easel forming${count > 1 ? " many" : ""}`;
  $("actions").replaceChildren();
  for (let i = 0; i < count; i += 1) {
    const blank = h("div", { class: "blank" });
    blank.style.aspectRatio = `${w} / ${ht}`;
    easel.slots.set(i, blank);
    $("easel").append(blank);
  }
}

function clear() {
  easel = { job: null, slots: new Map(), pictures: [], chosen: null };
  $("actions").replaceChildren();
  $("easel").className = "easel";
  $("easel").replaceChildren(h("p", { class: "empty" }, "Your picture will form here."));
}

const mine = (id) => {
  if (easel.job?.id === id) return true;
  if (isLiving(easel.job?.id)) return false;
  const job = running().find((each) => each.id === id);
  if (job) lay(job);
  return !!job;
};

function preview(id, { webp, number = 0 }) {
  if (!webp || !mine(id) || !easel.slots.has(number)) return;
  const old = easel.slots.get(number);
  const from = `data:image/webp;base64,${webp}`;
  if (old.tagName === "IMG") old.src = from;
  else {
    const img = image({ alt: "The picture as it forms", class: "checker", src: from });
    img.style.aspectRatio = old.style.aspectRatio;
    old.replaceWith(img);
    easel.slots.set(number, img);
  }
}

function step(id, { i = 0, n = 1, number = 0, steps_done: done, steps: all }) {
  if (!mine(id)) return;
  const at = Math.min(i + 1, n), now = performance.now();
  const share = all ? Math.min(1, (done ?? at) / all) : at / n;
  if (pace.job !== id || share <= pace.from) pace = { job: id, since: now, from: share, each: 0 };
  const left = share > pace.from ? ((now - pace.since) / (share - pace.from)) * (1 - share) / 1000 : null;
  const text = `Step ${at} of ${n}${left === null ? "" : ` \u00b7 ${seconds(left)} left`}`;
  $("progress").value = share;
  $("progress").setAttribute("aria-valuetext", text);
  $("walk-text").textContent = text + (number ? ` \u00b7 picture ${number + 1}` : "");
  say(`${Math.round(share * 4) * 25} percent painted`, false);
}

async function ended(job) {
  if (job.state === "failed") {
    $("said").textContent = job.error || "The painting failed.";
  }
  if (easel.job?.id !== job.id) return;
  if (job.state !== "done") {
    clear();
    say(job.state === "cancelled" ? "Stopped." : `It failed: ${job.error}`);
    return;
  }
  let pictures = job.pictures ?? [];
  if (typeof pictures[0] === "string") pictures = await Promise.all(pictures.map(api.picture));
  finish(job, pictures);
}

function finish(job, pictures) {
  easel.pictures = pictures;
  $("easel").classList.remove("forming");
  pictures.slice(0, MOST).forEach((picture, i) => {
    const img = image({ alt: picture.prompt || "A picture without words", class: "checker" });
    const frame = button(img, () => (pictures.length > 1 ? choose(picture) : emit("open", picture)), { data: { id: picture.id } });
    const old = easel.slots.get(i);
    const put = () => {
      if (easel.job?.id !== job.id) return;
      mark(frame);
      if (old?.isConnected) old.replaceWith(frame);
      else $("easel").append(frame);
    };
    img.addEventListener("load", put, { once: true });
    img.addEventListener("error", put, { once: true });
    api.show(img, picture.id);
  });
  if (pictures.length) choose(pictures[0]);
  say(pictures.length === 1 ? "The picture is finished." : `${pictures.length} pictures are finished.`);
}

/** The picture of several that the buttons below are about. */
function choose(picture) {
  easel.chosen = picture.id;
  for (const frame of $("easel").querySelectorAll("button")) mark(frame);
  emit("chosen", picture, $("actions"));
}

const mark = (frame) => { if (easel.pictures.length > 1) frame.setAttribute("aria-pressed", String(frame.dataset.id === easel.chosen)); };

function buttons() {
  const works = running().length > 0;
  $("walk").hidden = !works;
  if ($("stop").hidden === works) {
    if (!works && document.activeElement === $("stop")) $("go").focus();
    $("stop").hidden = !works;
    if (works) {
      $("progress").value = 0;
      $("walk-text").textContent = "Beginning";
    }
  }
}

/** Stop what the easel shows, or what runs. */
async function stop() {
  const id = isLiving(easel.job?.id) ? easel.job.id : running()[0]?.id;
  if (!id) return;
  try {
    await api.cancel(id);
  } catch (error) {
    if (error.status !== 409) $("said").textContent = error.message;
  }
  refresh();
}
