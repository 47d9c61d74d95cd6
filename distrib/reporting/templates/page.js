// What all pages do: the theme, tables that sort, the section that is being read, all details in print.

const data = JSON.parse(one("#data").textContent);
document.documentElement.classList.add("js");

function theme() {
  const button = one("#theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const show = () => button.setAttribute("aria-pressed", String(dark()));
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    show();
  });
  system.addEventListener("change", show);
  show();
}

// A click on a heading sorts by its column: numbers from the largest, words from A; a second click turns it around.
// What is not known comes last either way.
function sortable(table) {
  const headings = all("thead th[data-sort]", table);
  const body = table.tBodies[0];
  const sort = (heading, direction) => {
    const column = headings.indexOf(heading);
    const numeric = heading.dataset.sort === "number";
    const sign = direction === "ascending" ? 1 : -1;
    const keyed = [...body.rows].map((row) => {
      const text = row.cells[column].dataset.value ?? row.cells[column].textContent;
      return { row, key: text === "" ? null : numeric ? Number(text) : text };
    });
    keyed.sort((a, b) => {
      if (a.key === null || b.key === null) return (a.key === null) - (b.key === null);
      return sign * (numeric ? a.key - b.key : a.key.localeCompare(b.key, "en", { numeric: true }));
    });
    body.append(...keyed.map(({ row }) => row));
    for (const each of headings) each.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", direction);
  };
  for (const heading of headings) {
    one("button", heading).addEventListener("click", () => {
      const first = heading.dataset.sort === "number" ? "descending" : "ascending";
      const second = first === "descending" ? "ascending" : "descending";
      sort(heading, heading.getAttribute("aria-sort") === first ? second : first);
    });
  }
  // Sorts again by the column that it is sorted by, after the cells have changed.
  table.sortAgain = () => {
    const heading = headings.find((each) => each.hasAttribute("aria-sort"));
    if (heading) sort(heading, heading.getAttribute("aria-sort"));
  };
}

// What a cell shows, and what sorting goes by.
function put(cell, value, text = decimals(value)) {
  cell.dataset.value = value ?? "";
  cell.textContent = text;
}

// A field that shows only the rows whose name has its text in it, and how many these are.
function filterable(field, table, status) {
  field?.addEventListener("input", () => {
    const wanted = words(field.value.trim().toLowerCase());
    const rows = [...table.tBodies[0].rows];
    for (const row of rows) row.hidden = !words(row.dataset.name).toLowerCase().includes(wanted);
    const count = rows.filter((row) => !row.hidden).length;
    status.textContent = wanted ? `${count} of ${plural(rows.length, "attribute")}` : "";
  });
}

function contents() {
  const links = new Map(all(".contents a").map((link) => [link.hash.slice(1), link]));
  const seen = new Set();
  const observer = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) seen[isIntersecting ? "add" : "delete"](target.id);
      const current = [...links.keys()].find((id) => seen.has(id));
      for (const [id, link] of links) id === current ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current");
    },
    { rootMargin: "-15% 0px -60% 0px" },
  );
  for (const section of all("main > section")) observer.observe(section);
}

function print() {
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = all("details:not([open])");
    for (const each of closed) each.open = true;
  });
  addEventListener("afterprint", () => closed.forEach((each) => (each.open = false)));
}

// Starts the parts one by one: one that fails says so in its section and leaves the others alone.
function start(parts) {
  for (const part of [theme, contents, print, () => all("table.sortable").forEach(sortable), ...parts]) {
    try {
      part();
    } catch (error) {
      console.error(error);
      const note = Object.assign(document.createElement("p"), { className: "absent", role: "alert" });
      note.textContent = `The moving parts of this section could not be made from its data (${error}); its tables still hold.`;
      one(`#${part.name}`)?.append(note);
    }
  }
}
