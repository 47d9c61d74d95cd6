// Several runs side by side. Each function is named after the section that it makes move.

const LOWER_IS_BETTER = ["loss"];

function learnt() {
  const slider = one("#epoch");
  const last = Number(slider.max);
  const epochs = Array.from({ length: last }, (_, i) => i + 1);
  const column = (run, name) => {
    const place = run.columns.indexOf(name);
    return epochs.map((epoch) => run.rows[run.epochs.indexOf(epoch)]?.[place] ?? null);
  };
  const shows = [];
  let chosen; // none at first: then each run stands at its best epoch
  const show = (index) => {
    one("#epoch-now").textContent = index === undefined ? "Each run at its best epoch" : `Epoch ${epochs[index]} of ${last}`;
    for (const each of shows) each(index);
  };
  for (const chart of all("#curves [data-column]")) {
    const name = chart.dataset.column;
    const lines = data.runs.map((run, i) => ({ values: column(run, name), tone: `run-${i % 8}`, ring: run.epochs[run.best] - 1 }));
    const label = `${one("figcaption b", chart).textContent} of the runs against epochs`;
    const move = lineChart(one(".plot", chart), { epochs, lines, label, point: (index) => show(index ?? chosen) });
    shows.push((index) => {
      move(index);
      for (const output of all("output", chart)) {
        output.textContent = decimals(lines[output.dataset.run].values[index ?? lines[output.dataset.run].ring], Number(chart.dataset.digits));
      }
    });
  }
  slider.addEventListener("input", () => {
    chosen = Number(slider.value) - 1;
    show(chosen);
  });
  show(chosen);
}

function attributes() {
  const table = one("#table");
  const byName = new Map(data.attributes.map((each) => [each.name, each.values]));
  const select = one("#score");
  const put = (cell, value, text) => {
    cell.dataset.value = known(value) ? value : "";
    cell.textContent = text;
  };
  const update = () => {
    const score = select.value;
    const split = one('input[name="split"]:checked')?.value ?? table.dataset.split;
    for (const row of table.tBodies[0].rows) {
      const values = byName.get(row.dataset.name)[split][score];
      const cells = [...row.cells].slice(1);
      values.forEach((value, i) => put(cells[i], value, decimals(value)));
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
