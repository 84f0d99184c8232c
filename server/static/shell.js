/** What does not depend on any answer but the address: theme, windows, folds, the link to share. */

import { byId, memory } from "./dom.js";
import { view } from "./view.js";

function showTheme() {
  const theme = document.documentElement.dataset.theme ?? "auto";
  byId("theme").textContent = `◐ ${theme.charAt(0).toUpperCase()}${theme.slice(1)}`;
  byId("theme").setAttribute("aria-label", `Theme: ${theme}`);
  byId("theme").title = "Theme: as the system has it, light, or dark";
}
byId("theme").addEventListener("click", () => {
  const next = { auto: "light", light: "dark", dark: "auto" }[document.documentElement.dataset.theme ?? "auto"];
  if (next === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = next;
  memory.set("theme", next);
  showTheme();
});
showTheme();

// On a phone the controls are folded away; elsewhere they have no fold.
const phone = window.matchMedia("(max-width: 640px)");
const fold = () => ["find-group", "explain-group"].forEach((id) => (byId(id).open = !phone.matches));
phone.addEventListener("change", fold);
fold();

for (const button of document.querySelectorAll("[data-close]")) button.addEventListener("click", () => button.closest("dialog").close());

byId("share").addEventListener("click", () => {
  byId("share-link").value = location.href;
  byId("share-note").textContent = view.state.upload !== null
    ? "A link cannot carry your image: whoever opens it has to drop the same image, and sees the same view then."
    : "Whoever opens it at this server sees the same view.";
  byId("share-done").textContent = "";
  byId("share-dialog").showModal();
  byId("share-link").select();
});
byId("share-copy").addEventListener("click", async () => {
  byId("share-link").select();
  try {
    await navigator.clipboard.writeText(location.href);
    byId("share-done").textContent = "Copied.";
  } catch {
    byId("share-done").textContent = "Press Ctrl C to copy.";
  }
});
