/** A box on the query: drawn with a mouse at any time, with a finger or pen after "Draw a box", or typed as numbers. */

import { byId } from "./dom.js";

const LEAST = 8; // pixels on the screen: less is a click

/** `onBox` is called with [left, top, right, bottom] in pixels of the image, or with null when it is taken away. */
export function boxTools(onBox) {
  const stage = byId("stage"), outline = byId("box"), form = byId("box-form"), draw = byId("box-draw"), clear = byId("box-clear");
  const fields = ["left", "top", "right", "bottom"].map((edge) => byId(`box-${edge}`));
  let size = null, box = null, start = null, drawn = null;

  const isDrawing = () => stage.classList.contains("is-drawing");

  function setDrawing(is) {
    stage.classList.toggle("is-drawing", is);
    draw.setAttribute("aria-pressed", String(is));
    draw.textContent = is ? "Draw on the image …" : "Draw a box";
  }

  function outlineOf(edges) {
    outline.hidden = !edges || !size;
    if (outline.hidden) return;
    const [left, top, right, bottom] = edges.map((edge, i) => (100 * edge) / size[i % 2]);
    Object.assign(outline.style, { left: `${left}%`, top: `${top}%`, width: `${right - left}%`, height: `${bottom - top}%` });
  }

  function between(from, to) {
    const frame = stage.getBoundingClientRect();
    const x = [from.x, to.x].map((x) => Math.min(1, Math.max(0, (x - frame.left) / frame.width)) * size[0]).sort((a, b) => a - b);
    const y = [from.y, to.y].map((y) => Math.min(1, Math.max(0, (y - frame.top) / frame.height)) * size[1]).sort((a, b) => a - b);
    return [Math.floor(x[0]), Math.floor(y[0]), Math.ceil(x[1]), Math.ceil(y[1])];
  }

  function stop() {
    start = drawn = null;
    outlineOf(box);
  }

  stage.addEventListener("pointerdown", (event) => {
    if (!size || event.button !== 0 || (event.pointerType !== "mouse" && !isDrawing())) return;
    event.preventDefault();
    stage.setPointerCapture(event.pointerId);
    start = { x: event.clientX, y: event.clientY };
  });
  stage.addEventListener("pointermove", (event) => {
    if (!start) return;
    const here = { x: event.clientX, y: event.clientY };
    const isBox = Math.abs(here.x - start.x) >= LEAST && Math.abs(here.y - start.y) >= LEAST;
    drawn = isBox ? between(start, here) : null;
    outlineOf(drawn ?? box);
  });
  stage.addEventListener("pointerup", () => {
    const edges = drawn;
    stop();
    if (!edges) return;
    setDrawing(false);
    onBox(edges);
  });
  stage.addEventListener("pointercancel", stop);
  draw.addEventListener("click", () => setDrawing(!isDrawing()));
  clear.addEventListener("click", () => onBox(null));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const edges = fields.map((field) => field.valueAsNumber);
    fields[2].setCustomValidity(edges[2] > edges[0] ? "" : "right must be larger than left");
    fields[3].setCustomValidity(edges[3] > edges[1] ? "" : "bottom must be larger than top");
    if (form.reportValidity()) onBox(edges);
  });
  for (const field of fields) field.addEventListener("input", () => fields.forEach((each) => each.setCustomValidity("")));

  return {
    /** Show a box on an image of this size; either may be null. */
    show(edges, pictureSize) {
      [box, size] = [edges, pictureSize];
      outlineOf(box);
      clear.disabled = !box;
      fields.forEach((field, i) => {
        field.value = box ? Math.round(box[i]) : size && i > 1 ? size[i - 2] : 0;
        field.max = size ? size[i % 2] : "";
      });
    },
    toggle: () => setDrawing(!isDrawing()),
    /** Stop drawing; false if nobody was. */
    escape() {
      const was = isDrawing() || start !== null;
      stop();
      setDrawing(false);
      return was;
    },
  };
}
