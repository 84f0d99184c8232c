/** The gallery, page by page. */

import * as api from "./api.js";
import { byId, make, say } from "./dom.js";
import { count, labelled } from "./words.js";

const PAGE = 28;

/** A button that shows a stored image. */
export function thumbOf(image, onChoose) {
  const frame = make("span", { className: "frame" });
  if (image.has_picture) frame.append(make("img", { src: api.pictureUrl(image.id, 320), alt: "", loading: "lazy" }));
  else frame.textContent = "image not found";
  const button = make("button",
    { type: "button", className: "thumb", title: image.path, "data-id": image.id, "aria-label": `${labelled(image.label)}, ${image.path}` },
    frame, make("span", { className: "label", textContent: image.label ?? image.path }));
  button.addEventListener("click", () => onChoose(image.id));
  return button;
}

/** `onChoose(id)` when one of them is chosen. */
export function browser(onChoose) {
  const dialog = byId("browser"), where = byId("browser-where"), list = byId("browser-list");
  let offset = 0, asked = 0;

  async function show(from) {
    const mine = ++asked;
    say(byId("browser-error"), "");
    where.removeAttribute("aria-invalid");
    try {
      const { images, total } = await api.images({ offset: from, limit: PAGE, where: where.value.trim() });
      if (mine !== asked) return;
      offset = from;
      list.replaceChildren(...images.map((image) => thumbOf(image, (id) => (dialog.close(), onChoose(id)))));
      byId("browser-place").textContent = total ? `${(from + 1).toLocaleString("en")}–${(from + images.length).toLocaleString("en")} of ${count(total, "image")}` : "no image fits";
      byId("browser-previous").disabled = from === 0;
      byId("browser-next").disabled = from + PAGE >= total;
      dialog.scrollTop = 0;
    } catch (error) {
      if (mine !== asked) return;
      say(byId("browser-error"), error.message);
      if (error.status === 400) where.setAttribute("aria-invalid", "true");
    }
  }

  byId("browser-form").addEventListener("submit", (event) => (event.preventDefault(), show(0)));
  byId("browser-previous").addEventListener("click", () => show(Math.max(0, offset - PAGE)));
  byId("browser-next").addEventListener("click", () => show(offset + PAGE));
  return {
    open() {
      if (!dialog.open) dialog.showModal();
      show(offset);
    },
  };
}
