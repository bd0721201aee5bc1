// Filters the runs by text and sorts them by a column; without scripts the table is complete.
(() => {
  "use strict";
  const body = document.querySelector("#runs tbody");
  const count = document.getElementById("count");
  const field = document.getElementById("filter");
  const heads = [...document.querySelectorAll("#runs th")];

  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of body.rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      shown += row.hidden ? 0 : 1;
    }
    count.textContent = `${shown} of ${body.rows.length} runs`;
  });

  for (const tag of document.querySelectorAll("button.tag")) {
    tag.addEventListener("click", () => {
      field.value = tag.textContent;
      field.dispatchEvent(new Event("input"));
      field.focus();
    });
  }

  const keyOf = (row, column) => {
    const cell = row.cells[column];
    const value = cell.dataset.key ?? cell.textContent.trim();
    return value !== "" && isFinite(value) ? Number(value) : value;
  };
  const compare = (a, b) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    return typeof a === typeof b && typeof a === "number" ? a - b : String(a).localeCompare(b);
  };
  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].sort((a, b) => compare(keyOf(a, column), keyOf(b, column)));
      body.append(...(down ? rows.reverse() : rows));
    });
  });
})();
