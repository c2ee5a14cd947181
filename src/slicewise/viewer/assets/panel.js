// One volume on one canvas: three planes and a 3D render drawn by NiiVue, window and level, HU under the cursor.
// Shared by the viewer and the reading study. NiiVue's own keys, contrast drag and reset are kept from it: windows come
// from the server's presets and the volume's own metadata, never from NiiVue's estimate of a range.

const { Niivue, NVImage, SLICE_TYPE, MULTIPLANAR_TYPE } = window.niivue;
export const VIEWS = {
  all: SLICE_TYPE.MULTIPLANAR, axial: SLICE_TYPE.AXIAL, coronal: SLICE_TYPE.CORONAL, sagittal: SLICE_TYPE.SAGITTAL,
  "3D": SLICE_TYPE.RENDER,
};
const ALWAYS = 1; // SHOW_RENDER.ALWAYS, which NiiVue's bundle does not export
const CROSS_MM = 1;
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
    isForceMouseClickToVoxelCenters: true, fontMinPx: 11, loadingText: "", logLevel: "error",
  });
  await nv.attachToCanvas(canvas);

  const panel = {
    nv, canvas, about: null, tool: "slices",

    async load(url, about, lo, hi) {
      panel.about = null;
      const answer = await fetch(url);
      if (!answer.ok) throw new Error((await answer.text()).slice(0, 300));
      const buffer = await answer.arrayBuffer();
      while (nv.volumes.length) nv.removeVolume(nv.volumes[0]);
      nv.addVolume(await NVImage.loadFromUrl({ url: buffer, name: "volume.nii", colormap: "gray", cal_min: lo, cal_max: hi }));
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

    setView(name) { nv.setSliceType(VIEWS[name]); },
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

  listen(panel, stage, tell);
  return panel;
}

// Right drag (or left drag and touch with the window tool): across is width, up and down is level.
function listen(panel, stage, tell) {
  const { canvas, nv } = panel;
  let drag = null;
  const moved = () => requestAnimationFrame(() => panel.about && tell.moved(panel));
  stage.addEventListener("pointerdown", (event) => {
    tell.touched(panel);
    canvas.focus({ preventScroll: true });
    if (!panel.about || (event.button !== 2 && panel.tool !== "window")) return;
    const volume = nv.volumes[0];
    drag = { x: event.clientX, y: event.clientY, lo: volume.cal_min, hi: volume.cal_max, live: true };
    stage.setPointerCapture(event.pointerId);
  }, true);
  stage.addEventListener("pointermove", (event) => {
    tell.hovered(panel, panel.at(event.clientX, event.clientY));
    if (!drag?.live) { if (event.buttons) moved(); return; }
    const width = (drag.hi - drag.lo) * Math.exp((event.clientX - drag.x) / 200);
    const level = (drag.hi + drag.lo) / 2 + ((event.clientY - drag.y) * (drag.hi - drag.lo)) / 300;
    const wide = Math.min(Math.max(width, 2), 8192);
    tell.windowed(Math.round(level - wide / 2), Math.round(level + wide / 2));
  }, true);
  stage.addEventListener("pointerleave", () => tell.hovered(panel, null));
  const end = () => {
    if (!drag) { moved(); return; }
    drag.live = false;
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
