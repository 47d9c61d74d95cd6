// The report of one run. Each function is named after the section that it makes move.

// The attribute that all sections show; each tells here what to do when another is chosen.
const listeners = [];
function choose(name) {
  for (const select of all("[data-chooser]")) select.value = name;
  for (const panel of all("[data-panel]")) panel.classList.toggle("chosen", panel.dataset.panel === name);
  for (const listener of listeners) listener(name);
}

function choice() {
  for (const select of all("[data-chooser]")) {
    select.addEventListener("change", () => choose(select.value));
    select.closest(".chooser").hidden = data.attributes.length < 2;
  }
  for (const link of all("[data-choose]")) link.addEventListener("click", () => choose(link.dataset.choose));
  // The page opens with the attribute that is hardest for the model: there a threshold matters and mistakes are found.
  const area = (name) => data.scores?.attributes.find((each) => each.name === name)?.test.roc_auc ?? 2;
  if (data.attributes.length) choose(data.attributes.reduce((a, b) => (area(b) < area(a) ? b : a)));
}

function learnt() {
  if (!data.curves) return;
  const { columns, rows, best_epoch: bestEpoch } = data.curves;
  const column = (name) => rows.map((row) => row[columns.indexOf(name)]);
  const epochs = column("epoch");
  const best = epochs.indexOf(bestEpoch);
  epochCharts({
    epochs, best,
    linesOf: (chart) => all("output", chart).map(({ dataset, parentElement }) => ({
      values: column(dataset.column),
      tone: parentElement.className || "validation",
    })),
    tell: (index) => {
      one("#epoch-now").textContent = epochs[index];
      one("#epoch-best").hidden = index !== best;
    },
  });
}

function scores() {
  if (!data.scores) return;
  const table = one("#attributes");
  const byName = new Map(data.scores.attributes.map((each) => [each.name, each]));
  const chosen = (name) => one(`input[name="${name}"]:checked`).value;

  const fill = (row, values, split, tuned) => {
    for (const cell of all("[data-cell]", row)) {
      const name = cell.dataset.cell;
      let value = null;
      if (name === "positives") value = values.positives ? values.positives[split] / values.images[split] : null;
      else if (name === "baseline") value = values.baseline_accuracy[split];
      else if (name === "threshold") value = values.name === undefined ? null : tuned ? values.threshold : 0.5;
      else value = (tuned && values.tuned[split]?.[name] !== undefined ? values.tuned : values)[split][name];
      cell.dataset.value = known(value) ? value : "";
      const text = name === "positives" ? percent(value, 1) : decimals(value);
      (one("span", cell) ?? cell).textContent = text;
      const track = one(".track", cell);
      if (!track) continue;
      track.style.setProperty("--value", known(value) ? value : 0);
      one(".baseline", track)?.style.setProperty("--at", values.baseline_accuracy[split] ?? 0);
      // The intervals are those of the test images, and of the plain threshold where the score has one.
      const free = name === "roc_auc" || name === "average_precision";
      const whisker = one(".whisker", track);
      const interval = split === "test" && (free || !tuned) && whisker ? values.interval[name] : null;
      if (whisker) whisker.hidden = !interval;
      cell.title = interval ? `95 % interval ${decimals(interval[0])} to ${decimals(interval[1])}` : "";
    }
  };
  const update = () => {
    const [split, tuned] = [chosen("split"), chosen("threshold") === "tuned"];
    for (const row of table.tBodies[0].rows) fill(row, byName.get(row.dataset.name), split, tuned);
    const means = one("[data-means]", table);
    if (means) fill(means, data.scores.means, split, tuned);
    one("#caption-split").textContent = split === "valid" ? "validation" : "test";
    one("#caption-threshold").textContent = tuned ? "tuned" : "0.5";
    table.sortAgain();
  };
  for (const input of all("#scores input[type=radio]")) input.addEventListener("change", update);
  filterable(one("#filter"), table, one("#shown"));
  update();
}

// The marks of the two thresholds that are not the reader's own: a ring for 0.5, a diamond for the tuned one.
const ring = (cx, cy, r) => draw("circle", { class: "mark", cx, cy, r });
const diamond = (x, y, r) => draw("path", { class: "mark", d: `M${x} ${y - r}l${r} ${r}l${-r} ${r}l${-r} ${-r}Z` });

function decide() {
  if (!data.operating) return;
  const points = data.operating.attributes.map((each) => ({
    ...each,
    recall: each.tp.map((tp) => (each.positives ? tp / each.positives : null)),
    fallout: each.fp.map((fp) => (each.negatives ? fp / each.negatives : null)),
    precision: each.tp.map((tp, i) => (tp + each.fp[i] ? tp / (tp + each.fp[i]) : null)),
  }));
  const byName = new Map(points.map((each) => [each.name, each]));
  const slider = one("#threshold");
  let now = null; // the attribute
  let threshold = 0;
  let at = 0; // the index of the operating point

  // The operating point of a threshold: the lowest listed one that is not below it calls the same images a yes.
  const pointOf = (attribute, threshold) => {
    let found = 0;
    attribute.thresholds.forEach((each, i) => each >= threshold && (found = i));
    return found;
  };
  const ratio = (part, of) => (of ? part / of : null);

  let place = [];
  const show = () => {
    const { tp, fp, positives, negatives, name } = now;
    const counts = { tp: tp[at], fn: positives - tp[at], fp: fp[at], tn: negatives - fp[at] };
    for (const [id, count] of Object.entries(counts)) {
      const cell = one(`#${id}`);
      one("output", cell).textContent = count;
      cell.style.setProperty("--share", ratio(count, id === "tp" || id === "fn" ? positives : negatives) ?? 0);
    }
    const [precision, recall] = [ratio(counts.tp, counts.tp + counts.fp), ratio(counts.tp, positives)];
    const values = {
      precision,
      recall,
      f1: ratio(2 * counts.tp, 2 * counts.tp + counts.fp + counts.fn),
      accuracy: ratio(counts.tp + counts.tn, positives + negatives),
    };
    for (const [id, value] of Object.entries(values)) one(`#${id}`).textContent = decimals(value);
    one("#threshold-now").textContent = decimals(threshold);
    const text = `From ${decimals(threshold)} on, the model says ${words(name)} of ${counts.tp + counts.fp} of `
      + `${positives + negatives} test images: ${counts.tp} rightly, ${counts.fp} wrongly. It misses ${counts.fn} of the `
      + `${positives} that are labelled so.`;
    one("#verdict").textContent = text;
    slider.setAttribute("aria-valuetext", `${decimals(threshold)}, precision ${decimals(precision)}, recall ${decimals(recall)}`);
    for (const each of place) each();
  };
  const moveTo = (value, index = pointOf(now, value)) => {
    [threshold, at] = [value, index];
    slider.value = value;
    show();
  };

  // The lanes above the slider: a stroke where images are, inset by half of the slider's thumb.
  const rug = (host) => (width) => {
    const [inset, lane, glyphs] = [8, 16, 15];
    const height = 2 * lane + 4 + glyphs;
    const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Probabilities of the test images" });
    const toX = (value) => inset + Math.min(1, value) * (width - 2 * inset);
    [["tp", "with"], ["fp", "without"]].forEach(([key, tone], row) => {
      const most = Math.max(...now[key].map((count, i) => count - (now[key][i - 1] ?? 0)));
      now[key].forEach((count, i) => {
        const added = count - (now[key][i - 1] ?? 0);
        if (!added) return;
        const stroke = { class: `stroke ${tone}`, x1: toX(now.thresholds[i]), x2: toX(now.thresholds[i]), y1: row * (lane + 4), y2: row * (lane + 4) + lane };
        svg.append(draw("line", { ...stroke, opacity: (0.35 + (0.65 * added) / most).toFixed(2) }));
      });
    });
    const cut = svg.appendChild(draw("line", { class: "cut", y1: 0, y2: height }));
    svg.append(ring(toX(now.default), height - 6, 4));
    if (known(now.tuned)) svg.append(diamond(toX(now.tuned), height - 6, 5));
    host.replaceChildren(svg);
    return () => setAll(cut, { x1: toX(threshold), x2: toX(threshold) });
  };

  const curve = (host, { xs, ys, chance, ...titles }) => (width) => {
    const { svg, toX, toY } = squareAxes(host, width, 340, titles);
    const line = (each) => path(xs(each).map((a, i) => [known(a) ? toX(a) : null, known(ys(each)[i]) ? toY(ys(each)[i]) : null]));
    for (const each of points) if (each !== now) svg.append(draw("path", { class: "stroke other", d: line(each) }));
    svg.append(draw("path", { class: "stroke chance", d: path(chance(now).map(([a, b]) => [toX(a), toY(b)])) }));
    svg.append(draw("path", { class: "stroke validation", d: line(now) }));
    const mark = (index, shape) => {
      const [a, b] = [xs(now)[index], ys(now)[index]];
      if (known(a) && known(b)) svg.append(shape(toX(a), toY(b)));
    };
    const dot = svg.appendChild(draw("circle", { class: "dot chosen", r: 8 }));
    mark(pointOf(now, now.default), (x, y) => ring(x, y, 4));
    if (known(now.tuned)) mark(pointOf(now, now.tuned), (x, y) => diamond(x, y, 5));
    return () => {
      const [a, b] = [xs(now)[at], ys(now)[at]];
      dot.toggleAttribute("hidden", !(known(a) && known(b)));
      if (known(a) && known(b)) setAll(dot, { cx: toX(a), cy: toY(b) });
    };
  };
  const hosts = [
    [one(".rug"), rug(one(".rug"))],
    [one("#roc"), curve(one("#roc"), {
      xs: (each) => each.fallout, ys: (each) => each.recall,
      xTitle: "share of negatives called yes", yTitle: "recall", label: "ROC curve",
      chance: () => [[0, 0], [1, 1]],
    })],
    [one("#pr"), curve(one("#pr"), {
      xs: (each) => each.recall, ys: (each) => each.precision,
      xTitle: "recall", yTitle: "precision", label: "Precision against recall",
      chance: (each) => [0, 1].map((x) => [x, each.positives / (each.positives + each.negatives || 1)]),
    })],
  ];
  const redraws = [];
  const redraw = () => redraws.forEach((each) => each());

  listeners.push((name) => {
    now = byName.get(name);
    one(".decide").hidden = !now;
    if (!now) return;
    slider.max = Math.max(1, now.thresholds[0]);
    one("#to-default").textContent = `○ ${decimals(now.default, 1)}`;
    one("#to-tuned").textContent = `◇ tuned, ${decimals(now.tuned)}`;
    one("#to-tuned").hidden = !known(now.tuned);
    const scored = data.scores?.attributes.find((each) => each.name === now.name);
    const told = (word, score) => {
      if (!scored) return "";
      const interval = scored.interval[score];
      return `${word} ${decimals(scored.test[score])}${interval ? ` (${decimals(interval[0])}–${decimals(interval[1])})` : ""}`;
    };
    one("#roc-area").textContent = told("area", "roc_auc");
    one("#pr-area").textContent = told("average", "average_precision");
    if (redraws.length) redraw();
    else hosts.forEach(([host, render], i) => redraws.push(responsive(host, (width) => {
      place[i] = render(width);
      place[i]();
    })));
    moveTo(known(now.tuned) ? now.tuned : now.default);
  });
  // A slider keeps fewer digits than a probability has: what it calls equal must count as equal.
  slider.addEventListener("input", () => moveTo(Number(slider.value), pointOf(now, Number(slider.value) * (1 - 1e-12))));
  slider.addEventListener("keydown", (event) => {
    const step = { ArrowRight: -1, ArrowUp: -1, ArrowLeft: 1, ArrowDown: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    // To the next point at which an image changes sides; the listed thresholds descend.
    const { thresholds, tp, fp } = now;
    let next = at + step;
    while (next > 0 && next < thresholds.length - 1 && tp[next] === tp[at] && fp[next] === fp[at]) next += step;
    next = Math.max(0, Math.min(thresholds.length - 1, next));
    moveTo(thresholds[next], next);
  });
  one("#to-default").addEventListener("click", () => moveTo(now.default));
  one("#to-tuned").addEventListener("click", () => moveTo(now.tuned));
}

function sure() {
  if (!data.calibration) return;
  const host = one("#reliability");
  let now = null;
  const render = (width) => {
    const { svg, toX, toY } = squareAxes(host, width, 380, {
      xTitle: "probability that the model gives", yTitle: "share that has the attribute",
      label: `Reliability of ${words(now.name)}`,
    });
    svg.append(draw("path", { class: "stroke chance", d: path([[toX(0), toY(0)], [toX(1), toY(1)]]) }));
    for (const tone of ["before", "after"]) {
      const { confidence, frequency, count } = now[tone];
      const filled = confidence.map((_, i) => i).filter((i) => known(confidence[i]) && known(frequency[i]));
      const most = Math.max(...count);
      svg.append(draw("path", { class: `stroke ${tone}`, d: path(filled.map((i) => [toX(confidence[i]), toY(frequency[i])])) }));
      for (const i of filled) {
        const dot = draw("circle", { class: `bin ${tone}`, cx: toX(confidence[i]), cy: toY(frequency[i]), r: 2.5 + 9 * Math.sqrt(count[i] / most) });
        dot.append(draw("title", {}, `${tone} the temperature: ${plural(count[i], "image")} at ${percent(confidence[i])}, of which ${percent(frequency[i])} have it`));
        svg.append(dot);
      }
    }
  };
  let redraw = null;
  listeners.push((name) => {
    now = data.calibration.attributes.find((each) => each.name === name);
    host.hidden = !now;
    if (!now) return;
    one("#ece-before").textContent = `ECE ${decimals(now.ece_before)}`;
    one("#ece-after").textContent = `ECE ${decimals(now.ece_after)}`;
    redraw ? redraw() : (redraw = responsive(host, render));
  });
}

function fair() {
  if (!data.fairness?.attributes) return; // or the data set has no such groups
  const { attributes, groups } = data.fairness;
  const select = one("#fair-score");
  const table = one("#fair-table");
  const byName = new Map(attributes.map((each) => [each.name, each]));
  const update = () => {
    const score = select.value;
    for (const row of table.tBodies[0].rows) {
      const { values, gap, worst } = byName.get(row.dataset.name);
      const [a, b] = values[score];
      const [, first, second, apart, worse, picture] = row.cells;
      put(first, a);
      put(second, b);
      put(apart, gap[score]);
      put(worse, words(groups[worst[score]] ?? ""), words(groups[worst[score]] ?? DASH));
      picture.hidden = !known(a) || !known(b);
      picture.style.setProperty("--a", a ?? 0);
      picture.style.setProperty("--b", b ?? 0);
    }
    // The scale begins and ends at a tenth beyond the values; 0 to 1 is left only where a loss is.
    const seen = attributes.flatMap((each) => each.values[score]).filter(known);
    const low = Math.min(0.9, Math.floor(10 * Math.min(1, ...seen)) / 10);
    const high = Math.max(1, Math.ceil(10 * Math.max(0, ...seen)) / 10);
    table.style.setProperty("--low", low);
    table.style.setProperty("--high", high);
    one("#fair-low").textContent = brief(low);
    one("#fair-high").textContent = brief(high);
    const named = select.selectedOptions[0].textContent;
    const inText = /^[A-Z][a-z]/.test(named) ? named.toLowerCase() : named; // not of F1 or ROC AUC
    one("#fair-caption").textContent = named;
    const [widest] = attributes.filter((each) => known(each.gap[score])).sort((a, b) => b.gap[score] - a.gap[score]);
    const told = widest && groups.map((group, i) => `${decimals(widest.values[score][i], 2)} for ${words(group)}`).join(" and ");
    one("#fair-verdict").textContent = widest ? `The widest gap in ${inText} is at ${words(widest.name)}: ${told}.` : "";
    table.sortAgain();
  };
  select.addEventListener("change", update);
  if (data.fairness.scores.includes("roc_auc")) select.value = "roc_auc";
  update();
  // The widest gaps come first.
  const gap = all("thead th[data-sort]", table)[3];
  one("button", gap).click();
}

function together() {
  const host = one("#matrix");
  if (!data.correlation || !host) return;
  const { attributes, labels, predictions } = data.correlation;
  const count = attributes.length;
  const note = one("#matrix-now");
  const names = attributes.map(words);
  const size = Math.max(13, Math.min(36, Math.floor(560 / count)));
  const margin = Math.max(...names.map((name) => name.length)) * 6.2 + 12;
  const side = margin + count * size;
  const svg = draw("svg", {
    viewBox: `0 0 ${side} ${side}`, width: side, height: side, tabindex: 0, role: "img",
    "aria-label": "Correlations; the arrow keys move through the cells", "aria-describedby": "matrix-now",
  });
  const off = [labels, predictions].flatMap((matrix) => matrix.flatMap((line, i) => line.filter((value, j) => i !== j && known(value))));
  const strongest = Math.ceil(10 * Math.max(0.1, ...off.map(Math.abs)) - 1e-9) / 10;
  one("#matrix-low").textContent = brief(-strongest);
  one("#matrix-high").textContent = brief(strongest);
  const colour = (value) => {
    if (!known(value)) return "var(--paper)";
    const share = ((100 * Math.abs(value)) / strongest).toFixed(0);
    return `color-mix(in oklab, var(--${value < 0 ? "warm" : "accent"}) ${share}%, var(--paper))`;
  };
  names.forEach((name, i) => {
    const middle = margin + (i + 0.5) * size;
    svg.append(draw("text", { class: "tick", x: margin - 5, y: middle + 3.5, "text-anchor": "end" }, name));
    svg.append(draw("text", { class: "tick", transform: `translate(${middle + 3.5} ${margin - 5}) rotate(-90)` }, name));
  });
  for (let row = 0; row < count; row++) {
    for (let column = 0; column < count; column++) {
      if (row === column) continue;
      const value = (row > column ? labels : predictions)[row][column];
      svg.append(draw("rect", { x: margin + column * size, y: margin + row * size, width: size - 1, height: size - 1, style: `fill:${colour(value)}` }));
    }
  }
  const frame = svg.appendChild(draw("rect", { class: "frame", width: size - 1, height: size - 1, hidden: "" }));
  let [row, column] = [1, 0];
  const show = () => {
    frame.removeAttribute("hidden");
    setAll(frame, { x: margin + column * size, y: margin + row * size });
    note.textContent = row === column ? names[row]
      : `${names[row]} and ${names[column]}: labels ${decimals(labels[row][column], 2)}, answers ${decimals(predictions[row][column], 2)}`;
  };
  const inside = (value) => Math.max(0, Math.min(count - 1, value));
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const cell = (at, low) => Math.floor((((at - low) / box.width) * side - margin) / size);
    const [r, c] = [cell(event.clientY, box.top), cell(event.clientX, box.left)];
    if (r !== inside(r) || c !== inside(c)) return;
    [row, column] = [r, c];
    show();
  });
  svg.addEventListener("keydown", (event) => {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!move) return;
    event.preventDefault();
    [row, column] = [inside(row + move[0]), inside(column + move[1])];
    show();
  });
  host.replaceChildren(svg);
}

function looks() {
  const slider = one("#heat");
  slider?.addEventListener("input", () => one("#looks").style.setProperty("--heat", slider.value));
}

start([learnt, scores, decide, sure, fair, together, looks, choice]);
