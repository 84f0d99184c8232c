/** Two images side by side with the lines between them; reports hold this text, the page loads it as a module. */

const SVG = "http://www.w3.org/2000/svg", HIGH = 240, GAP = 14, CLOSE = 0.36;
const COLOURS = ["#e69f00", "#56b4e9", "#009e73", "#f0e442", "#cc79a7"]; // Okabe and Ito

/**
 * Draw lines: as wide as they are strong; a pointer on one image shades what it answers on the other; a click enlarges
 * both places, another click goes back.
 *
 * `uris` are the addresses of query and match; `found` is what `MatchLines.to_dict` writes: `sizes`, `lines` of
 * [x, y, x, y, strength] in fractions of both images, and `shares` of the similarity between positions of two maps.
 */
export function drawLines(parent, uris, found) {
  const add = (tag, into, attributes) => {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    into.append(node);
    return node;
  };
  const widths = found.sizes.map(([width, height]) => (HIGH * width) / height), lefts = [0, widths[0] + GAP];
  const root = add("svg", parent, { viewBox: `0 0 ${lefts[1] + widths[1]} ${HIGH}`, class: "lines", role: "img", "aria-label": found.caption });
  const sides = [0, 1].map((side) => {
    const frame = add("svg", root, { x: lefts[side], width: widths[side], height: HIGH, viewBox: "0 0 1 1", preserveAspectRatio: "none" });
    add("image", frame, { href: uris[side], width: 1, height: 1, preserveAspectRatio: "none" });
    return { frame, shade: add("g", frame, { "pointer-events": "none" }), crop: [0, 0, 1] };
  });
  const drawn = add("g", root, { "pointer-events": "none" });

  /* A place of one image, in fractions, on the drawing. */
  const onDrawing = (side, x, y) => {
    const [left, top, part] = sides[side].crop;
    return [lefts[side] + ((x - left) / part) * widths[side], ((y - top) / part) * HIGH];
  };
  const isSeen = (side, x, y) => {
    const [left, top, part] = sides[side].crop;
    return x >= left && x <= left + part && y >= top && y <= top + part;
  };

  function redraw() {
    for (const { frame, crop } of sides) frame.setAttribute("viewBox", `${crop[0]} ${crop[1]} ${crop[2]} ${crop[2]}`);
    drawn.replaceChildren();
    found.lines.forEach((line, number) => {
      if (!isSeen(0, line[0], line[1]) || !isSeen(1, line[2], line[3])) return;
      const [x1, y1] = onDrawing(0, line[0], line[1]), [x2, y2] = onDrawing(1, line[2], line[3]);
      const width = found.has_geometry ? Math.max(0.6, 2.4 * Math.sqrt(line[4])) : 0.5;
      const colour = found.has_geometry ? COLOURS[number % COLOURS.length] : "#999";
      for (const [stroke, more] of [["#101218", 1], [colour, 0]]) {
        add("line", drawn, { x1, y1, x2, y2, stroke, "stroke-width": width + more, opacity: found.has_geometry ? 0.95 : 0.6 });
        for (const [cx, cy] of [[x1, y1], [x2, y2]]) add("circle", drawn, { cx, cy, r: width + more / 2 + 0.8, fill: stroke });
      }
    });
  }

  /* The position of a side's map under a place; null outside of what the network saw. */
  function positionAt(side, x, y) {
    const [left, top, right, bottom] = found.views[side], [rows, columns] = found.shapes[side];
    const row = Math.floor(((y - top) / (bottom - top)) * rows), column = Math.floor(((x - left) / (right - left)) * columns);
    return row >= 0 && row < rows && column >= 0 && column < columns ? row * columns + column : null;
  }
  const positions = found.shapes.map(([rows, columns]) => rows * columns);
  const share = (side, here, there) => found.shares[side ? there * positions[1] + here : here * positions[1] + there];
  const answers = (side, here) => Array.from({ length: positions[1 - side] }, (_, there) => share(side, here, there));

  function middle(side, position) {
    const [left, top, right, bottom] = found.views[side], [rows, columns] = found.shapes[side];
    return [left + (((position % columns) + 0.5) / columns) * (right - left), top + ((Math.floor(position / columns) + 0.5) / rows) * (bottom - top)];
  }

  function shadeAnswers(side, x, y) {
    const here = positionAt(side, x, y);
    for (const each of sides) each.shade.replaceChildren();
    if (here === null) return;
    const far = 1 - side, values = answers(side, here), most = Math.max(...values);
    const cells = (which) => found.shapes[which].map((count, axis) => (found.views[which][3 - axis] - found.views[which][1 - axis]) / count);
    const box = (which, position, opacity) => {
      const [height, width] = cells(which), [cx, cy] = middle(which, position);
      add("rect", sides[which].shade, { x: cx - width / 2, y: cy - height / 2, width, height, fill: "#ffd500", opacity });
    };
    box(side, here, 0.45);
    if (most > 0) values.forEach((value, there) => value > 0.05 * most && box(far, there, (0.75 * value) / most));
  }

  /* The ends of the nearest line within a tenth of the image, else the position with the largest share. */
  function answerOf(side, x, y) {
    const off = (line) => Math.hypot(line[2 * side] - x, line[2 * side + 1] - y);
    const near = [...found.lines].sort((one, other) => off(one) - off(other))[0];
    if (near && off(near) < 0.1) return [near.slice(0, 2), near.slice(2, 4)];
    const here = positionAt(side, x, y);
    if (here === null) return null;
    const values = answers(side, here), there = middle(1 - side, values.indexOf(Math.max(...values)));
    return side ? [there, [x, y]] : [[x, y], there];
  }

  sides.forEach(({ frame, crop: _ }, side) => {
    const at = (event) => {
      const box = frame.getBoundingClientRect(), [left, top, part] = sides[side].crop;
      return [left + ((event.clientX - box.left) / box.width) * part, top + ((event.clientY - box.top) / box.height) * part];
    };
    frame.addEventListener("pointermove", (event) => shadeAnswers(side, ...at(event)));
    frame.addEventListener("pointerleave", () => sides.forEach((each) => each.shade.replaceChildren()));
    frame.addEventListener("click", (event) => {
      event.stopPropagation();
      const places = sides[0].crop[2] < 1 ? null : answerOf(side, ...at(event));
      sides.forEach((each, which) => {
        const start = places?.[which].map((middleOf) => Math.min(1 - CLOSE, Math.max(0, middleOf - CLOSE / 2)));
        each.crop = start ? [...start, CLOSE] : [0, 0, 1];
      });
      root.classList.toggle("close", places !== null);
      redraw();
    });
  });
  redraw();
  return root;
}
