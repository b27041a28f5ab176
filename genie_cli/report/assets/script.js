"use strict";
document.documentElement.classList.add("js");

// Tables: a click on a heading sorts by that column, numbers as numbers; a second click turns the order round.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => heading.querySelector("button").addEventListener("click", () => {
    const down = heading.getAttribute("aria-sort") === "ascending";
    headings.forEach((other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
    const compare = (a, b) => {
      if (a === "" || b === "") return (a === "") - (b === "");
      const order = isNaN(a) || isNaN(b) ? a.localeCompare(b, "en", { numeric: true }) : a - b;
      return down ? -order : order;
    };
    const body = table.tBodies[0];
    body.append(...[...body.rows].sort((a, b) => compare(value(a), value(b))));
  }));
}

// Charts of which one is shown at a time.
for (const select of document.querySelectorAll(".chooser select")) {
  const choices = document.querySelectorAll(`#${select.dataset.of} > .choice`);
  const show = () => choices.forEach((choice, place) => choice.classList.toggle("chosen", place === select.selectedIndex));
  select.addEventListener("change", show);
  show();
}
