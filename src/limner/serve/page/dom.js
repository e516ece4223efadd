// Elements from data: every string becomes a text node or a property, never markup.

export const $ = (id) => document.getElementById(id);

const toasts = $("toasts");  // which moves into the dialog that is open
const SVG = "http://www.w3.org/2000/svg";

/** An element: `on` holds listeners, `data` a dataset, other names are properties where there are such, else attributes. */
export function h(tag, props = {}, ...kids) {
  return fill(document.createElement(tag), props, kids, (el, name) => name in el);
}

/** The same for drawings. */
export function s(tag, props = {}, ...kids) {
  return fill(document.createElementNS(SVG, tag), props, kids, () => false);
}

function fill(el, props, kids, isProperty) {
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "on") for (const [event, heard] of Object.entries(value)) el.addEventListener(event, heard);
    else if (name === "data") Object.assign(el.dataset, value);
    else if (name === "class") el.setAttribute("class", value);
    else if (isProperty(el, name)) el[name] = value;
    else el.setAttribute(name, value === true ? "" : String(value));
  }
  el.append(...kids.flat().filter((kid) => kid !== null && kid !== undefined && kid !== false));
  return el;
}

export const button = (label, pressed, props = {}) => h("button", { type: "button", ...props, on: { click: pressed } }, label);

/** A modal that Esc and its own button close; the focus goes back to where it was. */
export function dialog(title, body, { narrow = false, closed = () => {} } = {}) {
  const before = document.activeElement;
  const name = `d${Math.random().toString(36).slice(2)}`;
  const box = h("dialog", { class: narrow ? "narrow" : "", "aria-labelledby": name },
    h("div", { class: "dialog-head" }, h("h2", { id: name }, title),
      button("Close", () => box.close(), { class: "quiet" })),
    h("div", { class: "dialog-body" }, body));
  box.addEventListener("click", (event) => { if (event.target === box) box.close(); });
  box.addEventListener("close", () => {
    (openDialogs().findLast((each) => each !== box) ?? document.body).append(toasts);
    box.remove();
    closed();
    if (before?.isConnected) before.focus();
  });
  document.body.append(box);
  box.append(toasts);  // what lies outside of a modal is inert
  box.showModal();
  return box;
}

export const openDialogs = () => [...document.querySelectorAll("dialog[open]")];

let spoken = 0;
/** Told to screen readers, at most once in two seconds unless it matters. */
export function say(text, matters = true) {
  const now = performance.now();
  if (!matters && now - spoken < 2000) return;
  spoken = now;
  $("live").textContent = text;
}

/** A short word at the lower edge, with one thing to do. */
export function toast(text, label, act, seconds = 8) {
  const gone = () => box.remove();
  const box = h("div", { class: "toast" }, h("p", {}, text),
    label ? button(label, () => { gone(); act(); }) : button("\u00d7", gone, { "aria-label": "Close this message" }));
  toasts.append(box);
  while (toasts.children.length > 3) toasts.firstChild.remove();
  setTimeout(function wait() {  // one that is being read, or reached for, stays
    if (box.matches(":hover, :focus-within")) setTimeout(wait, 1000);
    else gone();
  }, seconds * 1000);
}

export function facts(pairs) {
  return h("dl", { class: "facts" }, pairs.filter(([, value]) => value !== "" && value !== null && value !== undefined)
    .flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, String(value))]));
}

/** An image of the page's own making, with its words. */
export const image = (props) => h("img", { decoding: "async", draggable: false, ...props });

/** A function of a part of the page that is fetched when it is first used. */
export const later = (part, name) => async (...told) => {
  try {
    return (await import(`./${part}.js`))[name](...told);
  } catch (error) {
    toast("A part of the page could not be fetched; is the server there?");
    throw error;
  }
};
