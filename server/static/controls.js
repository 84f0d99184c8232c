/** The controls: they show the state, and say what the user wants changed. */

import * as api from "./api.js";
import { byId, debounced, make, say } from "./dom.js";

/** `onChange(changes, how)` with how "push" (a step in the history) or "replace" (none). */
export function controls(onChange) {
  const node = Object.fromEntries(
    ["k", "verify", "label", "where", "threshold", "max-distance", "weighting", "mean", "against", "against-class", "versus", "space", "scale", "opacity"].map((id) => [id, byId(id)]),
  );
  let gallery = null, asked = null;

  // --- What is searched ------------------------------------------------------------------------------------------------

  function search() {
    const largest = node["max-distance"].value;
    if (node.threshold.value === "number" && !largest) return;
    if (!byId("find").reportValidity()) return;
    const verify = Math.round(node.verify.valueAsNumber) || 0;
    onChange({
      verify: verify < 2 ? 0 : Math.min(100, verify),
      k: Math.min(gallery?.limits.k ?? 100, Math.max(1, Math.round(node.k.valueAsNumber) || 10)),
      label: node.label.value.trim(),
      where: node.where.value.trim(),
      threshold: node.threshold.value === "number" ? largest : node.threshold.value,
    }, "push");
  }
  byId("find").addEventListener("submit", (event) => (event.preventDefault(), search()));
  for (const id of ["k", "verify", "label", "where", "max-distance"]) node[id].addEventListener("change", search);
  node.threshold.addEventListener("change", () => {
    showLargest();
    if (node.threshold.value === "number") {
      if (!node["max-distance"].value && gallery?.rejection) node["max-distance"].value = Number(gallery.rejection.threshold.toPrecision(4));
      node["max-distance"].focus();
    }
    search();
  });
  const showLargest = () => (byId("max-distance-label").hidden = node.threshold.value !== "number");

  // --- Words -------------------------------------------------------------------------------------------------------------

  const searchWords = () => onChange({ text: byId("words").value.trim() }, "push");
  byId("words-form").addEventListener("submit", (event) => (event.preventDefault(), searchWords()));
  byId("words").addEventListener("change", searchWords);
  byId("text-weight").addEventListener("input", () => showShare(byId("text-weight").value));
  byId("text-weight").addEventListener("change", () => onChange({ textWeight: byId("text-weight").valueAsNumber }, "push"));
  const showShare = (share) => (byId("text-weight-value").textContent = `${share} %, image ${100 - share} %`);

  // --- How it is explained ---------------------------------------------------------------------------------------------

  function explain() {
    const isClass = node.against.value === "label", name = node["against-class"].value.trim(), other = node.versus.value.trim();
    byId("against-label").hidden = !isClass;
    if (isClass && !name) return node["against-class"].focus();
    return onChange({
      weighting: node.weighting.selectedIndex > 0 ? node.weighting.value : "",
      mean: node.weighting.value === "root_ratio" ? node.mean.value : "auto",
      against: isClass ? referenceNamed(name) : node.against.value,
      versus: other && referenceNamed(other),
      space: node.space.value,
    }, "push");
  }
  for (const id of ["weighting", "mean", "against", "against-class", "versus", "space"]) node[id].addEventListener("change", explain);
  node.scale.addEventListener("change", () => onChange({ scale: node.scale.checked ? "shared" : "own" }, "replace"));
  node.opacity.addEventListener("input", () => onChange({ opacity: node.opacity.valueAsNumber }, "replace"));

  // --- Names of classes, as they are typed ---------------------------------------------------------------------------------

  const suggest = debounced(async (prefix) => {
    asked?.abort();
    const mine = (asked = new AbortController());
    try {
      const { labels } = await api.labels(prefix, mine.signal);
      byId("labels").replaceChildren(...labels.map(({ label, images }) => make("option", { value: label, textContent: `${images}` })));
    } catch {
      // Suggestions are a convenience: without them any name can be typed.
    }
  }, 150);
  for (const id of ["label", "against-class", "versus"]) {
    node[id].addEventListener("focus", () => suggest(node[id].value));
    node[id].addEventListener("input", () => suggest(node[id].value));
  }

  // "rank:3" is what a shared link may say; anything else that is typed is a class.
  const referenceNamed = (name) => (/^rank:\d+$/.test(name) ? name : `label:${name}`);
  const classOf = (name) => (name.startsWith("label:") ? name.slice(6) : name);

  return {
    /** What the gallery offers. */
    offer(answer) {
      gallery = answer;
      byId("words-form").hidden = !gallery.has_text;
      byId("url-form").hidden = !gallery.fetches_urls;
      node.k.max = gallery.limits.k;
      node.weighting.replaceChildren(...gallery.weightings.map(({ name }) => make("option", { value: name, textContent: name })));
      const own = node.threshold.querySelector('[value="gallery"]'), { rejection } = gallery;
      own.disabled = !rejection;
      own.textContent = rejection ? `the gallery's: ${Number(rejection.threshold.toPrecision(3))}` : "the gallery's: none";
      const columns = gallery.columns.filter((name) => name !== "path" && name !== "label");
      say(byId("where-hint"), `Filter by path, label${columns.length ? `, ${columns.slice(0, 8).join(", ")}${columns.length > 8 ? ", …" : ""}` : ""} with = != < > ~ in, and, or, not.`);
      if (!gallery.classes) for (const option of node.against.options) option.disabled = option.value !== "match";
    },
    /** Show a state. */
    show(state) {
      const hasImage = state.id !== null || state.upload !== null;
      byId("words").value = state.text;
      byId("words-lead").textContent = hasImage ? "Join the image with words" : "Or say what to look for";
      byId("share-of-text").hidden = !(state.text && hasImage);
      byId("text-weight").value = state.textWeight;
      showShare(state.textWeight);
      node.k.value = state.k;
      node.verify.value = state.verify;
      node.label.value = state.label;
      node.where.value = state.where;
      node.threshold.value = state.threshold && state.threshold !== "gallery" ? "number" : state.threshold;
      if (node.threshold.value === "number") node["max-distance"].value = state.threshold;
      showLargest();
      const weighting = gallery?.weightings.find(({ name }) => name === state.weighting) ?? gallery?.weightings[0];
      node.weighting.value = weighting?.name ?? "";
      node.mean.value = state.mean;
      node.mean.disabled = weighting?.name !== "root_ratio";
      const isClass = !["match", "prototype"].includes(state.against);
      node.against.value = isClass ? "label" : state.against;
      byId("against-label").hidden = !isClass;
      node["against-class"].value = isClass ? classOf(state.against) : "";
      node.versus.value = classOf(state.versus);
      node.space.value = state.space;
      node.scale.checked = state.scale === "shared";
      node.opacity.value = state.opacity;
      byId("opacity-value").textContent = `${state.opacity} %`;
      say(byId("weighting-hint"), weighting && `${weighting.name}: ${weighting.description}`);
    },
    nextWeighting() {
      node.weighting.selectedIndex = (node.weighting.selectedIndex + 1) % node.weighting.options.length;
      explain();
    },
    opacity(by) {
      node.opacity.value = node.opacity.valueAsNumber + by;
      onChange({ opacity: node.opacity.valueAsNumber }, "replace");
    },
    focusFilter() {
      byId("find-group").open = true;
      node.where.focus();
    },
    /** Mark the filter as wrong, in the server's words. */
    wrongFilter(text) {
      say(byId("where-error"), text);
      if (text) node.where.setAttribute("aria-invalid", "true");
      else node.where.removeAttribute("aria-invalid");
      if (text) byId("find-group").open = true;
    },
  };
}
