"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const sign = down ? -1 : 1;
      const numeric = head.classList.contains("number");
      const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const compare = (a, b) => {
        const [left, right] = [value(a), value(b)];
        if (left === "" || right === "") return (left === "") - (right === "");
        return sign * (numeric ? left - right : left.localeCompare(right));
      };
      body.append(...[...body.rows].sort(compare));
    });
  });
}
const words = document.getElementById("filter");
const category = document.getElementById("category");
if (words) {
  const rows = [...document.querySelectorAll("#groups tbody tr")];
  const figures = [...document.querySelectorAll("figure[data-group]")];
  const show = () => {
    const wanted = words.value.trim().toLowerCase();
    const shown = new Set();
    for (const row of rows) {
      const fits = row.dataset.group.toLowerCase().includes(wanted)
        && (!category.value || row.dataset.category === category.value);
      row.hidden = !fits;
      if (fits) shown.add(row.dataset.group);
    }
    for (const figure of figures) figure.hidden = !shown.has(figure.dataset.group);
    document.getElementById("count").textContent = `${shown.size} of ${rows.length} groups`;
  };
  words.addEventListener("input", show);
  category.addEventListener("change", show);
  show();
}
window.addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details:not(.screen)")) part.open = true;
});
