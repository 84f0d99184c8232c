/** Maps as colours: bilinear enlargement (`align_corners=False`, as `distcam.explain.upsample`) and two colour scales. */

// Eleven colours at 0, 0.1, …, 1; in between they are mixed. As in distcam.explain.colours.
const ANCHORS = {
  inferno: "000004 160b39 420a68 6a176e 932667 bc3754 dd513a f37819 fca50a f6d746 fcffa4",
  "blue-orange": "0b2a5b 16478c 2b69b5 5a93d0 a3c4e6 f2f2ee f4cf9a eaa24a d3761a a64d0b 6b2b06",
};
const SIDE = 160; // pixels of an enlarged map; the canvas enlarges further
const UNSEEN = "rgba(16, 18, 24, 0.6)";

function colourTable(name) {
  const anchors = ANCHORS[name].split(" ").map((colour) => [0, 2, 4].map((at) => parseInt(colour.slice(at, at + 2), 16)));
  const table = new Uint8ClampedArray(3 * 256);
  for (let i = 0; i < 256; i++) {
    const place = (i / 255) * (anchors.length - 1), low = Math.min(Math.floor(place), anchors.length - 2), share = place - low;
    for (let c = 0; c < 3; c++) table[3 * i + c] = anchors[low][c] * (1 - share) + anchors[low + 1][c] * share;
  }
  return table;
}

export const TABLES = Object.fromEntries(Object.keys(ANCHORS).map((name) => [name, colourTable(name)]));

/** The two ends of the scale for some maps; of signed ones symmetric about 0. */
export function extent(maps, isSigned) {
  let low = Infinity, high = -Infinity;
  for (const map of maps) {
    for (const value of map.values) {
      if (value < low) low = value;
      if (value > high) high = value;
    }
  }
  if (low > high) return [0, 0];
  const most = Math.max(Math.abs(low), Math.abs(high));
  return isSigned ? [-most, most] : [low, high];
}

/** Value of the map at a place in cells, where cell i is centred at i. */
export function sample(map, y, x) {
  const y0 = Math.floor(y), x0 = Math.floor(x), fy = y - y0, fx = x - x0;
  const row = (i) => Math.min(map.rows - 1, Math.max(0, i)) * map.columns;
  const column = (j) => Math.min(map.columns - 1, Math.max(0, j));
  const top = map.values[row(y0) + column(x0)] * (1 - fx) + map.values[row(y0) + column(x0 + 1)] * fx;
  const bottom = map.values[row(y0 + 1) + column(x0)] * (1 - fx) + map.values[row(y0 + 1) + column(x0 + 1)] * fx;
  return top * (1 - fy) + bottom * fy;
}

/** The map as a canvas of colours; cold parts of a map, and the middle of a signed one, let the image through. */
export function layerOf(map, [low, high], isSigned) {
  const table = TABLES[isSigned ? "blue-orange" : "inferno"], span = high - low;
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = SIDE;
  const context = canvas.getContext("2d"), pixels = context.createImageData(SIDE, SIDE);
  for (let i = 0, at = 0; i < SIDE; i++) {
    for (let j = 0; j < SIDE; j++, at += 4) {
      const value = sample(map, ((i + 0.5) * map.rows) / SIDE - 0.5, ((j + 0.5) * map.columns) / SIDE - 0.5);
      const heat = span > 0 ? Math.min(1, Math.max(0, (value - low) / span)) : isSigned ? 0.5 : 0;
      const colour = 3 * Math.round(255 * heat);
      pixels.data[at] = table[colour];
      pixels.data[at + 1] = table[colour + 1];
      pixels.data[at + 2] = table[colour + 2];
      pixels.data[at + 3] = 255 * (isSigned ? 0.08 + 0.92 * Math.abs(2 * heat - 1) ** 0.8 : 0.25 + 0.75 * heat);
    }
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

/**
 * Draw an image with its map on a canvas.
 *
 * `heat` is {layer, view, size, opacity}: the colours, the rectangle of the image that they cover, and the image's
 * true size, both in its own pixels. What lies outside the view was not seen by the encoder and is dimmed. Of a box on
 * its photograph it also holds `box`, which is outlined, and `cut`, outside of which nothing was seen.
 */
export function draw(canvas, picture, longest, heat = null) {
  const width = picture.naturalWidth ?? picture.width, height = picture.naturalHeight ?? picture.height;
  const shrink = Math.min(1, longest / Math.max(width, height));
  const w = Math.max(1, Math.round(width * shrink)), h = Math.max(1, Math.round(height * shrink));
  if (canvas.width !== w || canvas.height !== h) [canvas.width, canvas.height] = [w, h];
  const context = canvas.getContext("2d");
  context.globalAlpha = 1;
  context.imageSmoothingQuality = "high";
  context.clearRect(0, 0, w, h);
  context.drawImage(picture, 0, 0, w, h);
  const placed = (edges) => edges.map((edge, i) => (edge / heat.size[i % 2]) * (i % 2 ? h : w));
  if (heat?.layer) lay(context, heat, placed, w, h);
  if (heat?.box) outline(context, placed(heat.box));
}

/** The outline of a box, seen on dark and on light. */
export function outline(context, [left, top, right, bottom]) {
  for (const [style, width] of [["#101218", 4], ["#56d0f0", 2]]) {
    Object.assign(context, { strokeStyle: style, lineWidth: width });
    context.strokeRect(left, top, right - left, bottom - top);
  }
}

function lay(context, heat, placed, w, h) {
  const [left, top, right, bottom] = placed(heat.view);
  const inside = heat.cut ? placed(heat.cut) : [0, 0, w, h];
  const seen = [Math.max(left, inside[0]), Math.max(top, inside[1]), Math.min(right, inside[2]), Math.min(bottom, inside[3])];
  context.globalAlpha = heat.opacity;
  context.fillStyle = UNSEEN;
  context.beginPath();
  context.rect(0, 0, w, h);
  context.rect(seen[0], seen[1], seen[2] - seen[0], seen[3] - seen[1]);
  context.fill("evenodd");
  context.save();
  context.beginPath();
  context.rect(seen[0], seen[1], seen[2] - seen[0], seen[3] - seen[1]);
  context.clip();
  context.drawImage(heat.layer, left, top, right - left, bottom - top);
  context.restore();
  context.globalAlpha = 1;
}

/** The colour scale as a strip, on a canvas of 256 × 1 pixels. */
export function drawLegend(canvas, isSigned) {
  const table = TABLES[isSigned ? "blue-orange" : "inferno"], context = canvas.getContext("2d");
  const pixels = context.createImageData(256, 1);
  for (let i = 0; i < 256; i++) {
    pixels.data.set(table.subarray(3 * i, 3 * i + 3), 4 * i);
    pixels.data[4 * i + 3] = 255;
  }
  context.putImageData(pixels, 0, 0);
}
