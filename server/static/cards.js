/** The matches: a listbox of cards, and the chosen one enlarged beside the query. */

import { lines, pictureUrl } from "./api.js";
import { byId, make, memory, say } from "./dom.js";
import { draw } from "./maps.js";
import { stored } from "./pictures.js";
import { drawLines } from "./shared/lines.js";
import { explainQuestion } from "./state.js";
import { hasOneReference, heatOf, photographOf, view } from "./view.js";
import { digits, labelled } from "./words.js";

const SMALL = 480, LARGE = 1024;
const narrow = window.matchMedia("(max-width: 900px)");

/** `onSelect(rank)` when another match is chosen, `onSearch(id)` when one of them becomes the query. */
export function matchList(onSelect, onSearch) {
  const list = byId("matches"), pair = byId("pair"), both = byId("both"), details = byId("details"), whole = byId("whole");
  let cards = [];
  both.checked = memory.get("both") === "yes";
  details.checked = memory.get("details") === "yes";
  view.isWhole = whole.checked = memory.get("whole") !== "no";

  const chosen = () => cards.find((card) => card.match.rank === view.state.match) ?? cards[0] ?? null;

  function frameFor(label, corner) {
    const canvas = make("canvas", { role: "img", "aria-label": label, width: 1, height: 1 });
    const frame = make("div", { className: "frame" }, canvas, corner ? make("span", { className: "corner", textContent: corner }) : null);
    return { frame, canvas };
  }

  function cardOf(match) {
    const name = labelled(match.label), similarity = digits(match.similarity);
    const isSame = view.query?.label != null && view.query.label === match.label;
    const isRejected = match.is_accepted === false;
    const theirs = frameFor(`Match ${match.rank}, ${name}, with its map`), mine = frameFor(`The query with the map for match ${match.rank}`, "query");
    const facts = make("dl", { className: "facts" });
    for (const [term, text] of [["distance", digits(match.distance, 4)], ...(match.inliers === null ? [] : [["places alike", match.inliers]]), ...Object.entries(match.columns)]) {
      facts.append(make("dt", { textContent: term }), make("dd", { textContent: text }));
    }
    const node = make("div",
      {
        role: "option", className: `card${isRejected ? " is-rejected" : ""}`, tabIndex: -1, "aria-selected": "false", "data-id": match.id,
        "aria-label": `Match ${match.rank}: ${name}, similarity ${similarity}${isRejected ? ", not near enough" : ""}, ${match.path}`,
        title: "Enter or a second click enlarges",
      },
      make("div", { className: "pictures" }, theirs.frame, mine.frame),
      make("div", { className: "line" },
        make("span", { className: "rank", textContent: match.rank }),
        make("span", { className: `label${isSame ? " is-same" : ""}${match.label ? "" : " is-none"}`, textContent: isSame ? `${name} ✓` : name }),
        make("span", { className: "similarity", textContent: similarity, title: "similarity" })),
      make("div", { className: "path", textContent: match.path, title: match.path }),
      isRejected ? make("div", { className: "flag", textContent: "not near enough" }) : null,
      facts);
    const card = { match, node, facts, picture: null, canvas: theirs.canvas, frame: theirs.frame, mine };
    node.addEventListener("click", () => {
      const wasChosen = chosen() === card;
      select(match.rank, true);
      if (narrow.matches || wasChosen) open();
    });
    load(card);
    return card;
  }

  async function load(card) {
    card.large = null;
    card.picture = card.match.has_picture ? await stored(card.match.id, SMALL, photographOf(card.match) !== null) : null;
    if (card.picture) paint(card);
    else card.frame.replaceChildren(make("span", { textContent: "image not found" }));
  }

  function paint(card) {
    if (card.picture) draw(card.canvas, card.picture, SMALL, heatOf(card.match, "match"));
    if (both.checked && view.query?.picture) draw(card.mine.canvas, view.query.picture, SMALL, heatOf(card.match, "query"));
  }

  function dress() {
    list.classList.toggle("has-both", both.checked && !hasOneReference());
    for (const card of cards) {
      card.mine.frame.hidden = !both.checked || !view.query?.picture || hasOneReference();
      card.facts.hidden = !details.checked;
    }
  }

  function select(rank, focus = false) {
    const card = cards.find((each) => each.match.rank === rank);
    if (!card) return;
    mark(card);
    if (focus) card.node.focus();
    if (view.state.match !== rank) onSelect(rank);
    if (pair.open) fillPair();
  }

  function mark(chosenCard) {
    for (const card of cards) {
      card.node.setAttribute("aria-selected", String(card === chosenCard));
      card.node.tabIndex = card === chosenCard ? 0 : -1;
    }
  }

  function columns() {
    const top = cards[0]?.node.offsetTop, first = cards.findIndex((card) => card.node.offsetTop !== top);
    return first === -1 ? cards.length : first;
  }

  list.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns(), ArrowDown: columns(), Home: -cards.length, End: cards.length };
    const at = cards.indexOf(chosen());
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in steps) {
      const to = at + steps[event.key];
      const isJump = event.key === "Home" || event.key === "End";
      if (isJump || (to >= 0 && to < cards.length)) select(cards[Math.min(cards.length - 1, Math.max(0, to))].match.rank, true);
    } else if (event.key === "Enter" || event.key === " ") open();
    else return;
    event.preventDefault();
  });

  // --- The chosen one, enlarged ----------------------------------------------------------------------------------------

  function open() {
    if (!chosen()) return;
    fillPair();
    if (!pair.open) pair.showModal();
  }

  async function fillPair() {
    const card = chosen(), { match } = card, at = cards.indexOf(card);
    byId("pair-title").textContent = `Match ${match.rank} · ${labelled(match.label)} · ${digits(match.similarity)}`;
    byId("pair-name").textContent = match.path;
    byId("pair-previous").disabled = at === 0;
    byId("pair-next").disabled = at === cards.length - 1;
    byId("pair-match").setAttribute("aria-label", `Match ${match.rank} with its map`);
    byId("pair-query").setAttribute("aria-label", `The query with the map for match ${match.rank}`);
    byId("pair-facts").replaceChildren(...card.facts.cloneNode(true).childNodes);
    paintPair();
    fillLines(match);
    if (match.has_picture) {
      const large = await stored(match.id, LARGE, photographOf(match) !== null);
      if (large) card.large = large;
      paintPair();
    }
  }

  /* Which place answers which, below the two maps; nothing where there is no image, or the query is not kept any more. */
  async function fillLines(match) {
    const place = byId("pair-lines"), picture = view.query?.picture;
    place.hidden = true;
    if (!match.has_picture || !picture) return;
    try {
      const { k, verify, where, box } = explainQuestion(view.state);
      const query = view.state.id !== null ? { id: view.state.id } : { token: view.search.query.token };
      const found = await lines({ ...query, k, verify, where, box, rank: match.rank });
      if (chosen()?.match !== match) return;
      place.replaceChildren();
      drawLines(place, [picture.src ?? picture.toDataURL("image/jpeg", 0.9), pictureUrl(match.id, SMALL)], found);
      place.append(make("figcaption", { className: "soft", textContent: `${found.caption}. Lines show likeness, not identity.` }));
      place.hidden = false;
    } catch (error) {
      if (error.status === 0 || error.status === 410 || error.status === 422) return;
      place.replaceChildren(make("figcaption", { className: "soft", textContent: error.message }));
      place.hidden = false;
    }
  }

  function paintPair() {
    const card = chosen(), theirs = card?.large ?? card?.picture;
    byId("pair-query").closest("figure").hidden = !view.query?.picture;
    if (view.query?.picture) draw(byId("pair-query"), view.query.picture, LARGE, heatOf(card.match, "query"));
    const beside = view.query?.picture && heatOf(card.match, "beside");
    byId("pair-beside-figure").hidden = !beside;
    if (beside) draw(byId("pair-beside"), view.query.picture, LARGE, beside);
    byId("pair-match").hidden = !theirs;
    if (theirs) draw(byId("pair-match"), theirs, LARGE, heatOf(card.match, "match"));
  }

  const step = (by) => select(cards[cards.indexOf(chosen()) + by]?.match.rank);
  byId("pair-previous").addEventListener("click", () => step(-1));
  byId("pair-next").addEventListener("click", () => step(1));
  byId("pair-search").addEventListener("click", () => (pair.close(), onSearch(chosen().match.id)));
  pair.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") step(event.key === "ArrowLeft" ? -1 : 1);
  });
  pair.addEventListener("close", () => chosen()?.node.focus());
  for (const [box, name] of [[both, "both"], [details, "details"]]) {
    box.addEventListener("change", () => {
      memory.set(name, box.checked ? "yes" : "no");
      repaint();
    });
  }

  whole.addEventListener("change", async () => {
    memory.set("whole", whole.checked ? "yes" : "no");
    view.isWhole = whole.checked;
    for (const card of cards) card.picture = null; // no map of the one over the other
    await Promise.all(cards.map(load));
    repaint();
  });

  function repaint() {
    dress();
    cards.forEach(paint);
    if (pair.open && chosen()) paintPair();
  }

  return {
    /** Show the matches of the view's search. */
    show() {
      cards = view.search.matches.map(cardOf);
      list.replaceChildren(...cards.map((card) => card.node));
      list.hidden = byId("list-head").hidden = !cards.length;
      byId("whole-label").hidden = !cards.some((card) => card.match.photograph);
      list.removeAttribute("aria-busy");
      mark(chosen());
      repaint();
    },
    /** Say that something else is on its way. */
    wait() {
      list.setAttribute("aria-busy", "true");
      if (cards.length) return;
      list.hidden = false;
      list.replaceChildren(...Array.from({ length: 4 }, () => make("div", { className: "skeleton", "aria-hidden": "true" })));
    },
    /** Nothing is on its way any more. */
    rest() {
      list.removeAttribute("aria-busy");
      if (!cards.length) list.replaceChildren();
      list.hidden = !cards.length;
    },
    clear() {
      cards = [];
      list.replaceChildren();
      list.hidden = byId("list-head").hidden = true;
      say(byId("meaning"), "");
    },
    mark: () => mark(chosen()),
    chosen: () => chosen()?.match ?? null,
    pictureOf: (match) => cards.find((card) => card.match === match)?.picture ?? null,
    repaint,
  };
}
