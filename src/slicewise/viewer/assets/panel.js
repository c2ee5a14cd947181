// One volume on one canvas: three planes and a 3D render drawn by NiiVue, window and level, HU under the cursor.
// Shared by the viewer and the reading study. NiiVue's own keys, contrast drag and reset are kept from it: windows come
// from the server's presets and the volume's own metadata, never from NiiVue's estimate of a range.

import { createOverlay } from "./overlay.js";
import { slab } from "./slab.js";

const { Niivue, NVImage, SLICE_TYPE, MULTIPLANAR_TYPE } = window.niivue;
export const VIEWS = {
  all: SLICE_TYPE.MULTIPLANAR, axial: SLICE_TYPE.AXIAL, coronal: SLICE_TYPE.CORONAL, sagittal: SLICE_TYPE.SAGITTAL,
  "3D": SLICE_TYPE.RENDER,
};
const [NEVER, ALWAYS] = [0, 1]; // of SHOW_RENDER, which NiiVue's bundle does not export
// Voxels from which the 3D picture beside the planes would take seconds a frame, where there is no graphics card.
const MOST_WITHOUT_CARD = 8e6;
const CROSS_MM = 1;
const FIRST_VOXEL = 352; // of the .nii files that the server sends
// Blue where there is less, red where there is more, black where nothing differs.
const DIVERGING = { R: [90, 40, 0, 230, 255], G: [200, 90, 0, 90, 220], B: [255, 230, 0, 30, 120], A: [255, 255, 255, 255, 255], I: [0, 64, 128, 192, 255] };
const START_3D = { azimuth: 160, elevation: 15 };

// `stage` is an element to fill. `tell` = { moved(panel), windowed(lo, hi), hovered(panel, hit | null), touched(panel) }.
export async function createPanel(stage, label, tell) {
  const canvas = document.createElement("canvas");
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", label);
  stage.append(canvas);
  const nv = new Niivue({
    backColor: [0, 0, 0, 1], crosshairColor: [0.35, 0.75, 1, 0.8], crosshairWidth: CROSS_MM, crosshairGap: 8, crosshairWidthUnit: "mm",
    show3Dcrosshair: false, isRadiologicalConvention: true, sagittalNoseLeft: true, dragAndDropEnabled: false,
    multiplanarLayout: MULTIPLANAR_TYPE.GRID, multiplanarShowRender: ALWAYS, isColorbar: false, isOrientCube: false,
    isForceMouseClickToVoxelCenters: true, isOrientationTextVisible: false, loadingText: "", logLevel: "error",
  });
  await nv.attachToCanvas(canvas);
  nv.addColormap("difference", DIVERGING);
  const info = nv.gl.getExtension("WEBGL_debug_renderer_info");
  const hasCard = !/swiftshader|llvmpipe|software/i.test(nv.gl.getParameter(info ? info.UNMASKED_RENDERER_WEBGL : nv.gl.RENDERER));

  const panel = {
    nv, canvas, about: null, tool: "slices", slabAxis: 2,

    async load(url, about, lo, hi) {
      panel.about = null;
      panel.isDifference = false;
      await panel.show(await fetched(url), about, lo, hi);
    },

    // A .nii file as the server sends it; with a colour map for what is no CT.
    async show(buffer, about, lo, hi, colormap = "gray") {
      panel.about = null;
      panel.labelsAsked = null;
      while (nv.volumes.length) nv.removeVolume(nv.volumes.at(-1));
      const voxels = (buffer.byteLength - FIRST_VOXEL) / 2;
      nv.opts.multiplanarShowRender = hasCard || voxels < MOST_WITHOUT_CARD ? ALWAYS : NEVER;
      nv.addVolume(await NVImage.loadFromUrl({ url: buffer, name: "volume.nii", colormap, cal_min: lo, cal_max: hi }));
      panel.buffer = buffer;
      panel.original = nv.volumes[0].img;
      panel.about = about;
      panel.resetView();
      panel.middle();
    },

    setWindow(lo, hi) {
      const volume = nv.volumes[0];
      if (!volume || (volume.cal_min === lo && volume.cal_max === hi)) return;
      volume.cal_min = lo;
      volume.cal_max = hi;
      nv.updateGLVolume();
    },

    // Labels over the picture, a .nii file of whole numbers with names, or none. The last call wins, whichever is
    // fetched first.
    async setLabels(url, names) {
      const asked = (panel.labelsAsked = Symbol());
      while (nv.volumes.length > 1) nv.removeVolume(nv.volumes.at(-1));
      if (!url) return nv.updateGLVolume();
      const overlay = await NVImage.loadFromUrl({ url: await fetched(url), name: "labels.nii", opacity: 0.45 });
      if (panel.labelsAsked !== asked) return;
      nv.addVolume(overlay);
      overlay.setColormapLabel(colours(names));
      nv.updateGLVolume();
    },

    // The volume as it is shown, and its grid: mm of the first voxel, mm from voxel to voxel, voxels along x, y, z.
    image() { return nv.volumes[0].img; },
    grid() {
      const dims = nv.volumes[0].dimsRAS.slice(1, 4), first = nv.frac2mm(nv.vox2frac([0, 0, 0]));
      const second = nv.frac2mm(nv.vox2frac([1, 1, 1]));
      return { dims, origin: Array.from(first).slice(0, 3), step: dims.map((_, axis) => second[axis] - first[axis]) };
    },
    crosshair() { return Array.from(nv.frac2mm(nv.scene.crosshairPos)).slice(0, 3); },

    // A thick slab across the plane shown; axial where all planes are.
    setSlab(kind, mm) {
      if (!panel.about) return;
      const axis = { coronal: 1, sagittal: 0 }[panel.view] ?? 2, half = Math.round((mm / panel.grid().step[axis] - 1) / 2);
      const on = kind !== "off" && half > 0;
      panel.slabAxis = axis;
      panel.slab = on ? { kind, mm: (2 * half + 1) * panel.grid().step[axis] } : null;
      panel.overlay.slabMm = panel.slab?.mm ?? 0;
      const next = on ? slab(panel.original, panel.grid().dims, axis, half, kind) : panel.original;
      panel.slabKind = [kind, mm];
      if (nv.volumes[0].img === next) return panel.draw();
      nv.volumes[0].img = next;
      nv.updateGLVolume();
    },

    draw() { nv.drawScene(); },

    // The next slice of a film, the first after the last.
    cine() {
      if (!panel.about) return;
      const axis = { coronal: 1, sagittal: 0 }[panel.view] ?? 2, at = panel.voxel(), count = panel.grid().dims[axis];
      at[axis] = axis === 2 ? (at[2] + count - 1) % count : (at[axis] + 1) % count;
      panel.goTo(at);
    },

    // What is on the screen as a picture, with a line of text below.
    async picture(line) {
      const shot = document.createElement("canvas"), size = Math.round(18 * (window.devicePixelRatio || 1));
      [shot.width, shot.height] = [canvas.width, canvas.height + 2 * size];
      const context = shot.getContext("2d");
      context.fillStyle = "#000";
      context.fillRect(0, 0, shot.width, shot.height);
      panel.draw();
      context.drawImage(canvas, 0, 0);
      panel.overlay.draw(shot);
      context.fillStyle = "#fff";
      context.font = `${size * 0.8}px system-ui, sans-serif`;
      context.fillText(line, size / 2, canvas.height + 1.3 * size);
      return new Promise((done) => shot.toBlob(done));
    },

    setView(name) {
      panel.view = name;
      nv.setSliceType(VIEWS[name]);
      if (panel.slab) panel.setSlab(...panel.slabKind);
    },
    setNearest(on) { nv.setInterpolation(on); },
    setCrosshair(on) { nv.opts.crosshairWidth = on ? CROSS_MM : 0; nv.drawScene(); },

    // Voxel of the crosshair, RAS order: x to the patient's right-to-left, y to the front, z up.
    voxel() { return nv.volumes.length ? Array.from(nv.frac2vox(nv.scene.crosshairPos)) : null; },
    goTo(voxel) {
      const dims = nv.volumes[0].dimsRAS;
      const inside = voxel.map((v, axis) => Math.min(Math.max(Math.round(v), 0), dims[axis + 1] - 1));
      nv.scene.crosshairPos = nv.vox2frac(inside);
      nv.createOnLocationChange();
      nv.drawScene();
      tell.moved(panel);
    },
    step(x, y, z) {
      const at = panel.voxel();
      if (at) panel.goTo([at[0] + x, at[1] + y, at[2] + z]);
    },
    middle() {
      const [, x, y, z] = nv.volumes[0].dimsRAS;
      panel.goTo([x / 2, y / 2, z / 2]);
    },

    // Slices are counted from the most superior one, 0.
    slice() { const at = panel.voxel(); return at && panel.about ? panel.about.shape[0] - 1 - at[2] : null; },
    goToSlice(slice) {
      const at = panel.voxel();
      if (at) panel.goTo([at[0], at[1], panel.about.shape[0] - 1 - slice]);
    },

    hu(voxel) { return nv.volumes[0].getValue(voxel[0], voxel[1], voxel[2]); },

    // What lies under a point of the page: { voxel, hu } or null outside the sections.
    at(clientX, clientY) {
      if (!panel.about) return null;
      const box = canvas.getBoundingClientRect();
      const scale = canvas.width / box.width;
      const spot = [(clientX - box.left) * scale, (clientY - box.top) * scale];
      const frac = nv.canvasPos2frac(spot);
      if (frac[0] < 0 || nv.inRenderTile(spot[0], spot[1]) >= 0) return null;
      const voxel = Array.from(nv.frac2vox(frac));
      const dims = nv.volumes[0].dimsRAS;
      return voxel.every((v, axis) => v >= 0 && v < dims[axis + 1]) ? { voxel, hu: panel.hu(voxel) } : null;
    },

    zoom(factor) {
      const pan = nv.scene.pan2Dxyzmm, mm = nv.frac2mm(nv.scene.crosshairPos);
      const next = Math.min(Math.max(pan[3] * factor, 0.5), 12);
      for (let axis = 0; axis < 3; axis++) pan[axis] += (pan[3] - next) * mm[axis]; // the crosshair stays in its place
      pan[3] = next;
      nv.setPan2Dxyzmm(pan);
      tell.moved(panel);
    },
    resetView() {
      nv.setPan2Dxyzmm([0, 0, 0, 1]);
      nv.scene.volScaleMultiplier = 1;
      nv.setRenderAzimuthElevation(START_3D.azimuth, START_3D.elevation);
      nv.drawScene();
    },

    // Show a voxel, with the zoom and direction of another panel.
    follow(other, voxel) {
      if (!panel.about || !other.about) return;
      const dims = nv.volumes[0].dimsRAS;
      nv.scene.crosshairPos = nv.vox2frac(voxel.map((v, axis) => Math.min(Math.max(Math.round(v), 0), dims[axis + 1] - 1)));
      const here = nv.frac2mm(nv.scene.crosshairPos), there = other.nv.frac2mm(other.nv.scene.crosshairPos);
      const pan = Array.from(other.nv.scene.pan2Dxyzmm);
      for (let axis = 0; axis < 3; axis++) pan[axis] += (1 - pan[3]) * (here[axis] - there[axis]);
      nv.scene.pan2Dxyzmm = pan;
      nv.scene.volScaleMultiplier = other.nv.scene.volScaleMultiplier;
      nv.scene.renderAzimuth = other.nv.scene.renderAzimuth;
      nv.scene.renderElevation = other.nv.scene.renderElevation;
      nv.drawScene();
    },
  };

  panel.overlay = createOverlay(panel, stage);
  const drawScene = nv.drawScene.bind(nv);
  nv.drawScene = () => {
    const drawn = drawScene();
    panel.overlay.draw();
    return drawn;
  };
  listen(panel, stage, tell);
  return panel;
}

async function fetched(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error((await answer.text()).slice(0, 300));
  return answer.arrayBuffer();
}

// The difference of two volumes of one geometry, `b` from `a`, as a .nii file of HU.
export function difference(a, b) {
  const buffer = a.slice(0), out = new Int16Array(buffer, FIRST_VOXEL), other = new Int16Array(b, FIRST_VOXEL);
  for (let i = 0; i < out.length; i++) out[i] -= other[i];
  return buffer;
}

// A colour a label, far apart for numbers that are near; 0 shows nothing.
function colours(names) {
  const I = Object.keys(names).map(Number), around = (i, phase) => Math.round(127 + 127 * Math.cos(2.4 * i + phase));
  return {
    R: [0, ...I.map((i) => around(i, 0))], G: [0, ...I.map((i) => around(i, 2.1))], B: [0, ...I.map((i) => around(i, 4.2))],
    A: [0, ...I.map(() => 255)], I: [0, ...I], labels: ["", ...Object.values(names)],
  };
}

// Right drag (or left drag and touch with the window tool): across is width, up and down is level. Other tools take the
// left drag and touch: the picture moves, or a measurement is drawn.
function listen(panel, stage, tell) {
  const { canvas, nv } = panel;
  let drag = null;
  const moved = () => requestAnimationFrame(() => panel.about && tell.moved(panel));
  stage.addEventListener("pointerdown", (event) => {
    tell.touched(panel);
    canvas.focus({ preventScroll: true });
    if (!panel.about) return;
    const tool = event.button === 2 ? "window" : panel.tool;
    if (tool === "slices") return;
    drag = start(tool, event);
    if (drag) stage.setPointerCapture(event.pointerId);
  }, true);

  function start(tool, event) {
    const volume = nv.volumes[0], from = { x: event.clientX, y: event.clientY, live: true, tool };
    if (tool === "window") return { ...from, lo: volume.cal_min, hi: volume.cal_max };
    const at = panel.overlay.at(event.clientX, event.clientY);
    if (!at) return null;
    if (tool === "pan") return { ...from, tile: at.tile, pan: Array.from(nv.scene.pan2Dxyzmm) };
    const last = panel.overlay.shapes.at(-1);
    if (tool === "angle" && last?.kind === "angle" && last.open && last.normal === at.tile.normal) {
      last.points[2] = at.mm;
      delete last.open;
      panel.draw();
      return { ...from, shape: last, point: 2, tile: at.tile };
    }
    const shape = { kind: tool, normal: at.tile.normal, points: [at.mm, [...at.mm]], open: tool === "angle" };
    panel.overlay.shapes.push(shape);
    return { ...from, shape, point: 1, tile: at.tile };
  }

  stage.addEventListener("pointermove", (event) => {
    tell.hovered(panel, panel.at(event.clientX, event.clientY));
    if (!drag?.live) { if (event.buttons) moved(); return; }
    if (drag.tool === "window") {
      const width = (drag.hi - drag.lo) * Math.exp((event.clientX - drag.x) / 200);
      const level = (drag.hi + drag.lo) / 2 + ((event.clientY - drag.y) * (drag.hi - drag.lo)) / 300;
      const wide = Math.min(Math.max(width, 2), 8192);
      tell.windowed(Math.round(level - wide / 2), Math.round(level + wide / 2));
      return;
    }
    const [x0, y0] = panel.overlay.spot(drag.x, drag.y), [x1, y1] = panel.overlay.spot(event.clientX, event.clientY);
    if (drag.tool === "pan") {
      const { tile } = drag, pan = [...drag.pan];
      pan[tile.across] += ((x1 - x0) / tile.perMm) * (tile.falling ? -1 : 1) * pan[3];
      pan[tile.up] -= ((y1 - y0) / tile.perMm) * pan[3];
      nv.setPan2Dxyzmm(pan);
      tell.moved(panel);
    } else {
      drag.shape.points[drag.point] = drag.tile.toMm(x1, y1, drag.shape.points[0][drag.tile.normal]);
      panel.draw();
      tell.moved(panel);
    }
  }, true);
  stage.addEventListener("pointerleave", () => tell.hovered(panel, null));
  const end = () => {
    if (!drag) { moved(); return; }
    drag.live = false;
    const { shape } = drag;
    if (shape && shape.points.every((p) => p.every((v, axis) => v === shape.points[0][axis]))) panel.overlay.shapes.pop(); // a click
    panel.draw();
    tell.moved(panel);
    setTimeout(() => { drag = null; }); // after the mouseup that follows
  };
  stage.addEventListener("pointerup", end, true);
  stage.addEventListener("pointercancel", end, true);
  for (const kind of ["mousedown", "mousemove", "mouseup", "touchstart", "touchmove", "touchend"])
    stage.addEventListener(kind, (event) => { if (drag) event.stopPropagation(); }, true);
  stage.addEventListener("dblclick", (event) => event.stopPropagation(), true); // NiiVue would set its own range
  for (const kind of ["keydown", "keyup"]) stage.addEventListener(kind, (event) => event.stopPropagation(), true); // our keys
  stage.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("wheel", () => { tell.touched(panel); moved(); }, { passive: true });
  canvas.addEventListener("touchmove", moved, { passive: true });
}

// The same keys in the viewer and in the study. Returns whether the key meant something.
export function navigate(panel, event, windowed, presets) {
  if (!panel?.about || event.ctrlKey || event.metaKey || event.altKey) return false;
  const volume = panel.nv.volumes[0];
  const lo = volume.cal_min, hi = volume.cal_max, wide = hi - lo;
  const last = panel.about.shape[0] - 1;
  if (/^[1-9]$/.test(event.key)) {
    const [newLo, newHi] = windowOf(presets, Number(event.key) - 1, panel.about);
    windowed(newLo, newHi);
    return true;
  }
  switch (event.key) {
    case "ArrowUp": event.shiftKey ? panel.step(0, 1, 0) : panel.step(0, 0, 1); break;
    case "ArrowDown": event.shiftKey ? panel.step(0, -1, 0) : panel.step(0, 0, -1); break;
    case "ArrowLeft": panel.step(1, 0, 0); break; // radiological: image left is the patient's right
    case "ArrowRight": panel.step(-1, 0, 0); break;
    case "PageUp": panel.step(0, 0, 5); break;
    case "PageDown": panel.step(0, 0, -5); break;
    case "Home": panel.goToSlice(0); break;
    case "End": panel.goToSlice(last); break;
    case "+": case "=": panel.zoom(1.2); break;
    case "-": case "_": panel.zoom(1 / 1.2); break;
    case "0": panel.resetView(); break;
    case "[": windowed(lo + wide * 0.05, hi - wide * 0.05); break;
    case "]": windowed(lo - wide * 0.05, hi + wide * 0.05); break;
    case ",": windowed(lo - wide * 0.05, hi - wide * 0.05); break;
    case ".": windowed(lo + wide * 0.05, hi + wide * 0.05); break;
    default: return false;
  }
  return true;
}

// [lo, hi] of a preset; the one after the last is the volume's own range, from its metadata.
export function windowOf(presets, index, about) {
  const preset = presets[index];
  return preset ? [preset.lo, preset.hi] : [about.range[0], Math.max(about.range[1], about.range[0] + 1)];
}

export const number = (value) => String(Math.round(value)).replace("-", "\u2212");
