"use strict";

{ // Problem by problem: a map of shares, and a dialog with the raw answers of one problem.
const dialog = document.getElementById("answers");
const container = document.getElementById("heatmap");
const ORDERS = ["Hardest first", "Most disagreement first", "As in the benchmark"];
const WIDE_CELL = 9;
const state = { place: 0, order: 0 };
let current; // { problems, columns, rows, cells } of the map that is shown

// Characters that a reader would not see, or that turn the text around, are shown by their code.
const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;
function shown(text) {
  const parts = [];
  let last = 0;
  for (const found of text.matchAll(UNSEEN)) {
    const code = found[0].codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    parts.push(text.slice(last, found.index), element("span", { class: "control" }, `U+${code}`));
    last = found.index + 1;
  }
  return [...parts, text.slice(last)];
}

function columnsOf(problems) {
  const shares = problems.shares.filter(Boolean);
  if (state.order === 0) return problems.hardest;
  const places = problems.ids.map((_, i) => i);
  if (state.order === 2) return places;
  const range = places.map((i) => Math.max(...shares.map((line) => line[i])) - Math.min(...shares.map((line) => line[i])));
  return places.sort((a, b) => range[b] - range[a] || a - b);
}

const labelOf = (row, column) => {
  const { problems, rows, columns } = current;
  const share = problems.shares[rows[row]][columns[column]];
  return `${board.lines[rows[row]].label}, problem ${problems.ids[columns[column]]}: ${percent(share)} % right`;
};

function drawMap() {
  const problems = board.problems[state.place];
  const rows = board.lines.map((_, i) => i).filter((i) => problems.shares[i]);
  const columns = columnsOf(problems);
  const cells = rows.map(() => []);
  const wide = container.clientWidth / columns.length > WIDE_CELL;
  const grid = element("div", { class: "map", role: "grid", "aria-label": `Share of right answers on ${problems.key}`, "aria-rowcount": rows.length, "aria-colcount": columns.length + 1 },
    ...rows.map((line, row) => {
      const head = element("div", { role: "rowheader", title: board.lines[line].label }, board.swatch(line), board.lines[line].label);
      return element("div", { role: "row" }, head, ...columns.map((place, column) => {
        const share = problems.shares[line][place];
        const cell = element("div", { role: "gridcell", tabindex: "-1", class: (share < 0.5 ? "lower" : "upper") + (wide ? " wide" : "") });
        cell.style.setProperty("--share", `${100 * (share < 0.5 ? 2 * share : 2 * share - 1)}%`);
        cell.place = [row, column];
        cells[row][column] = cell;
        return cell;
      }));
    }));
  current = { problems, rows, columns, cells, focus: [0, 0] };
  if (rows.length && columns.length) cells[0][0].tabIndex = 0;
  const readout = element("p", { class: "readout note", "aria-live": "polite" }, "");
  container.replaceChildren(mapKey(problems), grid, readout);
  grid.addEventListener("keydown", onKey);
  grid.addEventListener("click", ({ target }) => { if (target.place) { focusCell(...target.place); openAnswers(...target.place); } });
  grid.addEventListener("focusin", ({ target }) => { if (target.place) readOut(readout, target); });
  grid.addEventListener("pointerover", ({ target }) => { if (target.place) readOut(readout, target); });
}

function mapKey(problems) {
  const stored = problems.answers.filter(Boolean).length;
  const kept = stored === problems.ids.length ? "all" : stored;
  return element("p", { class: "map-key" }, "0 %", element("i"), "100 % right", element("span", {}, `${problems.ids.length} problems, raw answers of ${kept}`));
}

function readOut(readout, cell) {
  const [row, column] = cell.place;
  const question = current.problems.questions[current.columns[column]] ?? "";
  cell.setAttribute("aria-label", labelOf(row, column));
  readout.replaceChildren(element("strong", {}, labelOf(row, column)), element("br"), ...shown(question.length > 180 ? `${question.slice(0, 180)}\u2026` : question));
}

function focusCell(row, column) {
  const { cells, focus } = current;
  cells[focus[0]][focus[1]].tabIndex = -1;
  current.focus = [row, column];
  const cell = cells[row][column];
  cell.tabIndex = 0;
  cell.setAttribute("aria-label", labelOf(row, column));
  cell.focus();
}

function onKey(event) {
  const [row, column] = current.focus;
  const [lastRow, lastColumn] = [current.rows.length - 1, current.columns.length - 1];
  const bounded = (value, last) => Math.min(Math.max(value, 0), last);
  const moves = {
    ArrowUp: [row - 1, column], ArrowDown: [row + 1, column], ArrowLeft: [row, column - 1], ArrowRight: [row, column + 1],
    Home: [row, 0], End: [row, lastColumn], PageUp: [row, column - 20], PageDown: [row, column + 20],
  };
  if (event.key === "Enter" || event.key === " ") openAnswers(row, column);
  else if (Object.hasOwn(moves, event.key)) focusCell(bounded(moves[event.key][0], lastRow), bounded(moves[event.key][1], lastColumn));
  else return;
  event.preventDefault();
}

function answerOf(line, answer, share, selected) {
  const verdict = answer ? (answer.correct ? ["\u2713 right", "better"] : ["\u2717 wrong", "worse"]) : ["no stored answer", ""];
  const head = element("h3", {}, board.swatch(line), element("bdi", {}, board.lines[line].label), element("span", { class: `chip ${verdict[1]}` }, verdict[0]),
    element("span", { class: "note" }, share === undefined ? "" : `${percent(share)} % of its answers are right`));
  const node = element("div", { class: selected ? "answer selected" : "answer" }, head);
  if (!answer) return node;
  const read = answer.extracted === null ? ["nothing was extracted"] : ["read as ", element("code", {}, ...shown(answer.extracted))];
  node.append(
    element("p", { class: "note" }, element("bdi", {}, ...shown(answer.run)), ": ", ...read, ...(answer.reason ? [" (", ...shown(answer.reason), ")"] : [])),
    element("pre", { tabindex: "0", "aria-label": "raw answer", dir: "auto" }, ...shown(answer.completion)),
  );
  return node;
}

function openAnswers(row, column) {
  const { problems, rows, columns } = current;
  const place = columns[column];
  const step = (label, to) => {
    const button = element("button", { type: "button", disabled: to < 0 || to >= columns.length }, label);
    button.addEventListener("click", () => openAnswers(row, to));
    return button;
  };
  const close = element("button", { type: "button", class: "close" }, "Close");
  close.addEventListener("click", () => dialog.close());
  const answers = problems.answers[place];
  const entries = rows.map((line, i) => answerOf(line, answers?.[line] ?? null, problems.shares[line][place], i === row));
  dialog.replaceChildren(
    element("header", {}, element("h2", { id: "answers-title" }, "Problem ", element("bdi", {}, ...shown(problems.ids[place]))),
      step("Previous", column - 1), step("Next", column + 1), close),
    element("div", {},
      element("pre", { class: "question", tabindex: "0", "aria-label": "question", dir: "auto" }, ...shown(problems.questions[place] ?? "The question is not stored.")),
      answers ? "" : element("p", { class: "note" }, "The raw answers to this problem are in the runs' folders, not on this page."),
      ...entries),
  );
  if (!dialog.open) dialog.showModal();
  current.chosen = [row, column];
  close.focus();
  if (answers) entries[row].scrollIntoView({ block: "center" });
}
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
dialog.addEventListener("close", () => { if (current.chosen) focusCell(...current.chosen); });

if (board.problems.length) {
  const controls = document.getElementById("problem-controls");
  if (board.problems.length > 1) controls.append(choice("Benchmark", board.problems.map(({ key }) => key), (place) => { state.place = place; drawMap(); }));
  controls.append(choice("Order", ORDERS, (order) => { state.order = order; drawMap(); }));
  drawMap();
} else {
  container.append(element("p", { class: "note" }, "No finished run stored its answers."));
}
}
