/** What is known at the moment, and the maps of it as colours. */

import { extent, layerOf } from "./maps.js";
import { DEFAULTS } from "./state.js";
import { fileName, plainly } from "./words.js";

export const view = {
  gallery: null,
  state: { ...DEFAULTS },
  query: null, // {key, name, label, picture, size, note}
  search: null, // the API's answer
  explanation: null, // the API's answer
  isWhole: true, // whether matches that are boxes are shown on their photographs
};

let layers = new Map(), layersOf = null;

/** Whether there is one reference for all matches: a prototype or a class. */
export const hasOneReference = () => view.explanation?.references.length === 1 && view.explanation.references[0].rank === null;

/** The reference that belongs to a match, or the one for all; null when there is no explanation. */
export function referenceOf(match) {
  const references = view.explanation?.references ?? [];
  if (hasOneReference()) return references[0];
  return references.find((reference) => reference.rank !== null && reference.rank === match?.rank) ?? null;
}

/** The map on a side: "query", "match", or "beside", which is Dist-CAM on the query. */
const sideOf = (reference, side) => reference[{ query: "query_map", match: "match_map", beside: "dist_map" }[side]];
const isSignedOn = (side) => view.explanation.is_signed && side !== "beside";

/** The ends of the colour scale of one side of one reference. */
export function rangeOf(reference, side) {
  const { references } = view.explanation;
  const maps = view.state.scale === "shared" ? references.map((each) => sideOf(each, side)).filter(Boolean) : [sideOf(reference, side)];
  const [low, high] = extent(maps, isSignedOn(side)), isRectified = view.explanation.is_rectified && side !== "beside" && high > 0;
  return isRectified ? [Math.max(0, low), high] : [low, high];
}

/** The photograph that a match is shown on, or null. */
export const photographOf = (match) => (view.isWhole && match?.photograph) || null;

/** What `draw` lays over the query or over a match, or null. */
export function heatOf(match, side) {
  const photograph = side === "match" ? photographOf(match) : null, heat = heatInside(match, side);
  if (!photograph) return heat;
  const { size, box, cut } = photograph, shifted = heat?.view.map((edge, i) => edge + cut[i % 2]);
  return { ...heat, size, box, cut, view: shifted };
}

function heatInside(match, side) {
  const reference = referenceOf(match), map = reference && sideOf(reference, side);
  if (!map) return null;
  const place = side !== "match" ? view.explanation.query : { size: reference.match_size, view: reference.match_view };
  if (!place.size || !place.view) return null;
  if (layersOf !== view.explanation) [layers, layersOf] = [new Map(), view.explanation];
  const key = `${view.state.scale} ${side} ${reference.rank}`;
  if (!layers.has(key)) layers.set(key, layerOf(map, rangeOf(reference, side), isSignedOn(side)));
  return { layer: layers.get(key), view: place.view, size: place.size, opacity: view.state.opacity / 100 };
}

/** A reference in a word or two. */
export const shortName = (name) => plainly(fileName(name.replace(/^prototype of /, "")));

/** What the two ends of the colours mean, with the raw values of a reference's map on the query where all share them. */
export function endsOf(reference) {
  const { is_signed: isSigned, versus } = view.explanation, one = hasOneReference();
  const words = versus ? [`for ${shortName(versus)}`, one ? `for ${shortName(reference.name)}` : "for the match"] : isSigned ? ["against", "for"] : ["low", "high"];
  if (view.state.scale !== "shared") return words;
  const [low, high] = rangeOf(reference, "query").map((value) => Number(value.toPrecision(2)).toString().replace("-", "−"));
  return [`${words[0]} ${low}`, `${high} ${words[1]}`];
}
