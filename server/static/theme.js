"use strict";
// Runs before the first paint, so that a remembered theme does not flash.
try {
  const theme = localStorage.getItem("distcam-theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Storage is forbidden here: the system's theme is used.
}
