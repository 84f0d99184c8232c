/** The page: from what the user does to a state, from the state to questions, from the answers to what is shown. */

import * as api from "./api.js";
import { boxTools } from "./box.js";
import { browser, thumbOf } from "./browse.js";
import { matchList } from "./cards.js";
import { controls } from "./controls.js";
import { byId, make, say } from "./dom.js";
import { saveData, savePicture } from "./exporting.js";
import { draw } from "./maps.js";
import { own, pictureIn, stored } from "./pictures.js";
import "./shell.js";
import { explainQuestion, fromHash, searchQuestion, toHash } from "./state.js";
import { showLegend, showVerdict } from "./summaries.js";
import { hasOneReference, heatOf, view } from "./view.js";
import { count, digits, fileName, timing } from "./words.js";

const UPLOADS_KEPT = 8, TRIES = 4, STARTERS = 18;
const uploads = new Map(); // images of the user's, in this tab only
const shown = { query: null, search: null, explanation: null }; // the questions that were answered

let atWork = null; // aborts what is asked at the moment
let tries = 0, timer = 0;

const isText = (state) => state.id === null && state.upload === null && state.text !== "";
const queryKey = (state) => (state.id !== null ? `id ${state.id}` : state.upload !== null ? `upload ${state.upload}` : isText(state) ? `text ${state.text}` : null);
const searchKey = (state) => JSON.stringify([queryKey(state), searchQuestion(state)]);
const explainKey = (state) => JSON.stringify([queryKey(state), explainQuestion(state)]);

// --- From changes to a state -------------------------------------------------------------------------------------------

/** Change the state; "push" makes a step that the back button takes back. */
function go(changes, how = "push") {
  const before = searchKey(view.state);
  const state = { ...view.state, ...changes };
  if (searchKey(state) !== before && !("match" in changes)) state.match = 1;
  const address = toHash(state) || location.pathname + location.search;
  if (toHash(state) !== location.hash) history[how === "push" ? "pushState" : "replaceState"](null, "", address);
  tries = 0;
  return enter(state);
}

/** A slider writes the address once it rests: browsers limit how often a page may. */
let resting = 0;
function tune(changes) {
  view.state = { ...view.state, ...changes };
  tools.show(view.state);
  repaint();
  clearTimeout(resting);
  resting = setTimeout(() => history.replaceState(null, "", toHash(view.state) || location.pathname + location.search), 250);
}

function enter(state) {
  view.state = state;
  tools.show(state);
  return refresh();
}

const takeQuery = (changes) => go({ id: null, upload: null, text: "", box: null, match: 1, ...changes });

async function takeFile(file) {
  if (!view.gallery) return;
  status("Reading the image …");
  const picture = await own(file, view.gallery.limits), key = crypto.getRandomValues(new Uint32Array(1))[0].toString(36);
  uploads.set(key, picture);
  if (uploads.size > UPLOADS_KEPT) uploads.delete(uploads.keys().next().value);
  // A link that could not carry its image is waiting for this one: its box is kept.
  const isAwaited = view.state.upload !== null && shown.query === null;
  await takeQuery({ upload: key, box: isAwaited ? view.state.box : null });
}

/** The server fetches it: a page may not read what other servers send. */
async function takeUrl(url) {
  status("Fetching the image …");
  say(byId("alert-text"), "");
  byId("alert").hidden = true;
  try {
    const blob = await api.fetched(url);
    await takeFile(new File([blob], fileName(new URL(url).pathname) || "image", { type: blob.type }));
  } catch (error) {
    fail(error);
  }
}

// --- From the state to answers -----------------------------------------------------------------------------------------

async function refresh() {
  atWork?.abort();
  clearTimeout(timer);
  const mine = (atWork = new AbortController()), { signal } = mine;
  say(byId("alert-text"), "");
  byId("alert").hidden = byId("token-form").hidden = true;
  tools.wrongFilter("");
  try {
    if (!view.gallery) await openGallery();
    await answer(signal);
    tries = 0;
  } catch (error) {
    if (signal.aborted) return;
    fail(error);
  }
}

async function openGallery() {
  view.gallery = await api.gallery();
  const { name, images, classes, metric, encoder } = view.gallery;
  byId("gallery-name").textContent = name;
  document.title = `${name} · distcam`;
  byId("gallery-facts").textContent = [count(images, "image"), classes ? count(classes, "class", "classes") : "no labels", metric, encoder].join(" · ");
  tools.offer(view.gallery);
  tools.show(view.state);
}

async function answer(signal) {
  const { state } = view;
  if (queryKey(state) === null) return showNothing();
  if (shown.query !== queryKey(state)) await loadQuery(signal);
  if (shown.search !== searchKey(state)) await search(signal);
  if (shown.explanation !== explainKey(state)) await explain(signal);
  else repaint();
  status(`${summary()} ${timing(view.search.timings_ms)}`);
}

async function loadQuery(signal) {
  const { state } = view;
  Object.assign(shown, { query: null, search: null, explanation: null });
  Object.assign(view, { query: null, search: null, explanation: null });
  forgetAnswer();
  if (isText(state)) {
    view.query = { name: state.text, label: null, picture: null, size: null, note: "" };
  } else if (state.upload !== null) {
    const upload = uploads.get(state.upload);
    if (!upload) return awaitPicture();
    view.query = { ...upload, label: null };
  } else {
    status("Fetching the image …");
    const record = await api.image(state.id, signal);
    const picture = record.has_picture ? await stored(record.id, 1024) : null;
    signal.throwIfAborted();
    view.query = { name: record.path, label: record.label, picture, size: null, note: picture ? "" : "The file of this image was not found." };
  }
  shown.query = queryKey(state);
  showQuery();
}

/** The state asks for an image that only the tab of whoever made the link has. */
function awaitPicture() {
  showNothing();
  const error = new Error("This link was made for an image that a link cannot carry. Drop that image here to see the same view.");
  throw Object.assign(error, { isFinal: true });
}

async function search(signal) {
  const { state } = view, question = searchQuestion(state);
  status("Searching …");
  matches.wait();
  const upload = uploads.get(state.upload);
  view.search = state.id !== null ? await api.searchStored(state.id, question, signal) : await api.searchUpload(upload?.blob, upload?.name, question, signal);
  view.query.size = view.search.query.size ?? view.query.size;
  view.explanation = null;
  Object.assign(shown, { search: searchKey(state), explanation: null });
  showAnswer();
}

async function explain(signal, isSecond = false) {
  const { state } = view;
  view.explanation = null;
  if (view.search.matches.length) {
    const query = isText(state) ? {} : state.id !== null ? { id: state.id } : { token: view.search.query.token };
    status("Explaining …");
    try {
      view.explanation = await api.explain({ ...query, ...explainQuestion(state) }, signal);
    } catch (error) {
      if (error.status === 410 && !isSecond) {
        await search(signal); // the server has forgotten the image: send it again
        return explain(signal, true);
      }
      showExplanation();
      throw error;
    }
  }
  shown.explanation = explainKey(state);
  return showExplanation();
}

// --- When there is no answer -------------------------------------------------------------------------------------------

/** Nothing of the answer to another question may stand beside a new one, nor beside its refusal. */
function forgetAnswer() {
  for (const id of ["box-tools", "classes", "verdict", "hint", "legend"]) byId(id).hidden = true;
  for (const id of ["share", "export-png", "export-json"]) byId(id).disabled = true;
  say(byId("query-size"), "");
  matches.clear();
}

function fail(error) {
  matches.rest();
  if (!view.search) {
    forgetAnswer();
    if (!view.query) byId("stage-figure").hidden = true;
    say(byId("query-note"), ""); // what the browser made of the image is beside the point now
  }
  if (error.status === 401) byId("token-form").hidden = false;
  status(view.search ? summary() : "");
  if (!(error instanceof api.ApiError) && !error.isFinal) console.error(error);
  if (error.status === 400 && /^(filter |no column )/.test(error.message)) return tools.wrongFilter(error.message);
  const isBusy = error.status === 429 || error.status === 503;
  if (isBusy && ++tries < TRIES) return countDown(error, Math.min(60, Math.max(1, Math.ceil(error.retryAfter ?? 2))));
  const mayHelp = !error.isFinal && !(error.status >= 400 && error.status < 500 && !isBusy);
  complain(isBusy ? `The server is busy: ${error.message}` : error.message, mayHelp);
}

function countDown(error, seconds) {
  const reason = error.status === 429 ? "Too many requests" : "The server is busy";
  complain(`${reason}: ${error.message}. Asking again in ${seconds} s.`, true);
  timer = setTimeout(() => (seconds > 1 ? countDown(error, seconds - 1) : refresh()), 1000);
}

function complain(text, canTryAgain) {
  byId("alert-text").textContent = text.charAt(0).toUpperCase() + text.slice(1);
  byId("alert").hidden = false;
  byId("alert-text").hidden = false;
  byId("alert-again").hidden = !canTryAgain;
}

// --- From answers to what is shown -------------------------------------------------------------------------------------

const status = (text) => (byId("status").textContent = text.trim());

function summary() {
  const { matches: found, is_known: isKnown } = view.search;
  if (!found.length) return "No image fits the filter.";
  return isKnown === false ? "No match." : `${count(found.length, "match", "matches")}.`;
}

async function showNothing() {
  Object.assign(shown, { query: null, search: null, explanation: null });
  Object.assign(view, { query: null, search: null, explanation: null });
  document.body.classList.add("is-empty");
  byId("query-title").textContent = "Which of these is this?";
  for (const id of ["stage-figure", "box-tools", "classes", "verdict", "query-note", "hint"]) byId(id).hidden = true;
  for (const id of ["share", "export-png", "export-json"]) byId(id).disabled = true;
  matches.clear();
  status("");
  byId("starters").hidden = true;
  if (queryKey(view.state) !== null) return;
  if (!byId("starter-list").childElementCount) {
    byId("starter-list").replaceChildren(...(await starters()).map((image) => thumbOf(image, (id) => takeQuery({ id }))));
  }
  // Meanwhile an image may have come.
  byId("starters").hidden = !byId("starter-list").childElementCount || queryKey(view.state) !== null;
  if (!view.gallery.images) status("The gallery is empty.");
}

/** Some images from all over the gallery: its beginning is often one class alone. */
async function starters() {
  const { images: total } = view.gallery, isSmall = total <= STARTERS;
  const places = isSmall ? [0] : Array.from({ length: 6 }, (_, i) => Math.floor((i * total) / 6));
  const some = await Promise.all(places.map((offset) => api.images({ offset, limit: isSmall ? STARTERS : STARTERS / 6 })));
  return some.flatMap(({ images }) => images);
}

function showQuery() {
  const { query } = view;
  document.body.classList.remove("is-empty");
  byId("starters").hidden = true;
  byId("query-title").textContent = query.label ?? (isText(view.state) ? "Your words" : "Your image");
  byId("query-name").textContent = isText(view.state) ? `“${query.name}”` : fileName(query.name);
  byId("query-name").title = query.name;
  byId("stage-figure").hidden = false;
  byId("stage").hidden = !query.picture;
  byId("box-tools").hidden = true;
  say(byId("query-note"), query.note);
  if (query.picture) {
    const ratio = (query.picture.naturalWidth ?? query.picture.width) / (query.picture.naturalHeight ?? query.picture.height);
    Object.assign(byId("stage").style, { aspectRatio: `${ratio}`, width: `min(100%, ${50 * ratio}vh)` });
  }
  paintQuery();
}

function showAnswer() {
  const { search: found, query, state } = view;
  say(byId("query-size"), query.size ? `${query.size[0]} × ${query.size[1]}` : "");
  say(byId("query-note"), query.note);
  byId("box-tools").hidden = !query.size;
  box.show(found.query.box ?? state.box, query.size);
  showVerdict();
  showClasses();
  matches.show();
  for (const id of ["share", "export-png", "export-json"]) byId(id).disabled = false;
  byId("hint").hidden = false;
}

function showClasses() {
  const { prototypes } = view.search, { state } = view;
  byId("classes").hidden = prototypes.length < 2;
  byId("class-list").replaceChildren(...prototypes.slice(0, 6).map(({ label, similarity }) => {
    const name = `label:${label}`, isAsked = state.versus === name;
    const chip = make("button",
      { type: "button", "aria-pressed": String(isAsked), title: isAsked ? "Take the contrast back" : `Why not ${label}?`, "data-label": label },
      make("span", { className: "text", textContent: label }), make("span", { className: "number", textContent: digits(similarity, 2) }));
    chip.addEventListener("click", () => go({ versus: view.state.versus === name ? "" : name }));
    return chip;
  }));
}

function showExplanation() {
  for (const chip of byId("class-list").children) chip.setAttribute("aria-pressed", String(view.state.versus === `label:${chip.dataset.label}`));
  repaint();
}

/** Everything that depends on opacity, scale, and the chosen match. */
function repaint() {
  if (!view.query) return;
  paintQuery();
  if (view.search) matches.repaint();
  showLegend();
}

function paintQuery() {
  if (!view.query.picture) return;
  draw(byId("query-canvas"), view.query.picture, 1024, view.search ? heatOf(matches.chosen(), "query") : null);
  const chosen = matches.chosen();
  const what = hasOneReference() ? view.explanation.references[0].name : chosen && view.explanation ? `match ${chosen.rank}` : null;
  byId("query-canvas").setAttribute("aria-label", what ? `The query with its map for ${what}` : "The query image");
}

// --- What the user does ------------------------------------------------------------------------------------------------

const tools = controls((changes, how) => (how === "push" ? go(changes) : tune(changes)));
const matches = matchList((rank) => tune({ match: rank }), (id) => takeQuery({ id }));
const box = boxTools((edges) => go({ box: edges }));
const shelves = browser((id) => takeQuery({ id }));

const isTyping = (target) => target.closest?.("input, select, textarea") && target.type !== "range" && target.type !== "checkbox";

byId("choose").addEventListener("click", () => byId("file").click());
byId("file").addEventListener("change", () => {
  const [file] = byId("file").files;
  byId("file").value = "";
  if (file) takeFile(file);
});
byId("url-form").addEventListener("submit", (event) => {
  event.preventDefault();
  takeUrl(byId("url").value);
});
byId("token-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const known = await api.introduce(byId("token").value);
  byId("token").value = "";
  if (known) refresh();
  else byId("alert-text").textContent = "That is not the read token of this server.";
});
byId("browse").addEventListener("click", () => shelves.open());
byId("alert-again").addEventListener("click", () => ((tries = 0), refresh()));
window.addEventListener("online", () => byId("alert").hidden || refresh());
window.addEventListener("popstate", () => ((tries = 0), enter(fromHash(location.hash))));

let depth = 0; // of elements that a dragged thing has entered
const setDragging = (is) => document.body.classList.toggle("is-dragging", is);
const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
window.addEventListener("dragenter", (event) => hasFiles(event) && setDragging(++depth > 0));
window.addEventListener("dragleave", (event) => hasFiles(event) && setDragging((depth = Math.max(0, depth - 1)) > 0));
window.addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
window.addEventListener("drop", (event) => {
  setDragging((depth = 0) > 0);
  if (hasFiles(event)) taken(event, event.dataTransfer);
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData?.files.length) return taken(event, event.clipboardData);
  const text = event.clipboardData?.getData("text").trim() ?? "";
  if (view.gallery?.fetches_urls && !isTyping(event.target) && /^https?:\/\/\S+$/.test(text)) takeUrl(text);
});

function taken(event, transfer) {
  event.preventDefault();
  const file = pictureIn(transfer);
  if (file) takeFile(file);
  else complain("That is not an image.", false);
}

byId("export-png").addEventListener("click", () => savePicture(matches.pictureOf));
byId("export-json").addEventListener("click", saveData);

byId("help").addEventListener("click", () => byId("help-dialog").showModal());

const KEYS = {
  o: () => byId("choose").click(),
  t: () => view.gallery?.has_text && byId("words").focus(),
  g: () => shelves.open(),
  b: () => view.query && box.toggle(),
  w: () => view.search && tools.nextWeighting(),
  "[": () => tools.opacity(-5),
  "]": () => tools.opacity(5),
  "/": () => view.query && tools.focusFilter(),
  "?": () => byId("help-dialog").showModal(),
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]") || isTyping(event.target)) return;
  if (event.key === "Escape") {
    if (!box.escape() && view.state.box) go({ box: null });
  } else if (KEYS[event.key.toLowerCase()]) {
    event.preventDefault();
    KEYS[event.key.toLowerCase()]();
  }
});

enter(fromHash(location.hash));
