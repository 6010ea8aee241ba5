// What is asked for beside the words: sliders, seed, other wordings; and the link that says all of it again.

import { $, el } from "./dom.js";

const MOST_WORDINGS = 4;
const IN_LINK = ["prompt", "seed", "steps", "guidance", "sampler", "negative"];

export function offer(guide) {
  limit("n", Math.min(guide.max_images, 8), Math.min(2, guide.max_images));
  limit("steps", guide.max_steps, guide.model.steps);
  limit("guidance", Math.min(guide.max_guidance_scale, 12), guide.model.guidance_scale);
  $("prompt").maxLength = guide.max_prompt_chars;
  $("attribution").checked = guide.attribution;
  $("attribution-tick").hidden = !guide.attribution;
  const silent = guide.model.sampler;
  $("sampler").replaceChildren(...guide.samplers.map((name) => el("option", { text: name, value: name, selected: name === silent })));
}

function limit(name, most, silent) {
  $(name).max = most;
  $(name).value = silent;
  show($(name));
}

function show(slider) {
  document.querySelector(`output[for="${slider.id}"]`).textContent = slider.value;
}

const sliders = () => document.querySelectorAll('input[type="range"]');

export function slide() {
  for (const slider of sliders()) slider.addEventListener("input", () => show(slider));
}

export function wordings() {
  const all = [$("prompt"), ...document.querySelectorAll("#variants input")].map((field) => field.value.trim());
  return [...new Set(all.filter(Boolean))];
}

// The fields of a request, but for its prompt.
export function settings() {
  const negative = $("negative").value.trim(), guidance = Number($("guidance").value);
  return {
    n: Number($("n").value),
    num_inference_steps: Number($("steps").value),
    guidance_scale: guidance,
    seed: $("seed").value === "" ? Math.floor(Math.random() * 2 ** 31) : Number($("seed").value),
    sampler: $("sampler").value,
    ...(negative && guidance > 1 ? { negative_prompt: negative } : {}),
    ...($("attribution").checked ? { attribution: true } : {}),
  };
}

// Another wording beside the first, to be drawn from the same seeds.
export function another() {
  const count = document.querySelectorAll(".variant").length + 1;
  if (count >= MOST_WORDINGS) return;
  const field = el("input", { type: "text", "aria-label": `Wording ${count + 1}`, value: $("prompt").value });
  const remove = () => {
    row.remove();
    $("add").hidden = false;
    $("add").focus();
  };
  const row = el("div", { class: "variant" }, field, el("button", { type: "button", text: "×", "aria-label": "Remove this wording", onclick: remove }));
  $("variants").append(row);
  $("add").hidden = count + 1 === MOST_WORDINGS;
  field.focus();
  field.select();
}

// Settings behind the # of an address, which no server sees.
export function linkTo(told) {
  return `#${new URLSearchParams(Object.entries(told).filter(([name, value]) => IN_LINK.includes(name) && value))}`;
}

// Links are anybody's: what a field cannot hold leaves it as it is.
function fits(field, value) {
  if (field.options) return [...field.options].some((option) => option.value === value);
  return !["number", "range"].includes(field.type) || /^\d+(\.\d+)?$/.test(value);
}

export function fromLink() {
  const told = new URLSearchParams(location.hash.slice(1));
  if (!told.has("prompt")) return;
  for (const name of IN_LINK) if (told.has(name) && fits($(name), told.get(name))) $(name).value = told.get(name);
  $("n").value = 1;
  for (const slider of sliders()) show(slider);
  $("prompt").focus();
}
