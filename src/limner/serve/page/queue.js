// What waits: in order, to be reordered and removed.

import * as api from "./api.js";
import { $, button, h, say, toast } from "./dom.js";
import { on, paint, queued, refresh } from "./store.js";

export function begin() {
  on("jobs", show);
}

function show() {
  const jobs = queued();
  const at = document.activeElement?.dataset ?? {};
  $("queue-part").hidden = !jobs.length;
  $("queue-title").textContent = jobs.length === 1 ? "Waiting: 1" : `Waiting: ${jobs.length}`;
  $("queue").replaceChildren(...jobs.map((job, i) => row(job, i, jobs)));
  if (at.job) {
    const same = $("queue").querySelector(`[data-job="${CSS.escape(at.job)}"][data-act="${CSS.escape(at.act)}"]`);
    const other = same?.disabled ? same.parentElement.querySelector("button:not(:disabled)") : same;
    (other ?? $("queue").querySelector("button:not(:disabled)") ?? $("go")).focus();
  }
}

function row(job, i, jobs) {
  const words = job.recipe?.prompt || "without words";
  const act = (name, sign, label, done, disabled = false) =>
    button(sign, done, { "aria-label": `${label}: ${words}`, title: label, disabled, data: { job: job.id, act: name } });
  return h("li", {},
    h("p", { title: words }, words, h("span", { class: "hint" }, job.count > 1 ? `${job.count} pictures` : "")),
    act("up", "\u2191", "Earlier", () => move(job, jobs[i - 1]?.id ?? null, i), i === 0),
    act("down", "\u2193", "Later", () => move(job, jobs[i + 2]?.id ?? null, i + 2), i === jobs.length - 1),
    act("remove", "\u00d7", "Remove", () => remove(job)));
}

async function move(job, before, place) {
  try {
    await api.move(job.id, before);
    say(`Now number ${Math.max(1, place)} of those that wait.`);
  } catch (error) {
    if (error.status !== 409) toast(error.message);
  }
  refresh(0);
}

async function remove(job) {
  try {
    await api.cancel(job.id);
    toast("Removed from those that wait.", "Put it back", () => paint(job.recipe, job.count).catch((error) => toast(error.message)));
  } catch (error) {
    if (error.status !== 409) toast(error.message);
  }
  refresh(0);
}
