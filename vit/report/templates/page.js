const words = new Intl.Collator(undefined, { numeric: true });
document.querySelectorAll("th > button").forEach(button => button.addEventListener("click", () => {
  const head = button.parentNode, row = head.parentNode, body = head.closest("table").tBodies[0];
  const column = [...row.cells].indexOf(head), isText = head.classList.contains("text");
  const before = head.getAttribute("aria-sort"), rising = before ? before === "descending" : isText;
  const text = line => line.cells[column].textContent.trim();
  const number = line => { const found = parseFloat(text(line).replace(/,/g, "")); return isNaN(found) ? -Infinity : found; };
  const compare = isText ? (a, b) => words.compare(text(a), text(b)) : (a, b) => number(a) - number(b);
  for (const other of row.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", rising ? "ascending" : "descending");
  body.append(...[...body.rows].sort((a, b) => rising ? compare(a, b) : compare(b, a)));
}));
