// Before and after, with a slider.

import * as api from "./api.js";
import { dialog, h, image } from "./dom.js";
import { list } from "./gallery.js";
import { asSource, sourceOf, wishes } from "./viewer.js";

/** Lay a picture over the one that it started from, or over any other. */
export async function compare(picture, other = null) {
  const asked = await wishes(picture);
  const begun = sourceOf(asked.image);
  const others = list().filter((one) => one.id !== picture.id).slice(0, 40);
  const choices = [...(other ? [["The other one", other]] : []), ...(begun ? [["What it started from", begun]] : []),
    ...others.map((one) => [`${one.prompt || "without words"} (seed ${one.seed ?? "?"})`, asSource(one)])];
  if (!choices.length) {
    dialog("Compare", h("p", {}, "There is no other picture yet to compare it with."), { narrow: true });
    return;
  }
  const before = image({ alt: "Before", class: "before checker" }), after = image({ alt: `After: ${picture.prompt}`, class: "after checker" });
  const stage = h("div", { class: "compare" }, before, after);
  const slider = h("input", { type: "range", id: "cut", min: 0, max: 100, value: 50, "aria-valuetext": "half", on: { input: cut } });
  const choose = h("select", { id: "before", on: { change: () => choices[choose.selectedIndex][1].show(before) } },
    choices.map(([label], i) => h("option", { value: i }, label)));
  function cut() {
    stage.style.setProperty("--cut", `${slider.value}%`);
    slider.setAttribute("aria-valuetext", `${slider.value} percent before, the rest after`);
  }
  function point(event) {
    if (event.type === "pointermove" && !event.buttons) return;
    const place = stage.getBoundingClientRect();
    slider.value = ((event.clientX - place.left) / place.width) * 100;
    cut();
  }
  stage.addEventListener("pointerdown", point);
  stage.addEventListener("pointermove", point);
  api.show(after, picture.id);
  choices[0][1].show(before);
  dialog("Before and after", [
    h("div", { class: "field" }, h("label", { for: "before" }, "Before, on the left"), choose), stage,
    h("div", { class: "field" }, h("label", { for: "cut" }, "Where they meet: left is before, right is after"), slider)]);
  slider.focus();
}
