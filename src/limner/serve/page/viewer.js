// One picture, large: what it is, how it was made, and what can be done with it.

import * as api from "./api.js";
import { button, dialog, facts, h, image, later, openDialogs, toast } from "./dom.js";
import * as gallery from "./gallery.js";
import { send, startFrom, use } from "./paint.js";
import { known, modelOf, on } from "./store.js";
import { again, chance, fileName, marksOf, told, when } from "./words.js";

const GROUNDS = [["checker", "Checkerboard"], ["ground-light", "White"], ["ground-dark", "Black"]];
const VARIATIONS = 4, LEAN = 0.3;  // how many, and how far from the picture

export function begin() {
  on("open", open);
  on("chosen", (picture, place) => place.replaceChildren(...actions(picture), button("More about it", () => open(picture), { class: "quiet" })));
}

/** The wishes that made a picture, with its own seed: those of its job where that is known, which name pictures as wishes do. */
export async function wishes(picture) {
  try {
    const job = await api.job(picture.job);
    return { ...job.recipe, seed: picture.seed ?? job.recipe.seed };
  } catch {
    return again({ ...(picture.recipe ?? {}), seed: picture.seed });
  }
}

/** A picture of ours as something to start from. */
export const asSource = (picture) => ({
  ref: `picture:${picture.id}`, name: picture.prompt, width: picture.width, height: picture.height,
  show: (img) => api.show(img, picture.id), blob: () => api.bytes(picture.id),
});

/** What wishes start from, to be shown; an upload is known to the page that sent it alone. */
export function sourceOf(ref) {
  if (ref?.startsWith("picture:")) {
    const id = ref.slice(8);
    return { ref, name: "", show: (img) => api.show(img, id), blob: () => api.bytes(id) };
  }
  return uploads.get(ref) ?? null;
}
export const uploads = new Map();

async function useSettings(picture) {
  const asked = await wishes(picture);
  const from = sourceOf(asked.image);
  if (asked.image && !from) toast("The picture that it started from was brought by another visit; bring it again to start from it.");
  use(asked, from);
}

async function vary(picture) {
  const asked = await wishes(picture), first = chance();
  let sent = null;
  for (let i = 0; i < VARIATIONS; i += 1) {
    const other = ["paint", "tile", undefined].includes(asked.task)
      ? { ...asked, variation: LEAN, subseed: first + i, best_of: 1 }
      : { task: "edit", model: asked.model, prompt: asked.prompt ?? "", image: `picture:${picture.id}`, strength: LEAN, seed: first + i };
    sent = await send(other);
    if (!sent) return;
  }
  toast(`${VARIATIONS} variations are in the queue.`);
}

function begun(picture, task) {
  use({ prompt: picture.prompt, model: picture.recipe?.model, style: picture.recipe?.style ?? undefined }, null);
  startFrom(asSource(picture), task);
  if (task === "inpaint") later("canvas", "paintMask")();
}

/** Save the file itself, with all that it carries. */
export async function save(picture) {
  try {
    const link = h("a", { href: URL.createObjectURL(await api.bytes(picture.id)), download: fileName(picture) });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  } catch (error) {
    toast(error.message);
  }
}

/** The buttons of a picture; `done` is called when one takes the person back to the form. */
function actions(picture, done = () => {}) {
  const quiet = { class: "quiet" };
  const can = (task) => modelOf(picture.recipe?.model)?.tasks?.includes(task) ?? true;
  const back = (act) => () => { done(); act(); };
  return [
    button("Use these settings", back(() => useSettings(picture)), quiet),
    button("Vary", back(() => vary(picture)), { ...quiet, title: "Four pictures near to this one" }),
    can("edit") && button("Edit", back(() => begun(picture, "edit")), { ...quiet, title: "Change the whole picture by words" }),
    can("inpaint") && button("Repaint a part", back(() => begun(picture, "inpaint")), quiet),
    can("outpaint") && button("Go on beyond its sides", back(() => begun(picture, "outpaint")), quiet),
    can("upscale") && button("Upscale", back(() => begun(picture, "upscale")), { ...quiet, title: "Make it larger and finer" }),
    button("Download", () => save(picture), quiet),
    button("Delete", async () => { if (await gallery.remove(picture)) done(); }, quiet),
  ].filter(Boolean);
}

async function open(picture) {
  openDialogs().forEach((box) => box.classList.contains("is-viewer") && box.close());
  let full = picture;
  try {
    full = { ...picture, ...await api.picture(picture.id) };
  } catch (error) {
    toast(error.message);
    return;
  }
  show(full);
}

function show(picture) {
  const frame = h("div", { class: "frame checker" });
  const words = picture.prompt || "without words";
  const img = image({ alt: words, class: (picture.recipe?.style ?? "").includes("pixel") ? "pixelated" : "" });
  api.show(img, picture.id);
  frame.append(img);
  const about = h("div");
  const box = dialog(words, [h("div", { class: "viewer" }, h("div", {}, frame, views(picture, frame, img)), about)]);
  box.classList.add("is-viewer");
  box.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || event.target.matches("input, select, textarea, summary")) return;
    const all = gallery.list(), next = all[all.findIndex((one) => one.id === picture.id) + by];
    if (next) open(next);
  });
  const done = () => box.close();
  about.append(
    h("div", { class: "chips", role: "group", "aria-label": "With this picture" }, actions(picture, done)),
    h("div", { class: "chips" },
      button("How it came to be", () => later("steps", "steps")(picture), { class: "quiet", "aria-haspopup": "dialog" }),
      button("Compare", () => later("compare", "compare")(picture), { class: "quiet", "aria-haspopup": "dialog" })),
    h("h3", {}, "How it was made"),
    facts([...told({ seed: picture.seed, prompt: picture.prompt, ...(picture.recipe ?? {}) }), ["Made", when(picture.created)]]),
    carries(),
    h("details", {}, h("summary", {}, "The whole recipe"), h("pre", { tabIndex: 0 }, api.write(picture.recipe ?? {}, 1))));
}

/** The ground behind what is clear, and the texture beside itself. */
function views(picture, frame, img) {
  const grounds = GROUNDS.map(([name, label]) => button(label, (event) => {
    frame.classList.remove(...GROUNDS.map(([each]) => each));
    frame.classList.add(name);
    grounds.forEach((one) => one.setAttribute("aria-pressed", String(one === event.currentTarget)));
  }, { class: "quiet", "aria-pressed": String(name === "checker") }));
  const tile = button("Tiled 3 \u00d7 3", async () => {
    const now = tile.getAttribute("aria-pressed") !== "true";
    tile.setAttribute("aria-pressed", String(now));
    frame.querySelector(".tiled")?.remove();
    img.hidden = now;
    if (!now) return;
    const wall = h("div", { class: "tiled", role: "img", "aria-label": `${picture.prompt}, nine times side by side` });
    wall.style.backgroundImage = `url("${await api.source(picture.id)}")`;
    wall.style.aspectRatio = `${picture.width} / ${picture.height}`;
    frame.append(wall);
  }, { class: "quiet", "aria-pressed": "false" });
  if (picture.recipe?.seamless) queueMicrotask(() => tile.click());
  return h("div", { class: "chips", role: "group", "aria-label": "How to look at it" }, grounds, tile);
}

/** What was not checked, and the marks that the file carries. */
function carries() {
  const can = known.capabilities ?? {};
  return h("details", {}, h("summary", {}, "What it carries, and what was not checked"),
    h("p", { class: "hint" }, checked(can.checks)),
    h("ul", {}, marksOf(can).map((mark) => h("li", { class: "hint" }, mark))));
}

/** In a sentence, whether anything looks at pictures before they are shown. */
export function checked(checks) {
  if (!checks) return "Whether pictures are checked is not known yet.";
  const none = !checks.safety || checks.safety === "none";
  return none ? "No safety classifier is loaded: what is painted, and what is asked for, is not checked by anything. Look before you share."
    : `Pictures are looked at by ${checks.safety}. ${checks.note ?? ""}`;
}
