// Light and dark: the system's choice first, then the reader's.
(() => {
  const root = document.documentElement;
  const kept = () => { try { return localStorage.getItem("semievol-theme"); } catch { return null; } };
  const keep = (value) => { try { localStorage.setItem("semievol-theme", value); } catch { /* a private window */ } };
  const show = (theme) => {
    root.dataset.theme = theme;
    const button = document.getElementById("theme");
    if (button) button.setAttribute("aria-pressed", String(theme === "dark"));
  };
  show(kept() ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
  document.getElementById("theme").addEventListener("click", () => {
    const next = root.dataset.theme === "dark" ? "light" : "dark";
    show(next);
    keep(next);
  });
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    closed.forEach((d) => { if (!d.classList.contains("screen")) d.open = true; });
  });
  addEventListener("afterprint", () => closed.forEach((d) => { d.open = false; }));
})();
