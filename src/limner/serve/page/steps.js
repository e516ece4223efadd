// How a picture came to be: it is painted once more, and every station is kept to be walked through at leisure.

import * as api from "./api.js";
import { button, dialog, h, image, s, say } from "./dom.js";
import { compare } from "./compare.js";
import { emit, ended, known, on, paint } from "./store.js";
import { asSource, wishes } from "./viewer.js";

const WIDE = 560, HIGH = 190, LEFT = 56, BOTTOM = 34, TOP = 12;

export async function steps(picture) {
  const asked = await wishes(picture);
  const recipe = { ...(picture.recipe ?? {}), ...asked };
  const frames = new Map();  // i -> {i, n, t, webp, noisy}
  const first = image({ alt: "The noisy picture at this step" }), guess = image({ alt: "The guess at the finished picture at this step" });
  const noisy = h("figure", { hidden: true }, first, h("figcaption", {}, "What there is: the latents of this step, decoded. Noise, at first."));
  const blank = h("div", { class: "blank" });
  const seen = h("figure", {}, guess, blank, h("figcaption", {}, "What the network guesses: the finished picture that it believes to be under the noise."));
  const slider = h("input", { type: "range", id: "station", min: 1, max: recipe.steps ?? 24, value: 1, on: { input: show } });
  const title = h("output", { for: "station" }, "waiting for its turn");
  const words = h("p", { class: "note" }, opening(recipe));
  const chart = h("div");
  const state = h("p", { class: "hint", role: "status" }, "The picture is painted once more, to look over the painter's shoulder. It is the same picture: same words, same seed.");
  let follow = true, job = null, n = recipe.steps ?? 24;

  function show(event) {
    if (event) follow = false;
    const i = Number(slider.value) - 1, frame = nearest(frames, i);
    title.textContent = `Step ${i + 1} of ${n}`;
    slider.setAttribute("aria-valuetext", title.textContent);
    blank.hidden = !!frame;
    guess.hidden = !frame;
    if (frame) guess.src = `data:image/webp;base64,${frame.webp}`;
    noisy.hidden = !frame?.noisy;
    if (frame?.noisy) first.src = `data:image/webp;base64,${frame.noisy}`;
    words.textContent = story(recipe, i, n, times[i]);
    chart.replaceChildren(plot(recipe, n, times, i));
  }

  const times = [];
  const offStep = on("step", (id, data) => {
    if (id !== job?.id || (data.number ?? 0) !== 0) return;
    n = data.n ?? n;
    slider.max = n;
    if (typeof data.t === "number") times[data.i] = data.t;
    last = data.i;
    if (follow) slider.value = data.i + 1;
    show();
  });
  let last = 0;
  const offSeen = on("preview", (id, data) => {
    if (id !== job?.id || (data.number ?? 0) !== 0) return;
    const i = data.i ?? last;
    frames.set(i, { ...data, i });
    if (typeof data.t === "number") times[i] = data.t;
    if (follow) slider.value = i + 1;
    show();
  });
  let closed = false;
  dialog("How it came to be", [state,
    h("div", { class: "twins" }, noisy, seen),
    h("div", { class: "field" }, h("label", { for: "station" }, title), slider), words, chart,
    h("details", {}, h("summary", {}, "What guidance does"), h("p", {}, guidance(recipe)),
      button("Paint it without guidance, and compare", () => unguided(picture, asked), { class: "quiet" }))],
  { closed: () => {
    closed = true;
    offStep();
    offSeen();
    if (job) api.cancel(job.id).catch(() => {});
  } });
  show();
  slider.focus();
  try {
    job = await paint(asked, 1, known.capabilities?.watch ? { watch: true } : {});
    if (closed) return void api.cancel(job.id).catch(() => {});
    const end = await ended(job.id);
    job = null;
    for (const extra of end.pictures ?? []) await api.remove(extra.id).catch(() => {});  // it is the one that is there already
    emit("changed");
    if (closed) return;
    const told = frames.size >= n ? "Every step is here." : `The server showed ${frames.size} of ${n} steps; those between show the nearest one before.`;
    state.textContent = end.state === "done" ? `${told} Move the slider to walk through them.` : end.error || "It was stopped.";
    follow = false;
    say("All steps are here. Move the slider to walk through them.");
    show();
  } catch (error) {
    state.textContent = error.message;
  }
}

/** The last frame that came at a step or before it, else the first. */
function nearest(frames, i) {
  const all = [...frames.values()].sort((a, b) => a.i - b.i);
  return all.findLast((frame) => frame.i <= i) ?? all[0];
}

async function unguided(picture, asked) {
  say("Painting it without guidance.");
  try {
    const job = await paint({ ...asked, cfg_scale: 1 }, 1);
    const end = await ended(job.id);
    if (end.pictures?.[0]) compare(picture, asSource(end.pictures[0]));
  } catch (error) {
    say(error.message);
  }
}

const opening = (recipe) => `It begins with noise that the seed ${recipe.seed} draws, as on a screen without a station.`;

/** What happens at a step, for somebody who hears of it for the first time. */
export function story(recipe, i, n, t) {
  const share = (i + 1) / n;
  const time = typeof t === "number" ? ` The clock stands at ${t.toFixed(2)}: 1 is all noise, 0 is the picture.` : "";
  const words = recipe.prompt ? `\u201c${recipe.prompt}\u201d` : "anything";
  if (i === 0) return `${opening(recipe)} The network looks at it and guesses which picture of ${words} may be under it. The guess is a blur of all that is possible. We go one small step towards it.${time}`;
  if (share < 0.4) return `Large things are decided now: where it stands, which colours it has. A little noise is left out at each step, so that the next guess can be better.${time}`;
  if (share < 0.75) return `The form stands; now its parts take shape. The guess changes less from step to step.${time}`;
  if (share < 1) return `Only details are left: edges, shine, small patterns. What there is and what is guessed are nearly the same.${time}`;
  return `The last step: no noise is left, and the guess is the picture. The latents, small numbers on a coarse grid, are decoded into pixels.${time}`;
}

function guidance(recipe) {
  const scale = recipe.cfg_scale ?? "the model's own";
  const between = recipe.cfg_interval ? ` It works while the clock stands between ${recipe.cfg_interval[1]} and ${recipe.cfg_interval[0]}; the band in the plot shows where.` : "";
  const [low, high] = recipe.pag_interval ?? [0, 1];
  const alone = recipe.pag_scale ? ` While the clock stands between ${high} and ${low} it guesses once more, as if each part of the picture could not see the others. The picture is moved away from that guess, too: it gets a form that holds together.` : "";
  return `At each step the network guesses twice: once with your words, once without. The difference is what the words change. Guidance walks ${scale} times that difference, so that the picture follows the words more than chance would.${between} At 1 the words are followed freely: more varied, less exact.${alone}`;
}

/** The schedule: how noisy the picture is after each step; the band is where guidance works. */
function plot(recipe, n, times, now) {
  const told = times.filter((t) => typeof t === "number").length >= Math.min(n, 2);
  const at = (i) => (told ? times[i] ?? 1 - (i + 1) / n : 1 - (i + 1) / n);
  const x = (k) => LEFT + (k / n) * (WIDE - LEFT - 12), y = (t) => TOP + (1 - t) * (HIGH - TOP - BOTTOM);
  const points = [[x(0), y(1)], ...Array.from({ length: n }, (_, i) => [x(i + 1), y(at(i))])];
  const [low, high] = recipe.cfg_interval ?? [0, 1];
  const guided = Number(recipe.cfg_scale ?? 2) !== 1;
  const text = (words, props) => s("text", props, words);
  return s("svg", { class: "chart", viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img",
    "aria-label": `The schedule: the time falls from 1, noise, to 0, the picture, in ${n} steps; after step ${now + 1} it is ${at(now).toFixed(2)}.` },
  guided ? s("rect", { class: "band", x: LEFT, y: y(high), width: WIDE - LEFT - 12, height: Math.max(0, y(low) - y(high)) }) : null,
  s("path", { class: "axis", d: `M${LEFT} ${TOP}V${HIGH - BOTTOM}H${WIDE - 12}` }),
  s("path", { class: "curve", d: `M${points.map((p) => p.map((v) => v.toFixed(1)).join(" ")).join("L")}` }),
  s("circle", { class: "now", cx: x(now + 1), cy: y(at(now)), r: 6 }),
  text("noise", { x: LEFT - 6, y: TOP + 10, "text-anchor": "end" }), text("picture", { x: LEFT - 6, y: HIGH - BOTTOM, "text-anchor": "end" }),
  text("step 1", { x: LEFT, y: HIGH - 12 }), text(`step ${n}`, { x: WIDE - 12, y: HIGH - 12, "text-anchor": "end" }),
  guided ? text("guided", { x: WIDE - 18, y: y(high) + 14, "text-anchor": "end" }) : null,
  told ? null : text("spread evenly; this server tells no times", { x: (LEFT + WIDE) / 2, y: HIGH - 12, "text-anchor": "middle" }));
}
