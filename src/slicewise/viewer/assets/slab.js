// Thick slabs: every slice replaced by the mean, greatest or least HU of the slices around it.

export const SLABS = { off: "No slab", average: "Average", mip: "MIP", minip: "MinIP" };

// `image` Int16Array of dims [x, y, z], x fastest; along `axis`; `half` slices to each side, fewer at the ends.
export function slab(image, dims, axis, half, kind) {
  const length = dims[axis], stride = [1, dims[0], dims[0] * dims[1]][axis];
  const out = new Int16Array(image.length);
  // Runs of `stride` voxels lie next to each other in one slice across the axis; blocks of `length` runs follow.
  for (let block = 0; block < image.length; block += stride * length)
    for (let slice = 0; slice < length; slice++) {
      const first = Math.max(slice - half, 0), last = Math.min(slice + half, length - 1), count = last - first + 1;
      const at = block + slice * stride;
      for (let i = 0; i < stride; i++) {
        let place = block + first * stride + i, value = image[place];
        if (kind === "average") {
          for (let k = 1; k < count; k++) value += image[(place += stride)];
          value = Math.round(value / count);
        } else if (kind === "mip") {
          for (let k = 1; k < count; k++) { const next = image[(place += stride)]; if (next > value) value = next; }
        } else for (let k = 1; k < count; k++) { const next = image[(place += stride)]; if (next < value) value = next; }
        out[at + i] = value;
      }
    }
  return out;
}
