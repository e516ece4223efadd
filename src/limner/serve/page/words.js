// Plain words for the fields of a recipe, and which of them the form keeps for itself.

export const LABELS = {
  task: "Task", prompt: "Words", negative: "Not", model: "Model", style: "Style", seed: "Seed", steps: "Steps",
  sampler: "Sampler", schedule: "Schedule", cfg_scale: "Guidance", strength: "Change", feather: "Soft edge", scale: "Times as large",
  hires: "Second pass, times", seamless: "Joining sides", best_of: "Best of", variation: "Leans to another seed by", subseed: "That seed",
  toward: "Leans to the words", blend: "By how much", extend: "Added left, right, up, down",
};
export const TASKS = {
  paint: "painted from words", edit: "a picture changed", inpaint: "a part repainted", outpaint: "a picture continued",
  upscale: "a picture enlarged", tile: "a seamless texture",
};
const PLAIN = {  // what a recipe says where nobody asked for anything
  negative: "", style: null, feather: 0, scale: 1, hires: 1, seamless: "", best_of: 1, variation: 0, subseed: 0, toward: "", blend: 0,
};
const HIDDEN = new Set(["version", "image_sha256", "mask_sha256"]);

/** The recipe as pairs to read, without what says nothing. */
export function told(recipe) {
  const pairs = [["How", TASKS[recipe.task] ?? recipe.task], ["Size", recipe.width ? `${recipe.width} \u00d7 ${recipe.height}` : ""]];
  for (const [name, label] of Object.entries(LABELS)) {
    const value = recipe[name];
    if (name === "task" || value === undefined || value === null || value === "" || value === PLAIN[name]) continue;
    if (name === "strength" && !recipe.image) continue;
    if (name === "extend" && !value.some(Boolean)) continue;
    pairs.push([label, Array.isArray(value) ? value.join(", ") : value]);
  }
  return pairs;
}

const ours = (value) => typeof value === "string" && /^(upload:|picture:)/.test(value);

/** A recipe as it can be asked for again: what names files of the server's own is left out. */
export function again(recipe) {
  const asked = Object.fromEntries(Object.entries(recipe).filter(([name, value]) => !HIDDEN.has(name) && value !== null));
  for (const name of ["image", "mask"]) {
    const boxed = name === "mask" && /^(alpha|[\d\s,;x-]+)$/.test(asked.mask ?? "");
    if (asked[name] && !ours(asked[name]) && !boxed) delete asked[name];
  }
  for (const name of ["controls", "picture_prompts"]) {
    if (asked[name]) asked[name] = asked[name].filter((one) => ours(one.image)).map(({ image_sha256: _, ...rest }) => rest);
    if (!asked[name]?.length) delete asked[name];
  }
  if (asked.task && !["paint", "tile"].includes(asked.task) && !asked.image) delete asked.task;
  return asked;
}

export const seconds = (value) => (value < 1.5 ? "about a second" : value < 90 ? `about ${Math.round(value)} s` : `about ${Math.round(value / 60)} min`);
export const when = (time) => new Date(time * 1000).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });

/** A large seed by chance, exact in a double. */
export const chance = () => crypto.getRandomValues(new Uint32Array(1))[0];

/** A name for a saved file. */
export const fileName = (picture) => {
  const plain = (picture.prompt || "picture").toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-+|-+$/g, "").slice(0, 60) || "picture";
  return `${plain}-${picture.seed ?? picture.id}.png`;
};

/** The marks that a picture carries, each in a line. */
export const marksOf = (can) => [can?.marks ?? []].flat().map((mark) => (typeof mark === "string" ? mark : `${mark.where ?? mark.name}: ${mark.what ?? ""}`));
