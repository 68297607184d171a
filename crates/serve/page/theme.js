// Runs before the first paint, so that a chosen theme does not flash in the other one.
"use strict";
try {
  const theme = localStorage.getItem("bruchteil.theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // A browser that forbids storage simply follows the system's theme.
}
