// Whether a picture is from here: a file is chosen, or dropped anywhere on the page.

import { $, el } from "./dom.js";
import { ask } from "./server.js";

const MOODS = { ours: "good", marked: "good", altered: "bad" };

async function verify(file) {
  if (!file) return;
  $("verdict").replaceChildren(el("p", { class: "note", text: `Looking at ${file.name} …` }));
  try {
    const headers = { "Content-Type": file.type || "application/octet-stream" };
    const answer = await ask("v1/images/verify", { method: "POST", headers, body: file });
    $("verdict").replaceChildren(verdict(file, await answer.json()));
  } catch (error) {
    $("verdict").replaceChildren(el("div", { class: "verdict bad" }, el("p", { text: error.message })));
  }
}

function verdict(file, found) {
  const facts = el("dl");
  const tell = (name, value) => value && facts.append(el("dt", { text: name }), el("dd", { text: String(value) }));
  tell("file", `${file.name}, ${found.width} × ${found.height}`);
  tell("credentials", found.credentials.says);
  tell("watermark", found.watermark.says);
  tell("pixels", { true: "as they were signed", false: "changed since" }[found.pixels_equal]);
  tell("picture", found.image_id);
  return el("div", { class: `verdict ${MOODS[found.verdict] || ""}` }, el("p", { text: found.says }), facts);
}

export function dropping() {
  const over = (on) => (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", on);
  };
  for (const name of ["dragenter", "dragover"]) addEventListener(name, over(true));
  for (const name of ["dragleave", "drop"]) addEventListener(name, over(false));
  addEventListener("drop", (event) => verify(event.dataTransfer.files[0]));
  $("file").addEventListener("change", () => verify($("file").files[0]));
}
