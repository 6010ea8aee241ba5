// The page for people. Everything it shows is put in as text, never as HTML; it asks this server alone.
"use strict";

const root = document.documentElement.dataset.root;
const $ = (id) => document.getElementById(id);
const KEY = "cleanplate-key";
const MOST_ROUNDS = 40;
let guide = null, words = null, stopping = null;

// An element: el("p", {class: "note", text: "…", onclick: f}, child, child).
function el(name, about = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(about)) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "text") made.textContent = value;
    else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

// ---- The server -------------------------------------------------------------------------------------------------

function headers(more = {}) {
  const key = sessionStorage.getItem(KEY);
  return key ? { ...more, Authorization: `Bearer ${key}` } : more;
}

class Refused extends Error {
  constructor(status, detail, wait) {
    super(detail.message || `The server answered ${status}.`);
    this.status = status;
    this.detail = detail;
    this.wait = wait;
  }
}

async function ask(path, options = {}) {
  const answer = await fetch(root + path, { ...options, headers: headers(options.headers), credentials: "omit" });
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => ({}));
  if (answer.status === 401) {
    $("key").open = true;
    $("key-field").focus();
  }
  throw new Refused(answer.status, body.error || {}, answer.headers.get("Retry-After"));
}

function say(message) {
  $("notice").textContent = message || "";
  $("notice").hidden = !message;
}

// Server-sent events of an answer, one by one.
async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5)).join("\n");
      if (data) yield JSON.parse(data);
    }
  }
}

// ---- What the model knows ---------------------------------------------------------------------------------------

const parts = (text) => text.toLowerCase().match(/[\p{L}\p{N}]+/gu) || [];
const SMALL = new Set("a an the of in on at with and or to by for from is it its as into under over near no not".split(" "));

// How many letters have to change, up to `most`.
function apart(a, b, most) {
  if (Math.abs(a.length - b.length) > most) return most + 1;
  let row = Array.from({ length: b.length + 1 }, (_, k) => k);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++)
      next[j] = Math.min(next[j - 1] + 1, row[j] + 1, row[j - 1] + (a[i - 1] === b[j - 1] ? 0 : 1));
    row = next;
  }
  return row[b.length];
}

function knows(word) {
  return words.has(word) || SMALL.has(word) || words.has(word.replace(/(es|s)$/, "")) || words.has(`${word}s`);
}

function nearest(word) {
  const most = word.length > 4 ? 2 : 1;
  return [...words].map((known) => [apart(word, known, most), known]).filter(([far]) => far <= most).sort()
    .slice(0, 2).map(([, known]) => known);
}

function replaceWord(from, to) {
  const field = $("prompt");
  field.value = field.value.replace(new RegExp(`(?<![\\p{L}\\p{N}])${from}(?![\\p{L}\\p{N}])`, "iu"), to);
  field.focus();
  reading();
}

function reading() {
  const known = $("known"), text = $("prompt").value;
  known.replaceChildren();
  known.classList.remove("unsure");
  suggest(text);
  if (!words || !text.trim()) return;
  const typing = /[\p{L}\p{N}]$/u.test(text) && document.activeElement === $("prompt") ? parts(text).pop() : null;
  const strange = [...new Set(parts(text))].filter((word) => !knows(word))
    .filter((word) => word !== typing || ![...words].some((other) => other.startsWith(word)));
  if (!strange.length) return;
  known.classList.add("unsure");
  known.append(`Not in its training captions: ${strange.join(", ")}. It may draw something else.`);
  for (const word of strange)
    for (const better of nearest(word))
      known.append(" ", el("button", { type: "button", class: "quiet", text: `${better}?`, onclick: () => replaceWord(word, better) }));
}

function suggest(text) {
  const box = $("suggestions");
  box.replaceChildren();
  const begun = (text.match(/[\p{L}\p{N}]{2,}$/u) || [""])[0].toLowerCase();
  if (!words || !begun) return;
  const found = [...words].filter((word) => word.startsWith(begun) && word !== begun).slice(0, 6);
  for (const word of found)
    box.append(el("button", { type: "button", text: word, onclick: () => {
      $("prompt").value = `${text.slice(0, text.length - begun.length)}${word} `;
      $("prompt").focus();
      reading();
    } }));
}

function examples() {
  const all = [...guide.vocabulary.captions];
  $("examples-box").hidden = !all.length;
  $("more").hidden = all.length <= 6;
  $("examples").replaceChildren();
  for (let k = 0; k < 6 && all.length; k++) {
    const [caption] = all.splice(Math.floor(Math.random() * all.length), 1);
    $("examples").append(el("button", { type: "button", text: caption, onclick: () => {
      $("prompt").value = caption;
      $("prompt").focus();
      reading();
    } }));
  }
}

async function begin() {
  try {
    guide = await (await ask("v1/guide")).json();
  } catch (error) {
    say(error.status === 401 ? "This server wants an API key." : `The server cannot be asked: ${error.message}`);
    $("model").textContent = "";
    return;
  }
  say("");
  words = guide.vocabulary.words && new Set(guide.vocabulary.words);
  const made = guide.frames ? `films of ${guide.frames} frames, ` : "";
  const told = words ? `, from ${guide.vocabulary.words.length.toLocaleString()} words` : "";
  $("model").textContent = `${guide.model.id}, version ${guide.model.version}: ${made}${guide.model.size.replace("x", " × ")} pixels${told}`;
  document.title = `${guide.model.id} · cleanplate`;
  limit("n", Math.min(guide.max_images, 8), Math.min(2, guide.max_images));
  limit("steps", guide.max_steps, guide.model.steps);
  limit("guidance", Math.min(guide.max_guidance_scale, 12), guide.model.guidance_scale);
  $("prompt").maxLength = guide.max_prompt_chars;
  $("attribution").checked = guide.attribution;
  $("attribution-tick").hidden = !guide.attribution;
  $("sampler").replaceChildren(...guide.samplers.map((name) => el("option", { text: name, value: name, selected: name === guide.model.sampler })));
  examples();
  fromLink();
  reading();
}

function limit(name, most, silent) {
  $(name).max = most;
  $(name).value = silent;
  show($(name));
}

function show(slider) {
  document.querySelector(`output[for="${slider.id}"]`).textContent = slider.value;
}

// ---- Asking for pictures ----------------------------------------------------------------------------------------

function wordings() {
  const all = [$("prompt"), ...document.querySelectorAll("#variants input")].map((field) => field.value.trim());
  return [...new Set(all.filter(Boolean))];
}

function settings() {
  const seed = $("seed").value === "" ? Math.floor(Math.random() * 2 ** 31) : Number($("seed").value);
  const negative = $("negative").value.trim(), guidance = Number($("guidance").value);
  return {
    n: Number($("n").value), num_inference_steps: Number($("steps").value), guidance_scale: guidance, seed,
    sampler: $("sampler").value, ...(negative && guidance > 1 ? { negative_prompt: negative } : {}),
    ...($("attribution").checked ? { attribution: true } : {}),
  };
}

async function draw(event) {
  event.preventDefault();
  const prompts = wordings();
  if (!prompts.length || stopping) return;
  say("");
  const asked = settings();
  stopping = new AbortController();
  working(true);
  const round = el("section", { class: "round" });
  const about = el("p", { class: "about" }, el("span", { text: `seed ${asked.seed}` }), el("span", { text: `${asked.num_inference_steps} steps` }),
    el("span", { text: `guidance ${asked.guidance_scale}` }), el("span", { text: asked.sampler }), el("span", { text: `version ${guide.model.version}` }));
  const columns = el("div", { class: "wordings" });
  columns.style.setProperty("--columns", Math.min(prompts.length, 4));
  round.append(about, columns);
  $("empty")?.remove();
  $("gallery").prepend(round);
  while ($("gallery").children.length > MOST_ROUNDS) $("gallery").lastElementChild.remove();
  if (matchMedia("(max-width: 820px)").matches) round.scrollIntoView({ block: "start" });
  const results = await Promise.allSettled(prompts.map((prompt) => drawOne(prompt, asked, columns)));
  const drawn = results.reduce((sum, result) => sum + (result.value || 0), 0);
  if (drawn) $("progress").textContent = drawn === 1 ? "One picture drawn." : `${drawn} pictures drawn.`;
  stopping = null;
  working(false);
}

function working(on) {
  $("draw").disabled = on;
  $("stop").hidden = !on;
  if (on) $("progress").textContent = "Drawing …";
}

async function drawOne(prompt, asked, columns) {
  const pictures = el("div", { class: "pictures" });
  columns.append(el("article", { class: "wording" }, el("h3", { text: prompt }), pictures));
  const figures = Array.from({ length: asked.n }, (_, k) => {
    const figure = el("figure", { "aria-busy": "true" }, el("div", { class: "frame waiting" }));
    pictures.append(figure);
    return figure;
  });
  let drawn = 0;
  try {
    const body = { prompt, ...asked, stream: true, partial_images: $("previews").checked ? 3 : 0 };
    const answer = await ask("v1/images/generations", {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal: stopping.signal,
    });
    for await (const event of events(answer)) {
      if (event.type === "error") throw new Refused(0, event.error);
      const figure = figures[event.image_index || 0];
      if (event.type === "image_generation.partial_image") preview(figure, event, prompt);
      else if (event.type === "image_generation.completed") {
        finished(figure, event, prompt, asked);
        drawn += event.b64_json ? 1 : 0;
      }
    }
  } catch (error) {
    unfinished(figures, error);
  }
  return drawn;
}

const source = (event) => `data:image/${event.output_format};base64,${event.b64_json}`;

function picture(event, alt) {
  const small = Number(event.size.split("x")[0]) < 128;
  return el("img", { src: source(event), alt, class: small ? "small" : null });
}

function preview(figure, event, prompt) {
  const frame = figure.querySelector(".frame");
  frame.style.setProperty("--done", event.step / event.steps);
  frame.replaceChildren(picture(event, `${prompt}, unfinished`));
}

function unfinished(figures, error) {
  const open = figures.filter((figure) => figure.getAttribute("aria-busy"));
  const stopped = error.name === "AbortError";
  const [title, why] = stopped ? ["Stopped", ""] : refusal(error);
  for (const figure of open.slice(1)) figure.remove();
  if (open.length) {
    open[0].removeAttribute("aria-busy");
    open[0].replaceChildren(el("div", { class: "frame" }, el("p", { class: "why" }, el("strong", { text: title }), why)));
  }
  if (!stopped) $("progress").textContent = `${title}. ${why}`;
}

function refusal(error) {
  const found = error.detail?.moderation_details?.categories;
  if (error.detail?.code === "moderation_blocked")
    return ["Not drawn", `The wording breaks this server's rules (${(found || []).map(plain).join(", ")}). Another wording may do.`];
  if (error.status === 429 || error.status === 503)
    return ["Not now", `${error.message}${error.wait ? ` Try again in ${error.wait} s.` : ""}`];
  return ["Not drawn", error.message];
}

const plain = (category) => category.replace("/", ", ").replaceAll("-", " ");

// ---- A finished picture -----------------------------------------------------------------------------------------

function finished(figure, event, prompt, asked) {
  figure.removeAttribute("aria-busy");
  const said = event.moderation || [];
  const frame = el("div", { class: "frame" });
  if (event.b64_json) {
    frame.append(picture(event, prompt));
    const badge = badgeOf(event, said);
    if (badge) frame.append(el("span", { class: "badge", text: badge }));
  } else frame.append(el("p", { class: "why" }, el("strong", { text: "Withheld" }), whyWithheld(event, said)));
  figure.replaceChildren(frame, caption(event, prompt, asked));
}

function badgeOf(event, said) {
  const acted = said.filter((entry) => entry.action === (event.finish_reason === "content_filtered" ? "blur" : "flag"));
  const which = [...new Set(acted.map((entry) => plain(entry.category)))].join(", ");
  if (event.finish_reason === "content_filtered") return `blurred: ${which}`;
  if (event.near_copy && event.near_copy.action === "flag") return "close to a training picture";
  return which ? `flagged: ${which}` : "";
}

function whyWithheld(event, said) {
  if (event.finish_reason === "near_copy") return "It came out too close to a picture the model was trained on. Another seed may do.";
  const which = [...new Set(said.filter((entry) => entry.action === "block").map((entry) => plain(entry.category)))].join(", ");
  if (which === "unjudged") return "It could not be checked, so it is not shown.";
  return `It looks like what this server does not show (${which}).`;
}

function caption(event, prompt, asked) {
  const link = new URLSearchParams({ prompt, seed: event.seed, steps: event.steps, guidance: event.guidance_scale, sampler: event.sampler });
  if (asked.negative_prompt) link.set("negative", asked.negative_prompt);
  const again = el("p", { role: "status" });
  const row = el("div", { class: "row" }, el("a", { href: `#${link}`, text: `seed ${event.seed}`, title: "a link to these settings" }));
  if (event.b64_json) row.append(el("a", { href: source(event), download: `${event.id || event.seed}.${event.output_format}`, text: "save" }));
  if (guide.records && event.b64_json)
    row.append(el("button", { type: "button", class: "quiet", text: "draw again", title: "and compare every pixel", onclick: () => reproduce(event, prompt, asked, again) }));
  const marks = [event.credentials && "signed", event.watermark && "watermarked"].filter(Boolean);
  return el("figcaption", {}, row, el("span", { class: "marks", text: marks.join(" · ") }), again, attribution(event));
}

async function reproduce(event, prompt, asked, where) {
  where.textContent = "Drawing it again …";
  try {
    const body = { prompt, ...(asked.negative_prompt ? { negative_prompt: asked.negative_prompt } : {}) };
    const answer = await ask(`v1/images/${event.id}/reproduce`, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
    const equal = (await answer.json()).reproduction.pixels_equal;
    where.textContent = equal === null ? "Nothing to compare." : equal ? "The same, pixel for pixel." : "It came out differently.";
  } catch (error) {
    where.textContent = error.message;
  }
}

function attribution(event) {
  if (!event.attribution || !event.attribution.length) return null;
  const list = el("ul", { class: "near" });
  for (const near of event.attribution) {
    const shown = near.thumbnail && near.thumbnail.startsWith("data:image/");
    list.append(el("li", {},
      shown ? el("img", { src: near.thumbnail, alt: "" }) : el("span", { class: "none" }),
      el("span", {}, el("b", { text: near.creator || "creator not stated" }), ` · ${near.licence || "licence not stated"} · ${near.similarity.toFixed(2)} alike`,
        near.uri ? el("br") : null, near.uri ? place(near.uri) : null)));
  }
  return el("details", {}, el("summary", { text: `${event.attribution.length} nearest training pictures` }), list);
}

function place(uri) {
  const web = /^https?:\/\//.test(uri);
  return web ? el("a", { href: uri, rel: "noreferrer noopener", target: "_blank", text: uri }) : el("span", { text: uri });
}

// A link's settings, from behind its #, which no server sees.
function fromLink() {
  const told = new URLSearchParams(location.hash.slice(1));
  if (!told.has("prompt")) return;
  $("prompt").value = told.get("prompt");
  for (const [name, field] of [["seed", "seed"], ["steps", "steps"], ["guidance", "guidance"], ["sampler", "sampler"], ["negative", "negative"]])
    if (told.has(name)) $(field).value = told.get(name);
  $("n").value = 1;
  for (const slider of document.querySelectorAll('input[type="range"]')) show(slider);
  $("prompt").focus();
}

// ---- Whether a picture is from here -----------------------------------------------------------------------------

async function verify(file) {
  const box = $("verdict");
  if (!file) return;
  box.replaceChildren(el("p", { class: "note", text: `Looking at ${file.name} …` }));
  try {
    const answer = await ask("v1/images/verify", { method: "POST", headers: { "Content-Type": file.type || "application/octet-stream" }, body: file });
    box.replaceChildren(verdict(file, await answer.json()));
  } catch (error) {
    box.replaceChildren(el("div", { class: "verdict bad" }, el("p", { text: error.message })));
  }
}

function verdict(file, found) {
  const mood = { ours: "good", marked: "good", altered: "bad" }[found.verdict] || "";
  const facts = el("dl");
  const tell = (name, value) => value === null || value === undefined || value === "" || facts.append(el("dt", { text: name }), el("dd", { text: String(value) }));
  tell("file", `${file.name}, ${found.width} × ${found.height}`);
  tell("credentials", found.credentials.says);
  tell("watermark", found.watermark.says);
  tell("pixels", found.pixels_equal === null || found.pixels_equal === undefined ? null : found.pixels_equal ? "as they were signed" : "changed since");
  tell("picture", found.image_id);
  return el("div", { class: `verdict ${mood}` }, el("p", { text: found.says }), facts);
}

function dropping() {
  const box = $("drop");
  for (const name of ["dragenter", "dragover"]) addEventListener(name, (event) => { event.preventDefault(); box.classList.add("over"); });
  for (const name of ["dragleave", "drop"]) addEventListener(name, (event) => { event.preventDefault(); box.classList.remove("over"); });
  addEventListener("drop", (event) => verify(event.dataTransfer.files[0]));
  $("file").addEventListener("change", () => verify($("file").files[0]));
}

// ---- Together ---------------------------------------------------------------------------------------------------

function variant() {
  const count = document.querySelectorAll(".variant").length;
  if (count >= 3) return;
  const field = el("input", { type: "text", "aria-label": `Wording ${count + 2}`, value: $("prompt").value });
  const row = el("div", { class: "variant" }, field, el("button", { type: "button", text: "×", "aria-label": "Remove this wording", onclick: () => {
    row.remove();
    $("add").hidden = false;
    $("add").focus();
  } }));
  $("variants").append(row);
  $("add").hidden = count === 2;
  field.focus();
  field.select();
}

$("form").addEventListener("submit", draw);
$("stop").addEventListener("click", () => stopping?.abort());
$("add").addEventListener("click", variant);
$("more").addEventListener("click", examples);
$("prompt").addEventListener("input", reading);
$("prompt").addEventListener("blur", reading);
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("form").requestSubmit();
  }
});
for (const slider of document.querySelectorAll('input[type="range"]')) slider.addEventListener("input", () => show(slider));
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const key = $("key-field").value.trim();
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
  $("key-field").value = "";
  $("key").open = false;
  begin();
});
addEventListener("hashchange", fromLink);
dropping();
begin();
