// What was made: kept by the server, found by words.

import * as api from "./api.js";
import { $, button, h, image, openDialogs, toast } from "./dom.js";
import { emit, on } from "./store.js";

const PAGE = 48;
let shown = [];  // Pictures, newest first
let words = "";
let typed = 0;
let round = 0;  // of questions: an answer that comes late is not shown

export function begin() {
  $("search").addEventListener("input", () => {
    clearTimeout(typed);
    typed = setTimeout(() => { words = $("search").value.trim(); load(); }, 180);
  });
  $("older").addEventListener("click", () => load(true));
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || openDialogs().length) return;
    if (event.target.matches?.("textarea, input:not([type=range], [type=checkbox], [type=radio], [type=file])")) return;
    event.preventDefault();
    $("search").focus();
  });
  $("pictures").addEventListener("keydown", walk);
  on("connected", () => load());
  on("changed", () => load());
  on("ended", (job) => { if (job.state === "done" || job.pictures?.length) load(); });
}

export const list = () => shown;

async function load(more = false) {
  round += 1;
  const mine = round;
  try {
    const last = shown.at(-1);
    const limit = more ? PAGE : Math.max(PAGE, Math.min(shown.length, 200));
    const found = await api.pictures({ q: words, limit, before: more && last ? last.id : null });
    if (mine !== round) return;
    const have = new Set(shown.map((picture) => picture.id));
    shown = more ? [...shown, ...found.filter((picture) => !have.has(picture.id))] : found;
    $("older").hidden = found.length < limit;
    show();
  } catch (error) {
    if (error.status) toast(error.message);
  }
}

function show() {
  const have = new Map([...$("pictures").children].map((li) => [li.dataset.id, li]));
  const wanted = shown.map((picture) => have.get(picture.id) ?? item(picture));
  const keep = new Set(wanted);
  for (const li of [...$("pictures").children]) if (!keep.has(li)) li.remove();
  wanted.forEach((li, i) => { if ($("pictures").children[i] !== li) $("pictures").insertBefore(li, $("pictures").children[i] ?? null); });
  $("gallery-empty").hidden = shown.length > 0;
  $("gallery-empty").textContent = words ? "No picture has all of these words." : "Nothing yet. What you paint is kept here, also when the server starts anew.";
}

function item(picture) {
  const named = picture.prompt || "without words";
  const img = image({ class: "checker", alt: "", loading: "lazy", width: picture.width, height: picture.height });
  api.show(img, picture.id);
  return h("li", { data: { id: picture.id } },
    button([img, h("span", {}, named)], () => emit("open", picture), { title: named }));
}

/** Arrow keys walk through the pictures. */
function walk(event) {
  const li = event.target.closest("li");
  const wide = Math.max(1, Math.round($("pictures").clientWidth / (li?.offsetWidth + 12)));
  const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: wide, ArrowUp: -wide }[event.key];
  const all = [...$("pictures").children];
  const next = by && all[all.indexOf(li) + by];
  if (!next) return;
  event.preventDefault();
  next.querySelector("button").focus();
}

/** Delete, with a way back. */
export async function remove(picture) {
  try {
    await api.remove(picture.id);
  } catch (error) {
    toast(error.message);
    return false;
  }
  const place = shown.findIndex((one) => one.id === picture.id);
  shown = shown.filter((one) => one.id !== picture.id);
  show();
  emit("removed", picture.id);
  const next = $("pictures").children[Math.min(Math.max(place, 0), shown.length - 1)];
  if (!openDialogs().length) (next?.querySelector("button") ?? $("search")).focus();
  toast("The picture is deleted.", "Undo", () => restore(picture), 12);
  return true;
}

async function restore(picture) {
  try {
    await api.restore(picture.id);
    await load();
    $("pictures").querySelector(`[data-id="${CSS.escape(picture.id)}"] button`)?.focus();
  } catch (error) {
    toast(error.message);
  }
}
