"use strict";
// Draws what the report's data hold: curves as SVG, the Gantt and the graph on canvases that zoom.
// Nothing is fetched. Texts of the data are only ever set as text.

const data = JSON.parse(document.getElementById("data").textContent);
const tip = document.getElementById("tip");
const $ = (id) => document.getElementById(id);
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const FAMILIES = ["matmul", "attention", "norm", "pointwise", "optim", "npu", "transfer", "other"];

function showTip(text, event) {
  tip.textContent = text;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  let x = event.clientX + 14, y = event.clientY + 14;
  if (x + box.width > innerWidth - 4) x = event.clientX - box.width - 10;
  if (y + box.height > innerHeight - 4) y = event.clientY - box.height - 10;
  tip.style.left = Math.max(4, x) + "px";
  tip.style.top = Math.max(4, y) + "px";
}
const hideTip = () => { tip.hidden = true; };
addEventListener("scroll", hideTip, { passive: true });

const short = (x) => x === 0 ? "0" : Math.abs(x) >= 1e5 || Math.abs(x) < 1e-3
  ? x.toExponential(2) : String(+x.toPrecision(4));
function time(ns) {
  const size = Math.abs(ns);
  if (size >= 1e9) return short(ns / 1e9) + " s";
  if (size >= 1e6) return short(ns / 1e6) + " ms";
  return size >= 1e3 ? short(ns / 1e3) + " µs" : short(ns) + " ns";
}
function tickTime(ns, step) { // as many decimals as tell two ticks apart
  const [size, unit] = ns + step >= 1e9 ? [1e9, "s"] : ns + step >= 1e6 ? [1e6, "ms"]
    : ns + step >= 1e3 ? [1e3, "µs"] : [1, "ns"];
  const decimals = Math.max(0, Math.ceil(-Math.log10(step / size) - 1e-9));
  return `${(ns / size).toFixed(decimals)} ${unit}`;
}
function ticks(low, high, count) { // round numbers from low to high
  const raw = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((each) => power * each >= raw * 0.999);
  const found = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n++) found.push(n * step);
  return found;
}
function make(parent, tag, attributes, text) {
  const each = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const key in attributes) each.setAttribute(key, attributes[key]);
  if (text !== undefined) each.textContent = text;
  parent.appendChild(each);
  return each;
}

function tickBelow(svg, x, y, text) { // under x, but inside of the drawing
  const each = make(svg, "text", { y, "text-anchor": "middle" }, text);
  const half = each.getComputedTextLength() / 2 + 1;
  each.setAttribute("x", Math.max(half, Math.min(svg.clientWidth - half, x)));
}

// ---- curves: chart.series = [{name, colour, points: [[x, y], ...]}]
const observers = {};
function curves(chart) {
  const svg = $(chart.id), left = 56, bottom = 26, top = 10, right = 12;
  const all = chart.series.flatMap((one) => one.points);
  if (!all.length) return;
  let [x0, x1] = [Math.min(...all.map((p) => p[0])), Math.max(...all.map((p) => p[0]))];
  let [y0, y1] = [Math.min(...all.map((p) => p[1])), Math.max(...all.map((p) => p[1]))];
  if (x0 === x1) { x0 -= 1; x1 += 1; }
  if (chart.zero) y0 = Math.min(0, y0);
  if (chart.top) y1 = chart.top;
  if (y0 === y1) { y0 -= 1; y1 += 1; }
  function draw() {
    svg.replaceChildren();
    const width = svg.clientWidth, height = svg.clientHeight;
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const X = (x) => left + (x - x0) / (x1 - x0) * (width - left - right);
    const Y = (y) => height - bottom - (y - y0) / (y1 - y0) * (height - bottom - top);
    for (const y of ticks(y0, y1, 6)) {
      make(svg, "line", { x1: left, x2: width - right, y1: Y(y), y2: Y(y), class: "grid" });
      make(svg, "text", { x: left - 6, y: Y(y) + 4, "text-anchor": "end" },
        chart.percent ? Math.round(y * 100) + " %" : short(y));
    }
    for (const x of ticks(x0, x1, Math.max(2, width / 110)))
      tickBelow(svg, X(x), height - 8, chart.time ? time(x) : short(x));
    for (const one of chart.series) {
      const path = one.points.map((p, i) => `${i ? "L" : "M"}${X(p[0]).toFixed(1)},${Y(p[1]).toFixed(1)}`);
      const ink = `var(--c-${one.colour})`;
      make(svg, "path", { d: path.join(""), fill: "none", stroke: ink, "stroke-width": 2,
        "stroke-linejoin": "round" });
      if (one.points.length < 40) for (const p of one.points)
        make(svg, "circle", { cx: X(p[0]), cy: Y(p[1]), r: 3.5, fill: ink });
    }
    const cross = make(svg, "line", { y1: top, y2: height - bottom, class: "axis", visibility: "hidden" });
    svg.onpointermove = svg.onpointerdown = (event) => {
      const at = x0 + (event.clientX - svg.getBoundingClientRect().left - left) / (width - left - right) * (x1 - x0);
      const near = chart.series.filter((one) => one.points.length).map((one) =>
        [one, one.points.reduce((a, b) => Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a)]);
      const x = near.reduce((a, b) => Math.abs(b[1][0] - at) < Math.abs(a[1][0] - at) ? b : a)[1][0];
      cross.setAttribute("x1", X(x)); cross.setAttribute("x2", X(x));
      cross.setAttribute("visibility", "visible");
      showTip([`${chart.x} ${chart.time ? time(x) : x}`, ...near.map(([one, p]) =>
        `${one.name}: ${chart.percent ? Math.round(p[1] * 100) + " %" : short(p[1])}` +
        (p[0] === x ? "" : ` (at ${chart.time ? time(p[0]) : p[0]})`))].join("\n"), event);
    };
    svg.onpointerleave = () => { hideTip(); cross.setAttribute("visibility", "hidden"); };
  }
  draw();
  observers[chart.id]?.disconnect();
  observers[chart.id] = new ResizeObserver(draw);
  observers[chart.id].observe(svg.parentElement);
}
data.charts.forEach(curves);

// ---- a canvas that zooms: view {x, y, w, h} in its own units, fitted to `extent`
function zoomable(id, extent, paint, hit, flat) {
  const canvas = $(id), view = { ...extent() }, held = new Map();
  let hot = null, queued = false;
  const size = () => [canvas.clientWidth, canvas.clientHeight];
  function clamp() {
    const e = extent();
    view.w = Math.min(e.w, Math.max(e.w / 1e5, view.w));
    if (flat) { view.y = e.y; view.h = e.h; }
    else view.h = view.w * (e.h / e.w);
    view.x = Math.min(e.x + e.w - view.w, Math.max(e.x, view.x));
    view.y = Math.min(e.y + e.h - view.h, Math.max(e.y, view.y));
  }
  function redraw() {
    if (queued) return;
    queued = true;
    requestAnimationFrame(() => {
      queued = false;
      const [w, h] = size(), ratio = devicePixelRatio || 1;
      canvas.width = w * ratio; canvas.height = h * ratio;
      const pen = canvas.getContext("2d");
      pen.scale(ratio, ratio);
      paint(pen, view, w, h, hot);
      canvas.dataset.view = [view.x, view.w].join(" ");
    });
  }
  function zoom(factor, fx, fy) {
    hideTip(); // what it spoke of has moved
    const cx = view.x + view.w * fx, cy = view.y + view.h * fy;
    view.w *= factor;
    clamp(); // sets the height, too
    view.x = cx - view.w * fx;
    view.y = cy - view.h * fy;
    clamp();
    redraw();
  }
  function pan(dx, dy) { view.x += view.w * dx; view.y += view.h * dy; clamp(); redraw(); }
  function reset() { Object.assign(view, extent()); hot = null; clamp(); redraw(); }
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  };
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return; // else the page scrolls
    event.preventDefault();
    zoom(Math.exp(event.deltaY * 0.003), ...place(event));
  }, { passive: false });
  canvas.addEventListener("dblclick", (event) => zoom(0.4, ...place(event)));
  canvas.addEventListener("pointerdown", (event) => {
    held.set(event.pointerId, place(event));
    canvas.setPointerCapture(event.pointerId);
  });
  for (const end of ["pointerup", "pointercancel"])
    canvas.addEventListener(end, (event) => held.delete(event.pointerId));
  canvas.addEventListener("pointermove", (event) => {
    const now = place(event), was = held.get(event.pointerId);
    if (was && held.size === 2) {
      const [other] = [...held].filter(([key]) => key !== event.pointerId).map((one) => one[1]);
      const far = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]) || 1e-6;
      zoom(far(was, other) / far(now, other), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
    } else if (was) pan(was[0] - now[0], was[1] - now[1]);
    if (was) held.set(event.pointerId, now);
    point(event, now);
  });
  canvas.addEventListener("click", (event) => point(event, place(event)));
  canvas.addEventListener("pointerleave", () => { hideTip(); if (hot !== null) { hot = null; redraw(); } });
  function point(event, [fx, fy]) {
    const [w, h] = size(), found = hit(view, fx * w, fy * h, w, h);
    if (found === null) hideTip(); else showTip(found.text, event);
    const key = found === null ? null : found.key;
    if (key !== hot) { hot = key; redraw(); }
  }
  canvas.addEventListener("keydown", (event) => {
    const act = { "+": () => zoom(0.6, 0.5, 0.5), "=": () => zoom(0.6, 0.5, 0.5),
      "-": () => zoom(1 / 0.6, 0.5, 0.5), "0": reset, ArrowLeft: () => pan(-0.2, 0),
      ArrowRight: () => pan(0.2, 0) }[event.key];
    if (act) { event.preventDefault(); act(); }
  });
  $(id + "-in").onclick = () => zoom(0.5, 0.5, 0.5);
  $(id + "-out").onclick = () => zoom(2, 0.5, 0.5);
  $(id + "-all").onclick = reset;
  new ResizeObserver(redraw).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  reset();
  return reset;
}
function inks() {
  return Object.fromEntries(FAMILIES.map((name) => [name, colour("--c-" + name)]));
}

function label(pen, text, x, y, end, high) { // white with a dark rim: reads on every colour
  pen.save();
  pen.beginPath(); pen.rect(x, y, end - x - 2, high); pen.clip();
  pen.lineWidth = 2.5; pen.strokeStyle = "#000a"; pen.fillStyle = "#fff";
  pen.strokeText(text, x + 4, y + high / 2); pen.fillText(text, x + 4, y + high / 2);
  pen.restore();
}

// ---- the Gantt: rows of `slices` are [lane, start, duration, name, op, predicted, detail, step]
function gantt() {
  const { names, ops, families, details, lanes, runs } = data.trace, head = 22;
  let run = runs[runs.length - 1], byLane = [], place = new Map();
  function choose(number) {
    run = runs.find((one) => one.number === number);
    byLane = lanes.map(() => []);
    place = new Map(run.slices.map((one) => [one[7], one]));
    run.slices.forEach((one) => byLane[one[0]].push(one));
    byLane.forEach((one) => one.sort((a, b) => a[1] - b[1]));
    use();
  }
  const canvas = $("gantt");
  let row = 26, above = 2, left = 118; // height of a lane, its part above the bars, room for names
  function fit() {
    const isNarrow = canvas.clientWidth < 500; // then a lane's name stands above its bars
    [row, above, left] = isNarrow ? [38, 15, 0] : [26, 2, 118];
    canvas.style.height = head + lanes.length * row + 6 + "px";
  }
  const top = (lane) => head + lane * row + above, tall = () => row - above - 2;
  const X = (view, t, w) => left + (t - view.x) / view.w * (w - left);
  function paint(pen, view, w, h, hot) {
    const ink = inks(), ink2 = colour("--ink2"), idle = colour("--idle");
    pen.clearRect(0, 0, w, h);
    pen.font = "12px system-ui, sans-serif";
    pen.textBaseline = "middle";
    lanes.forEach((lane, i) => {
      const y = top(i), high = tall();
      pen.fillStyle = idle;
      pen.fillRect(left, y, w - left, high);
      pen.save();
      pen.beginPath(); pen.rect(left, y, w - left, high); pen.clip();
      for (const one of byLane[i]) {
        const a = X(view, one[1], w), b = X(view, one[1] + one[2], w);
        if (b < left || a > w) continue;
        const wide = Math.max(0.6, b - a - (b - a > 3 ? 1 : 0));
        pen.fillStyle = ink[families[one[4]]];
        pen.fillRect(a, y, wide, high);
        if (wide > 60) label(pen, names[one[3]], Math.max(a, left), y, Math.min(b, w), high);
      }
      pen.restore();
      pen.fillStyle = ink2;
      if (left) pen.fillText(lane, 0, y + high / 2, left - 6);
      else pen.fillText(lane, 0, y - above / 2);
    });
    pen.fillStyle = ink2; pen.strokeStyle = colour("--grid"); pen.lineWidth = 1;
    const marks = ticks(view.x, view.x + view.w, Math.max(2, (w - left) / 110));
    for (const t of marks) {
      const x = X(view, t, w);
      pen.beginPath(); pen.moveTo(x, head - 4); pen.lineTo(x, head); pen.stroke();
      pen.textAlign = x > w - 30 ? "end" : x < left + 20 ? "start" : "center";
      pen.fillText(tickTime(t, marks.length > 1 ? marks[1] - marks[0] : view.w), Math.min(w, x), head - 12);
    }
    pen.textAlign = "start";
    if (hot !== null) arrows(pen, view, w, hot);
  }
  function arrows(pen, view, w, hot) { // of the slice under the pointer
    pen.strokeStyle = colour("--ink");
    pen.lineWidth = 1.5;
    const box = ([lane, start, duration]) => {
      const a = Math.max(left, X(view, start, w)), b = X(view, start + duration, w);
      if (b >= a) pen.strokeRect(a, top(lane), Math.max(1, b - a), tall());
    };
    if (place.has(hot)) box(place.get(hot));
    for (const [a, b] of run.arrows) if (a === hot || b === hot) {
      const from = place.get(a), to = place.get(b);
      box(a === hot ? to : from);
      pen.beginPath();
      pen.moveTo(X(view, from[1] + from[2], w), top(from[0]) + tall() / 2);
      pen.lineTo(X(view, to[1], w), top(to[0]) + tall() / 2);
      pen.stroke();
    }
  }
  function hit(view, x, y, w) {
    const lane = Math.floor((y - head) / row);
    if (lane < 0 || lane >= lanes.length || x < left) return null;
    const slack = view.w / (w - left) * 1.5, t = view.x + (x - left) / (w - left) * view.w;
    let found = null, best = Infinity;
    for (const one of byLane[lane]) { // the nearest, within a pixel or so
      const off = Math.max(one[1] - t, t - one[1] - one[2], 0);
      if (off <= slack && off < best) { best = off; found = one; }
    }
    if (!found) return null;
    const [, start, duration, name, op, predicted, detail, step] = found;
    const lines = [`${names[name]} (${ops[op]})`, `${time(duration)} from ${time(start)} on ${lanes[lane]}`];
    if (predicted !== null) {
      const error = duration ? ` (${predicted >= duration ? "+" : ""}${Math.round((predicted / duration - 1) * 100)} %)` : "";
      lines.push(`model: ${time(predicted)}${error}`);
    }
    const waits = run.arrows.filter((one) => one[1] === step).map(([a, , values]) =>
      `waited for ${names[place.get(a)[3]]}: ${names[values]}`);
    lines.push(...[...new Set(waits)].slice(0, 4)); // parts of one node wait as one
    return { key: step, text: [...lines, details[detail]].join("\n") };
  }
  function use() { // device use over the chosen training step, in bins
    const bins = 100, busy = {};
    byLane.forEach((all, lane) => {
      const device = lanes[lane].split(".")[0];
      if (!lanes[lane].includes(".compute")) return;
      busy[device] ??= { lanes: 0, sums: new Float64Array(bins) };
      busy[device].lanes++;
      for (const [, start, duration] of all) {
        const wide = run.wall / bins;
        for (let i = Math.floor(start / wide); i < bins && i * wide < start + duration; i++)
          busy[device].sums[i] += Math.max(0, Math.min(start + duration, (i + 1) * wide) - Math.max(start, i * wide)) / wide;
      }
    });
    const hues = ["matmul", "attention", "norm", "optim", "pointwise"];
    const series = Object.entries(busy).map(([name, one], i) => ({ name, colour: hues[i % hues.length],
      points: Array.from(one.sums, (sum, bin) => [(bin + 0.5) * run.wall / bins, sum / one.lanes]) }));
    curves({ id: "use", x: "at", time: true, percent: true, zero: true, top: 1, series });
    legend("use-legend", series.map((one) => [one.name, one.colour]));
  }
  fit();
  new ResizeObserver(fit).observe(canvas.parentElement);
  choose(run.number);
  const reset = zoomable("gantt", () => ({ x: 0, y: 0, w: run.wall, h: 1 }), paint, hit, true);
  const select = $("run");
  for (const one of runs) select.add(new Option(`training step ${one.number} (${time(one.wall)})`, one.number));
  select.value = run.number;
  select.onchange = () => { choose(Number(select.value)); reset(); };
  legend("gantt-legend", FAMILIES.filter((name) => families.includes(name)).map((name) => [name, name]));
}
function legend(id, entries) {
  $(id).replaceChildren(...entries.map(([name, hue]) => {
    const each = document.createElement("span"), dot = document.createElement("i");
    dot.style.background = `var(--c-${hue})`;
    each.append(dot, name);
    return each;
  }));
}
if (data.trace) gantt();

// ---- the plan's graph: nodes in columns by the longest path to them
function graph() {
  const { nodes, edges, ops, families } = data.graph;
  const depth = new Int32Array(nodes.length), columns = [], at = [];
  const into = nodes.map(() => []), out = nodes.map(() => []);
  for (const [a, b] of edges) { into[b].push(a); out[a].push(b); }
  nodes.forEach((_, i) => { // program order: what a node reads comes before it
    depth[i] = into[i].reduce((deep, a) => Math.max(deep, depth[a] + 1), 0);
    (columns[depth[i]] ??= []).push(i);
  });
  const rows = Math.max(...columns.map((one) => one.length));
  const settle = (column, beside) => { // each node near the mean of its neighbours
    const mean = new Map(column.map((i) => [i, beside[i].length
      ? beside[i].reduce((sum, j) => sum + (at[j]?.[1] ?? 0), 0) / beside[i].length : rows / 2]));
    column.sort((a, b) => mean.get(a) - mean.get(b) || a - b);
    column.forEach((i, k) => { at[i] = [depth[i], (rows - column.length) / 2 + k]; });
  };
  columns.forEach((column) => settle(column, into));
  [...columns].reverse().forEach((column) => settle(column, out));
  columns.forEach((column) => settle(column, into));
  const extent = () => ({ x: -0.6, y: -0.7, w: columns.length + 0.2, h: rows + 0.4 });
  function paint(pen, view, w, h, hot) {
    const ink = inks(), sx = w / view.w, sy = h / view.h;
    const X = (i) => (at[i][0] - view.x) * sx, Y = (i) => (at[i][1] - view.y) * sy;
    const wide = Math.max(2, sx * 0.78), high = Math.max(2, Math.min(34, sy * 0.7));
    pen.clearRect(0, 0, w, h);
    for (const [a, b] of edges) {
      const own = a === hot || b === hot;
      if (!own && (X(b) < -wide || X(a) > w + wide)) continue;
      pen.strokeStyle = colour_(own ? "--ink" : "--edge");
      pen.lineWidth = own ? 1.8 : 0.7;
      pen.globalAlpha = own ? 1 : 0.55;
      pen.beginPath();
      pen.moveTo(X(a) + wide / 2, Y(a));
      const bend = (X(b) - X(a)) / 2;
      pen.bezierCurveTo(X(a) + bend, Y(a), X(b) - bend, Y(b), X(b) - wide / 2, Y(b));
      pen.stroke();
    }
    pen.globalAlpha = 1;
    pen.font = "12px system-ui, sans-serif";
    pen.textBaseline = "middle";
    nodes.forEach(([name, op], i) => {
      if (X(i) < -wide || X(i) > w + wide || Y(i) < -high || Y(i) > h + high) return;
      pen.fillStyle = ink[families[op]];
      pen.fillRect(X(i) - wide / 2, Y(i) - high / 2, wide, high);
      if (i === hot) { pen.strokeStyle = colour_("--ink"); pen.lineWidth = 2; pen.strokeRect(X(i) - wide / 2, Y(i) - high / 2, wide, high); }
      if (wide > 70 && high > 12) label(pen, name, X(i) - wide / 2, Y(i) - high / 2, X(i) + wide / 2, high);
    });
  }
  const cached = {};
  const colour_ = (name) => cached[name] ?? (cached[name] = colour(name));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const name in cached) delete cached[name];
  });
  function hit(view, x, y, w, h) {
    const sx = w / view.w, sy = h / view.h;
    let found = null, best = Infinity;
    nodes.forEach((_, i) => {
      const dx = Math.abs((at[i][0] - view.x) * sx - x), dy = Math.abs((at[i][1] - view.y) * sy - y);
      const inside = dx <= Math.max(5, sx * 0.4) && dy <= Math.max(5, Math.min(17, sy * 0.35));
      if (inside && dx + dy < best) { best = dx + dy; found = i; }
    });
    if (found === null) return null;
    const [name, op, lanes, flops, text] = nodes[found];
    return { key: found, text: `${name} (${ops[op]})\non ${lanes}; ${short(flops / 1e9)} GFLOP\n${text}` };
  }
  zoomable("graph", extent, paint, hit, false);
  legend("graph-legend", FAMILIES.filter((one) => families.includes(one)).map((one) => [one, one]));
}
if (data.graph) graph();

// ---- the cost model: each kind of work, the trace against the model, both axes by powers of ten
function scatter() {
  const svg = $("model"), points = data.model;
  if (!points?.length) return;
  const all = points.flatMap((one) => [one.measured, one.predicted]).map(Math.log10);
  const low = Math.floor(Math.min(...all)), high = Math.ceil(Math.max(...all) + 1e-9);
  function draw() {
    svg.replaceChildren();
    const width = svg.clientWidth, height = svg.clientHeight, left = 62, bottom = 40;
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const share = (ns) => (Math.log10(ns) - low) / (high - low || 1);
    const X = (ns) => left + share(ns) * (width - left - 28), Y = (ns) => height - bottom - share(ns) * (height - bottom - 10);
    for (let power = low; power <= high; power++) {
      make(svg, "line", { x1: left, x2: width - 12, y1: Y(10 ** power), y2: Y(10 ** power), class: "grid" });
      make(svg, "text", { x: left - 6, y: Y(10 ** power) + 4, "text-anchor": "end" }, time(10 ** power));
      tickBelow(svg, X(10 ** power), height - bottom + 16, time(10 ** power));
    }
    make(svg, "line", { x1: X(10 ** low), y1: Y(10 ** low), x2: X(10 ** high), y2: Y(10 ** high), class: "axis" });
    make(svg, "text", { x: width - 12, y: height - 6, "text-anchor": "end" }, `predicted: right; ${data.times_are}: up; line: equal`);
    for (const one of points) {
      const dot = make(svg, "circle", { cx: X(one.predicted), cy: Y(one.measured), r: 5,
        fill: `var(--c-${one.family})`, stroke: "var(--surface)", "stroke-width": 1.5 });
      dot.onpointermove = dot.onpointerdown = (event) => showTip(
        `${one.op} on ${one.device}\n${data.times_are} ${time(one.measured)}, model ${time(one.predicted)}\n${one.text}`, event);
      dot.onpointerleave = hideTip;
    }
  }
  draw();
  new ResizeObserver(draw).observe(svg.parentElement);
}
scatter();
