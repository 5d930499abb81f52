"use strict";

// What the page's scripts share: the data, elements without markup, and how numbers are written. All text on this page
// comes from models, files and specs: it is written as text nodes, never as markup.
const board = JSON.parse(document.getElementById("board-data").textContent);

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

const MINUS = "\u2212";
// One decimal of a number from 0, a tie to the even digit as in the tables: 6.25 is 6.2. Of all ties only x.25 and x.75
// are exact in binary, and toFixed gives x.8 for the latter by itself.
const oneDecimal = (value) => ((4 * value) % 4 === 1 ? value - 0.05 : value).toFixed(1);
const percent = (value) => oneDecimal(100 * value);
const points = (value) => (value <= -0.0005 ? MINUS : "+") + oneDecimal(Math.abs(100 * value));
function scaled(value, step, units) {
  let power = 0;
  while (Math.abs(value) >= step && power < units.length - 1) { value /= step; power += 1; }
  const digits = value >= 100 || power === 0 ? 0 : 1;
  return `${value.toFixed(digits).replace(/\.0$/, "")} ${units[power]}`.trim();
}
const tokens = (value) => scaled(value, 1000, ["", "k", "M", "G", "T"]);
const memory = (value) => scaled(value, 1024, ["B", "KiB", "MiB", "GiB", "TiB"]);

document.querySelectorAll(".no-script").forEach((note) => note.remove());

// Theme: the system's, unless the button or the address (#dark, #light) says otherwise.
const root = document.documentElement;
const themeButton = document.getElementById("theme");
const isDark = () => (root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
function nameTheme() { themeButton.textContent = isDark() ? "Light theme" : "Dark theme"; }
if (["#dark", "#light"].includes(location.hash)) root.dataset.theme = location.hash.slice(1);
themeButton.hidden = false;
themeButton.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; nameTheme(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", nameTheme);
nameTheme();

// A link to a run opens it, and the line's drawer around it.
function openTarget() {
  let name = location.hash.slice(1);
  try { name = decodeURIComponent(name); } catch { return; } // an address that is not percent-encoded names nothing here
  const target = document.getElementById(name);
  for (let node = target; node; node = node.parentElement) if (node instanceof HTMLDetailsElement) node.open = true;
  if (target instanceof HTMLDetailsElement) target.scrollIntoView();
}
addEventListener("hashchange", openTarget);
openTarget();

// Sorting: rows without a value stay last in both directions.
function sortBy(table, column, ascending) {
  const body = table.tBodies[table.tBodies.length - 1];
  const key = (row) => row.cells[column].dataset.value;
  const compare = (a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === "" || y === "") return (x === "") - (y === "");
    const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
    return ascending ? order : -order;
  };
  body.append(...[...body.rows].sort(compare));
}

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      const ascending = now === "descending" || (column === 0 && now === null);
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      sortBy(table, column, ascending);
    });
  });
}

// Copying: where the browser forbids it, the command is selected instead.
for (const button of document.querySelectorAll("button.copy")) {
  button.hidden = false;
  const text = button.parentElement.querySelector("code");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(text);
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}

// Every drawing is made again when its box changes its width.
function drawn(container, draw) {
  let width = 0;
  const redraw = () => {
    const drawing = draw(width);
    if (drawing instanceof SVGElement) { // an image with one description: its marks need no names of their own
      drawing.setAttribute("role", "img");
      drawing.querySelectorAll("[aria-label]").forEach((mark) => mark.removeAttribute("aria-label"));
    }
    container.replaceChildren(drawing);
  };
  new ResizeObserver(([entry]) => {
    const now = Math.floor(entry.contentRect.width);
    if (now > 0 && Math.abs(now - width) > 4) { width = now; redraw(); }
  }).observe(container);
  return () => { if (width) redraw(); };
}

// A labelled choice; `options` are texts, and `choose` gets the place of the chosen one.
function choice(label, options, choose) {
  const select = element("select", {}, ...options.map((text, i) => element("option", { value: i }, text)));
  select.addEventListener("change", () => choose(Number(select.value)));
  return element("label", {}, label, select);
}
