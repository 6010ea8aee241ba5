// A picture on the page: as it is drawn, finished, withheld, or not drawn at all; and what is known of it.

import { el } from "./dom.js";
import { post } from "./server.js";
import { linkTo } from "./settings.js";

const SMALL = 128; // pixels of a side below which every pixel is to be seen
const source = (event) => `data:image/${event.output_format};base64,${event.b64_json}`;
const plain = (category) => category.replace("/", ", ").replaceAll("-", " ");

export function waiting() {
  return el("figure", { "aria-busy": "true" }, el("div", { class: "frame waiting" }));
}

function picture(event, alt) {
  const small = Number(event.size.split("x")[0]) < SMALL;
  return el("img", { src: source(event), alt, class: small ? "small" : null });
}

export function preview(figure, event, prompt) {
  const frame = figure.querySelector(".frame");
  frame.style.setProperty("--done", event.step / event.steps);
  frame.replaceChildren(picture(event, `${prompt}, unfinished`));
}

// `about`: prompt, asked: its settings, records: whether the server remembers it.
export function finished(figure, event, about) {
  figure.removeAttribute("aria-busy");
  const said = event.moderation || [];
  if (!event.b64_json) {
    figure.replaceChildren(reason("Withheld", whyWithheld(event, said)), caption(event, about));
    return;
  }
  const frame = el("div", { class: "frame" }, picture(event, about.prompt));
  const badge = badgeOf(event, said);
  if (badge) frame.append(el("span", { class: "badge", text: badge }));
  figure.replaceChildren(frame, caption(event, about));
}

// One of a round's figures says why; the others, which would say the same, go.
export function unfinished(figures, title, why) {
  const [first, ...others] = figures.filter((figure) => figure.getAttribute("aria-busy"));
  for (const figure of others) figure.remove();
  if (!first) return;
  first.removeAttribute("aria-busy");
  first.classList.add("wide");
  first.replaceChildren(reason(title, why));
}

function reason(title, why) {
  return el("div", { class: "frame" }, el("p", { class: "why" }, el("strong", { text: title }), why));
}

export function refusal(error) {
  if (error.name === "AbortError") return ["Stopped", ""];
  if (error.detail?.code === "moderation_blocked") {
    const found = (error.detail.moderation_details?.categories || []).map(plain).join(", ");
    return ["Not drawn", `The wording breaks this server's rules (${found}). Another wording may do.`];
  }
  if (error.status === 429 || error.status === 503)
    return ["Not now", `${error.message}${error.wait ? ` Try again in ${error.wait} s.` : ""}`];
  return ["Not drawn", error.message];
}

const categories = (said, action) =>
  [...new Set(said.filter((entry) => entry.action === action).map((entry) => plain(entry.category)))].join(", ");

function badgeOf(event, said) {
  if (event.finish_reason === "content_filtered") return `blurred: ${categories(said, "blur")}`;
  if (event.near_copy && event.near_copy.action === "flag") return "close to a training picture";
  const flagged = categories(said, "flag");
  return flagged && `flagged: ${flagged}`;
}

function whyWithheld(event, said) {
  if (event.finish_reason === "near_copy") return "It came out too close to a picture the model was trained on. Another seed may do.";
  const which = categories(said, "block");
  if (which === "unjudged") return "It could not be checked, so it is not shown.";
  return `It looks like what this server does not show (${which}).`;
}

function caption(event, about) {
  const { seed, steps, sampler, guidance_scale: guidance } = event;
  const link = linkTo({ prompt: about.prompt, seed: String(seed), steps, guidance, sampler, negative: about.asked.negative_prompt });
  const again = el("p", { role: "status" });
  const row = el("div", { class: "row" });
  if (event.b64_json) row.append(el("a", { href: source(event), download: `${event.id || seed}.${event.output_format}`, text: "save" }));
  if (event.b64_json && about.records)
    row.append(el("button", { type: "button", class: "quiet", text: "draw again", title: "and compare every pixel", onclick: () => reproduce(event, about, again) }));
  const marks = [event.credentials && "signed", event.watermark && "watermarked"].filter(Boolean).join(" · ");
  return el("figcaption", {},
    el("a", { href: link, text: `seed ${seed}`, title: "a link to these settings" }), row,
    marks ? el("span", { class: "marks", text: marks }) : null, again, attribution(event));
}

async function reproduce(event, about, where) {
  where.textContent = "Drawing it again …";
  const { negative_prompt } = about.asked;
  try {
    const answer = await post(`v1/images/${event.id}/reproduce`, { prompt: about.prompt, ...(negative_prompt ? { negative_prompt } : {}) });
    const equal = (await answer.json()).reproduction.pixels_equal;
    where.textContent = equal === null ? "Nothing to compare." : equal ? "The same, pixel for pixel." : "It came out differently.";
  } catch (error) {
    where.textContent = error.message;
  }
}

function attribution(event) {
  if (!event.attribution?.length) return null;
  const list = el("ul", { class: "near" }, ...event.attribution.map(near));
  return el("details", {}, el("summary", { text: `${event.attribution.length} training pictures`, title: "those that it is nearest to" }), list);
}

function near(found) {
  const shown = found.thumbnail?.startsWith("data:image/");
  return el("li", {},
    shown ? el("img", { src: found.thumbnail, alt: "" }) : el("span", { class: "none" }),
    el("span", {}, el("b", { text: found.creator || "creator not stated" }),
      `${found.licence || "licence not stated"} · ${found.similarity.toFixed(2)} alike`, found.uri ? place(found.uri) : null));
}

// Only web pages are linked to: an address may be anything, as "javascript:…".
function place(uri) {
  const web = /^https?:\/\//.test(uri);
  return web ? el("a", { class: "at", href: uri, rel: "noreferrer noopener", target: "_blank", text: uri }) : el("span", { class: "at", text: uri });
}
