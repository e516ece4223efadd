// What waits: in order, to be reordered and removed.

import * as api from "./api.js";
import { $, button, h, say, toast } from "./dom.js";
import { on, paint, queued, refresh } from "./store.js";

let held = "";  // the job that is being dragged; the list stays as it is meanwhile

export function begin() {
  on("jobs", show);
}

function show() {
  if (held) return;
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
  return h("li", { draggable: true, on: drags(job, i, jobs) },
    h("p", { title: words }, words, h("span", { class: "hint" }, job.count > 1 ? `${job.count} pictures` : "")),
    act("up", "\u2191", "Earlier", () => move(job, jobs[i - 1]?.id ?? null, i), i === 0),
    act("down", "\u2193", "Later", () => move(job, jobs[i + 2]?.id ?? null, i + 2), i === jobs.length - 1),
    act("remove", "\u00d7", "Remove", () => remove(job)));
}

/** By the mouse: a row goes before the one it is let go on, or after it, below its middle. */
function drags(job, i, jobs) {
  const below = (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    return event.clientY > box.top + box.height / 2;
  };
  const mark = (row, where) => {
    row.classList.toggle("before", where === "before");
    row.classList.toggle("after", where === "after");
  };
  return {
    dragstart: (event) => {
      held = job.id;
      event.dataTransfer.effectAllowed = "move";
      event.dataTransfer.setData("text/plain", job.recipe?.prompt ?? "");
    },
    dragover: (event) => {
      if (!held) return;
      event.preventDefault();
      mark(event.currentTarget, below(event) ? "after" : "before");
    },
    dragleave: (event) => mark(event.currentTarget, ""),
    drop: (event) => {
      const from = jobs.findIndex((each) => each.id === held);
      if (from < 0) return;
      event.preventDefault();
      const to = below(event) ? i + 1 : i;
      mark(event.currentTarget, "");
      if (to !== from && to !== from + 1) move(jobs[from], jobs[to]?.id ?? null, to > from ? to : to + 1);
    },
    dragend: () => { held = ""; show(); },
  };
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
