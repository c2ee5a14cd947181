// Thick slabs: every slice replaced by the mean, greatest or least HU of the slices around it.

export const SLABS = { off: "No slab", average: "Average", mip: "MIP", minip: "MinIP" };

// `image` Int16Array of dims [x, y, z], x fastest; along `axis`; `half` slices to each side, fewer at the ends. Voxels of
// one slice across the axis lie in runs of `stride`; every loop goes along a run, as memory does.
export function slab(image, dims, axis, half, kind) {
  const length = dims[axis], stride = [1, dims[0], dims[0] * dims[1]][axis];
  const out = new Int16Array(image.length), sums = new Int32Array(stride);
  for (let block = 0; block < image.length; block += stride * length) {
    if (kind === "average") averages(image, out, sums, block, length, half);
    else if (stride === 1) extremes(image, out, block, length, half, kind === "mip");
    else for (let slice = 0; slice < length; slice++) {
      const at = block + slice * stride, last = Math.min(slice + half, length - 1);
      out.set(image.subarray(at, at + stride), at);
      for (let k = Math.max(slice - half, 0); k <= last; k++) {
        const from = block + k * stride;
        if (kind === "mip") for (let i = 0; i < stride; i++) { if (image[from + i] > out[at + i]) out[at + i] = image[from + i]; }
        else for (let i = 0; i < stride; i++) if (image[from + i] < out[at + i]) out[at + i] = image[from + i];
      }
    }
  }
  return out;
}

// Along x, where a run is one voxel.
function extremes(image, out, block, length, half, greatest) {
  for (let slice = 0; slice < length; slice++) {
    const last = Math.min(slice + half, length - 1);
    let value = image[block + slice];
    for (let k = Math.max(slice - half, 0); k <= last; k++) {
      const other = image[block + k];
      if (greatest ? other > value : other < value) value = other;
    }
    out[block + slice] = value;
  }
}

// Running sums: a slice comes in, another goes out.
function averages(image, out, sums, block, length, half) {
  const stride = sums.length;
  sums.fill(0);
  for (let k = 0; k < Math.min(half, length); k++)
    for (let i = 0; i < stride; i++) sums[i] += image[block + k * stride + i];
  for (let slice = 0; slice < length; slice++) {
    const enters = block + (slice + half) * stride, leaves = block + (slice - half - 1) * stride, at = block + slice * stride;
    if (slice + half < length) for (let i = 0; i < stride; i++) sums[i] += image[enters + i];
    if (slice > half) for (let i = 0; i < stride; i++) sums[i] -= image[leaves + i];
    const count = Math.min(slice + half, length - 1) - Math.max(slice - half, 0) + 1;
    for (let i = 0; i < stride; i++) out[at + i] = Math.round(sums[i] / count);
  }
}
