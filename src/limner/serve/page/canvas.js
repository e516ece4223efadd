// A mask, painted over the picture: white is painted anew. Strokes are kept as they are drawn, for undo.

import * as api from "./api.js";
import { button, dialog, h, image, say, toast } from "./dom.js";
import { setMask, sourceNow } from "./paint.js";

const STRIPES = [[20, 50, 190], [255, 255, 255]];  // of what is marked: two colours, so that they are seen on any picture
const UNDO = 40, MOST_ZOOM = 8;

/** The editor for the picture that the form starts from. */
export async function paintMask() {
  const source = sourceNow();
  if (!source) return;
  let picture;
  try {
    picture = await createImageBitmap(await source.blob());
  } catch (error) {
    toast(error.message);
    return;
  }
  const { width, height } = picture;
  const mask = new Mask(width, height);
  if (source.mask?.bitmap) mask.from(source.mask.bitmap);
  const under = image({ alt: "The picture under the mask", class: "checker" });
  source.show(under);
  const view = h("canvas", { width, height, tabIndex: 0, role: "application",
    "aria-label": "The mask. Arrow keys move the brush, Space paints, E changes between brush and eraser, plus and minus zoom, Control Z undoes." });
  const sheet = h("div", { class: "sheet" }, under, view);
  const room = h("div", { class: "easel-mask" }, sheet);
  const tool = { erase: false, size: Math.max(4, Math.round(Math.min(width, height) / 8)), zoom: 1, at: [width / 2, height / 2], shown: false };

  const press = (label, act, props = {}) => button(label, act, { class: "quiet", ...props });
  const brush = press("Brush", () => choose(false), { "aria-pressed": "true" });
  const eraser = press("Eraser", () => choose(true), { "aria-pressed": "false" });
  const size = h("input", { type: "range", min: 1, max: Math.max(16, Math.round(Math.max(width, height) / 2)), value: tool.size,
    on: { input: () => { tool.size = Number(size.value); draw(); } } });
  const undo = press("Undo", () => { mask.undo(); draw(); }), redo = press("Redo", () => { mask.redo(); draw(); });
  const zoomed = h("output", {}, "100 %");
  const use = button("Use this mask", keep, { class: "primary" });
  const state = h("p", { class: "hint", role: "status" });

  function choose(erase) {
    tool.erase = erase;
    brush.setAttribute("aria-pressed", String(!erase));
    eraser.setAttribute("aria-pressed", String(erase));
  }

  function fit() {
    const base = Math.min((room.clientWidth - 2) / width, (window.innerHeight * 0.56) / height);
    const scale = base * tool.zoom;
    for (const each of [under, view]) {
      each.style.width = `${Math.round(width * scale)}px`;
      each.style.height = `${Math.round(height * scale)}px`;
      each.style.maxWidth = "none";
    }
    zoomed.textContent = `${Math.round(tool.zoom * 100)} %`;
  }

  function zoom(by, x = 0.5, y = 0.5) {
    const before = tool.zoom;
    tool.zoom = Math.min(MOST_ZOOM, Math.max(1, tool.zoom * by));
    const cx = room.scrollLeft + room.clientWidth * x, cy = room.scrollTop + room.clientHeight * y;
    fit();
    room.scrollLeft = (cx * tool.zoom) / before - room.clientWidth * x;
    room.scrollTop = (cy * tool.zoom) / before - room.clientHeight * y;
  }

  function draw() {
    const ink = view.getContext("2d");
    ink.clearRect(0, 0, width, height);
    ink.drawImage(mask.tinted(), 0, 0);
    if (tool.shown) {
      ink.lineWidth = Math.max(1, width / 256);
      for (const [colour, more] of [["#000", ink.lineWidth], ["#fff", 0]]) {
        ink.strokeStyle = colour;
        ink.beginPath();
        ink.arc(...tool.at, tool.size / 2 + more, 0, 7);
        ink.stroke();
      }
    }
    undo.disabled = !mask.past.length;
    redo.disabled = !mask.future.length;
    use.disabled = mask.empty;
    state.textContent = mask.empty ? "Paint over what should be made anew." : `${mask.share} % of the picture is marked.`;
  }

  const place = (event) => {
    const box = view.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height];
  };
  view.addEventListener("pointerdown", (event) => {
    if (event.button > 0) return;
    view.setPointerCapture(event.pointerId);
    tool.at = place(event);
    mask.begin();
    mask.line(tool.at, tool.at, tool.size, tool.erase || event.shiftKey);
    draw();
  });
  view.addEventListener("pointermove", (event) => {
    tool.shown = true;
    const points = event.buttons & 1 ? event.getCoalescedEvents?.() ?? [event] : [];
    for (const each of points.length ? points : event.buttons & 1 ? [event] : []) {
      const next = place(each);
      mask.line(tool.at, next, tool.size, tool.erase || event.shiftKey);
      tool.at = next;
    }
    tool.at = place(event);
    draw();
  });
  view.addEventListener("pointerleave", () => { tool.shown = false; draw(); });
  view.addEventListener("focus", () => { tool.shown = true; draw(); });
  view.addEventListener("blur", () => { tool.shown = false; draw(); });
  room.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.altKey) return;
    event.preventDefault();
    const box = room.getBoundingClientRect();
    zoom(event.deltaY < 0 ? 1.2 : 1 / 1.2, (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  }, { passive: false });
  view.addEventListener("keydown", (event) => {
    const far = event.shiftKey ? tool.size : Math.max(1, tool.size / 3);
    const by = { ArrowLeft: [-far, 0], ArrowRight: [far, 0], ArrowUp: [0, -far], ArrowDown: [0, far] }[event.key];
    if (by) tool.at = [Math.min(width, Math.max(0, tool.at[0] + by[0])), Math.min(height, Math.max(0, tool.at[1] + by[1]))];
    else if (event.key === " " || event.key === "Enter") {
      mask.begin();
      mask.line(tool.at, tool.at, tool.size, tool.erase);
      say(tool.erase ? "Erased here." : "Marked here.");
    } else if (event.key.toLowerCase() === "e" && !event.ctrlKey) choose(!tool.erase);
    else if (event.key === "+" || event.key === "=") zoom(1.3);
    else if (event.key === "-") zoom(1 / 1.3);
    else return;
    event.preventDefault();
    tool.shown = true;
    draw();
  });

  async function keep() {
    use.disabled = true;
    try {
      const blob = await mask.blob();
      const kept = await api.upload(blob);
      setMask({ ref: kept.name ?? `upload:${kept.id}`, bitmap: await createImageBitmap(blob) });
      box.close();
      say("The mask is set. Write what should be there, and paint.");
    } catch (error) {
      toast(error.message);
      use.disabled = false;
    }
  }

  const box = dialog("Paint the part to redo", [
    h("div", { class: "tools" }, brush, eraser, h("label", {}, "Brush size", size), undo, redo,
      press("Mark all", () => { mask.fill(true); draw(); }), press("Clear", () => { mask.fill(false); draw(); }), press("Invert", () => { mask.invert(); draw(); }),
      press("\u2212", () => zoom(1 / 1.3), { "aria-label": "Zoom out", class: "quiet square" }), zoomed,
      press("+", () => zoom(1.3), { "aria-label": "Zoom in", class: "quiet square" })),
    room, h("div", { class: "tools" }, use, state)]);
  box.addEventListener("keydown", (event) => {
    if (!(event.ctrlKey || event.metaKey) || event.key.toLowerCase() !== "z") return;
    event.preventDefault();
    if (event.shiftKey) mask.redo();
    else mask.undo();
    draw();
  });
  const resized = new ResizeObserver(fit);
  resized.observe(room);
  box.addEventListener("close", () => resized.disconnect());
  fit();
  draw();
  view.focus({ preventScroll: true });
}

/** White on black, of the picture's size, with its past. */
class Mask {
  constructor(width, height) {
    this.ground = new OffscreenCanvas(width, height);
    this.ink = this.ground.getContext("2d", { willReadFrequently: true });
    this.past = [];
    this.future = [];
    this.tint = new OffscreenCanvas(width, height);
    this.empty = true;
    this.share = 0;
  }

  get all() { return this.ink.getImageData(0, 0, this.ground.width, this.ground.height); }

  /** Remember what is there before it is changed. */
  begin() {
    this.past.push(this.all);
    if (this.past.length > UNDO) this.past.shift();
    this.future = [];
  }

  line(from, to, size, erase) {
    this.ink.globalCompositeOperation = erase ? "destination-out" : "source-over";
    this.ink.strokeStyle = this.ink.fillStyle = "#fff";
    this.ink.lineWidth = size;
    this.ink.lineCap = this.ink.lineJoin = "round";
    this.ink.beginPath();
    this.ink.moveTo(...from);
    this.ink.lineTo(to[0] + 0.01, to[1]);
    this.ink.stroke();
    this.ink.globalCompositeOperation = "source-over";
  }

  fill(on) {
    this.begin();
    this.ink.clearRect(0, 0, this.ground.width, this.ground.height);
    if (on) this.white();
  }

  white() {
    this.ink.fillStyle = "#fff";
    this.ink.fillRect(0, 0, this.ground.width, this.ground.height);
  }

  invert() {
    this.begin();
    this.ink.globalCompositeOperation = "xor";
    this.white();
    this.ink.globalCompositeOperation = "source-over";
  }

  undo() { this.step(this.past, this.future); }
  redo() { this.step(this.future, this.past); }
  step(from, to) {
    if (!from.length) return;
    to.push(this.all);
    this.ink.putImageData(from.pop(), 0, 0);
  }

  /** Take an earlier mask up again: white on black. */
  from(bitmap) {
    this.ink.drawImage(bitmap, 0, 0);
    const all = this.all;
    for (let i = 0; i < all.data.length; i += 4) {
      all.data[i + 3] = all.data[i];
      all.data[i] = all.data[i + 1] = all.data[i + 2] = 255;
    }
    this.ink.putImageData(all, 0, 0);
  }

  /** The mask as it is laid over the picture; counts what is marked on the way. */
  tinted() {
    const all = this.all, data = all.data;
    const wide = all.width, stripe = Math.max(2, Math.round(Math.max(wide, all.height) / 40));
    let marked = 0;
    for (let i = 0; i < data.length; i += 4) {
      if (!data[i + 3]) continue;
      marked += data[i + 3] > 127;
      const along = (i / 4) % wide + Math.floor(i / 4 / wide);
      [data[i], data[i + 1], data[i + 2]] = STRIPES[Math.floor(along / stripe) % 2];
      data[i + 3] *= 0.6;
    }
    this.empty = marked === 0;
    const share = (marked * 400) / data.length;
    this.share = share < 1 ? "Less than 1" : Math.round(share);
    this.tint.getContext("2d").putImageData(all, 0, 0);
    return this.tint;
  }

  blob() {
    const out = new OffscreenCanvas(this.ground.width, this.ground.height);
    const ink = out.getContext("2d");
    ink.fillStyle = "#000";
    ink.fillRect(0, 0, out.width, out.height);
    ink.drawImage(this.ground, 0, 0);
    return out.convertToBlob({ type: "image/png" });
  }
}
