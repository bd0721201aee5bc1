// Tells the kernel whether the page is dark: JupyterLab's theme where there is one, else the system.
function isDark() {
  const light = document.body.dataset.jpThemeLight;
  return light === undefined ? matchMedia("(prefers-color-scheme: dark)").matches : light === "false";
}

export default {
  render({ model, el }) {
    const tell = () => {
      if (model.get("dark") !== isDark()) {
        model.set("dark", isDark());
        model.save_changes();
        setTimeout(() => window.dispatchEvent(new Event("resize")), 1000);
      }
    };
    el.style.display = "none";
    tell();
    // Figures that were drawn before they were on the page took a guess at their width.
    setTimeout(() => window.dispatchEvent(new Event("resize")), 300);
    const watch = new MutationObserver(tell);
    watch.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light"] });
    return () => watch.disconnect();
  },
};
