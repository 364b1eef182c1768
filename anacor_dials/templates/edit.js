// The page of dials.anacor_edit. It asks the server for slices as numbers, draws them, and sends what was drawn.
"use strict";

const AXES = "XYZ";
const IN_PLANE = [[1, 2], [0, 2], [0, 1]]; // rows and columns of a slice across each axis
const KEPT = 60; // slices of each kind that stay in memory
const $ = (id) => document.getElementById(id);

let state = null;
let cross = [0, 0, 0];
let places = [];
let place = -1;
let tool = "cross";
let active = 3; // the label that is drawn
let focus = 0; // the pane under the mouse
let hover = null; // [axis, row, column] under the mouse
let stroke = null; // what is being drawn: {axis, index, voxels, erase}
let polygon = null; // {axis, index, corners}
let drag = null;
let effectTimer = 0;
const views = [0, 1, 2].map(() => ({ zoom: 1, row: 0, column: 0, fitted: false }));
const slices = new Map(); // "kind axis index" -> {data, h, w}
const waiting = new Map();

// ---- the server ------------------------------------------------------------------------------------

async function get(what) {
  const answer = await fetch(what, { cache: "no-store" });
  if (!answer.ok) throw new Error(`${what}: ${answer.status}`);
  return answer;
}

async function post(what, request = {}) {
  const answer = await fetch(what, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(request),
  });
  const content = await answer.json();
  if (content.state) show(content.state);
  if (content.error) say(content.error);
  return content;
}

async function slice(kind, axis, index) {
  const key = `${kind} ${axis} ${index}`;
  if (slices.has(key)) return slices.get(key);
  if (waiting.has(key)) return waiting.get(key);
  const asked = (async () => {
    const answer = await get(`slice?kind=${kind}&axis=${axis}&index=${index}`);
    const [h, w] = answer.headers.get("X-Shape").split(",").map(Number);
    const bytes = await answer.arrayBuffer();
    const data = kind === "values" ? new Uint16Array(bytes) : new Uint8Array(bytes);
    const found = { data, h, w };
    if (waiting.get(key) === asked) {
      slices.set(key, found);
      waiting.delete(key);
      const same = [...slices.keys()].filter((k) => k.startsWith(kind + " "));
      if (same.length > KEPT) slices.delete(same[0]);
    }
    return found;
  })();
  waiting.set(key, asked);
  asked.catch(() => waiting.delete(key));
  return asked;
}

function forget() { // labels have changed
  for (const map of [slices, waiting])
    for (const key of [...map.keys()]) if (!key.startsWith("values")) map.delete(key);
}

const say = (text) => { $("message").textContent = text; };

// ---- drawing ---------------------------------------------------------------------------------------

const rgb = (hex) => [1, 3, 5].map((k) => parseInt(hex.slice(k, k + 2), 16));
const pane = (axis) => document.querySelector(`.pane[data-axis="${axis}"]`);

function fit(axis) {
  const canvas = pane(axis).querySelector("canvas");
  const [a, b] = IN_PLANE[axis];
  const size = state.voxel_size_um;
  const height = state.shape[a] * size[a], width = state.shape[b] * size[b];
  const v = views[axis];
  v.zoom = 0.95 * Math.min(canvas.clientHeight / height, canvas.clientWidth / width); // pixels per um
  v.row = state.shape[a] / 2;
  v.column = state.shape[b] / 2;
  v.fitted = true;
}

function toScreen(axis, row, column) { // of the corner of a voxel
  const canvas = pane(axis).querySelector("canvas"), v = views[axis];
  const [a, b] = IN_PLANE[axis], size = state.voxel_size_um;
  return [
    canvas.clientWidth / 2 + (column - v.column) * size[b] * v.zoom,
    canvas.clientHeight / 2 + (row - v.row) * size[a] * v.zoom,
  ];
}

function toVoxel(axis, x, y) { // [row, column], not rounded
  const canvas = pane(axis).querySelector("canvas"), v = views[axis];
  const [a, b] = IN_PLANE[axis], size = state.voxel_size_um;
  return [
    v.row + (y - canvas.clientHeight / 2) / (size[a] * v.zoom),
    v.column + (x - canvas.clientWidth / 2) / (size[b] * v.zoom),
  ];
}

async function picture(axis) {
  const index = cross[axis];
  const kinds = ["values", "labels", "by_hand"];
  if ($("show-doubt").checked && state.doubt_known) kinds.push("doubt");
  const [values, labels, hand, doubt] = await Promise.all(kinds.map((k) => slice(k, axis, index)));
  const image = new ImageData(values.w, values.h);
  const [bottom, top] = state.grey;
  const low = Number($("low").value), high = Number($("high").value);
  const scale = (top - bottom) / 65535, gain = 255 / Math.max(high - low, 1e-3);
  const opacity = $("show-labels").checked ? Number($("opacity").value) : 0;
  const colours = state.colours.map(rgb);
  const byHand = $("show-hand").checked;
  for (let i = 0, o = 0; i < values.data.length; i++, o += 4) {
    const grey = Math.max(0, Math.min(255, (bottom + values.data[i] * scale - low) * gain));
    const label = labels.data[i];
    const share = label ? opacity : 0;
    let r = grey, g = grey, b = grey;
    if (share) {
      const c = colours[label];
      r += share * (c[0] - r); g += share * (c[1] - g); b += share * (c[2] - b);
    }
    if (doubt && doubt.data[i] > 12) {
      const d = Math.min(1, doubt.data[i] / 128);
      r += d * (255 - r); g += d * (40 - g); b += d * (230 - b);
    }
    if (byHand && hand.data[i] && ((i % values.w) + Math.floor(i / values.w)) % 2) { r = 60; g = 255; b = 90; }
    image.data[o] = r; image.data[o + 1] = g; image.data[o + 2] = b; image.data[o + 3] = 255;
  }
  return image;
}

async function drawPane(axis) {
  const element = pane(axis), canvas = element.querySelector("canvas");
  const index = cross[axis];
  const image = await picture(axis);
  if (index !== cross[axis]) return; // it was scrolled on meanwhile
  const scale = window.devicePixelRatio || 1;
  canvas.width = canvas.clientWidth * scale;
  canvas.height = canvas.clientHeight * scale;
  if (!views[axis].fitted) fit(axis);
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  const off = new OffscreenCanvas(image.width, image.height);
  off.getContext("2d").putImageData(image, 0, 0);
  context.imageSmoothingEnabled = false;
  const [x0, y0] = toScreen(axis, 0, 0), [x1, y1] = toScreen(axis, image.height, image.width);
  context.drawImage(off, x0, y0, x1 - x0, y1 - y0);
  const [a, b] = IN_PLANE[axis];
  if ($("show-cross").checked) {
    const [cx, cy] = toScreen(axis, cross[a] + 0.5, cross[b] + 0.5);
    context.strokeStyle = "rgba(120,190,255,0.6)";
    context.beginPath();
    context.moveTo(x0, cy); context.lineTo(x1, cy);
    context.moveTo(cx, y0); context.lineTo(cx, y1);
    context.stroke();
  }
  if (polygon && polygon.axis === axis) {
    context.strokeStyle = state.colours[active];
    context.lineWidth = 2;
    context.beginPath();
    for (const [row, column] of polygon.corners) context.lineTo(...toScreen(axis, row, column));
    if (hover && hover[0] === axis) context.lineTo(...toScreen(axis, hover[1], hover[2]));
    context.stroke();
  }
  if (hover && hover[0] === axis && ["brush", "eraser", "threshold"].includes(tool)) {
    const size = state.voxel_size_um, r = Number($("radius").value) + 0.5;
    const [hx, hy] = toScreen(axis, Math.floor(hover[1]) + 0.5, Math.floor(hover[2]) + 0.5);
    context.strokeStyle = tool === "eraser" ? "#fff" : state.colours[active];
    context.beginPath();
    context.ellipse(hx, hy, r * size[b] * views[axis].zoom, r * size[a] * views[axis].zoom, 0, 0, 7);
    context.stroke();
  }
  element.querySelector(".title").textContent =
    `across ${AXES[axis]}: ${index} of ${state.shape[axis]}; ${AXES[a]} down, ${AXES[b]} to the right`;
  element.classList.toggle("focus", axis === focus);
  element.dataset.drawn = index; // for tests
}

let drawing = false, again = false;
async function draw() {
  if (drawing) { again = true; return; }
  drawing = true;
  try {
    do {
      again = false;
      await Promise.all([0, 1, 2].map(drawPane));
    } while (again);
    await underCross();
  } catch (error) {
    say(`The server does not answer (${error.message}).`);
  } finally {
    drawing = false;
  }
}

async function underCross() {
  const [values, labels, hand] = await Promise.all(["values", "labels", "by_hand"].map((k) => slice(k, 0, cross[0])));
  const i = cross[1] * values.w + cross[2];
  const [bottom, top] = state.grey;
  const level = bottom + (values.data[i] * (top - bottom)) / 65535;
  $("under").textContent =
    `${cross.join(", ")}: ${state.names[labels.data[i]]}${hand.data[i] ? " by hand" : ""}, level ${level.toFixed(2)}`;
}

// ---- what is shown beside the slices ---------------------------------------------------------------

function show(now) {
  const busyBefore = state && state.busy;
  if (state && state.reading && !now.reading) location.reload(); // the volume has another shape now
  state = now;
  $("file").textContent = `${state.file}`;
  document.title = `${state.file}: labels`;
  $("undo").disabled = !state.undo || Boolean(state.busy);
  $("redo").disabled = !state.redo || Boolean(state.busy);
  $("follow").disabled = $("learn").disabled = Boolean(state.busy);
  $("by-hand").textContent = `${state.by_hand} voxels by hand; ${state.undo} ${state.undo === 1 ? "step" : "steps"}, all saved (${state.user}).` +
    (state.last ? ` Last: ${state.last}.` : "");
  if (state.busy) say(`${state.busy} …`);
  else if (busyBefore) {
    say(state.message);
    forget();
    draw();
    readPlaces();
    if (state.message) effectSoon();
  }
  if (state.effect) showEffect(state.effect);
}

function showEffect(e) {
  const percent = (v) => (v === null ? "–" : `${(100 * v).toFixed(2)} %`);
  const number = (v, digits) => (v === null ? "–" : Number(v).toPrecision(digits));
  const rows = state.names.map((name, k) => k === 0 ? "" :
    `<tr><td><span class="swatch" style="background:${state.colours[k]}"></span></td>` +
    `<td>${number(e.volumes_before[k], 4)}</td><td>${number(e.volumes_now[k], 4)}</td>` +
    `<td>${e.mu_before[k] === null ? "–" : (1000 * e.mu_before[k]).toFixed(2)}</td>` +
    `<td>${e.mu_now[k] === null ? "–" : (1000 * e.mu_now[k]).toFixed(2)}</td></tr>`);
  $("effect").innerHTML =
    "<table><tr><th></th><th>µm³ before</th><th>now</th><th>µ/mm⁻¹ before</th><th>now</th></tr>" + rows.join("") +
    `</table><p>Absorption factors of ${e.factors_now.length} directions changed by ` +
    `<b id="rms">${percent(e.rms)}</b> rms after one scale.</p>` +
    (e.uncertainty_now === null ? "" :
      `<p>Because the labels are doubtful they are uncertain by <b id="doubt-left">${percent(e.uncertainty_now)}</b> ` +
      `(${percent(e.uncertainty_before)} when the file was opened).</p>`);
  const canvas = $("scatter"), c = canvas.getContext("2d"), n = e.factors_now.length;
  c.clearRect(0, 0, canvas.width, canvas.height);
  if (!n || e.factors_before.length !== n) return;
  const all = [...e.factors_before, ...e.factors_now];
  const low = Math.min(...all), high = Math.max(...all), span = Math.max(high - low, 1e-6);
  const x = (v) => 30 + (200 * (v - low)) / span, y = (v) => 175 - (165 * (v - low)) / span;
  c.strokeStyle = "#777";
  c.beginPath(); c.moveTo(x(low), y(low)); c.lineTo(x(high), y(high)); c.stroke();
  c.fillStyle = "#9ecae9";
  for (let k = 0; k < n; k++) c.fillRect(x(e.factors_before[k]) - 1, y(e.factors_now[k]) - 1, 2.5, 2.5);
  c.fillStyle = "#b5b5b5";
  c.font = "11px sans-serif";
  c.fillText(`factors before, ${low.toFixed(2)} to ${high.toFixed(2)}`, 60, 193);
  c.save(); c.translate(12, 120); c.rotate(-Math.PI / 2); c.fillText("now", 0, 0); c.restore();
}

function showPlaces() {
  $("places").replaceChildren(...places.map((p, k) => {
    const item = document.createElement("li");
    const [a, b] = p.materials;
    item.textContent = p.unseen_border
      ? `${k + 1}. border of ${state.names[a]} and ${state.names[b]} does not show`
      : `${k + 1}. ${state.names[a]} or ${state.names[b]}: ${(100 * p.doubt).toFixed(0)} %`;
    item.className = (k === place ? "on " : "") + (p.seen ? "seen" : "");
    item.onclick = () => goTo(k);
    return item;
  }));
  if (!places.length)
    $("places").textContent = state.doubt_known
      ? "No place is doubtful."
      : "The file holds no probabilities; make it anew by dials.anacor_segment output.probabilities=True.";
}

async function readPlaces() {
  places = await (await get("places")).json();
  place = Math.min(place, places.length - 1);
  showPlaces();
}

function goTo(k) {
  if (!places.length) return;
  place = (k + places.length) % places.length;
  places[place].seen = true;
  cross = [...places[place].voxel];
  showPlaces();
  $("places").children[place].scrollIntoView({ block: "nearest" });
  draw();
}

function effectSoon() {
  clearTimeout(effectTimer);
  effectTimer = setTimeout(() => post("effect").catch(() => {}), 800);
}

let plotly = null;
async function draw3d() {
  say("The 3-D view is made …");
  const found = get("surfaces").then((a) => a.json());
  plotly = plotly || new Promise((done, failed) => {
    const script = document.createElement("script");
    script.src = "plotly.js";
    script.onload = done;
    script.onerror = () => failed(new Error("plotly.js"));
    document.head.append(script);
  });
  const { data, layout } = await found;
  await plotly;
  Object.assign(layout, { margin: { l: 0, r: 0, t: 0, b: 0 }, autosize: true });
  await Plotly.react("plot", data, layout, { responsive: true, displaylogo: false });
  $("view3d").dataset.drawn = data.length;
  say("");
}

// ---- what is drawn by hand -------------------------------------------------------------------------

function disc(axis, row, column) { // voxels of a slice (flat) under the brush
  const [a, b] = IN_PLANE[axis], r = Number($("radius").value), found = [];
  for (let i = -r; i <= r; i++)
    for (let j = -r; j <= r; j++) {
      const y = row + i, x = column + j;
      if (i * i + j * j <= (r + 0.3) ** 2 && y >= 0 && x >= 0 && y < state.shape[a] && x < state.shape[b])
        found.push(y * state.shape[b] + x);
    }
  return found;
}

async function brushTo(row, column) {
  const s = stroke, [r0, c0] = s.last;
  const steps = Math.max(Math.abs(row - r0), Math.abs(column - c0), 1);
  const labels = await slice("labels", s.axis, s.index), hand = await slice("by_hand", s.axis, s.index);
  const values = tool === "threshold" && !s.erase ? await slice("values", s.axis, s.index) : null;
  const [bottom, top] = state.grey, scale = (top - bottom) / 65535;
  const low = Number($("low").value), high = Number($("high").value);
  for (let k = 0; k <= steps; k++)
    for (const i of disc(s.axis, Math.round(r0 + ((row - r0) * k) / steps), Math.round(c0 + ((column - c0) * k) / steps))) {
      if (values) {
        const level = bottom + values.data[i] * scale;
        if (level < low || level > high) continue;
      }
      s.voxels.add(i);
      if (!s.erase) { labels.data[i] = active; hand.data[i] = 1; } // shown at once
    }
  s.last = [row, column];
  draw();
}

function runs(voxels) {
  const sorted = [...voxels].sort((p, q) => p - q), found = [];
  for (const i of sorted)
    if (found.length && found.at(-2) + found.at(-1) === i) found[found.length - 1]++;
    else found.push(i, 1);
  return found;
}

async function send(axis, index, voxels, erase) {
  if (!voxels.size) return;
  const request = { axis, index, runs: runs(voxels) };
  if (!erase) request.label = active;
  await post(erase ? "erase" : "paint", request);
  changed();
}

function changed() {
  forget();
  draw();
  effectSoon();
}

function inside(corners, row, column) { // even-odd rule
  let is = false;
  for (let i = 0, j = corners.length - 1; i < corners.length; j = i++) {
    const [yi, xi] = corners[i], [yj, xj] = corners[j];
    if (yi > row !== yj > row && column < ((xj - xi) * (row - yi)) / (yj - yi) + xi) is = !is;
  }
  return is;
}

async function closePolygon() {
  const p = polygon;
  polygon = null;
  if (!p || p.corners.length < 3) { draw(); return; }
  const [a, b] = IN_PLANE[p.axis], voxels = new Set();
  for (let row = 0; row < state.shape[a]; row++)
    for (let column = 0; column < state.shape[b]; column++)
      if (inside(p.corners, row + 0.5, column + 0.5)) voxels.add(row * state.shape[b] + column);
  await send(p.axis, p.index, voxels, false);
}

async function fill(axis, row, column) {
  const { data, h, w } = await slice("labels", axis, cross[axis]);
  const old = data[row * w + column], voxels = new Set([row * w + column]), edge = [row * w + column];
  while (edge.length) {
    const i = edge.pop(), c = i % w;
    for (const [j, there] of [[i - w, i >= w], [i + w, i < w * (h - 1)], [i - 1, c > 0], [i + 1, c < w - 1]])
      if (there && data[j] === old && !voxels.has(j)) { voxels.add(j); edge.push(j); }
  }
  await send(axis, cross[axis], voxels, false);
}

// ---- the mouse -------------------------------------------------------------------------------------

function voxelAt(axis, event) {
  const box = pane(axis).getBoundingClientRect();
  const [row, column] = toVoxel(axis, event.clientX - box.left, event.clientY - box.top);
  const [a, b] = IN_PLANE[axis];
  const within = row >= 0 && column >= 0 && row < state.shape[a] && column < state.shape[b];
  return { row, column, i: Math.floor(row), j: Math.floor(column), within };
}

function setCross(axis, v) {
  const [a, b] = IN_PLANE[axis];
  cross[a] = Math.max(0, Math.min(state.shape[a] - 1, v.i));
  cross[b] = Math.max(0, Math.min(state.shape[b] - 1, v.j));
  draw();
}

async function press(axis, event) {
  event.preventDefault();
  const v = voxelAt(axis, event);
  if (event.button === 1 || event.shiftKey) { drag = { axis, x: event.clientX, y: event.clientY }; return; }
  if (!v.within) return;
  const [a, b] = IN_PLANE[axis];
  if (["brush", "eraser", "threshold"].includes(tool)) {
    const erase = tool === "eraser" || event.button === 2;
    stroke = { axis, index: cross[axis], voxels: new Set(), erase, last: [v.i, v.j] };
    await brushTo(v.i, v.j);
  } else if (tool === "polygon") {
    if (!polygon || polygon.axis !== axis) polygon = { axis, index: cross[axis], corners: [] };
    polygon.corners.push([v.row, v.column]);
    if (event.detail > 1) await closePolygon();
    draw();
  } else if (tool === "fill") {
    await fill(axis, v.i, v.j);
  } else if (tool === "body") {
    const voxel = [0, 0, 0];
    voxel[axis] = cross[axis]; voxel[a] = v.i; voxel[b] = v.j;
    await post("body", { voxel, label: active });
    changed();
  } else {
    drag = { axis, cross: true };
    setCross(axis, v);
  }
}

function move(event) {
  if (drag && drag.cross) { setCross(drag.axis, voxelAt(drag.axis, event)); return; }
  if (drag) {
    const v = views[drag.axis], [a, b] = IN_PLANE[drag.axis], size = state.voxel_size_um;
    v.row -= (event.clientY - drag.y) / (size[a] * v.zoom);
    v.column -= (event.clientX - drag.x) / (size[b] * v.zoom);
    drag.x = event.clientX; drag.y = event.clientY;
    draw();
    return;
  }
  if (stroke) { const v = voxelAt(stroke.axis, event); brushTo(v.i, v.j); }
}

function release() {
  drag = null;
  if (!stroke) return;
  const s = stroke;
  stroke = null;
  send(s.axis, s.index, s.voxels, s.erase);
}

function scroll(axis, by) {
  cross[axis] = Math.max(0, Math.min(state.shape[axis] - 1, cross[axis] + by));
  draw();
}

function zoom(axis, factor) {
  views[axis].zoom *= factor;
  draw();
}

for (const element of document.querySelectorAll(".pane[data-axis]")) {
  const axis = Number(element.dataset.axis);
  element.addEventListener("mousedown", (event) => press(axis, event));
  element.addEventListener("contextmenu", (event) => event.preventDefault());
  element.addEventListener("mousemove", (event) => {
    focus = axis;
    const v = voxelAt(axis, event);
    hover = [axis, v.row, v.column];
    if (!stroke && !drag && tool !== "cross") draw();
  });
  element.addEventListener("mouseleave", () => { hover = null; });
  element.addEventListener("wheel", (event) => {
    event.preventDefault();
    if (event.ctrlKey) zoom(axis, event.deltaY < 0 ? 1.2 : 1 / 1.2);
    else scroll(axis, Math.sign(event.deltaY));
  }, { passive: false });
}
window.addEventListener("mousemove", move);
window.addEventListener("mouseup", release);
window.addEventListener("resize", () => { views.forEach((v) => { v.fitted = false; }); if (state) draw(); });

// ---- buttons and keys ------------------------------------------------------------------------------

function choose(name) {
  tool = name;
  polygon = null;
  for (const button of $("tools").children) button.classList.toggle("on", button.dataset.tool === name);
  if (state) draw();
}

function chooseLabel(label) {
  active = (label + state.names.length) % state.names.length;
  [...$("labels").children].forEach((button, k) => button.classList.toggle("on", k === active));
}

async function step(name) {
  const found = await post(name);
  if (!found.error) { say(`${name === "undo" ? "Taken back" : "Done again"}: ${found.changed}`); changed(); }
}

async function slow(name) {
  await post(name, { axis: focus });
  watch();
}

async function watch() { // while something takes long
  show(await (await get("state")).json());
}

function toggle(id) { $(id).checked = !$(id).checked; draw(); }

function changeRange(id, by) {
  $(id).value = Number($(id).value) + by;
  $(id).dispatchEvent(new Event("input"));
}

const KEYS = {
  1: () => choose("cross"), 3: () => choose("polygon"), 4: () => choose("brush"), 5: () => choose("threshold"),
  6: () => choose("fill"), 7: () => choose("eraser"), 8: () => choose("body"),
  n: () => goTo(place + 1), b: () => goTo(place - 1),
  ArrowUp: () => scroll(focus, 1), ArrowDown: () => scroll(focus, -1),
  PageUp: () => scroll(focus, 10), PageDown: () => scroll(focus, -10),
  "-": () => changeRange("radius", -1), "=": () => changeRange("radius", 1), "+": () => changeRange("radius", 1),
  ",": () => chooseLabel(active - 1), ".": () => chooseLabel(active + 1),
  a: () => changeRange("opacity", -0.1), d: () => changeRange("opacity", 0.1),
  s: () => toggle("show-labels"), u: () => toggle("show-doubt"), h: () => toggle("show-hand"), x: () => toggle("show-cross"),
  f: () => { fit(focus); draw(); },
  c: () => { const [a, b] = IN_PLANE[focus]; views[focus].row = cross[a] + 0.5; views[focus].column = cross[b] + 0.5; draw(); },
  g: () => slow("follow"), Enter: () => closePolygon(), Escape: () => { polygon = null; draw(); },
};

window.addEventListener("keydown", (event) => {
  if (!state) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.ctrlKey || event.metaKey) {
    if (key === "z") { event.preventDefault(); step(event.shiftKey ? "redo" : "undo"); }
    if (key === "y") { event.preventDefault(); step("redo"); }
    return;
  }
  if (KEYS[key]) { event.preventDefault(); KEYS[key](); }
});

function outputs() {
  $("radius-out").textContent = $("radius").value;
  $("low-out").textContent = Number($("low").value).toFixed(2);
  $("high-out").textContent = Number($("high").value).toFixed(2);
}

function windowOf(low, high) {
  $("low").value = low; $("high").value = high;
  outputs();
  draw();
}

for (const id of ["low", "high", "opacity", "radius"])
  $(id).addEventListener("input", () => { outputs(); draw(); });
for (const id of ["show-labels", "show-doubt", "show-hand", "show-cross"]) $(id).addEventListener("change", draw);
for (const button of $("tools").children) button.onclick = () => choose(button.dataset.tool);
$("undo").onclick = () => step("undo");
$("redo").onclick = () => step("redo");
$("follow").onclick = () => slow("follow");
$("learn").onclick = () => slow("learn");
$("next").onclick = () => goTo(place + 1);
$("previous").onclick = () => goTo(place - 1);
$("renew").onclick = readPlaces;
$("draw3d").onclick = () => draw3d().catch((error) => say(`No 3-D view: ${error.message}`));
$("wide").onclick = () => windowOf(-0.1, 1.5);
$("narrow").onclick = () => windowOf(0.75, 1.25);

(async () => {
  show(await (await get("state")).json());
  cross = state.shape.map((n) => Math.floor(n / 2));
  $("labels").replaceChildren(...state.names.map((name, k) => {
    const button = document.createElement("button");
    button.innerHTML = `<span class="swatch" style="background:${state.colours[k]}"></span>`;
    button.append(name);
    button.onclick = () => chooseLabel(k);
    return button;
  }));
  chooseLabel(state.names.indexOf("crystal"));
  choose("cross");
  outputs();
  await draw();
  await readPlaces();
  if (places.length) goTo(0);
  if (!state.reading) effectSoon();
  setInterval(() => watch().catch(() => say("The server does not answer; was it stopped?")), 1000);
  document.body.dataset.ready = "yes";
})();
