/** The atlas of the served gallery: points with thumbnails, each with its page of matches; of two points the maps. */

import * as api from "./api.js";
import { byId, make, say } from "./dom.js";
import { draw } from "./maps.js";
import { stored } from "./pictures.js";
import { drawAtlas } from "./shared/atlas.js";
import { heatOf, view } from "./view.js";
import { digits } from "./words.js";

const SIDE = 480;

async function pair(node, data, places) {
  const words = make("p", { className: "soft", textContent: "Looking where the two are alike …" });
  node.replaceChildren(words);
  try {
    const [id, other] = places.map((place) => data.ids[place]), pictures = places.map((place) => stored(data.ids[place], SIDE));
    view.explanation = await api.explain({ id, other });
    const [reference] = view.explanation.references, drawn = [];
    for (const [at, shown] of ["query", "match"].entries()) {
      const picture = await pictures[at], canvas = make("canvas", { role: "img", "aria-label": `${data.paths[places[at]]} with its map` });
      if (picture) draw(canvas, picture, SIDE, heatOf({ rank: reference.rank }, shown));
      drawn.push(picture ? canvas : make("span", { textContent: "image not found" }));
    }
    words.textContent = `Distance ${digits(reference.distance)}. ${view.explanation.words.join(" ")}`;
    node.replaceChildren(...drawn, words);
  } catch (error) {
    words.textContent = error.message;
  }
}

try {
  const data = await api.atlas(false);
  [byId("gallery-name").textContent, byId("axes").textContent] = [data.name, data.axes];
  drawAtlas(byId("atlas"), data, {
    thumbnail: (place) => api.pictureUrl(data.ids[place], 160),
    why: (place) => `./#id=${data.ids[place]}`,
    pair: (node, ...places) => pair(node, data, places),
    async score() {
      const found = await api.atlas(true);
      if (String(found.ids) !== String(data.ids)) throw new Error("The gallery has changed meanwhile; load the page again.");
      return found.outliers;
    },
  });
} catch (error) {
  say(byId("trouble"), error.status === 401 ? "This server asks for its read token: give it on the page Search." : error.message);
}
