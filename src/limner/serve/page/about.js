// What is checked and what is not, the marks of pictures, the keys of this page.

import { $, button, dialog, facts, h } from "./dom.js";
import { known, on } from "./store.js";
import { checked } from "./viewer.js";
import { marksOf } from "./words.js";

const KEYS = [["Ctrl + Enter", "Paint"], ["/", "Search your pictures"], ["Arrow keys", "Walk through the pictures, also while one is open"],
  ["Esc", "Close what is open"], ["In the mask", "Arrow keys move, Space paints, E erases, + and \u2212 zoom, Ctrl + Z undoes"]];

export function begin() {
  $("about-open").addEventListener("click", about);
  on("capabilities", () => {
    const none = !known.capabilities?.checks?.safety || known.capabilities.checks.safety === "none";
    $("unchecked").textContent = none ? "Not checked for safety" : "What is checked";
  });
}

function about() {
  const can = known.capabilities ?? {};
  const marks = marksOf(can);
  dialog("What is checked, and what is not", [
    h("p", { class: "note" }, checked(can.checks)),
    h("h3", {}, "What each picture carries"),
    marks.length ? h("ul", {}, marks.map((mark) => h("li", {}, mark))) : h("p", { class: "hint" }, "Not known before the model is loaded."),
    h("h3", {}, "This server"),
    facts([["Limner", can.limner], ["Painting on", can.device], ["Numbers", can.dtype], ["Threads", can.threads],
      ["Models", known.models.map((model) => model.name).join(", ")]]),
    h("h3", {}, "Keys"), facts(KEYS),
    sessionStorage.getItem("limner.token") ? button("Forget my token", () => { sessionStorage.removeItem("limner.token"); location.reload(); }) : null,
  ].filter(Boolean), { narrow: true });
}

/** Ask for the token that the server wants; null when nobody gives one. */
export function askToken(wrong) {
  return new Promise((answer) => {
    const field = h("input", { id: "token", type: "password", autocomplete: "off", maxLength: 512 });
    let given = null;
    const form = h("form", { class: "dialog-body", novalidate: true, on: { submit: (event) => {
      event.preventDefault();
      given = field.value.trim() || null;
      box.close();
    } } },
    h("p", {}, wrong ? "This token is not accepted, or no longer." : "This server wants to know who you are."),
    h("div", { class: "field" }, h("label", { for: "token" }, "Your token"), field,
      h("p", { class: "hint" }, "It is kept in this tab until you close it. Whoever runs the server gave it to you.")),
    h("button", { type: "submit", class: "primary" }, "Come in"));
    const box = dialog("Who are you?", form, { narrow: true, closed: () => answer(given) });
    field.focus();
  });
}
