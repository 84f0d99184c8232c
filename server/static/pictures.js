/** Pictures: the gallery's, as the server sends them, and the user's own, read in the browser. */

import { pictureUrl } from "./api.js";

const SHOWN = 1280; // longest side in pixels of an image of the user's that is kept for drawing
const KEPT = 200;
const SENT_AS_THEY_ARE = new Set(["image/jpeg", "image/png", "image/webp"]);
const loading = new Map();

/** A stored image as the browser draws it, or null when it is gone; of a box its crop, or the `whole` photograph. */
export function stored(id, side = 480, whole = false) {
  const url = pictureUrl(id, side, whole);
  if (!loading.has(url)) {
    // Once more after a moment: the server may have been busy.
    const again = () => new Promise((done) => setTimeout(done, 1500)).then(() => load(url));
    loading.set(url, load(url).catch(again).catch(() => (loading.delete(url), null)));
    if (loading.size > KEPT) loading.delete(loading.keys().next().value);
  }
  return loading.get(url);
}

function load(url) {
  const picture = new Image();
  picture.src = url;
  return picture.decode().then(() => picture);
}

/**
 * An image of the user's: {blob, name, picture, size, note}; `picture` is upright, and null if the browser cannot read it.
 *
 * It is sent as it is, unless it is larger than the server takes, or of a kind that only the browser reads.
 */
export async function own(file, limits) {
  const name = file.name || "pasted image";
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    return { blob: file, name, picture: null, size: null, note: "This browser cannot show the image; it is sent to the server as it is." };
  }
  try {
    const { width, height } = bitmap;
    const fits = file.size <= limits.image_bytes && width * height <= limits.pixels;
    const picture = scaled(bitmap, SHOWN);
    if (fits && SENT_AS_THEY_ARE.has(file.type)) return { blob: file, name, picture, size: [width, height], note: "" };
    const smaller = fits ? scaled(bitmap, Infinity) : scaled(bitmap, Math.min(4096, Math.sqrt(limits.pixels)));
    const blob = await new Promise((done) => smaller.toBlob(done, fits ? "image/png" : "image/jpeg", 0.95));
    const sent = blob.size <= limits.image_bytes ? blob : await new Promise((done) => picture.toBlob(done, "image/jpeg", 0.9));
    const size = sent === blob ? [smaller.width, smaller.height] : [picture.width, picture.height];
    const note = fits && sent === blob ? "Sent to the server as a PNG." : `Larger than the server takes: sent as ${size[0]} × ${size[1]} pixels.`;
    return { blob: sent, name, picture, size, note };
  } finally {
    bitmap.close();
  }
}

function scaled(bitmap, longest) {
  const shrink = Math.min(1, longest / Math.max(bitmap.width, bitmap.height)), canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * shrink));
  canvas.height = Math.max(1, Math.round(bitmap.height * shrink));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas;
}

/** The first image among dropped or pasted things, or null. */
export function pictureIn(transfer) {
  return [...(transfer?.files ?? [])].find((file) => file.type.startsWith("image/") || /\.(jpe?g|png|webp)$/i.test(file.name)) ?? null;
}
