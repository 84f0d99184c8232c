/**
 * Draw a gallery as points of a plane: pan, zoom, hover, encircle, colour and filter, with the pointer or the keyboard.
 *
 * `data` is what `distcam.retrieval.atlas.atlas_data` makes. `page` says what the page around it can do: `thumbnail(place)`
 * is the address of an image or null, `why(place)` that of its page or null, `pair(node, a, b)` fills a node with two
 * images, `score()` fetches the outlier scores that `data` lacks (packed), or is absent. All points are stamped into one
 * buffer of pixels; a grid over the plane finds those near the pointer.
 */
export function drawAtlas(root, data, page) {
  const CLASS_COLOURS = ["#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7"]; // Okabe and Ito, readable on both papers
  const CIVIDIS = ["00306f", "35456c", "60606e", "8b8a78", "c0b062", "f5dd49"], LISTED = 60, LEGEND = 300, OUTLIERS = "outlier score";
  const n = data.ids.length, number = (value) => Number(value.toPrecision(3)).toString().replace("-", "−");
  const unpack = (text, kind) => new kind(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
  const make = (tag, parent, properties = {}, text = "") => {
    const node = Object.assign(document.createElement(tag), properties);
    node.append(text);
    parent?.append(node);
    return node;
  };

  // --- Points, in an order in which no class lies over another, and in the unit square ----------------------------------
  const raw = unpack(data.points, Float32Array), x = new Float32Array(n), y = new Float32Array(n), place = new Uint32Array(n), seat = new Uint32Array(n);
  const bounds = [Infinity, Infinity, -Infinity, -Infinity];
  for (let i = 0; i < 2 * n; i++) {
    bounds[i % 2] = Math.min(bounds[i % 2], raw[i]);
    bounds[2 + (i % 2)] = Math.max(bounds[2 + (i % 2)], raw[i]);
  }
  const extent = Math.max(bounds[2] - bounds[0], bounds[3] - bounds[1]) || 1;
  for (let i = 0; i < n; i++) place[i] = i;
  for (let i = n - 1, state = 1; i > 0; i--) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    const j = Math.floor((state / 2 ** 32) * (i + 1));
    [place[i], place[j]] = [place[j], place[i]];
  }
  for (let i = 0; i < n; i++) {
    seat[place[i]] = i;
    x[i] = 0.5 + (raw[2 * place[i]] - (bounds[0] + bounds[2]) / 2) / extent;
    y[i] = 0.5 - (raw[2 * place[i] + 1] - (bounds[1] + bounds[3]) / 2) / extent;
  }
  const side = Math.max(1, Math.min(512, Math.round(Math.sqrt(n)))), cellAt = (value) => Math.max(0, Math.min(side - 1, Math.floor(value * side)));
  const starts = new Uint32Array(side * side + 1), inCells = new Uint32Array(n), cells = new Uint32Array(n);
  for (let i = 0; i < n; i++) starts[(cells[i] = cellAt(y[i]) * side + cellAt(x[i])) + 1]++;
  for (let c = 0; c < side * side; c++) starts[c + 1] += starts[c];
  for (let i = 0, next = starts.slice(); i < n; i++) inCells[next[cells[i]]++] = i;

  // --- Columns: names or numbers, each with its filter --------------------------------------------------------------------
  const columns = data.columns.map(({ name, values, codes }) => {
    const numbers = values.map((value) => (value.trim() === "" ? NaN : Number(value)));
    const column = { name, values, codes: unpack(codes, Int32Array), hidden: new Set(), counts: new Uint32Array(values.length + 1) };
    for (const code of column.codes) column.counts[code + 1]++;
    column.bySize = [...column.counts.keys()].filter((code) => column.counts[code]).sort((a, b) => (a === 0) - (b === 0) || column.counts[b] - column.counts[a]);
    const isNumeric = values.length > 12 && numbers.every(Number.isFinite);
    return isNumeric ? numeric(name, (i) => (column.codes[i] < 0 ? NaN : numbers[column.codes[i]])) : column;
  });
  function numeric(name, valueOf) {
    const values = Float32Array.from({ length: n }, (_, i) => valueOf(i)), known = values.filter((value) => !Number.isNaN(value)).sort();
    return { name, numbers: values, range: [known[0], known.at(-1)], shown: [known[0], known.at(-1)], known };
  }
  const scored = (packed) => ((values) => columns.push(numeric(OUTLIERS, (i) => values[i])))(unpack(packed, Float32Array));
  if (data.outliers) scored(data.outliers);
  const textOf = (column, i) => (column.numbers ? (Number.isNaN(column.numbers[i]) ? "" : String(column.numbers[i])) : column.codes[i] < 0 ? "" : column.values[column.codes[i]]);

  // --- The document -----------------------------------------------------------------------------------------------------
  root.classList.add("atlas");
  const bar = make("div", root, { className: "atlas-bar" }), choice = make("select", make("label", bar, {}, "Colour by "));
  for (const { name } of columns) make("option", choice, { value: name }, name);
  if (!data.outliers && page.score) make("option", choice, { value: OUTLIERS }, OUTLIERS);
  const tool = (text, title, act) => Object.assign(make("button", bar, { type: "button", title, onclick: act }, text));
  const lassoButton = tool("Lasso", "Encircle points (L, or Shift and drag)", () => setLasso(!isLasso));
  tool("+", "Closer (+)", () => zoom(1.5, width / 2, height / 2)).setAttribute("aria-label", "Closer");
  tool("−", "Farther (-)", () => zoom(1 / 1.5, width / 2, height / 2)).setAttribute("aria-label", "Farther");
  tool("Whole", "All points (0)", () => fit());
  const frame = make("div", root, { className: "atlas-frame" }), canvas = make("canvas", frame, { tabIndex: 0 });
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-label", `${n.toLocaleString("en")} images as points. Arrows move, + and - zoom, Enter takes the point in the middle, Space lists what is in view, L encircles, Escape lets go.`);
  const tip = make("div", frame, { className: "atlas-tip", hidden: true }), aside = make("aside", root, { className: "atlas-aside" });
  const legend = make("section", aside), found = make("section", aside), status = make("p", found, { className: "soft" });
  status.setAttribute("role", "status");
  status.textContent = "A click takes a point, a second one sets it against another. The lasso lists.";
  const list = make("div", found, { className: "atlas-found" });

  // --- Colours and filters ------------------------------------------------------------------------------------------------
  const colours = new Uint32Array(n), visible = new Uint8Array(n), word = (hex) => (0xff000000 | parseInt(hex.slice(4, 6) + hex.slice(2, 4) + hex.slice(0, 2), 16)) >>> 0;
  const isDark = () => getComputedStyle(root).colorScheme === "dark" || (getComputedStyle(root).colorScheme !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
  const current = () => columns.find(({ name }) => name === choice.value);
  /* From the paper's neighbour to what stands out most on it. */
  const ramp = (share, dark) => {
    const at = (dark ? share : 1 - share) * (CIVIDIS.length - 1), low = Math.min(Math.floor(at), CIVIDIS.length - 2);
    const mixed = [0, 2, 4].map((c) => Math.round([0, 1].reduce((sum, k) => sum + parseInt(CIVIDIS[low + k].slice(c, c + 2), 16) * (k ? at - low : 1 - at + low), 0)));
    return mixed.map((value) => value.toString(16).padStart(2, "0")).join("");
  };
  const paletteOf = (column, dark) => {
    const shown = column.bySize.filter((code) => code && !column.hidden.has(code)).slice(0, CLASS_COLOURS.length);
    return new Map(shown.map((code, rank) => [code, CLASS_COLOURS[rank].slice(1)]));
  };
  function recolour() {
    const column = current(), dark = isDark(), grey = word(dark ? "5b6576" : "aab2be");
    visible.fill(1);
    for (const each of columns) {
      if (each.numbers ? each.shown[0] > each.range[0] || each.shown[1] < each.range[1] : each.hidden.size) {
        for (let i = 0; i < n; i++) {
          const value = each.numbers?.[place[i]];
          if (each.numbers ? !(value >= each.shown[0] && value <= each.shown[1]) : each.hidden.has(each.codes[place[i]] + 1)) visible[i] = 0;
        }
      }
    }
    if (column?.numbers) {
      const steps = Uint32Array.from({ length: 256 }, (_, k) => word(ramp(k / 255, dark))), [low, high] = limits(column);
      for (let i = 0; i < n; i++) {
        const share = (column.numbers[place[i]] - low) / (high - low || 1);
        colours[i] = !visible[i] ? 0 : Number.isNaN(share) ? grey : steps[Math.round(255 * Math.max(0, Math.min(1, share)))];
      }
    } else {
      const palette = column ? paletteOf(column, dark) : new Map(), table = Uint32Array.from({ length: (column?.values.length ?? 0) + 1 }, (_, code) => (palette.has(code) ? word(palette.get(code)) : grey));
      for (let i = 0; i < n; i++) colours[i] = visible[i] ? table[column ? column.codes[place[i]] + 1 : 0] : 0;
    }
    ask();
  }
  /* The colours' ends leave out a hundredth at either side, which would else leave one colour to all others. */
  const limits = ({ known }) => [known[Math.floor(0.01 * (known.length - 1))], known[Math.ceil(0.99 * (known.length - 1))]];

  function showLegend() {
    const column = current();
    legend.replaceChildren(make("h3", null, {}, column?.name ?? "no column"));
    if (column?.numbers) return numericLegend(column);
    if (!column) return;
    const dark = isDark(), palette = paletteOf(column, dark), entries = make("div", legend, { className: "atlas-legend" });
    const codes = column.bySize, nameOf = (code) => (code ? column.values[code - 1] : "none");
    const pick = (code) => {
      if (!column.hidden.size) column.hidden = new Set(codes.filter((other) => other !== code));
      else if (!column.hidden.delete(code)) column.hidden.add(code);
      if (column.hidden.size === codes.length) column.hidden.clear();
      const index = codes.indexOf(code), top = entries.scrollTop;
      recolour();
      showLegend();
      const again = legend.querySelector(".atlas-legend");
      again.scrollTop = top;
      again.children[index]?.focus({ preventScroll: true });
    };
    for (const code of codes.slice(0, LEGEND)) {
      const button = make("button", entries, { type: "button", onclick: () => pick(code), title: "Only this one; then others beside it" });
      button.setAttribute("aria-pressed", String(!column.hidden.has(code)));
      make("i", button).style.background = palette.has(code) ? `#${palette.get(code)}` : isDark() ? "#5b6576" : "#aab2be";
      make("span", button, {}, nameOf(code));
      make("small", button, {}, column.counts[code].toLocaleString("en"));
    }
    const rest = codes.length - palette.size;
    if (rest > 0) make("p", legend, { className: "soft" }, `The ${palette.size} largest that are shown have colours, the others are grey.${codes.length > LEGEND ? ` ${codes.length - LEGEND} smaller ones are not listed.` : ""}`);
    if (column.hidden.size) make("button", legend, { type: "button", onclick: () => (column.hidden.clear(), recolour(), showLegend()) }, "Show all");
  }

  function numericLegend(column) {
    const dark = isDark(), strip = make("canvas", legend, { width: 256, height: 1, className: "atlas-ramp" }).getContext("2d"), ends = limits(column);
    for (let k = 0; k < 256; k++) Object.assign(strip, { fillStyle: `#${ramp(k / 255, dark)}` }).fillRect(k, 0, 1, 1);
    make("p", legend, { className: "soft" }, `${number(ends[0])} … ${number(ends[1])} (1 % beyond at either end)`);
    ["at least", "at most"].forEach((words, end) => {
      const label = make("label", legend, {}, `${words} `), output = make("output", label, {}, number(column.shown[end]));
      const input = make("input", label, { type: "range", min: 0, max: 1000 });
      input.value = 1000 * ((column.shown[end] - column.range[0]) / (column.range[1] - column.range[0] || 1));
      input.addEventListener("input", () => {
        column.shown[end] = +input.value === 1000 * end ? column.range[end] : column.range[0] + (input.value / 1000) * (column.range[1] - column.range[0]);
        output.textContent = number(column.shown[end]);
        recolour();
      });
    });
  }

  // --- The view ---------------------------------------------------------------------------------------------------------
  const context = canvas.getContext("2d");
  let width = 0, height = 0, image = null, pixels = null, view = null, asked = 0, ratio = 1;
  let isLasso = false, lasso = null, picked = [], chosen = new Set(), hovered = -1;
  const ask = () => (asked ||= requestAnimationFrame(paint));

  function fit() {
    const scale = 0.92 * Math.min(width, height);
    view = { scale, left: (width - scale) / 2, top: (height - scale) / 2 };
    ask();
  }
  function zoom(by, atX, atY) {
    const scale = Math.min(1e5 * Math.max(width, height), Math.max(0.2 * Math.min(width, height), view.scale * by)), change = scale / view.scale;
    view = { scale, left: atX - (atX - view.left) * change, top: atY - (atY - view.top) * change };
    ask();
  }
  function pan(dx, dy) {
    view = { ...view, left: view.left + dx, top: view.top + dy };
    ask();
  }
  const radius = () => Math.max(1, Math.min(6, Math.round(ratio * (14 / n ** 0.25 + 0.4 * Math.log2(Math.max(1, view.scale / Math.min(width, height)))))));

  function paint() {
    asked = 0;
    if (!pixels) return;
    const r = radius(), stamp = [], { scale, left, top } = view;
    for (let dy = -r; dy <= r; dy++) for (let dx = -r; dx <= r; dx++) if (dx * dx + dy * dy <= r * r + 0.5) stamp.push(dy * width + dx);
    const offsets = Int32Array.from(stamp), count = offsets.length, right = width - r, bottom = height - r;
    pixels.fill(0);
    for (let i = 0; i < n; i++) {
      const colour = colours[i], px = (x[i] * scale + left) | 0, py = (y[i] * scale + top) | 0;
      if (!colour || px < r || py < r || px >= right || py >= bottom) continue;
      const at = py * width + px;
      for (let k = 0; k < count; k++) pixels[at + offsets[k]] = colour;
    }
    context.putImageData(image, 0, 0);
    const style = getComputedStyle(root);
    context.lineWidth = 2 * ratio;
    context.strokeStyle = style.getPropertyValue("--ink");
    for (const i of chosen.size <= 2000 ? chosen : []) ring(i, r + 1);
    context.strokeStyle = style.getPropertyValue("--accent");
    for (const i of [...picked, ...(hovered >= 0 ? [hovered] : [])]) ring(i, r + 3 * ratio);
    if (document.activeElement === canvas && canvas.matches(":focus-visible")) context.strokeRect(width / 2 - 5 * ratio, height / 2 - 5 * ratio, 10 * ratio, 10 * ratio);
    if (!lasso) return;
    context.beginPath();
    lasso.forEach(([u, v]) => context.lineTo(u * scale + left, v * scale + top));
    context.closePath();
    context.stroke();
  }
  function ring(i, r) {
    context.beginPath();
    context.arc(x[i] * view.scale + view.left, y[i] * view.scale + view.top, r, 0, 2 * Math.PI);
    context.stroke();
  }
  new ResizeObserver(() => {
    ratio = Math.min(2, devicePixelRatio || 1);
    const [w, h] = [frame.clientWidth, frame.clientHeight].map((size) => Math.max(1, Math.round(size * ratio)));
    if (w === width && h === height) return;
    [canvas.width, canvas.height] = [w, h];
    if (view) view = { ...view, left: view.left + (w - width) / 2, top: view.top + (h - height) / 2 };
    [width, height, image] = [w, h, context.createImageData(w, h)];
    pixels = new Uint32Array(image.data.buffer);
    view ? ask() : fit();
  }).observe(frame);

  /* The visible point that is nearest to a place on the canvas, or −1 when none lies within some pixels. */
  function nearest(px, py, within) {
    const u = (px - view.left) / view.scale, v = (py - view.top) / view.scale, reach = within / view.scale;
    let best = -1, least = reach * reach;
    for (let row = cellAt(v - reach); row <= cellAt(v + reach); row++) {
      for (let at = starts[row * side + cellAt(u - reach)], end = starts[row * side + cellAt(u + reach) + 1]; at < end; at++) {
        const i = inCells[at], off = (x[i] - u) ** 2 + (y[i] - v) ** 2;
        if (visible[i] && off < least) [best, least] = [i, off];
      }
    }
    return best;
  }

  // --- What is found ------------------------------------------------------------------------------------------------------
  function describe(node, i, link = false) {
    const address = page.thumbnail(place[i]), why = link && page.why(place[i]);
    if (address) make("img", node, { src: address, alt: "", loading: "lazy" });
    const words = make(why ? "a" : "span", node, why ? { href: why } : {}, data.paths[place[i]]);
    const own = columns[0]?.name === "label" ? textOf(columns[0], place[i]) : "";
    node.append(make("small", null, {}, [own, current() && current() !== columns[0] ? `${current().name} ${textOf(current(), place[i])}` : ""].filter(Boolean).join(" · ")));
    return words;
  }
  function hover(i, px = 0, py = 0) {
    if (i === hovered) return;
    hovered = i;
    tip.hidden = i < 0;
    ask();
    if (i < 0) return;
    tip.replaceChildren();
    describe(tip, i);
    Object.assign(tip.style, { left: `${Math.min(px / ratio + 12, frame.clientWidth - 190)}px`, top: `${Math.min(py / ratio + 12, frame.clientHeight - 150)}px` });
  }
  function pick(i) {
    picked = i < 0 ? [] : picked.length === 1 && picked[0] !== i ? [picked[0], i] : [i];
    chosen = new Set();
    list.replaceChildren();
    status.textContent = ["Nothing is taken.", "One image; the next click sets another one against it.", "Two images."][picked.length];
    if (picked.length === 2) page.pair(make("div", list, { className: "atlas-pair" }), ...picked.map((each) => place[each]));
    for (const each of picked) describe(make("div", list, { className: "atlas-item" }), each, true);
    ask();
  }
  function listAll(those) {
    [chosen, picked] = [new Set(those), []];
    list.replaceChildren();
    status.textContent = `${those.length.toLocaleString("en")} of ${n.toLocaleString("en")} images${those.length > LISTED ? `; the first ${LISTED} are shown, the CSV has all` : ""}.`;
    if (those.length) make("button", list, { type: "button", onclick: () => save(those) }, "Save as CSV");
    for (const i of those.slice(0, LISTED)) describe(make("div", list, { className: "atlas-item" }), i, true);
    ask();
  }
  function save(those) {
    const cell = (value) => (/[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value), rows = [["id", "path", ...columns.map(({ name }) => name)]];
    for (const i of those) rows.push([String(data.ids[place[i]]), data.paths[place[i]], ...columns.map((column) => textOf(column, place[i]))]);
    const url = URL.createObjectURL(new Blob([rows.map((row) => row.map(cell).join(",")).join("\n") + "\n"], { type: "text/csv" }));
    make("a", null, { href: url, download: `${data.name}-points.csv` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
  }
  function encircled(path) {
    const us = path.map(([u]) => u), vs = path.map(([, v]) => v), [lowU, highU, lowV, highV] = [Math.min(...us), Math.max(...us), Math.min(...vs), Math.max(...vs)];
    const isIn = (u, v) => path.reduce((inside, [u1, v1], k) => {
      const [u0, v0] = path.at(k - 1);
      return v1 > v !== v0 > v && u < ((u0 - u1) * (v - v1)) / (v0 - v1) + u1 ? !inside : inside;
    }, false);
    const those = [];
    for (let p = 0; p < n; p++) {
      const i = seat[p];
      if (visible[i] && x[i] >= lowU && x[i] <= highU && y[i] >= lowV && y[i] <= highV && isIn(x[i], y[i])) those.push(i);
    }
    listAll(those);
  }

  // --- Hands ------------------------------------------------------------------------------------------------------------
  const held = new Map(), at = (event) => [event.offsetX * ratio, event.offsetY * ratio];
  const setLasso = (on) => {
    isLasso = on;
    lassoButton.setAttribute("aria-pressed", String(on));
    canvas.style.cursor = on ? "crosshair" : "";
  };
  setLasso(false);
  let moved = 0;
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    held.set(event.pointerId, at(event));
    moved = held.size > 1 ? Infinity : 0;
    lasso = held.size === 1 && (isLasso || event.shiftKey) ? [] : null;
    hover(-1);
  });
  canvas.addEventListener("pointermove", (event) => {
    const now = at(event), before = held.get(event.pointerId);
    if (!before) return hover(nearest(...now, 8 * ratio), ...now);
    const [dx, dy] = [now[0] - before[0], now[1] - before[1]], other = [...held].find(([id]) => id !== event.pointerId)?.[1];
    held.set(event.pointerId, now);
    moved += Math.hypot(dx, dy);
    if (lasso) lasso.push([(now[0] - view.left) / view.scale, (now[1] - view.top) / view.scale]), ask();
    else if (other) zoom(Math.hypot(now[0] - other[0], now[1] - other[1]) / (Math.hypot(before[0] - other[0], before[1] - other[1]) || 1), ...other);
    else if (moved > 4 * ratio) pan(dx, dy);
  });
  for (const name of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(name, (event) => {
      if (!held.delete(event.pointerId) || name === "pointercancel") return (lasso = null);
      if (lasso?.length > 2) encircled(lasso), setLasso(false);
      else if (moved <= 4 * ratio) pick(nearest(...at(event), (event.pointerType === "touch" ? 20 : 8) * ratio));
      lasso = null;
      ask();
    });
  }
  canvas.addEventListener("pointerleave", () => hover(-1));
  canvas.addEventListener("wheel", (event) => (event.preventDefault(), zoom(Math.exp(-0.0015 * event.deltaY * (event.deltaMode ? 30 : 1)), ...at(event))), { passive: false });
  for (const name of ["focus", "blur"]) canvas.addEventListener(name, ask);
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = 0.12 * Math.min(width, height), middle = [width / 2, height / 2];
    const inView = () => [...seat].filter((i) => visible[i] && [x[i] * view.scale + view.left, y[i] * view.scale + view.top].every((value, k) => value >= 0 && value < [width, height][k]));
    const act = {
      ArrowLeft: () => pan(step, 0), ArrowRight: () => pan(-step, 0), ArrowUp: () => pan(0, step), ArrowDown: () => pan(0, -step),
      "+": () => zoom(1.25, ...middle), "=": () => zoom(1.25, ...middle), "-": () => zoom(0.8, ...middle), 0: fit, l: () => setLasso(!isLasso),
      Enter: () => pick(nearest(...middle, width)), " ": () => listAll(inView()), Escape: () => (setLasso(false), pick(-1)),
    }[event.key];
    if (act) event.preventDefault(), act();
  });

  choice.addEventListener("change", async () => {
    if (choice.value === OUTLIERS && !current()) {
      status.textContent = "Looking for the nearest of every image …";
      try {
        scored(await page.score());
        status.textContent = "";
      } catch (error) {
        status.textContent = error.message;
      }
    }
    recolour();
    showLegend();
  });
  const repaint = () => (recolour(), showLegend());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
  new MutationObserver(repaint).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  repaint();
}
