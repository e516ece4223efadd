// A picture from outside: dropped, pasted or chosen. It tells its settings, or is something to start from.

import * as api from "./api.js";
import { $, button, dialog, facts, h, image, openDialogs, toast } from "./dom.js";
import { startFrom, use } from "./paint.js";
import { uploads } from "./viewer.js";
import { told } from "./words.js";

const KINDS = ["image/png", "image/jpeg", "image/webp"];

export function begin() {
  let depth = 0;
  const files = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  const mark = (on) => document.body.classList.toggle("dropping", on);
  document.addEventListener("dragenter", (event) => { if (files(event)) { depth += 1; mark(true); } });
  document.addEventListener("dragleave", (event) => { if (files(event)) { depth = Math.max(0, depth - 1); mark(depth > 0); } });
  document.addEventListener("dragover", (event) => { if (files(event)) event.preventDefault(); });
  document.addEventListener("drop", (event) => {
    if (!files(event)) return;
    event.preventDefault();
    depth = 0;
    mark(false);
    take(event.dataTransfer.files[0]);
  });
  document.addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find((each) => KINDS.includes(each.type));
    if (!file) return;
    event.preventDefault();
    take(file);
  });
  $("file").addEventListener("change", () => { take($("file").files[0]); $("file").value = ""; });
}

async function take(file) {
  if (!file) return;
  if (!KINDS.includes(file.type)) {
    toast("This is no PNG, JPEG or WebP picture.");
    return;
  }
  openDialogs().forEach((box) => box.close());
  try {
    show(file, await api.upload(file));
  } catch (error) {
    toast(error.message);
  }
}

function show(file, found) {
  const address = URL.createObjectURL(file);  // lives as long as the page: the picture may be compared with later
  const source = { ref: found.name ?? `upload:${found.id}`, name: file.name, width: found.width, height: found.height,
    show: (img) => { img.src = address; }, blob: async () => file };
  uploads.set(source.ref, source);
  const img = image({ alt: `The picture ${file.name}`, src: address });
  const act = (label, done, props = {}) => button(label, () => { box.close(); done(); }, props);
  const knows = found.recipe && Object.keys(found.recipe).length > 0;
  const box = dialog(file.name, h("div", { class: "viewer" }, h("div", { class: "frame checker" }, img), h("div", {},
    h("p", {}, knows ? "It carries the settings that it was made with." : found.parameters ? "It carries a text of settings that Limner cannot use." : "It carries no settings."),
    h("div", { class: "chips" },
      knows ? act("Use its settings", () => use(found.recipe), { class: "primary" }) : null,
      act("Change it", () => startFrom(source, "edit"), knows ? {} : { class: "primary" }),
      act("Repaint a part", () => startFrom(source, "inpaint")),
      act("Go on beyond its sides", () => startFrom(source, "outpaint")),
      act("Make it larger", () => startFrom(source, "upscale"))),
    knows ? facts(told(found.recipe)) : facts([["Size", `${found.width} \u00d7 ${found.height}`]]),
    found.parameters ? h("details", {}, h("summary", {}, "The text as it stands in the file"), h("pre", { tabIndex: 0 }, found.parameters)) : null)));
}
