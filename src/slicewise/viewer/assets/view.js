// The viewer's page: one or two linked panels, window presets, tools, and the curve of slice means below.
import { createPanel, difference, navigate, number, VIEWS, windowOf } from "./panel.js";
import { createTools, pressed } from "./tools.js";

const $ = (id) => document.getElementById(id);
const state = {
  volumes: [], windows: [], labels: [], sides: [], active: 0, linked: true, two: false, view: "all", nearest: false, cross: true, lo: 0, hi: 1,
  difference: false, blink: null,
};
window.slicewise = state; // for the console and for tests

const sides = () => state.sides.slice(0, state.two ? 2 : 1);
const active = () => state.sides[state.active];
const tools = createTools($("tools"), {
  panels: () => [active(), ...state.sides.filter((s) => s !== active())].filter(Boolean).map((s) => s.panel),
  windowed: (lo, hi) => setWindow(lo, hi), changed: () => sides().forEach(read),
});

async function start() {
  const listing = await (await fetch("volumes")).json();
  state.volumes = listing.volumes;
  state.windows = listing.windows;
  state.labels = listing.labels;
  [state.lo, state.hi] = [state.windows[0].lo, state.windows[0].hi];
  buttons();
  state.two = state.volumes.length > 1;
  for (let i = 0; i < (state.two ? 2 : 1); i++) state.sides.push(await side(i));
  await Promise.all(state.sides.map((s, i) => choose(s, i)));
  refresh();
  document.body.dataset.ready = "yes";
}

async function side(index) {
  const section = document.createElement("section");
  section.className = "panel";
  section.innerHTML = '<select aria-label="Volume"></select><strong class="badge" hidden>Synthetic</strong>' +
    '<div class="stage"><div class="state">…</div></div><div class="readout"></div>';
  section.setAttribute("aria-label", index ? "Second volume" : "First volume");
  $("panels").append(section);
  const [select, badge, stage, readout] = section.children;
  state.volumes.forEach((title, i) => select.add(new Option(title, i)));
  const made = { section, select, badge, stage, readout, cover: stage.firstChild, hit: null, volume: 0, panel: null, curve: null };
  made.panel = await createPanel(stage, `Volume ${index + 1}`, {
    moved: () => moved(made), windowed: setWindow, touched: () => activate(made),
    hovered: (_, hit) => { made.hit = hit; read(made); },
  });
  stage.append(made.cover);
  select.addEventListener("change", () => choose(made, Number(select.value)));
  select.addEventListener("focus", () => activate(made));
  return made;
}

async function choose(side, volume) {
  side.volume = volume;
  side.select.value = volume;
  side.cover.hidden = false;
  side.cover.textContent = "reading …";
  side.curve = null;
  try {
    const answer = await fetch(`volumes/${volume}`);
    const about = await answer.json();
    if (!answer.ok) throw new Error(about.error);
    if (side.volume !== volume) return; // another was chosen meanwhile
    const kept = side.panel.about && side.panel.slice();
    await side.panel.load(`volumes/${volume}.nii`, about, state.lo, state.hi);
    dress(side);
    if (kept !== null && kept !== false) side.panel.goToSlice(Math.min(kept, about.shape[0] - 1));
    side.cover.hidden = true;
    describe(side, volume);
    const lead = sides().find((s) => s !== side && s.panel.about);
    if (state.linked && lead) moved(lead);
    draw(side, volume);
  } catch (error) {
    side.cover.textContent = String(error.message || error);
  }
  refresh();
}

// A panel that holds another volume, as the page is set.
function dress(side) {
  side.panel.setView(state.view);
  side.panel.setNearest(state.nearest);
  side.panel.setCrosshair(state.cross);
  tools.adopt(side.panel);
}

async function describe(side, volume) {
  const answer = await fetch(`volumes/${volume}/information`);
  if (!answer.ok || side.volume !== volume) return;
  side.information = await answer.json();
  side.badge.hidden = side.information["Synthetic data"] !== "YES";
  await label(side);
  if (state.difference && state.sides.every((s) => s.panel?.about)) await subtract();
}

async function label(side) {
  if (!state.labels.length) return;
  const chosen = $("labels").value, { volume } = side;
  let trouble = "";
  try {
    await side.panel.setLabels(chosen && `volumes/${volume}/labels/${chosen}.nii`, state.labels[chosen]?.names);
  } catch (error) {
    trouble = JSON.parse(error.message).error;
  }
  if ($("labels").value !== chosen || side.volume !== volume) return; // others were chosen meanwhile
  side.trouble = trouble;
  read(side);
}

// The curve comes after the picture.
async function draw(side, volume) {
  const answer = await fetch(`volumes/${volume}/curve`);
  if (!answer.ok || side.volume !== volume) return;
  side.curve = await answer.json();
  refresh();
}

// The voxel of `to` for the crosshair of `from`: the same one where they share their geometry, else as deep below the
// vertex and as far from the middle.
function counterpart(from, to) {
  const [i, j] = from.voxel(), a = from.about, b = to.about;
  if (a.geometry === b.geometry) return from.voxel();
  const across = (v, axis) => ((v - (a.shape[axis] - 1) / 2) * a.spacing[axis]) / b.spacing[axis] + (b.shape[axis] - 1) / 2;
  const slice = Math.round(((from.slice() - a.vertex) * a.spacing[0]) / b.spacing[0]) + b.vertex;
  return [across(i, 2), across(j, 1), b.shape[0] - 1 - slice];
}

function moved(side) {
  if (!side.panel?.about) return;
  if (state.linked)
    for (const other of sides())
      if (other !== side && other.panel.about) { other.panel.follow(side.panel, counterpart(side.panel, other.panel)); read(other); }
  read(side);
  mark();
}

function read(side) {
  const { panel, readout } = side;
  if (!panel?.about) { readout.textContent = ""; return; }
  const at = side.hit ?? { voxel: panel.voxel(), hu: panel.hu(panel.voxel()) };
  const [slices, , ] = panel.about.shape;
  const [x, y, z] = at.voxel;
  readout.innerHTML =
    `<span><b class="hu">${number(at.hu)}</b> HU ${side.hit ? "under the cursor" : "at the crosshair"}</span>` +
    `<span>x ${x} y ${y} slice ${slices - z} of ${slices}</span>` +
    (panel.slab ? `<span>${panel.slab.kind === "average" ? "average" : panel.slab.kind === "mip" ? "MIP" : "MinIP"} of ${panel.slab.mm.toFixed(1)} mm</span>` : "") +
    (tools.said(panel) ? `<span><b>${tools.said(panel)}</b></span>` : "") + (side.trouble ? `<span class="bad"></span>` : "") +
    (side.curve ? `<span>mean of ${side.curve.of}: <b>${format(side.curve.values[panel.slice()])}</b> HU</span>` : "") +
    (panel.about.note ? `<span>${panel.about.note}</span>` : "");
  const trouble = readout.querySelector(".bad");
  if (trouble) trouble.textContent = side.trouble;
}

const shorten = (text, most) => (text.length > most ? `${text.slice(0, Math.max(most - 1, 4))}…` : text);
const format = (value) => (value == null ? "–" : value.toFixed(1).replace("-", "\u2212"));

// A difference has a window of the same width about 0.
const windowFor = (side) => (side.panel.isDifference ? [(state.lo - state.hi) / 2, (state.hi - state.lo) / 2] : [state.lo, state.hi]);

let wanted = null;
function setWindow(lo, hi) {
  [state.lo, state.hi] = [lo, hi];
  if (wanted === null)
    wanted = requestAnimationFrame(() => {
      wanted = null;
      for (const s of state.sides) s.panel.setWindow(...windowFor(s));
      press();
    });
}

function activate(side) {
  state.active = state.sides.indexOf(side);
  state.sides.forEach((s) => s.section.classList.toggle("active", s === side && state.two));
}

// Toolbar -------------------------------------------------------------------------------------------------------------

function buttons() {
  const names = [...state.windows.map((w) => w.name), "Own range"];
  names.forEach((name, i) => {
    const button = document.createElement("button");
    button.innerHTML = `<small>${i + 1}</small>`;
    button.append(name);
    if (state.windows[i]) button.title = `${number(state.windows[i].lo)} to ${number(state.windows[i].hi)} HU`;
    button.onclick = () => active().panel.about && setWindow(...windowOf(state.windows, i, active().panel.about));
    $("windows").append(button);
  });
  const shown = document.createElement("button");
  shown.id = "window-now";
  shown.disabled = true;
  $("windows").append(shown);
  for (const name of Object.keys(VIEWS)) {
    const button = document.createElement("button");
    button.textContent = name;
    button.onclick = () => setView(name);
    $("views").append(button);
  }
  $("blink").onclick = toggleBlink;
  $("difference").onclick = toggleDifference;
  $("shot").onclick = shoot;
  $("information").onclick = inform;
  $("close-about").onclick = () => $("about").close();
  $("labels").hidden = !state.labels.length;
  $("labels").add(new Option("No labels", ""));
  state.labels.forEach((each, i) => $("labels").add(new Option(each.title, i)));
  if (state.labels.length) $("labels").value = 0;
  $("labels").onchange = () => sides().forEach(label);
  $("two").onclick = toggleTwo;
  $("link").onclick = toggleLink;
  $("swap").onclick = swap;
  $("nearest").onclick = toggleNearest;
  $("theme").onclick = toggleTheme;
  $("help").onclick = () => $("keys").showModal();
  $("close-keys").onclick = () => $("keys").close();
}

function setView(name) {
  state.view = name;
  state.sides.forEach((s) => s.panel.setView(name));
  press();
}
async function toggleDifference() {
  state.difference = !state.difference;
  if (state.difference && !state.two) await toggleTwo();
  else if (state.difference) await subtract();
  else if (state.sides[1]) await choose(state.sides[1], state.sides[1].volume);
  press();
}
async function subtract() {
  const [first, second] = state.sides, { about } = second.panel;
  if (second.panel.isDifference) return;
  if (about.geometry !== first.panel.about.geometry) {
    second.cover.textContent = "No difference: the two volumes have different grids.";
    second.cover.hidden = false;
    return;
  }
  const slice = first.panel.voxel();
  await second.panel.show(difference(second.panel.buffer, first.panel.buffer), about, (state.lo - state.hi) / 2, (state.hi - state.lo) / 2, "difference");
  second.panel.isDifference = true;
  dress(second);
  second.panel.goTo(slice);
  refresh();
}
function toggleBlink() {
  clearInterval(state.blink);
  const on = !state.blink && state.two;
  document.body.classList.toggle("blink", on);
  state.blink = on ? setInterval(() => state.sides.forEach((s) => s.section.classList.toggle("front")), 600) : null;
  state.sides.forEach((s, i) => s.section.classList.toggle("front", on && i === 0));
  refresh();
}
async function shoot() {
  const { panel, volume, information } = active();
  if (!panel?.about) return;
  const words = [state.volumes[volume], panel.isDifference ? "difference" : `W ${state.hi - state.lo} L ${(state.hi + state.lo) / 2}`,
    `slice ${panel.slice() + 1} of ${panel.about.shape[0]}`, information?.["Synthetic data"] === "YES" ? "SYNTHETIC" : ""];
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await panel.picture(words.filter(Boolean).join("   ")));
  link.download = `${state.volumes[volume].replace(/[^\w.-]+/g, "-")}-${panel.slice() + 1}.png`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
function inform() {
  const { information, volume } = active();
  $("about-title").textContent = state.volumes[volume];
  $("about-table").replaceChildren(...Object.entries(information ?? {}).map(([name, value]) => {
    const row = document.createElement("tr"), head = document.createElement("th"), cell = document.createElement("td");
    Object.assign(head, { textContent: name, scope: "row" });
    cell.textContent = value;
    row.append(head, cell);
    return row;
  }));
  $("about").showModal();
}
async function toggleTwo() {
  if (!state.two && state.sides.length < 2) {
    const made = await side(1);
    state.sides.push(made);
    state.two = true;
    refresh();
    return choose(made, Math.min(state.sides[0].volume + 1, state.volumes.length - 1));
  }
  state.two = !state.two;
  if (!state.two) activate(state.sides[0]);
  refresh();
  moved(state.sides[0]);
}
function toggleLink() {
  state.linked = !state.linked;
  if (state.linked) moved(active());
  press();
}
function swap() {
  if (!state.two) return;
  const [left, right] = state.sides.map((s) => s.volume);
  choose(state.sides[0], right);
  choose(state.sides[1], left);
}
function toggleNearest() {
  state.nearest = !state.nearest;
  state.sides.forEach((s) => s.panel.setNearest(state.nearest));
  press();
}
function toggleTheme() {
  const dark = document.documentElement.dataset.theme === "dark" ||
    (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = dark ? "light" : "dark";
}

function press() {
  const own = active()?.panel.about;
  [...$("windows").querySelectorAll("button:not(#window-now)")].forEach((button, i) => {
    const [lo, hi] = i < state.windows.length || own ? windowOf(state.windows, i, own ?? {}) : [NaN, NaN];
    pressed(button, lo === state.lo && hi === state.hi);
  });
  $("window-now").textContent = `W ${number(state.hi - state.lo)} L ${number((state.hi + state.lo) / 2)}`;
  [...$("views").children].forEach((button) => pressed(button, button.textContent === state.view));
  pressed($("blink"), Boolean(state.blink));
  pressed($("difference"), state.difference);
  tools.window(state.lo, state.hi);
  pressed($("two"), state.two);
  pressed($("link"), state.linked);
  pressed($("nearest"), state.nearest);
  for (const id of ["link", "swap", "blink"]) $(id).hidden = !state.two;
  $("difference").hidden = state.volumes.length < 2;
}

function refresh() {
  state.sides.forEach((s, i) => { s.section.hidden = i > 0 && !state.two; read(s); });
  press();
  plot();
}

// Slice means against depth below the vertex --------------------------------------------------------------------------

let scale = null;
function plot() {
  const svg = $("curve"), box = svg.getBoundingClientRect();
  const shown = sides().filter((s) => s.panel?.about && s.curve);
  const [w, h, left, right, top, bottom] = [box.width, box.height, 44, 12, 22, 24];
  svg.setAttribute("viewBox", `0 0 ${w} ${h}`);
  svg.replaceChildren();
  scale = null;
  if (!shown.length || w < 80) return;
  const lines = shown.map((s) => {
    const about = s.panel.about;
    return s.curve.values.map((hu, slice) => [(slice - about.vertex) * about.spacing[0], hu]);
  });
  const points = lines.flat(), values = points.map((p) => p[1]).filter((v) => v != null);
  const x0 = Math.min(...points.map((p) => p[0])), x1 = Math.max(...points.map((p) => p[0]), x0 + 1);
  const middle = (Math.min(...values) + Math.max(...values)) / 2, half = Math.max((Math.max(...values) - Math.min(...values)) / 2 * 1.1, 5);
  const y0 = values.length ? middle - half : 0, y1 = values.length ? middle + half : 1;
  const px = (x) => left + ((x - x0) / (x1 - x0)) * (w - left - right), py = (y) => top + ((y1 - y) / (y1 - y0)) * (h - top - bottom);
  const mark_of = (i) => (state.sides.indexOf(shown[i]) ? "b" : "a");
  scale = { x0, x1, left, right, w, px, top, h, bottom };
  const add = (name, values, text) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(values)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    svg.append(node);
    return node;
  };
  for (const y of [y0 + (y1 - y0) * 0.1, (y0 + y1) / 2, y1 - (y1 - y0) * 0.1]) {
    add("line", { class: "axis", x1: left, x2: w - right, y1: py(y), y2: py(y) });
    add("text", { x: left - 6, y: py(y) + 4, "text-anchor": "end" }, y.toFixed(0).replace("-", "\u2212"));
  }
  for (let x = Math.ceil(x0 / 20) * 20; x <= x1; x += 20) add("text", { x: px(x), y: h - 8, "text-anchor": "middle" }, number(x));
  add("text", { x: w - right, y: 14, "text-anchor": "end" }, "mean HU of each slice, by mm below the vertex");
  lines.forEach((line, i) => {
    let piece = [];
    const flush = () => {
      if (piece.length) add("polyline", { class: mark_of(i), points: piece.map(([x, y]) => `${px(x).toFixed(1)},${py(y).toFixed(1)}`).join(" ") });
      piece = [];
    };
    for (const point of line) point[1] == null ? flush() : piece.push(point);
    flush();
    add("text", { class: mark_of(i), x: left + i * (w - left - right) * 0.36, y: 14 },
      shorten(`${shown[i].curve.of}: ${state.volumes[shown[i].volume]}`, w / 22));
  });
  add("line", { class: "now", id: "now", x1: 0, x2: 0, y1: top, y2: h - bottom });
  mark();
}

function mark() {
  const line = $("now"), panel = active()?.panel;
  if (!line || !scale || !panel?.about) return;
  const slice = panel.slice(), x = scale.px((slice - panel.about.vertex) * panel.about.spacing[0]);
  line.setAttribute("x1", x);
  line.setAttribute("x2", x);
  const curve = $("curve");
  curve.setAttribute("aria-valuemax", panel.about.shape[0]);
  curve.setAttribute("aria-valuenow", slice + 1);
  curve.setAttribute("aria-valuetext", `slice ${slice + 1}, mean ${format(active().curve?.values[slice])} HU`);
}

function jump(event) {
  const panel = active()?.panel;
  if (!scale || !panel?.about || (event.type === "pointermove" && !event.buttons)) return;
  const x = event.clientX - $("curve").getBoundingClientRect().left;
  const mm = scale.x0 + ((x - scale.left) / (scale.w - scale.left - scale.right)) * (scale.x1 - scale.x0);
  panel.goToSlice(Math.round(mm / panel.about.spacing[0] + panel.about.vertex));
}
$("curve").addEventListener("pointerdown", jump);
$("curve").addEventListener("pointermove", jump);
new ResizeObserver(plot).observe($("plot"));

// Keys ----------------------------------------------------------------------------------------------------------------

addEventListener("keydown", (event) => {
  if (event.target.closest("select, input, textarea, dialog[open]") || !state.sides.length) return;
  if (event.target.closest("button") && ["Enter", " "].includes(event.key)) return;
  if (tools.key(event) || navigate(active()?.panel, event, setWindow, state.windows)) { event.preventDefault(); return; }
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const names = Object.keys(VIEWS), side = active();
  const does = {
    v: () => setView(names[(names.indexOf(state.view) + 1) % names.length]),
    b: toggleTwo, l: toggleLink, x: swap, n: toggleNearest, d: toggleTheme,
    f: toggleBlink, m: toggleDifference, s: shoot, i: inform,
    c: () => { state.cross = !state.cross; state.sides.forEach((s) => s.panel.setCrosshair(state.cross)); },
    j: () => choose(side, (side.volume + 1) % state.volumes.length),
    k: () => choose(side, (side.volume + state.volumes.length - 1) % state.volumes.length),
    "?": () => $("keys").showModal(),
  }[event.key.toLowerCase()];
  if (does) { event.preventDefault(); does(); }
}, true);

start().catch((error) => {
  const line = document.createElement("p");
  line.className = "bad";
  line.textContent = `The viewer could not start: ${error.message}`;
  document.body.append(line);
});
