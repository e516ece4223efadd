// One setting against another: a table of pictures that are alike in all else.

import * as api from "./api.js";
import { button, dialog, h, image, say } from "./dom.js";
import { read } from "./paint.js";
import { emit, ended, known, modelOf, on, paint } from "./store.js";
import { chance } from "./words.js";

const MOST = 64;  // pictures of one grid
const FIELDS = {
  cfg_scale: ["Guidance", () => "1, 3, 5, 8"], steps: ["Steps", () => "4, 8, 16, 24"],
  style: ["Style", (model) => (model?.styles ?? []).slice(0, 4).join(", ")],
  sampler: ["Sampler", () => names(known.capabilities?.samplers).slice(0, 4).join(", ")],
  schedule: ["Schedule", () => names(known.capabilities?.schedules).slice(0, 3).join(", ")],
  seed: ["Seed", () => "1, 2, 3, 4"], prompt: ["Words", () => "a red apple | a blue house"],
  word: ["A word, exchanged", () => "red, green, blue"], strength: ["How much may change", () => "0.3, 0.6, 0.9"],
};
const names = (list) => (list ?? []).map((each) => (typeof each === "string" ? each : each.name));
const NUMBERS = new Set(["cfg_scale", "steps", "seed", "strength"]);

const parts = (name, text) => text.split(name === "prompt" ? "|" : ",").map((part) => part.trim()).filter(Boolean);

const head = (name, value) => (!name ? "" : ["word", "prompt"].includes(name) ? value : `${FIELDS[name][0]} ${value}`);

/** The wishes of one cell. `word`: the first value stands in the prompt, and each other takes its place. */
export function cell(recipe, settings) {
  const made = { ...recipe };
  for (const [name, value, first] of settings) {
    if (!name) continue;
    if (name === "word") made.prompt = made.prompt.includes(first) ? made.prompt.replaceAll(first, value) : `${made.prompt} ${value}`;
    else made[name] = NUMBERS.has(name) ? Number(value) : value;
  }
  return made;
}

export function grid() {
  const { recipe } = read();
  const model = modelOf(recipe.model);
  const axis = (id, label, chosen, none) => {
    const values = h("input", { id: `${id}-values`, type: "text", maxLength: 2000, value: FIELDS[chosen]?.[1](model) ?? "" });
    const field = h("select", { id, on: { change: () => { values.value = FIELDS[field.value]?.[1](model) ?? ""; values.disabled = !field.value; } } },
      none ? h("option", { value: "" }, "nothing") : null,
      Object.entries(FIELDS).filter(([name]) => name !== "strength" || recipe.image).map(([name, [words]]) => h("option", { value: name }, words)));
    field.value = chosen;
    return { field, values, box: h("div", { class: "pair" },
      h("div", { class: "field" }, h("label", { for: id }, label), field),
      h("div", { class: "field" }, h("label", { for: `${id}-values` }, "Its values"), values)) };
  };
  const across = axis("grid-across", "From left to right", "cfg_scale", false), down = axis("grid-down", "From top to bottom", "steps", true);
  const said = h("p", { class: "said", role: "alert" });
  const table = h("div", { class: "scroll" });
  const go = button("Paint the grid", start, { class: "primary" }), rest = button("Stop the rest", stop, { hidden: true });
  let jobs = [];
  let laid = [];

  function axes() {
    return [across, down].map(({ field, values }) => (field.value ? [field.value, parts(field.value, values.value)] : ["", [""]]));
  }

  async function start() {
    const [[x, xs], [y, ys]] = axes();
    said.textContent = "";
    if (!xs.length || !ys.length) said.textContent = "Give each setting some values, with commas between them.";
    else if (xs.length * ys.length > MOST) said.textContent = `A grid has up to ${MOST} pictures; this one would have ${xs.length * ys.length}.`;
    else if (x === y) said.textContent = "Choose two different settings.";
    else if ([[x, xs], [y, ys]].some(([name, all]) => NUMBERS.has(name) && all.some((value) => !Number.isFinite(Number(value))))) said.textContent = "Some of these values are no numbers.";
    else if (!recipe.prompt && x !== "prompt" && y !== "prompt") said.textContent = "Write a few words into the form first.";
    if (said.textContent) return;
    const base = { ...recipe, seed: recipe.seed ?? chance() };
    const cells = ys.map((b) => xs.map((a) => [h("td", {}, "waits"), cell(base, [[x, a, xs[0]], [y, b, ys[0]]])]));
    table.replaceChildren(h("table", { class: "plot" },
      h("caption", { class: "hint" }, `${recipe.prompt || "pictures"}, seed ${base.seed}`),
      h("thead", {}, h("tr", {}, h("td", { class: "corner" }), xs.map((a) => h("th", { scope: "col" }, head(x, a))))),
      h("tbody", {}, ys.map((b, i) => h("tr", {}, h("th", { scope: "row" }, head(y, b)), cells[i].map(([td]) => td))))));
    go.disabled = true;
    rest.hidden = false;
    jobs = [];
    laid = cells.flat();
    const waits = [];
    for (const [td, wishes] of laid) {
      if (!go.disabled) break;  // stopped meanwhile
      try {
        const job = await paint(wishes, 1);
        jobs.push(job.id);
        waits.push(fill(td, job.id));
      } catch (error) {
        said.textContent = error.message;
        break;
      }
    }
    await Promise.all(waits);
    go.disabled = false;
    rest.hidden = true;
    if (!said.textContent) say("The grid is finished.");
  }

  async function fill(td, id) {
    const off = on("preview", (job, { webp }) => {
      if (job !== id || !webp) return;
      if (!td.querySelector("img")) td.replaceChildren(image({ alt: "It forms" }));
      td.querySelector("img").src = `data:image/webp;base64,${webp}`;
    });
    const job = await ended(id);
    off();
    const picture = job.pictures?.[0];
    if (!picture) {
      td.replaceChildren(job.state === "failed" ? job.error : "stopped");
      return;
    }
    const img = image({ alt: picture.prompt ?? "", class: "checker" });
    api.show(img, picture.id);
    td.replaceChildren(button(img, () => emit("open", picture), { "aria-label": `Open ${picture.prompt ?? "the picture"}` }));
  }

  async function stop() {
    go.disabled = false;
    await Promise.allSettled(jobs.map((id) => api.cancel(id)));
  }

  dialog("Lay a grid of settings", [
    h("p", { class: "hint" }, "All pictures have the settings of the form and one seed; only what you choose here differs."),
    across.box, down.box, h("div", { class: "chips" }, go, rest), said, table]);
}
