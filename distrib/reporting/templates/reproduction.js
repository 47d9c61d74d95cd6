// The report's findings: the curves of each.

function curves() {
  for (const host of all("[data-charts]")) {
    all("figure", host).forEach((figure, i) => {
      const chart = data[host.dataset.charts][i];
      const count = Math.max(...chart.lines.map((line) => line.values.length));
      const epochs = Array.from({ length: count }, (_, epoch) => epoch + 1);
      const lines = chart.lines.map((line) => ({
        values: epochs.map((epoch) => line.values[epoch - 1] ?? null),
        tone: `run-${line.tone % 8}${line.dashed ? " dashed" : ""}`,
        ring: line.values.length === 1 ? 0 : undefined, // one value makes no line
      }));
      const show = (index) => {
        move(index);
        for (const output of all("output", figure)) {
          output.textContent = index === undefined ? "" : decimals(lines[output.dataset.line].values[index], 4);
        }
      };
      const move = lineChart(one(".plot", figure), { epochs, lines, label: `${chart.title} against epochs`, point: show });
    });
  }
}

start([curves]);
