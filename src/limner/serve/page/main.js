// The page begins here: each part is woken once; what the server tells does the rest.

import * as about from "./about.js";
import * as api from "./api.js";
import { $, later } from "./dom.js";
import * as drop from "./drop.js";
import * as gallery from "./gallery.js";
import * as paint from "./paint.js";
import * as queue from "./queue.js";
import { learn, listen } from "./store.js";
import * as viewer from "./viewer.js";

const THEME = "limner.theme";

function theme(chosen) {
  if (chosen) document.documentElement.dataset.theme = chosen;
  else delete document.documentElement.dataset.theme;
}

$("theme").value = localStorage.getItem(THEME) ?? "";
theme($("theme").value);
$("theme").addEventListener("change", () => {
  localStorage.setItem(THEME, $("theme").value);
  theme($("theme").value);
});

api.onToken(about.askToken);
for (const part of [paint, queue, gallery, viewer, drop, about]) part.begin();
$("mask-open").addEventListener("click", later("canvas", "paintMask"));
$("grid-open").addEventListener("click", later("grid", "grid"));
learn();
listen();
document.documentElement.dataset.ready = "";
