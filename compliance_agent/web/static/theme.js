// Runs before the first paint: the reader's own choice of theme, if one was made; otherwise the system's stands.
(() => {
  const chosen = localStorage.getItem("theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
  document.documentElement.classList.add("scripts");
})();
