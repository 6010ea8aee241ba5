// What the model knows: words that it was told in training, captions to begin with, a warning where it was told nothing.

import { $, el } from "./dom.js";

const SMALL = new Set("a an the of in on at with and or to by for from is it its as into under over near no not".split(" "));
const EXAMPLES = 6, SUGGESTIONS = 6, PAUSE_MS = 900;
let words = null, captions = [], pause = null;

// Null where the words are not known, or too many to be told: then nothing is said of any word.
export function know(vocabulary) {
  words = vocabulary.words && new Set(vocabulary.words);
  captions = vocabulary.captions;
  examples();
}

const parts = (text) => text.toLowerCase().match(/[\p{L}\p{N}]+/gu) || [];

function knows(word) {
  const near = [word, `${word}s`];
  if (word.endsWith("s")) near.push(word.slice(0, -1));
  if (word.endsWith("es")) near.push(word.slice(0, -2));
  return SMALL.has(word) || near.some((form) => words.has(form));
}

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

function nearest(word) {
  const most = word.length > 4 ? 2 : 1;
  const near = [...words].map((known) => [apart(word, known, most), known]).filter(([far]) => far <= most);
  return near.sort().slice(0, 2).map(([, known]) => known);
}

function put(text) {
  $("prompt").value = text;
  $("prompt").focus();
  read();
}

function instead(from, to) {
  put($("prompt").value.replace(new RegExp(`(?<![\\p{L}\\p{N}])${from}(?![\\p{L}\\p{N}])`, "iu"), () => to));
}

// The prompt as it stands. A word that is being typed is spared until there is a pause.
export function read() {
  const text = $("prompt").value, typing = document.activeElement === $("prompt");
  suggest(text);
  warn(text, typing);
  clearTimeout(pause);
  if (typing) pause = setTimeout(() => warn(text, false), PAUSE_MS);
}

// Says which words the model never saw. What has been said stays as it is: somebody may be about to press its buttons.
function warn(text, typing) {
  if (!words) return;
  const last = typing && /[\p{L}\p{N}]$/u.test(text) ? parts(text).pop() : null;
  const begun = last && [...words].some((word) => word.startsWith(last)) ? last : null;
  const strange = [...new Set(parts(text))].filter((word) => word !== begun && !knows(word));
  const known = $("known"), said = strange.join(", ");
  if (known.dataset.said === said) return;
  known.dataset.said = said;
  known.replaceChildren();
  if (!said) return;
  known.append(`Not in its training captions: ${said}. It may draw something else.`);
  for (const word of strange)
    for (const better of nearest(word))
      known.append(" ", el("button", { type: "button", class: "quiet", text: `${better}?`, onclick: () => instead(word, better) }));
}

function suggest(text) {
  $("suggestions").replaceChildren();
  const begun = (text.match(/[\p{L}\p{N}]{2,}$/u) || [""])[0].toLowerCase();
  if (!words || !begun) return;
  for (const word of [...words].filter((word) => word.startsWith(begun) && word !== begun).slice(0, SUGGESTIONS)) {
    const completed = `${text.slice(0, text.length - begun.length)}${word} `;
    $("suggestions").append(el("button", { type: "button", text: word, onclick: () => put(completed) }));
  }
}

export function examples() {
  const rest = [...captions];
  $("examples-box").hidden = !rest.length;
  $("more").hidden = rest.length <= EXAMPLES;
  $("examples").replaceChildren();
  for (let k = 0; k < EXAMPLES && rest.length; k++) {
    const [caption] = rest.splice(Math.floor(Math.random() * rest.length), 1);
    $("examples").append(el("button", { type: "button", text: caption, onclick: () => put(caption) }));
  }
}
