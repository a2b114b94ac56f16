const $ = id => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const images = Object.entries(data.images).map(([number, image]) => ({ ...image, number }));
const make = (tag, text = "", name = "") => {
  const element = document.createElement(tag);
  element.textContent = text;
  if (name) element.className = name;
  return element;
};
const same = (a, b) => a.length === b.length && a.every((x, i) => x === b[i]);
const isRight = image => same(image.label, image.said);
const named = classes => classes.map(k => data.classes[k]).join(", ") || "no label";

// Small images are enlarged as squares.
const fill = (element, source) => {
  element.addEventListener("load", () => element.classList.toggle("small", element.naturalWidth <= 64));
  element.src = source;
};
document.querySelectorAll("img[data-image]").forEach(element => fill(element, data.images[element.dataset.image].picture));

const answer = image => {
  const words = [make("b", named(image.label))];
  if (data.several) {
    const missed = image.label.filter(k => !image.said.includes(k)), wrongly = image.said.filter(k => !image.label.includes(k));
    if (missed.length) words.push(", missed ", make("b", named(missed), "bad"));
    if (wrongly.length) words.push(", wrongly given ", make("b", named(wrongly), "bad"));
  } else if (!isRight(image)) words.push(", taken for ", make("b", named(image.said), "bad"));
  if (!data.several) words.push(` ${image.top[0][1]} %`);
  return words;
};

// Which images show, in which order.
let cell = null, shown = [], limit = 48;
const filters = {
  all: () => true,
  right: isRight,
  wrong: image => !isRight(image),
  issue: image => image.issue !== undefined,
};
const inCell = (image, [a, b]) => data.several
  ? (b === 0) === image.label.includes(a) && (b === 1) === image.said.includes(a)
  : image.label[0] === a && image.said[0] === b;
const orders = {
  loss: (a, b) => b.loss - a.loss,
  margin: (a, b) => a.margin - b.margin,
  sure: (a, b) => b.margin - a.margin,
  name: (a, b) => words.compare(a.name, b.name),
  issue: (a, b) => (a.issue ?? Infinity) - (b.issue ?? Infinity),
};
const tile = image => {
  const figure = make("figure"), button = make("button", "", "picture"), element = make("img"), caption = make("figcaption");
  button.type = "button";
  button.setAttribute("aria-label", image.name);
  element.alt = "";
  fill(element, image.picture);
  button.append(element);
  button.addEventListener("click", () => view(shown.indexOf(image), shown));
  const name = make("span", image.name, "name");
  name.title = image.name;
  caption.append(...answer(image), name);
  if (image.issue !== undefined && image.instead !== image.said[0]) caption.append(make("span", `rather ${data.classes[image.instead]}?`));
  figure.append(button, caption);
  return figure;
};
const show = (more = false) => {
  if (!more) limit = 48;
  const which = filters[$("which").value], chosen = $("class").value;
  const [least, most] = $("least") ? [Number($("least").value), Number($("most").value)] : [0, 100];
  shown = images.filter(image => (cell ? inCell(image, cell) : which(image))
    && (!chosen || image.label.includes(Number(chosen)) || image.said.includes(Number(chosen)))
    && image.sure >= least && image.sure <= most);
  shown.sort(orders[$("order").value]);
  $("tiles").replaceChildren(...shown.slice(0, limit).map(tile));
  $("more").hidden = shown.length <= limit;
  $("cell").hidden = !cell;
  const all = cell && document.querySelector(`[data-cell="${cell}"]`);
  const isWhole = !chosen && least <= 0 && most >= 100, total = all ? Number(all.dataset.count) : data.total[$("which").value];
  const some = images.length < data.total.all ? " in this page" : "";
  $("count").textContent = isWhole && total > shown.length ? `${shown.length} of ${total} images${some}` : `${shown.length} image${shown.length === 1 ? "" : "s"}${some}`;
  if (all) $("cell").textContent = `${all.getAttribute("aria-label").replace(/: \d+$/, "")} ✕`;
  document.querySelectorAll("[data-cell]").forEach(other => other.setAttribute("aria-pressed", other === all));
};
for (const id of ["which", "order", "class", "least", "most"]) $(id)?.addEventListener("change", () => {
  if (id === "which") {
    cell = null;
    if ($("which").value === "issue" || $("order").value === "issue") $("order").value = $("which").value === "issue" ? "issue" : "loss";
  }
  show();
});
$("more").addEventListener("click", () => { limit *= 4; show(true); });
$("cell").addEventListener("click", () => { cell = null; show(); });
document.querySelectorAll("[data-cell]").forEach(button => button.addEventListener("click", () => {
  cell = button.dataset.cell.split(",").map(Number);
  show();
  $("images").scrollIntoView();
}));
$("shares")?.addEventListener("click", () => {
  const pressed = $("shares").getAttribute("aria-pressed") !== "true";
  $("shares").setAttribute("aria-pressed", pressed);
  document.querySelectorAll(".matrix [data-cell]").forEach(button => { button.textContent = pressed ? button.dataset.percent : button.dataset.count; });
});

// One image, large.
const [photo, map] = document.querySelectorAll(".photo img");
let at = 0, viewed = [];
const heat = () => document.querySelector(".photo").style.setProperty("--heat", map.hidden ? 0 : $("opacity").value / 100);
const view = (place, among = viewed) => {
  if (!among[place]) return;
  [at, viewed] = [place, among];
  const image = viewed[at];
  fill(photo, image.picture);
  photo.alt = image.name;
  map.hidden = $("looked").hidden = !image.heat;
  if (image.heat) map.src = image.heat;
  heat();
  $("viewer-name").textContent = image.name;
  $("answer").replaceChildren(...answer(image));
  if (image.issue !== undefined) $("answer").append(`; number ${image.issue + 1} of the labels to check: rather ${data.classes[image.instead]}?`);
  $("top").replaceChildren(...image.top.map(([k, percent]) => {
    const row = make("tr", "", image.label.includes(k) ? "true" : ""), share = make("td", `${percent} %`, "bar");
    share.style.setProperty("--share", percent / 100);
    row.append(make("td", data.classes[k] + (image.label.includes(k) ? " (true)" : "")), share);
    return row;
  }));
  $("place").textContent = `${at + 1} of ${viewed.length}`;
  $("before").disabled = at === 0;
  $("after").disabled = at === viewed.length - 1;
  if (!$("viewer").open) $("viewer").showModal();
};
$("opacity").addEventListener("input", heat);
$("before").addEventListener("click", () => view(at - 1));
$("after").addEventListener("click", () => view(at + 1));
$("close").addEventListener("click", () => $("viewer").close());
$("viewer").addEventListener("keydown", event => {
  if (event.target.type === "range") return;
  if (event.key === "ArrowLeft") view(at - 1);
  if (event.key === "ArrowRight") view(at + 1);
});
document.querySelectorAll("[data-open]").forEach(button => button.addEventListener("click", () => {
  const beside = [...button.closest(".tiles").querySelectorAll("[data-open]")].map(other => images.find(image => image.number === other.dataset.open));
  view(beside.findIndex(image => image.number === button.dataset.open), beside);
}));

if (!images.some(filters.wrong)) $("which").value = "all";
show();
