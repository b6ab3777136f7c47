// Light and dark: what the system says, until the button says otherwise.

const THEME = "olora-theme";

function setUpTheme() {
  const button = byId("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  let chosen = stored();
  const show = () => {
    const isDark = chosen === null ? system.matches : chosen === "dark";
    if (chosen !== null) {
      document.documentElement.dataset.theme = chosen;
    }
    button.setAttribute("aria-pressed", String(isDark));
  };
  button.addEventListener("click", () => {
    chosen = button.getAttribute("aria-pressed") === "true" ? "light" : "dark";
    try {
      localStorage.setItem(THEME, chosen);
    } catch {
      // A browser may keep nothing for a file; then it holds until the page is closed.
    }
    show();
  });
  system.addEventListener("change", show);
  show();
}

function stored() {
  try {
    const found = localStorage.getItem(THEME);
    return found === "light" || found === "dark" ? found : null;
  } catch {
    return null;
  }
}
