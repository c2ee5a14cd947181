// The tools that the viewer and the reading study share: what a drag does, typed window and level, thick slabs, cine,
// lines of the other planes. `panels()` gives the panels that they act on, `windowed(lo, hi)` sets the window.
import { describe } from "./overlay.js";
import { SLABS } from "./slab.js";

const DRAGS = {
  slices: ["Slices", "Drag moves through the slices"], window: ["Window", "Drag sets window and level (W); so does the right button"],
  pan: ["Pan", "Drag moves the picture (P)"], distance: ["Distance", "Drag from end to end (T)"],
  angle: ["Angle", "Drag the first side, then click the end of the second (A)"], roi: ["ROI", "Drag an ellipse: mean, SD, lowest and highest HU (O)"],
};
const KEYS = { p: "pan", t: "distance", a: "angle", o: "roi" };
const THICK = [5, 10, 20, 30], SPEEDS = [5, 10, 20];

export function createTools(bar, { panels, windowed, changed = () => {} }) {
  const tools = { tool: "slices", kind: "off", mm: 10, lines: false, timer: null };

  const drags = group(bar, "Drag");
  for (const [name, [label, title]] of Object.entries(DRAGS)) {
    const made = button(drags, label, title, () => tools.use(name));
    made.id = `tool-${name}`;
  }
  const measures = group(bar, "Measurements");
  button(measures, "Undo", "Undo the last measurement (Delete)", () => tools.undo());
  button(measures, "Clear", "Remove all measurements", () => { panels().forEach((p) => { p.overlay.shapes = []; p.draw(); }); });

  const typed = group(bar, "Window and level, HU");
  const [w, l] = ["W", "L"].map((letter, i) => {
    const label = document.createElement("label"), input = document.createElement("input");
    Object.assign(input, { type: "number", id: i ? "level" : "width", step: 1, required: true });
    if (!i) input.min = 1;
    label.append(letter, input);
    typed.append(label);
    input.addEventListener("change", () => {
      if (!w.checkValidity() || !l.checkValidity()) return tools.window(tools.lo, tools.hi);
      windowed(Number(l.value) - Number(w.value) / 2, Number(l.value) + Number(w.value) / 2);
    });
    return input;
  });

  const thick = group(bar, "Thick slab, in the plane shown, axial where all are");
  const kinds = select(thick, "Slab", Object.entries(SLABS), (value) => tools.slab(value, tools.mm));
  const mms = select(thick, "Slab thickness", THICK.map((mm) => [mm, `${mm} mm`]), (value) => tools.slab(tools.kind, Number(value)));
  kinds.id = "slab";
  mms.value = tools.mm;

  const film = group(bar, "Cine");
  const play = button(film, "Cine", "Run through the slices (Space)", () => tools.play(!tools.timer));
  play.id = "cine";
  const speed = select(film, "Slices per second", SPEEDS.map((fps) => [fps, `${fps}/s`]), () => tools.timer && tools.play(true));
  speed.value = 10;
  const lines = button(bar, "Lines", "Lines of the other planes (U)", () => tools.cross(!tools.lines));
  lines.id = "lines";

  tools.use = (name) => {
    tools.tool = name;
    for (const panel of panels()) panel.tool = name;
    for (const each of drags.children) pressed(each, each.id === `tool-${name}`);
    changed();
  };
  tools.window = (lo, hi) => {
    Object.assign(tools, { lo, hi });
    if (document.activeElement !== w && document.activeElement !== l) [w.value, l.value] = [Math.round(hi - lo), Math.round((hi + lo) / 2)];
  };
  tools.slab = (kind, mm) => {
    Object.assign(tools, { kind, mm });
    kinds.value = kind;
    for (const panel of panels()) panel.setSlab(kind, mm);
    changed();
  };
  tools.cross = (on) => {
    tools.lines = on;
    pressed(lines, on);
    for (const panel of panels()) { panel.overlay.lines = on; panel.draw(); }
  };
  tools.play = (on) => {
    clearInterval(tools.timer);
    tools.timer = on ? setInterval(() => panels()[0]?.cine(), 1000 / Number(speed.value)) : null;
    pressed(play, on);
  };
  tools.undo = () => {
    const panel = panels().find((p) => p.overlay.shapes.length);
    if (panel) { panel.overlay.shapes.pop(); panel.draw(); }
    return Boolean(panel);
  };
  // A panel that is new, or shows another volume.
  tools.adopt = (panel) => {
    panel.tool = tools.tool;
    panel.overlay.lines = tools.lines;
    panel.overlay.shapes = [];
    panel.setSlab(tools.kind, tools.mm);
  };
  tools.key = (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return false;
    const key = event.key.toLowerCase();
    if (KEYS[key]) tools.use(tools.tool === KEYS[key] ? "slices" : KEYS[key]);
    else if (key === "w") tools.use(tools.tool === "window" ? "slices" : "window");
    else if (key === " ") tools.play(!tools.timer);
    else if (key === "u") tools.cross(!tools.lines);
    else if (key === "delete" || key === "backspace") return tools.undo();
    else return false;
    return true;
  };
  // The last measurement in words, for the readout.
  tools.said = (panel) => (panel?.overlay.shapes.length ? describe(panel, panel.overlay.shapes.at(-1)).join(", ") : "");
  tools.use("slices");
  tools.cross(false);
  tools.play(false);
  return tools;
}

export const pressed = (button, on) => button.setAttribute("aria-pressed", String(on));

function group(bar, label) {
  const made = document.createElement("div");
  made.className = "group";
  made.setAttribute("role", "group");
  made.setAttribute("aria-label", label);
  bar.append(made);
  return made;
}

function button(parent, label, title, act) {
  const made = document.createElement("button");
  Object.assign(made, { type: "button", textContent: label, title, onclick: act });
  parent.append(made);
  return made;
}

function select(parent, label, options, act) {
  const made = document.createElement("select");
  made.setAttribute("aria-label", label);
  for (const [value, name] of options) made.add(new Option(name, value));
  made.addEventListener("change", () => act(made.value));
  parent.append(made);
  return made;
}
