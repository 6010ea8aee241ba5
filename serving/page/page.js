// The page for people: asks the server what it draws, then for pictures. It asks this server alone.

import { $, el, say } from "./dom.js";
import { finished, preview, refusal, unfinished, waiting } from "./pictures.js";
import { Refused, ask, events, post, use } from "./server.js";
import { another, fromLink, offer, settings, slide, wordings } from "./settings.js";
import { dropping } from "./verify.js";
import { examples, know, read } from "./words.js";

const MOST_ROUNDS = 40;
const PREVIEWS = 3;
const DRAWING = "Drawing …";
let guide = null, stopping = null;

async function begin() {
  try {
    guide = await (await ask("v1/guide")).json();
  } catch (error) {
    $("model").textContent = "";
    if (error.status === 401) askForKey(error);
    else say(`The server cannot be asked: ${error.message}`);
    return;
  }
  say();
  const { model, frames, vocabulary } = guide;
  const film = frames ? `films of ${frames} frames, ` : "";
  const told = vocabulary.words ? `, knows ${vocabulary.words.length.toLocaleString("en")} words` : "";
  $("model").textContent = `${model.id}, version ${model.version}: ${film}${model.size.replace("x", " × ")} pixels${told}`;
  document.title = `${model.id} · cleanplate`;
  offer(guide);
  know(vocabulary);
  fromLink();
  read();
  working(false);
}

function askForKey(error) {
  say(error.detail.code === "missing_api_key" ? "This server wants an API key." : error.message);
  $("key").open = true;
  $("key-field").focus();
}

// Nothing is drawn before the server has said what it draws.
function working(on) {
  $("form").setAttribute("aria-busy", on);
  $("draw").disabled = on;
  $("stop").hidden = !on;
}

async function draw(event) {
  event.preventDefault();
  const prompts = wordings();
  if (!guide || !prompts.length || stopping) return;
  say();
  stopping = new AbortController();
  working(true);
  $("progress").textContent = DRAWING;
  const asked = settings(), place = round(asked, prompts.length);
  const drawn = (await Promise.all(prompts.map((prompt) => drawOne(prompt, asked, place)))).reduce((sum, one) => sum + one);
  if (drawn) $("progress").textContent = drawn === 1 ? "One picture drawn." : `${drawn} pictures drawn.`;
  else if ($("progress").textContent === DRAWING) $("progress").textContent = "Nothing can be shown of it.";
  stopping = null;
  working(false);
}

// A place for pictures on top of those that are there: that of their columns, one for each wording, and who is told which
// version drew one. The alias may have moved since the page was opened, and a challenger draws for some.
function round(asked, count) {
  const columns = el("div", { class: "wordings" });
  columns.style.setProperty("--columns", count);
  const facts = [`seed ${asked.seed}`, `${asked.num_inference_steps} steps`, `guidance ${asked.guidance_scale}`, asked.sampler];
  const version = el("span", { text: `version ${guide.model.version}` }), versions = new Set();
  const about = el("p", { class: "about" }, ...facts.map((text) => el("span", { text })), version);
  const made = el("section", { class: "round" }, about, columns);
  $("empty")?.remove();
  $("gallery").prepend(made);
  while ($("gallery").children.length > MOST_ROUNDS) $("gallery").lastElementChild.remove();
  if (matchMedia("(max-width: 820px)").matches) made.scrollIntoView({ block: "start" });
  const by = (name) => {
    versions.add(name);
    version.textContent = `version ${[...versions].join(", ")}`;
  };
  return { columns, by };
}

// How many pictures came of one wording.
async function drawOne(prompt, asked, { columns, by }) {
  const figures = Array.from({ length: asked.n }, waiting);
  columns.append(el("article", { class: "wording" }, el("h3", { text: prompt }), el("div", { class: "pictures" }, ...figures)));
  const about = { prompt, asked, records: guide.records };
  let drawn = 0;
  try {
    const body = { prompt, ...asked, stream: true, partial_images: $("previews").checked ? PREVIEWS : 0 };
    const answer = await post("v1/images/generations", body, { signal: stopping.signal });
    for await (const event of events(answer)) {
      if (event.type === "error") throw new Refused(0, event.error);
      const figure = figures[event.image_index || 0];
      if (event.type === "image_generation.partial_image") preview(figure, event, prompt);
      else if (event.type === "image_generation.completed") {
        finished(figure, event, about);
        by(event.model_version);
        drawn += event.b64_json ? 1 : 0;
      }
    }
    unfinished(figures, "Not drawn", "The answer broke off."); // who was waited for and did not come, if anybody
  } catch (error) {
    const [title, why] = refusal(error);
    unfinished(figures, title, why);
    $("progress").textContent = `${title}. ${why}`;
    if (error.status === 401) askForKey(error);
  }
  return drawn;
}

$("form").addEventListener("submit", draw);
$("stop").addEventListener("click", () => stopping?.abort());
$("add").addEventListener("click", another);
$("more").addEventListener("click", examples);
$("prompt").addEventListener("input", read);
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("form").requestSubmit();
  }
});
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  use($("key-field").value.trim());
  $("key-field").value = "";
  $("key").open = false;
  begin();
});
addEventListener("hashchange", fromLink);
slide();
dropping();
begin();
