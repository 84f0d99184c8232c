/** An answer in words and colours: whether there is a match, what the colours mean, how far the map is about the match. */

import { byId, make, say } from "./dom.js";
import { drawLegend } from "./maps.js";
import { endsOf, hasOneReference, shortName, view } from "./view.js";
import { digits } from "./words.js";

/** "No match", where nothing is as near as it was asked to be. */
export function showVerdict() {
  const { search: found } = view, verdict = byId("verdict"), nearest = found.matches[0];
  verdict.hidden = found.is_known === null && found.matches.length > 0;
  verdict.classList.toggle("is-none", found.is_known !== true);
  if (verdict.hidden) return;
  const limit = digits(found.max_distance, 4), at = nearest && digits(nearest.distance, 4);
  const accepted = found.matches.filter((match) => match.is_accepted).length;
  const [title, text] =
    !nearest ? ["Nothing to compare with", "No image of the gallery fits the filter."]
    : found.is_known ? [accepted === found.matches.length ? "Known" : `Known: ${accepted} of ${found.matches.length} near enough`, `The nearest is ${at} away, the threshold is ${limit}.`]
    : ["No match", `Nothing in the gallery is near enough: the nearest is ${at} away, the threshold is ${limit}.`];
  verdict.replaceChildren(make("strong", { textContent: title }), make("span", { className: "soft", textContent: text }));
}

/** The colours of the maps, and what is to be known about them. */
export function showLegend() {
  const { explanation, state } = view;
  byId("legend").hidden = !explanation;
  if (!explanation) return say(byId("meaning"), "");
  const { is_signed: isSigned, versus, references } = explanation, one = hasOneReference();
  drawLegend(byId("legend-canvas"), isSigned);
  const chosen = references.find((reference) => reference.rank === state.match) ?? references[0];
  [byId("legend-low").textContent, byId("legend-high").textContent] = endsOf(chosen);
  byId("legend").title = state.scale === "shared" ? "values of the raw map on the query" : "each map on its own scale";
  const words = [];
  if (versus) words.push(`Orange speaks for ${one ? shortName(references[0].name) : "the match"}, blue for ${shortName(versus)}.`);
  else if (isSigned) words.push("Orange speaks for the match, blue against it; what lets the image through is near 0.");
  if (one) words.push(`The map on the query is for the ${references[0].name}, at distance ${digits(references[0].distance, 4)}; a class has no image of its own.`);
  words.push(...explanation.words);
  return say(byId("meaning"), words.filter(Boolean).join(" "));
}
