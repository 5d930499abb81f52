"use strict";

{ // The figures, by Observable Plot. Colours are the page's variables, so that a change of theme needs no new drawing.
const DASHES = ["", "7 3", "1.8 3", "7 3 1.8 3"];
const SYMBOLS = ["circle", "square", "diamond", "triangle", "wye", "cross", "star"];
const NARROW = 560;
const NAME_WIDTH = 6.7; // pixels a letter takes at 12 px, on the wide side
const TOP = 30; // room for the name of the y axis above its highest tick
const AXIS = { label: null, tickSize: 0 };
const Y_TICKS = 6;
const GRID_Y = Plot.gridY({ ticks: Y_TICKS, stroke: "var(--rule)", strokeOpacity: 1 });
const xTicks = (width, marginRight) => Math.max(3, Math.min(8, Math.floor((width - marginRight) / 85)));

const colour = (line) => (line.colour === null ? (line.baseline ? "var(--ink)" : "var(--base)") : `var(--line-${line.colour})`);
const face = (line) => (line.hollow ? "var(--card)" : colour(line));
const styleOf = (i) => board.lines[i];
const longestLabel = (lines) => Math.max(0, ...lines.map((i) => NAME_WIDTH * styleOf(i).label.length));
const marginFor = (lines, width) => Math.min(20 + longestLabel(lines), 0.34 * width);
const shortened = (text, room) => (text.length * NAME_WIDTH <= room ? text : `${text.slice(0, Math.max(3, Math.floor(room / NAME_WIDTH) - 1))}\u2026`);
const svg = (tag, attributes, text = "") => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.textContent = text;
  return node;
};

// Least squares under an order (pool adjacent violators), so that labels keep their order and `gap` pixels between them.
function spread(places, gap, low, high) {
  const order = places.map((_, i) => i).sort((a, b) => places[a] - places[b]);
  gap = Math.min(gap, (high - low) / Math.max(places.length - 1, 1));
  const pools = [];
  order.forEach((i, rank) => {
    pools.push({ sum: places[i] - gap * rank, size: 1 });
    while (pools.length > 1 && pools.at(-2).sum / pools.at(-2).size > pools.at(-1).sum / pools.at(-1).size) {
      const last = pools.pop();
      pools.at(-1).sum += last.sum;
      pools.at(-1).size += last.size;
    }
  });
  const fitted = pools.flatMap(({ sum, size }) => Array(size).fill(sum / size));
  const found = [];
  order.forEach((i, rank) => {
    found[i] = Math.min(Math.max(fitted[rank], low), high - gap * (places.length - 1)) + gap * rank;
  });
  return found;
}

// A mark that writes each line's name in the right margin, with a thin leader to its point.
function namesAtRight(ends) {
  return (index, { x, y }, values, { width, height, marginTop, marginRight, marginBottom }) => {
    const group = svg("g", { "aria-hidden": "true" });
    const heights = spread(ends.map((end) => y(end.y)), 14, marginTop - 4, height - marginBottom + 4);
    const left = width - marginRight;
    ends.forEach(({ line, x: at }, i) => {
      const from = [x(at) + 4, y(ends[i].y)];
      const style = styleOf(line);
      group.append(
        svg("path", { class: "leader", d: `M${from} L${Math.max(left, from[0])},${from[1]} L${left + 9},${heights[i]}`, stroke: colour(style) }),
        svg("text", { class: style.baseline ? "name first" : "name", x: left + 12, y: heights[i], dy: "0.32em", "text-anchor": "start" },
          shortened(style.label, marginRight - 14)),
      );
    });
    return group;
  };
}

// A mark that writes each point's name beside it, at the first of these places (right, left, above, ...) that is free;
// where none is, at the one that covers least. A name that is not right beside its point gets a leader.
const PLACES = [[10, 0, "start"], [-10, 0, "end"], [0, -16, "middle"], [0, 18, "middle"], [16, -20, "start"], [16, 20, "start"],
  [-16, -20, "end"], [-16, 20, "end"], [34, -38, "start"], [34, 38, "start"], [-34, -38, "end"], [-34, 38, "end"]];
function namesBeside(named, front) {
  return (index, { x, y }, values, { width, height, marginLeft }) => {
    const group = svg("g", { "aria-hidden": "true" });
    const taken = named.map((point) => [x(point.x) - 7, y(point.y) - 7, x(point.x) + 7, y(point.y) + 7]);
    for (const [i, point] of front.slice(0, -1).entries()) {
      taken.push([x(point.x), y(point.y) - 2, x(front[i + 1].x), y(point.y) + 2]);
      taken.push([x(front[i + 1].x) - 2, y(front[i + 1].y), x(front[i + 1].x) + 2, y(point.y)]);
    }
    const overlap = (a, b) => Math.max(0, Math.min(a[2], b[2]) - Math.max(a[0], b[0])) * Math.max(0, Math.min(a[3], b[3]) - Math.max(a[1], b[1]));
    const inside = [marginLeft, 2, width - 2, height - 30];
    for (const point of named) {
      const style = styleOf(point.line);
      const wide = NAME_WIDTH * style.label.length;
      const options = PLACES.map(([dx, dy, anchor]) => {
        const at = [x(point.x) + dx, y(point.y) + dy];
        const left = anchor === "start" ? at[0] : anchor === "end" ? at[0] - wide : at[0] - wide / 2;
        const box = [left, at[1] - 8, left + wide, at[1] + 8];
        const outside = wide * 16 - overlap(box, inside);
        return { at, dx, dy, anchor, box, cost: taken.reduce((sum, other) => sum + overlap(box, other), 3 * outside) };
      });
      const best = options.reduce((a, b) => (b.cost < a.cost - 0.5 ? b : a));
      taken.push(best.box);
      if (best.dx && best.dy) group.append(svg("path", { class: "leader", d: `M${x(point.x)},${y(point.y)} L${best.at}`, stroke: colour(style) }));
      group.append(svg("text", { class: style.baseline ? "name first" : "name", x: best.at[0], y: best.at[1], dy: "0.32em", "text-anchor": best.anchor }, style.label));
    }
    return group;
  };
}

// Stroke of a line, drawn or on a symbol.
const strokeOf = (line) => ({ stroke: colour(line), strokeWidth: line.baseline ? 2.8 : 1.8, strokeDasharray: DASHES[line.dash] });
const symbolOf = (line, r) => ({ symbol: SYMBOLS[line.symbol], r, fill: face(line), stroke: colour(line), strokeWidth: 1.6 });
const baselineLast = (a, b) => styleOf(a.line).baseline - styleOf(b.line).baseline;
const describe = (parts) => parts.join("; ");

function unitOf(axis, longest) {
  if (axis !== "seconds") return { label: null, scale: 1, write: axis === "peak_memory_bytes" ? memory : axis === "gpu_hours" ? (v) => `${+v.toPrecision(3)}` : tokens };
  const [name, scale] = [["hours", 3600], ["minutes", 60], ["seconds", 1]].find(([, size]) => longest >= 2 * size || size === 1);
  return { label: name, scale, write: (value) => `${+value.toPrecision(3)}` };
}

function forest(width) {
  if (!board.forest.length) return element("p", { class: "note" }, "No line can be compared with the baseline yet.");
  const wide = width >= NARROW;
  const lines = board.forest.map((row) => row.line);
  const order = lines.map((_, i) => i);
  const marginLeft = Math.max(60, Math.min(24 + 1.18 * longestLabel(lines), 0.36 * width));
  const ticks = wide ? 9 : 5;
  const grey = (row) => (row.distinguishable ? colour(styleOf(row.line)) : "var(--grey)");
  const rows = board.forest.map((row, i) => ({ ...row, i, low: 100 * row.low, high: 100 * row.high, value: 100 * row.value, share: row.value }));
  const reach = 1.06 * Math.max(...rows.flatMap((row) => [Math.abs(row.low), Math.abs(row.high)]), 0.5);
  const text = (row) => `${points(row.share)}  [${points(row.low / 100)}, ${points(row.high / 100)}]`;
  return Plot.plot({
    width, height: 34 * rows.length + 48, marginLeft, marginRight: wide ? 150 : 16, marginTop: 6, marginBottom: 36,
    ariaLabel: `Differences to the baseline in percentage points: ${describe(rows.map((row) => `${styleOf(row.line).label} ${text(row)}, ${row.verdict}`))}`,
    x: { ...AXIS, domain: [-reach, reach], label: "percentage points", labelAnchor: "center", labelArrow: "none", ticks, tickFormat: (v) => (v ? points(v / 100).replace(/\.0$/, "") : "0") },
    y: { ...AXIS, domain: order, type: "point", padding: 0.6, axis: null },
    marks: [
      Plot.gridX({ ticks, stroke: "var(--rule)", strokeOpacity: 1 }),
      Plot.ruleX([0], { stroke: "var(--soft)", strokeWidth: 1.4 }),
      Plot.link(rows, { x1: "low", x2: "high", y1: "i", y2: "i", stroke: grey, strokeWidth: 3, strokeLinecap: "round" }),
      Plot.dot(rows, { x: "value", y: "i", r: 5.5, fill: (row) => (row.distinguishable ? grey(row) : "var(--card)"), stroke: grey, strokeWidth: 2.2 }),
      Plot.text(rows, { x: -reach, y: "i", dx: -10, textAnchor: "end", fontSize: 13, text: (row) => shortened(styleOf(row.line).label, (marginLeft - 14) / 1.18),
        fill: (row) => (row.distinguishable ? "var(--ink)" : "var(--soft)"), fontWeight: 600 }),
      wide ? Plot.text(rows, { x: reach, y: "i", dx: 14, textAnchor: "start", fontSize: 12.5, text, fill: (row) => (row.distinguishable ? "var(--ink)" : "var(--soft)") }) : null,
      Plot.tip(rows, Plot.pointerY({ x: "value", y: "i", title: (row) => `${styleOf(row.line).label}\n${text(row)}\n${row.verdict}` })),
    ],
  });
}

// Learning curves: one legend for both panels, the baseline always on.
const curves = { quantity: 0, hidden: new Set() };
function curvePanel(axis) {
  return (width) => {
    const chosen = board.curves[curves.quantity];
    const bands = chosen.axes[axis].filter(({ line }) => !curves.hidden.has(line)).sort(baselineLast);
    if (!bands.length) return element("p", { class: "note" }, "Nothing was logged on this axis.");
    const unit = unitOf(axis, Math.max(...bands.map((band) => band.end)));
    const rows = bands.map(({ line, start, end, mean, low, high }) => ({
      line,
      points: mean.map((value, i) => ({ line, x: (start + ((end - start) * i) / Math.max(mean.length - 1, 1)) / unit.scale, mean: value, low: low[i], high: high[i] })),
    }));
    const all = rows.flatMap((row) => row.points);
    const marginRight = marginFor(rows.map((row) => row.line), width);
    return Plot.plot({
      width, height: Math.max(260, Math.min(400, 0.62 * width)), marginLeft: 44, marginRight, marginTop: TOP, marginBottom: 40,
      ariaLabel: `${chosen.label} against ${axis === "seconds" ? "training time" : "generated tokens"}; last values: ${describe(rows.map((row) => `${styleOf(row.line).label} ${row.points.at(-1).mean}`))}`,
      x: { ...AXIS, label: unit.label ?? "generated tokens", labelAnchor: "center", labelArrow: "none", ticks: xTicks(width, marginRight), tickFormat: unit.write },
      y: { ...AXIS, label: chosen.label, labelArrow: "none", ticks: Y_TICKS, nice: true, insetTop: 2 },
      marks: [
        GRID_Y,
        ...rows.map((row) => Plot.areaY(row.points, { x: "x", y1: "low", y2: "high", fill: colour(styleOf(row.line)), fillOpacity: 0.13 })),
        ...rows.map((row) => Plot.lineY(row.points, { x: "x", y: "mean", ...strokeOf(styleOf(row.line)) })),
        namesAtRight(rows.map((row) => ({ line: row.line, x: row.points.at(-1).x, y: row.points.at(-1).mean }))),
        Plot.tip(all, Plot.pointer({ x: "x", y: "mean", title: (point) => `${styleOf(point.line).label}\n${chosen.label} ${point.mean}\nseeds ${point.low} to ${point.high}` })),
      ],
    });
  };
}

function swatch(i) {
  const line = styleOf(i);
  const node = svg("svg", { class: "swatch", viewBox: "0 0 22 10", "aria-hidden": "true" });
  node.append(
    svg("line", { class: `dash-${line.dash}`, x1: 0, x2: 22, y1: 5, y2: 5 }),
    svg("circle", { cx: 11, cy: 5, r: 3.4 }),
  );
  node.style.setProperty("--line", colour(line));
  if (line.hollow) node.classList.add("hollow");
  return node;
}

function curveControls(redraw) {
  const seen = [...new Set(board.curves.flatMap(({ axes }) => Object.values(axes).flat().map(({ line }) => line)))].sort((a, b) => a - b);
  const others = seen.filter((i) => !styleOf(i).baseline);
  if (others.some((i) => styleOf(i).kind === "method")) {
    others.filter((i) => styleOf(i).kind !== "method").forEach((i) => curves.hidden.add(i));
  }
  const buttons = others.map((i) => {
    const button = element("button", { type: "button", "aria-pressed": String(!curves.hidden.has(i)) }, swatch(i), styleOf(i).label);
    button.addEventListener("click", () => set([i], curves.hidden.has(i)));
    return button;
  });
  function set(lines, visible) {
    lines.forEach((i) => { curves.hidden[visible ? "delete" : "add"](i); });
    buttons.forEach((button, place) => button.setAttribute("aria-pressed", String(!curves.hidden.has(others[place]))));
    redraw();
  }
  const all = element("button", { type: "button" }, "All");
  const none = element("button", { type: "button" }, "None");
  all.addEventListener("click", () => set(others, true));
  none.addEventListener("click", () => set(others, false));
  return [
    choice("Quantity", board.curves.map(({ label }) => label), (place) => { curves.quantity = place; redraw(); }),
    element("div", { class: "legend", role: "group", "aria-label": "Lines that are drawn beside the baseline" }, all, none, ...buttons),
  ];
}

const costs = board.costs.filter(({ points: known }) => known.length);
let cost = costs[0];
function pareto(width) {
  const unit = unitOf(cost.cost, Math.max(...cost.points.map((point) => point.cost)));
  const rows = cost.points.map((point) => ({ ...point, x: point.cost / unit.scale, y: 100 * point.mean, y1: 100 * point.low, y2: 100 * point.high }));
  const byLine = new Map(rows.map((row) => [row.line, row]));
  const front = cost.front.map((line) => byLine.get(line));
  const marginRight = 24;
  return Plot.plot({
    width, height: Math.max(340, Math.min(480, 0.5 * width)), marginLeft: 44, marginRight, marginTop: TOP, marginBottom: 40,
    ariaLabel: `Accuracy against ${cost.label}: ${describe(rows.map((row) => `${styleOf(row.line).label} ${percent(row.mean)} % at ${unit.write(row.x)}`))}`,
    x: { ...AXIS, label: unit.label ? `${cost.label}, ${unit.label}` : cost.label, labelAnchor: "center", labelArrow: "none", ticks: xTicks(width, marginRight), tickFormat: unit.write, inset: 18 },
    y: { ...AXIS, label: "Accuracy, %", labelArrow: "none", ticks: Y_TICKS, inset: 8 },
    marks: [
      GRID_Y,
      Plot.lineY(front, { x: "x", y: "y", curve: "step-after", stroke: "var(--grey)", strokeWidth: 1.5 }),
      Plot.ruleX(rows, { x: "x", y1: "y1", y2: "y2", stroke: (row) => colour(styleOf(row.line)), strokeWidth: 1.4, strokeOpacity: 0.5 }),
      ...rows.sort(baselineLast).map((row) => Plot.dot([row], { x: "x", y: "y", ...symbolOf(styleOf(row.line), 6) })),
      namesBeside(rows, front),
      Plot.tip(rows, Plot.pointer({ x: "x", y: "y", title: (row) => `${styleOf(row.line).label}\n${percent(row.mean)} % [${percent(row.low)}, ${percent(row.high)}]\n${cost.label}: ${unit.write(row.x)} ${unit.label ?? ""}` })),
    ],
  });
}
function nameUnknown() {
  const names = cost.unknown.map((i) => styleOf(i).label).join(", ");
  document.getElementById("cost-unknown").textContent = names && `Not drawn, for want of this cost or of an accuracy: ${names}.`;
}

let pass = board.passAtK[0];
function passAtK(width) {
  const rows = [...pass.lines].sort(baselineLast).map(({ line, points: pairs }) => ({ line, points: pairs.map(([k, value]) => ({ line, k, y: 100 * value })) }));
  const all = rows.flatMap((row) => row.points);
  const ks = [...new Set(all.map((point) => point.k))].sort((a, b) => a - b);
  const marginRight = marginFor(rows.map((row) => row.line), width);
  return Plot.plot({
    width, height: Math.max(300, Math.min(440, 0.48 * width)), marginLeft: 44, marginRight, marginTop: TOP, marginBottom: 40,
    ariaLabel: `pass@k on ${pass.key}, in percent at the largest k: ${describe(rows.map((row) => `${styleOf(row.line).label} ${row.points.at(-1).y.toFixed(1)}`))}`,
    x: { ...AXIS, type: "log", base: 2, label: "k, answers to a problem", labelAnchor: "center", labelArrow: "none", ticks: ks, tickFormat: (k) => `${k}`, inset: 8 },
    y: { ...AXIS, label: `pass@k, %`, labelArrow: "none", ticks: Y_TICKS, nice: true },
    marks: [
      GRID_Y,
      ...rows.flatMap((row) => [
        Plot.lineY(row.points, { x: "k", y: "y", ...strokeOf(styleOf(row.line)) }),
        Plot.dot(row.points, { x: "k", y: "y", ...symbolOf(styleOf(row.line), 3.5) }),
      ]),
      namesAtRight(rows.map((row) => ({ line: row.line, x: row.points.at(-1).k, y: row.points.at(-1).y }))),
      Plot.tip(all, Plot.pointer({ x: "k", y: "y", title: (point) => `${styleOf(point.line).label}\npass@${point.k} ${point.y.toFixed(1)} %` })),
    ],
  });
}

const at = (id) => document.getElementById(id);
const nothing = (id, text) => at(id).append(element("p", { class: "note" }, text));
drawn(at("forest"), forest);
if (board.curves.length) {
  const redraws = ["generated_tokens", "seconds"].map((axis) => drawn(at(`curve-${axis}`), curvePanel(axis)));
  at("curve-controls").append(...curveControls(() => redraws.forEach((redraw) => redraw())));
} else ["generated_tokens", "seconds"].forEach((axis) => nothing(`curve-${axis}`, "No run has logged anything."));
if (costs.length) {
  const redraw = drawn(at("pareto"), pareto);
  at("cost-controls").append(choice("Cost", costs.map(({ label }) => label), (place) => { cost = costs[place]; nameUnknown(); redraw(); }));
  nameUnknown();
} else nothing("pareto", "No line has both a cost and an accuracy.");
if (board.passAtK.length) {
  const redraw = drawn(at("pass"), passAtK);
  if (board.passAtK.length > 1) at("pass-controls").append(choice("Benchmark", board.passAtK.map(({ key }) => key), (place) => { pass = board.passAtK[place]; redraw(); }));
}
board.swatch = swatch;
}
