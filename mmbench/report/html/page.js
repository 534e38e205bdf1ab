"use strict";
(() => {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const show = () => {
    button.textContent = dark() ? "Light theme" : "Dark theme";
    button.setAttribute("aria-pressed", String(dark()));
  };
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    show();
  });
  system.addEventListener("change", show);
  button.hidden = false;
  show();

  const announcement = document.getElementById("announcement");
  const compare = (a, b, numeric) => (numeric ? Number(a) - Number(b) : a.localeCompare(b));
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
    heads.forEach((head, index) => {
      const numeric = head.classList.contains("number");
      head.querySelector("button").addEventListener("click", () => {
        // Numbers from the largest down first, names from A on.
        const before = head.getAttribute("aria-sort");
        const ascending = before === "none" ? !numeric : before === "descending";
        for (const other of heads) other.setAttribute("aria-sort", "none");
        head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
        const body = table.tBodies[0];
        const rows = [...body.rows].map((row) => [row.cells[index].dataset.value, row]);
        rows.sort(([a], [b]) => {
          if (a === "" || b === "") return (a === "") - (b === "");
          return ascending ? compare(a, b, numeric) : compare(b, a, numeric);
        });
        body.append(...rows.map(([, row]) => row));
        const name = head.querySelector("button").getAttribute("aria-label") || head.textContent;
        announcement.textContent = `Sorted by ${name}, ${ascending ? "ascending" : "descending"}.`;
      });
    });
  }
})();
