/** What the page shows, and how that is written behind the `#` of its address. */

export const DEFAULTS = Object.freeze({
  id: null, // a stored image, or
  upload: null, // the key of an image of the user's, which lives in this tab only
  text: "", // words, alone or joined with the image
  textWeight: 50, // of them, in per cent
  k: 10,
  label: "",
  where: "",
  box: null, // [left, top, right, bottom] in pixels of the upright image
  threshold: "", // "", "gallery", or the largest distance
  verify: 0, // how many of the first matches are sorted anew by lines
  weighting: "", // or a name; the first that the gallery offers
  mean: "auto", // what root_ratio takes off
  against: "match", // "match", "prototype", "label:…", "rank:…"
  versus: "", // "", "label:…", "rank:…"
  space: "metric",
  opacity: 62,
  scale: "own",
  match: 1, // the rank that is chosen
});

const CHOICES = { mean: ["auto", "gallery", "border", "max", "half"], space: ["metric", "backbone"], scale: ["shared", "own"] };

/** The state as the text of a hash, without what is as usual. */
export function toHash(state) {
  const words = new URLSearchParams();
  for (const [name, usual] of Object.entries(DEFAULTS)) {
    const value = state[name];
    if (value !== null && String(value) !== String(usual)) words.set(name, value);
  }
  const text = words.toString();
  return text ? `#${text}` : "";
}

/** The state that a hash stands for; whatever cannot be read is as usual. */
export function fromHash(hash) {
  const words = new URLSearchParams(hash.replace(/^#/, ""));
  const state = { ...DEFAULTS };
  for (const name of Object.keys(DEFAULTS)) {
    const value = read(name, words.get(name));
    if (value !== undefined) state[name] = value;
  }
  if (state.id !== null) state.upload = null;
  return state;
}

function read(name, text) {
  if (text === null) return undefined;
  if (name === "box") {
    const edges = text.split(",").map(Number);
    return edges.length === 4 && edges.every((edge) => Number.isFinite(edge) && edge >= 0) ? edges : undefined;
  }
  if (name === "id") return /^\d{1,20}$/.test(text) ? Number(text) : undefined;
  if (["k", "verify", "match", "opacity", "textWeight"].includes(name)) {
    const number = Number(text);
    if (!/^\d{1,6}$/.test(text) || (name === "opacity" ? number > 100 : number < 1) || (name === "textWeight" && number > 99)) return undefined;
    return number;
  }
  if (name === "threshold") return text === "gallery" || Number.isFinite(Number(text)) ? text : undefined;
  if (name in CHOICES) return CHOICES[name].includes(text) ? text : undefined;
  return text;
}

/** The filter that the label and the expression make together, or null. */
export function filterOf(state) {
  const parts = [];
  if (state.label) parts.push(`label="${state.label.replace(/[\\"]/g, "\\$&")}"`);
  if (state.where) parts.push(parts.length ? `(${state.where})` : state.where);
  return parts.length ? parts.join(" and ") : null;
}

/** The words of a question, and their share where an image is joined with them. */
const wordsOf = (state) => (state.text ? { text: state.text, text_weight: state.textWeight / 100 } : {});

/** What a search is asked for. */
export function searchQuestion(state) {
  return {
    ...wordsOf(state),
    k: state.k,
    verify: state.verify,
    where: filterOf(state),
    box: state.box,
    reject: state.threshold === "gallery",
    max_distance: state.threshold && state.threshold !== "gallery" ? Number(state.threshold) : null,
  };
}

/** What an explanation is asked for, but for the query itself. */
export function explainQuestion(state) {
  return {
    ...wordsOf(state),
    k: state.k,
    verify: state.verify,
    where: filterOf(state),
    box: state.box,
    against: state.against,
    versus: state.versus || null,
    weighting: state.weighting || null,
    mean: ["", "root_ratio"].includes(state.weighting) ? state.mean : "auto",
    space: state.space,
    both_sides: true,
  };
}
