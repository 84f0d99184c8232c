/** What is shown, as files: one image, or the answers as they came. */

import { make } from "./dom.js";
import { draw, drawLegend, outline } from "./maps.js";
import { endsOf, hasOneReference, heatOf, view } from "./view.js";
import { digits, fileName, labelled, plainly } from "./words.js";

const TILE = 240, GAP = 18, MARGIN = 28, TEXT = 46, COLUMNS = 6;
const INK = "#1d2430", SOFT = "#5d6879", BAD = "#b4532a", FONT = 'system-ui, "DejaVu Sans", sans-serif';

function save(blob, ending) {
  const url = URL.createObjectURL(blob), plain = (text) => text.replace(/[^\p{L}\p{N}._-]+/gu, "-").slice(0, 60);
  const link = make("a", { href: url, download: `${plain(view.gallery.name)}-${plain(fileName(view.query.name))}.${ending}` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

export function saveData() {
  const { state, search, explanation, gallery } = view;
  const data = { gallery: { name: gallery.name, fingerprint: gallery.fingerprint, metric: gallery.metric }, state, search, explanation };
  save(new Blob([JSON.stringify(data, null, 1)], { type: "application/json" }), "json");
}

/** The query, its matches and the maps on both, with captions; `pictureOf(match)` is a match's picture or null. */
export async function savePicture(pictureOf) {
  const canvas = panel(pictureOf);
  save(await new Promise((done) => canvas.toBlob(done, "image/png")), "png");
}

function panel(pictureOf) {
  const { matches } = view.search, columns = Math.min(COLUMNS, matches.length + 1), isPaired = view.query.picture && !hasOneReference();
  const lines = Math.ceil((matches.length + 1) / columns), high = TEXT + TILE + (isPaired ? GAP / 2 + TILE : 0) + GAP;
  const canvas = make("canvas", { width: Math.max(620, 2 * MARGIN + columns * (TILE + GAP) - GAP), height: 2 * MARGIN + 62 + lines * high + 56 });
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  const wide = canvas.width - 2 * MARGIN;
  write(context, `${view.gallery.name}: ${fileName(view.query.name)}`, MARGIN, MARGIN + 18, { size: 20, weight: 600, width: wide });
  write(context, settings(), MARGIN, MARGIN + 42, { colour: SOFT, width: wide });
  const place = (index) => [MARGIN + (index % columns) * (TILE + GAP), MARGIN + 62 + Math.floor(index / columns) * high];

  const [x, y] = place(0);
  write(context, "query", x, y + 16, { weight: 600 });
  const caption = view.state.box ? `box ${view.state.box.map(Math.round).join(", ")}` : view.query.label ?? "";
  write(context, caption, x, y + 36, { size: 13, colour: SOFT });
  tile(context, view.query.picture, hasOneReference() ? heatOf(null, "query") : null, x, y + TEXT, view.state.box);
  matches.forEach((match, index) => {
    const [left, top] = place(index + 1), isRejected = match.is_accepted === false;
    write(context, `${match.rank} · ${labelled(match.label)}`, left, top + 16, { weight: 600, width: TILE - 58 });
    write(context, digits(match.similarity), left + TILE, top + 16, { align: "right" });
    write(context, isRejected ? "not near enough" : fileName(match.path), left, top + 36, { size: 13, colour: isRejected ? BAD : SOFT });
    tile(context, pictureOf(match), heatOf(match, "match"), left, top + TEXT);
    if (isPaired) tile(context, view.query.picture, heatOf(match, "query"), left, top + TEXT + TILE + GAP / 2);
  });
  legend(context, canvas.height - MARGIN - 14, canvas.width);
  return canvas;
}

function settings() {
  const { state, search, explanation } = view, words = [];
  if (explanation) words.push(`weighting ${explanation.weighting}`);
  if (state.against !== "match") words.push(`compared with ${explanation?.references[0]?.name ?? plainly(state.against)}`);
  if (explanation?.versus) words.push(`why not ${explanation.versus}`);
  if (search.is_known === false) words.push("no match is near enough");
  if (state.label) words.push(`label ${state.label}`);
  if (state.where) words.push(state.where);
  return words.join(" · ");
}

function legend(context, y, width) {
  const { explanation } = view;
  if (!explanation?.references.length) return;
  const strip = make("canvas", { width: 256, height: 1 }), [left, right] = endsOf(explanation.references[0]);
  drawLegend(strip, explanation.is_signed);
  write(context, left, MARGIN, y + 11, { size: 13, colour: SOFT });
  const from = MARGIN + context.measureText(left).width + 10;
  context.drawImage(strip, from, y, 150, 12);
  write(context, right, from + 160, y + 11, { size: 13, colour: SOFT });
  const at = from + 176 + context.measureText(right).width;
  write(context, explanation.words.slice(-1)[0], at, y + 11, { size: 13, colour: SOFT, width: width - MARGIN - at });
}

function tile(context, picture, heat, x, y, box = null) {
  context.fillStyle = "#eceff3";
  context.fillRect(x, y, TILE, TILE);
  if (!picture) return write(context, "no image", x + TILE / 2, y + TILE / 2, { colour: SOFT, align: "center" });
  const drawn = make("canvas");
  draw(drawn, picture, 480, heat);
  const shrink = TILE / Math.max(drawn.width, drawn.height), w = drawn.width * shrink, h = drawn.height * shrink;
  const left = x + (TILE - w) / 2, top = y + (TILE - h) / 2;
  context.drawImage(drawn, left, top, w, h);
  if (!box || !view.query.size) return;
  const [l, t, r, b] = box.map((edge, i) => (edge / view.query.size[i % 2]) * (i % 2 ? h : w));
  outline(context, [left + l, top + t, left + r, top + b]);
}

/** Text on one line, cut where it would be wider than `width`. */
function write(context, text, x, y, { size = 14, weight = 400, colour = INK, align = "left", width = TILE } = {}) {
  Object.assign(context, { font: `${weight} ${size}px ${FONT}`, fillStyle: colour, textAlign: align });
  let shown = text;
  while (shown && context.measureText(shown).width > width) shown = shown.slice(0, shown.endsWith("…") ? -2 : -1).trimEnd() + "…";
  context.fillText(shown === "…" ? "" : shown, x, y);
}
