"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const make = (tag, text = "", name = "") => {
  const element = document.createElement(tag);
  element.textContent = text;
  if (name) element.className = name;
  return element;
};

// Each image stands once in the page, however often it is shown; small ones are enlarged as squares.
const fill = (image, source) => {
  image.addEventListener("load", () => image.classList.toggle("small", image.naturalWidth <= 48));
  image.src = source;
};
document.querySelectorAll("img[data-image]").forEach(image => fill(image, data.thumbnails[image.dataset.image]));
document.querySelectorAll("img[data-overlay]").forEach(image => fill(image, data.overlays[image.dataset.overlay]));

const words = new Intl.Collator(undefined, { numeric: true });
document.querySelectorAll("th > button").forEach(button => button.addEventListener("click", () => {
  const head = button.parentNode, row = head.parentNode, body = head.closest("table").tBodies[0];
  const column = [...row.cells].indexOf(head);
  const isText = head.classList.contains("text");
  const before = head.getAttribute("aria-sort");
  const rising = before ? before === "descending" : isText;
  const value = line => line.cells[column].textContent.trim();
  const compare = isText ? (a, b) => words.compare(value(a), value(b)) : (a, b) => Number(value(a)) - Number(value(b));
  for (const other of row.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", rising ? "ascending" : "descending");
  body.append(...[...body.rows].sort((a, b) => rising ? compare(a, b) : compare(b, a)));
}));

const opened = document.getElementById("opened");
const open = button => {
  const key = button.dataset.cell, [label, predicted] = key.split(",").map(k => data.classes[k]);
  const numbers = data.cells[key] || [], count = Number(button.dataset.count);
  document.querySelectorAll("button[data-cell]").forEach(other => other.setAttribute("aria-pressed", other === button));
  const title = button.dataset.title ?? (label === predicted ? `${label}, recognised` : `${label}, taken for ${predicted}`);
  const shown = numbers.length < count ? `${numbers.length} of ${count} images` : `${count} image${count === 1 ? "" : "s"}`;
  const order = button.dataset.order ?? (label === predicted ? "the least certain first" : "the highest loss first");
  const images = make("div", "", "images");
  for (const number of numbers) {
    const figure = make("figure"), image = make("img"), caption = make("figcaption"), about = data.captions[number];
    image.alt = about.name;
    fill(image, data.thumbnails[number]);
    const name = make("span", about.name, "name");
    name.title = about.name;
    caption.append(about.text ?? `${about.percent} %`, name);
    figure.append(image, caption);
    images.append(figure);
  }
  opened.replaceChildren(make("h3", title), make("p", numbers.length > 1 ? `${shown}, ${order}.` : `${shown}.`, "soft"), images);
};
const cells = [...document.querySelectorAll("button[data-cell]")];
cells.forEach(button => button.addEventListener("click", () => {
  open(button);
  opened.scrollIntoView({ block: "nearest" });
}));
const first = cells.filter(button => button.dataset.wrong).sort((a, b) => b.dataset.count - a.dataset.count)[0];
if (first) open(first);
