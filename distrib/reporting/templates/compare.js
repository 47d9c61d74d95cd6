// Several runs side by side. Each function is named after the section that it makes move.

const LOWER_IS_BETTER = ["loss"];

function learnt() {
  const last = Number(one("#epoch").max);
  const epochs = Array.from({ length: last }, (_, i) => i + 1);
  const column = (run, name) => {
    const place = run.columns.indexOf(name);
    return epochs.map((epoch) => run.rows[run.epochs.indexOf(epoch)]?.[place] ?? null);
  };
  epochCharts({
    epochs, whose: " of the runs",
    linesOf: ({ dataset }) => data.runs.map((run, i) => ({ values: column(run, dataset.column), tone: `run-${i % 8}`, ring: run.epochs[run.best] - 1 })),
    tell: (index) => {
      one("#epoch-now").textContent = index === undefined ? "Each run at its best epoch" : `Epoch ${epochs[index]} of ${last}`;
    },
  });
}

function attributes() {
  const table = one("#table");
  const byName = new Map(data.attributes.map((each) => [each.name, each.values]));
  const select = one("#score");
  const update = () => {
    const score = select.value;
    const split = one('input[name="split"]:checked')?.value ?? table.dataset.split;
    for (const row of table.tBodies[0].rows) {
      const values = byName.get(row.dataset.name)[split][score];
      const cells = [...row.cells].slice(1);
      values.forEach((value, i) => put(cells[i], value));
      cells.slice(values.length).forEach((cell, i) => {
        const apart = known(values[i + 1]) && known(values[0]) ? values[i + 1] - values[0] : null;
        put(cell, apart, signed(apart));
        const better = apart * (LOWER_IS_BETTER.includes(score) ? -1 : 1);
        cell.classList.toggle("better", better > 0);
        cell.classList.toggle("worse", better < 0);
      });
    }
    one("#caption-score").textContent = select.selectedOptions[0].textContent;
    one("#caption-split").textContent = split === "valid" ? "validation" : "test";
    table.sortAgain();
  };
  select.addEventListener("change", update);
  for (const input of all("#attributes input[type=radio]")) input.addEventListener("change", update);
  filterable(one("#filter"), table, one("#shown"));
  update();
}

start([learnt, attributes]);
