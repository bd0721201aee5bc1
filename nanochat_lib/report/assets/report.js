// Draws the page's figures, in the reader's colours, and again when the system changes them.
(() => {
  "use strict";
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const setup = read("setup");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const plots = [...document.querySelectorAll(".plot")];
  const lightToDark = new RegExp(Object.keys(setup.swap).join("|"), "g");

  const specOf = (plot, isDark) => {
    const text = document.getElementById(plot.dataset.figure).textContent;
    const colored = isDark ? text.replace(lightToDark, (c) => setup.swap[c]) : text;
    const spec = JSON.parse(colored);
    spec.layout.template = setup.templates[isDark ? "dark" : "light"];
    return spec;
  };
  const draw = (isDark) =>
    Promise.all(
      plots.map((plot) => {
        const spec = specOf(plot, isDark);
        return Plotly.react(plot, spec.data, spec.layout, setup.config);
      }),
    ).then(() => {
      // The label and the table say what a figure shows; its loose text would only confuse.
      document.querySelectorAll("svg.main-svg").forEach((svg) => svg.setAttribute("aria-hidden", "true"));
      document.documentElement.dataset.drawn = isDark ? "dark" : "light";
    });

  draw(dark.matches);
  dark.addEventListener("change", (event) => draw(event.matches));
  window.addEventListener("beforeprint", () => draw(false));
  window.addEventListener("afterprint", () => draw(dark.matches));
})();
