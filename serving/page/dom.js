// Elements of the page. Whatever anybody wrote is put in as text, never as HTML.

export const $ = (id) => document.getElementById(id);

// An element: el("p", {class: "note", text: "…", onclick: f}, child, child).
export function el(name, about = {}, ...children) {
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

// What concerns the whole page; nothing takes it away.
export function say(message = "") {
  $("notice").textContent = message;
  $("notice").hidden = !message;
}
