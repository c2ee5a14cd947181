// What is drawn over the picture of a panel: letters of the patient's sides, a scale bar, lines of the other planes, and
// measurements. All places are mm in the volume's own axes: x to the right, y to the front, z up.

const SIDES = [["L", "R"], ["P", "A"], ["I", "S"]];
const INK = "#ffe08a", LINE = "#6cb8ff", FONT = 15;

export function createOverlay(panel, stage) {
  const canvas = document.createElement("canvas");
  canvas.className = "overlay";
  canvas.setAttribute("aria-hidden", "true");
  stage.append(canvas);
  const { nv } = panel;
  const overlay = { canvas, shapes: [], lines: false, slabMm: 0 };

  // The planes on the screen: normal axis, the axes across and up, whether mm fall to the right, and where they lie.
  overlay.tiles = () => nv.screenSlices.filter((tile) => tile.axCorSag <= 2 && tile.fovMM.length).map((tile) => {
    let [left, top, width, height] = tile.leftTopWidthHeight;
    const mirrored = width < 0;
    if (mirrored) { left += width; width = -width; }
    const [normal, across, up] = [[2, 0, 1], [1, 0, 2], [0, 1, 2]][tile.axCorSag];
    const [mmLeft, mmLow] = tile.leftTopMM, [mmWide, mmHigh] = tile.fovMM;
    return {
      normal, across, up, falling: mirrored !== mmWide < 0, left, top, width, height, perMm: width / Math.abs(mmWide),
      toCanvas(mm) {
        const x = (mm[across] - mmLeft) / mmWide, y = (mm[up] - mmLow) / mmHigh;
        return [left + (mirrored ? 1 - x : x) * width, top + (1 - y) * height];
      },
      toMm(x, y, depth) {
        const share = (x - left) / width, mm = [0, 0, 0];
        mm[normal] = depth;
        mm[across] = mmLeft + (mirrored ? 1 - share : share) * mmWide;
        mm[up] = mmLow + (1 - (y - top) / height) * mmHigh;
        return mm;
      },
    };
  });

  overlay.spot = (clientX, clientY) => {
    const box = nv.canvas.getBoundingClientRect(), scale = nv.canvas.width / box.width;
    return [(clientX - box.left) * scale, (clientY - box.top) * scale];
  };

  // The tile and the mm under a point of the page, or null.
  overlay.at = (clientX, clientY) => {
    const [x, y] = overlay.spot(clientX, clientY);
    const tile = overlay.tiles().find((t) => x >= t.left && x <= t.left + t.width && y >= t.top && y <= t.top + t.height);
    return tile ? { tile, mm: tile.toMm(x, y, panel.crosshair()[tile.normal]) } : null;
  };

  // Shapes of the slice that a tile shows.
  const shown = (tile) => overlay.shapes.filter(
    (shape) => shape.normal === tile.normal && Math.abs(shape.points[0][tile.normal] - panel.crosshair()[tile.normal]) < panel.grid().step[tile.normal] / 2);

  overlay.draw = (target = null) => {
    const context = (target ?? canvas).getContext("2d"), scale = window.devicePixelRatio || 1;
    if (!target) {
      canvas.width = nv.canvas.width;
      canvas.height = nv.canvas.height;
    }
    if (!panel.about) return;
    for (const tile of overlay.tiles()) {
      context.save();
      context.beginPath();
      context.rect(tile.left, tile.top, tile.width, tile.height);
      context.clip();
      context.font = `600 ${FONT * scale}px system-ui, sans-serif`;
      sides(context, tile, scale);
      bar(context, tile, scale);
      if (overlay.lines) crossReference(context, tile, scale);
      for (const shape of shown(tile)) draw(context, tile, shape, scale);
      context.restore();
    }
  };

  function crossReference(context, tile, scale) {
    const at = panel.crosshair(), half = overlay.slabMm / 2;
    context.strokeStyle = LINE;
    context.lineWidth = scale;
    context.setLineDash([6 * scale, 4 * scale]);
    for (const axis of [tile.across, tile.up])
      for (const offset of half && axis === panel.slabAxis ? [-half, half] : [0]) {
        const mm = [...at];
        mm[axis] += offset;
        const [x, y] = tile.toCanvas(mm);
        context.beginPath();
        if (axis === tile.across) { context.moveTo(x, tile.top); context.lineTo(x, tile.top + tile.height); }
        else { context.moveTo(tile.left, y); context.lineTo(tile.left + tile.width, y); }
        context.stroke();
      }
    context.setLineDash([]);
  }

  function draw(context, tile, shape, scale) {
    const points = shape.points.map(tile.toCanvas);
    context.strokeStyle = INK;
    context.lineWidth = 2 * scale;
    context.beginPath();
    if (shape.kind === "roi") {
      const [[x0, y0], [x1, y1]] = points;
      context.ellipse((x0 + x1) / 2, (y0 + y1) / 2, Math.abs(x1 - x0) / 2, Math.abs(y1 - y0) / 2, 0, 0, 2 * Math.PI);
    } else points.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
    context.stroke();
    const lines = describe(panel, shape), [x, y] = points.at(-1);
    const wide = Math.max(...lines.map((line) => context.measureText(line).width));
    const start = Math.min(x + 8 * scale, tile.left + tile.width - wide - 6 * scale);
    lines.forEach((line, i) => text(context, line, start, y + (i * (FONT + 4) + 4) * scale, scale, INK));
  }

  return overlay;
}

function text(context, words, x, y, scale, ink = "#ffffff") {
  context.lineJoin = "round";
  context.lineWidth = 4 * scale;
  context.strokeStyle = "rgb(0 0 0 / 0.85)";
  context.strokeText(words, x, y);
  context.fillStyle = ink;
  context.fillText(words, x, y);
}

function sides(context, tile, scale) {
  const [low, high] = SIDES[tile.across], [down, up] = SIDES[tile.up], pad = 6 * scale, size = FONT * scale;
  const [middle, centre] = [tile.left + tile.width / 2 - size / 3, tile.top + tile.height / 2 + size / 3];
  text(context, tile.falling ? high : low, tile.left + pad, centre, scale);
  text(context, tile.falling ? low : high, tile.left + tile.width - pad - size * 0.7, centre, scale);
  text(context, up, middle, tile.top + pad + size * 0.8, scale);
  text(context, down, middle, tile.top + tile.height - pad, scale);
}

// The longest of 10, 5, 2 and 1 cm that takes up no more than 40 % of a tile's width.
function bar(context, tile, scale) {
  const cm = [10, 5, 2, 1].find((length) => length * 10 * tile.perMm <= tile.width * 0.4);
  if (!cm) return;
  const length = cm * 10 * tile.perMm, x = tile.left + 8 * scale, y = tile.top + tile.height - 10 * scale;
  for (const [width, ink] of [[5, "rgb(0 0 0 / 0.85)"], [2, "#ffffff"]]) {
    context.strokeStyle = ink;
    context.lineWidth = width * scale;
    context.beginPath();
    context.moveTo(x, y - 5 * scale); context.lineTo(x, y); context.lineTo(x + length, y); context.lineTo(x + length, y - 5 * scale);
    context.stroke();
  }
  text(context, `${cm} cm`, x + 4 * scale, y - 8 * scale, scale);
}

// What a measurement says, a line each.
export function describe(panel, shape) {
  const [a, b, c] = shape.points;
  if (shape.kind === "distance") return [`${apart(a, b).toFixed(1)} mm`];
  if (shape.kind === "angle") return c ? [`${angle(a, b, c).toFixed(1)}°`] : [];
  const found = regionOf(panel, shape);
  if (!found.count) return ["no voxel"];
  return [`mean ${signed(found.mean)} SD ${found.sd.toFixed(1)} HU`, `${signed(found.min, 0)} to ${signed(found.max, 0)} HU, ${(found.mm2 / 100).toFixed(2)} cm²`];
}

const signed = (value, digits = 1) => value.toFixed(digits).replace("-", "\u2212");
const apart = (a, b) => Math.hypot(...a.map((v, axis) => v - b[axis]));

export function angle(a, b, c) {
  const u = a.map((v, axis) => v - b[axis]), v = c.map((w, axis) => w - b[axis]);
  const cosine = u.reduce((sum, value, axis) => sum + value * v[axis], 0) / (Math.hypot(...u) * Math.hypot(...v) || 1);
  return (Math.acos(Math.min(Math.max(cosine, -1), 1)) * 180) / Math.PI;
}

// Mean, SD, least and greatest HU of the voxels of a slice whose centres lie in an ellipse, and its area.
export function regionOf(panel, { normal, points: [a, b] }) {
  const { origin, step, dims } = panel.grid(), image = panel.image();
  const [p, q] = [0, 1, 2].filter((axis) => axis !== normal);
  const index = [0, 0, 0];
  index[normal] = Math.round((a[normal] - origin[normal]) / step[normal]);
  const middle = a.map((v, axis) => (v + b[axis]) / 2), radius = a.map((v, axis) => Math.abs(v - b[axis]) / 2);
  const range = (axis) => [
    Math.max(Math.ceil((middle[axis] - radius[axis] - origin[axis]) / step[axis]), 0),
    Math.min(Math.floor((middle[axis] + radius[axis] - origin[axis]) / step[axis]), dims[axis] - 1)];
  const [[p0, p1], [q0, q1]] = [range(p), range(q)];
  let count = 0, sum = 0, squares = 0, min = Infinity, max = -Infinity;
  for (index[q] = q0; index[q] <= q1; index[q]++)
    for (index[p] = p0; index[p] <= p1; index[p]++) {
      const away = [p, q].map((axis) => (origin[axis] + index[axis] * step[axis] - middle[axis]) / radius[axis]);
      if (away[0] ** 2 + away[1] ** 2 > 1) continue;
      const hu = image[index[0] + dims[0] * (index[1] + dims[1] * index[2])];
      count += 1; sum += hu; squares += hu * hu;
      min = Math.min(min, hu); max = Math.max(max, hu);
    }
  const mean = sum / count;
  return { count, mean, sd: Math.sqrt(Math.max(squares / count - mean * mean, 0)), min, max, mm2: Math.PI * radius[p] * radius[q] };
}
