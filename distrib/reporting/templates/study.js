// A study. Each function is named after the section that it makes move. What is drawn or listed of a trial has its number
// in data-trial: so the trial that is pointed at in one place is marked in all.

const byNumber = new Map(data.trials.map((trial) => [trial.number, trial]));
const marked = new Set(data.marked); // the front, or the best one
const opening = data.goals.length === 1 ? data.marked[0] : undefined;
const HINT = "Point at a trial, or move from one to the next with the arrow keys.";

let goal = 0; // the objective that is shown
let chosen = opening; // the trial that stays marked when the pointer leaves
let shown; // the one that is marked now
const out = new Set(); // trials that the filter leaves out
const redraws = []; // of the charts
const sifted = []; // what to do when the filter has changed
const clear = []; // and when all trials are to be shown again

const kind = (state) => state.replaceAll(" ", "-");
const cut = (text, length) => (text.length > length ? `${text.slice(0, Math.max(1, length - 1))}…` : text);
const between = (value, low, high) => Math.max(low, Math.min(high, value));

function mark(number) {
  shown = number;
  for (const each of all(".now")) each.classList.remove("now");
  for (const each of all(`[data-trial="${number}"]`)) {
    each.classList.add("now");
    if (each.ownerSVGElement) each.parentNode.append(each); // above the others
  }
  for (const note of all("[data-now]")) {
    // Every section tells it, but only the one that is used says it aloud.
    note.setAttribute("aria-live", note.closest("section").contains(document.activeElement) ? "polite" : "off");
    note.textContent = byNumber.get(number)?.told ?? HINT;
  }
}

function choose(number) {
  chosen = number;
  mark(number);
}

const fade = (root = document) => {
  for (const each of all("[data-trial]", root)) each.classList.toggle("out", out.has(Number(each.dataset.trial)));
};

// Draws into `host` now, when its width changes and when another objective is shown.
function chart(host, render) {
  redraws.push(responsive(host, (width) => {
    render(width);
    fade(host);
    mark(shown ?? chosen);
  }));
}

// Marks the trial that is nearest to the pointer; a press keeps it. `nearest` gives its number for a place in the chart.
function pointable(svg, width, nearest) {
  const found = (event) => {
    const box = svg.getBoundingClientRect();
    const scale = width / box.width;
    return nearest((event.clientX - box.left) * scale, (event.clientY - box.top) * scale);
  };
  svg.addEventListener("pointermove", (event) => mark(found(event) ?? chosen));
  svg.addEventListener("pointerdown", (event) => choose(found(event) ?? chosen));
  svg.addEventListener("pointerleave", () => mark(chosen));
}

// The values of an objective as a scale: `points` have a value, and may have a spread. What lies far off on the worse side
// is shown at its end; beside the values is a lane for trials that have none.
function scaleOf(points, { better }, lane) {
  const values = points.map(({ value }) => value).filter(known).sort((a, b) => a - b);
  if (!values.length) return null;
  const [low, lower, upper, high] = [0, 0.25, 0.75, 1].map((share) => values[Math.round(share * (values.length - 1))]);
  const reach = values.length > 7 && upper > lower ? 3 * (upper - lower) : Infinity;
  const near = values.filter((value) => (better === "higher" ? value >= lower - reach : value <= upper + reach));
  let ends = [near[0], near.at(-1)];
  for (const { value, spread } of points) {
    if (value >= near[0] && value <= near.at(-1) && known(spread)) ends = [Math.min(ends[0], value - spread), Math.max(ends[1], value + spread)];
  }
  if (ends[0] === ends[1]) ends = [low - Math.abs(low) * 0.1 - 1e-9, high + Math.abs(high) * 0.1 + 1e-9];
  const at = ticks(...ends, 4);
  const [first, last] = [at[0], at.at(-1)];
  const room = lane ? 0.2 * (last - first) : 0;
  return {
    ticks: at,
    ends: [near[0], near.at(-1)],
    domain: [first - room, last],
    lane: lane ? first - 0.7 * room : null,
    inside: (value) => between(value, first, last),
    beyond: (value) => (value < first ? -1 : value > last ? 1 : 0),
    // How good a value is, from 0 to 1.
    merit: (value) => {
      const share = near[0] === near.at(-1) ? 1 : between((value - near[0]) / (near.at(-1) - near[0]), 0, 1);
      return better === "higher" ? share : 1 - share;
    },
  };
}

const tint = (merit) => `color-mix(in oklab, var(--accent) ${Math.round(10 + 90 * merit)}%, var(--other))`;

// Round numbers within a range; on a logarithmic scale as their exponents.
function inner(low, high, log, count = 5) {
  if (low === high) return [log ? Math.log10(low) : low];
  if (!log) return ticks(low, high, count).filter((tick) => tick >= low - 1e-12 && tick <= high + 1e-12);
  const powers = Array.from({ length: Math.floor(Math.log10(high)) - Math.floor(Math.log10(low)) + 1 }, (_, i) => Math.floor(Math.log10(low)) + i);
  const within = (factors) => powers.flatMap((power) => factors.map((factor) => Number((factor * 10 ** power).toPrecision(6))))
    .filter((tick) => tick >= low * (1 - 1e-9) && tick <= high * (1 + 1e-9)).map(Math.log10);
  const found = [[1], [1, 3], [1, 2, 5], [1, 2, 3, 4, 5, 6, 7, 8, 9]].map(within).find((each) => each.length > 2);
  return found ?? [Math.log10(low), Math.log10(high)];
}
const ofLog = (exponent) => brief(Number((10 ** exponent).toPrecision(3)));

// A parameter as an axis: its domain, its ticks and their texts, and the place of a trial's setting.
function settingScale({ choices, log, low, high }) {
  if (choices) {
    return { domain: [-0.5, choices.length - 0.5], ticks: choices.map((_, i) => i), text: (i) => choices[i], to: (place) => place };
  }
  const to = (value) => (log ? Math.log10(value) : value);
  const room = low === high ? 0.5 : 0.05 * (to(high) - to(low));
  return { domain: [to(low) - room, to(high) + room], ticks: inner(low, high, log), text: log ? ofLog : brief, to };
}

// Trials as shapes. Each of `points` has its trial, x and y; it may have whiskers (lines), and a turn where it stands at
// the end of the scale because it lies beyond.
function shapes(svg, width, points) {
  const order = ({ trial }) => (marked.has(trial.number) ? 2 : trial.state === "finished" ? 1 : 0);
  for (const { trial, x, y, whiskers = [], turn } of [...points].sort((a, b) => order(a) - order(b))) {
    const group = draw("g", { class: `shape ${kind(trial.state)}`, "data-trial": trial.number });
    group.classList.toggle("front", marked.has(trial.number));
    for (const [x1, y1, x2, y2] of whiskers) group.append(draw("line", { class: "whisker", x1, y1, x2, y2 }));
    group.append(draw("circle", { class: "halo", cx: x, cy: y, r: 8 }));
    if (turn !== undefined) group.append(draw("path", { class: "beyond", transform: `translate(${x} ${y}) rotate(${turn})`, d: "M-4 7l4 4l4 -4" }));
    group.append(draw("use", { href: `#mark-${kind(trial.state)}`, x, y }));
    svg.append(group);
  }
  pointable(svg, width, (x, y) => {
    let [found, least] = [undefined, 30];
    for (const point of points) {
      const apart = Math.hypot(point.x - x, point.y - y);
      if (apart < least && !out.has(point.trial.number)) [found, least] = [point.trial.number, apart];
    }
    return found;
  });
}

const nothing = (host) => host.replaceChildren(Object.assign(document.createElement("p"), { className: "soft", textContent: "No value is known." }));

// Where a trial stands whose values run upward, or to the right, at a place of the other axis.
function placed({ trial, value, spread }, scale, to, place, upright) {
  const at = to(known(value) ? scale.inside(value) : scale.lane);
  const ends = known(value) && known(spread) ? [value - spread, value + spread].map((end) => to(scale.inside(end))) : null;
  const side = known(value) ? scale.beyond(value) : 0;
  const turn = side ? (upright ? 90 + 90 * side : -90 * side) : undefined;
  return upright
    ? { trial, x: place, y: at, whiskers: ends ? [[place, ends[0], place, ends[1]]] : [], turn }
    : { trial, x: at, y: place, whiskers: ends ? [[ends[0], place, ends[1], place]] : [], turn };
}

// The name of the lane of trials without a value, where there is one.
function nameLane(svg, scale, x, y) {
  if (known(scale.lane)) svg.append(draw("text", { class: "tick", x, y, "text-anchor": "end" }, "none"));
}

function history() {
  const host = one("#history-plot");
  if (!host) return;
  // Of a trial that was pruned or is running, the last value that is known; pruning saw the first objective alone.
  const reached = ({ values, state, curve }) => values[goal] ?? (goal === 0 && ["pruned", "running"].includes(state) ? curve.at(-1)?.[1] : null);
  chart(host, (width) => {
    const points = data.trials.map((trial) => ({ trial, value: reached(trial), spread: trial.spread[goal] }));
    const scale = scaleOf(points, data.goals[goal], points.some(({ value }) => !known(value)));
    if (!scale) return nothing(host);
    const [first, last] = [data.trials[0].number, data.trials.at(-1).number];
    const x = first === last ? [first - 0.5, last + 0.5] : [first, last];
    const { svg, toX, toY, left, right } = axes(host, width, 260, {
      x, y: scale.domain, yTicks: scale.ticks, xTitle: "trial", yTitle: data.goals[goal].name,
      xTicks: inner(first, last, false, Math.min(last - first, width / 70)).filter(Number.isInteger),
      label: `${data.goals[goal].title} of the trials in their order`,
    });
    nameLane(svg, scale, left - 6, toY(scale.lane) + 3.5);
    const better = data.goals[goal].better === "higher" ? (a, b) => a > b : (a, b) => a < b;
    let best;
    let line = "";
    for (const { trial, value } of points) {
      if (trial.state !== "finished" || !known(value)) continue;
      const [x, y] = [toX(trial.number).toFixed(1), toY(scale.inside(value)).toFixed(1)];
      if (best === undefined) line = `M${x} ${y}`;
      else if (better(value, best)) line += `H${x}V${y}`;
      if (best === undefined || better(value, best)) best = value;
    }
    if (line) svg.append(draw("path", { class: "stroke so-far", d: `${line}H${right}` }));
    shapes(svg, width, points.map((point) => placed(point, scale, toY, toX(point.trial.number), true)));
  });
}

function curves() {
  const host = one("#curves-plot");
  if (!host) return;
  const drawn = data.trials.filter(({ curve }) => curve.some(([, value]) => known(value)));
  const steps = drawn.flatMap(({ curve }) => curve.map(([step]) => step));
  const [first, last] = [Math.min(...steps), Math.max(...steps)];
  const scale = scaleOf(drawn.flatMap(({ curve }) => curve.map(([, value]) => ({ value }))), data.goals[0], false);
  const outcome = scaleOf(drawn.map(({ values }) => ({ value: values[0] })), data.goals[0], false);
  chart(host, (width) => {
    if (!scale) return nothing(host);
    const { svg, toX, toY } = axes(host, width, 300, {
      x: first === last ? [first - 0.5, last + 0.5] : [first, last], y: scale.domain, yTicks: scale.ticks,
      xTicks: inner(first, last, false, Math.min(last - first, width / 70)).filter(Number.isInteger),
      xTitle: data.step, yTitle: data.goals[0].name, label: `${data.goals[0].title} of the trials while they learnt`,
    });
    const lines = drawn.map((trial) => ({
      trial,
      points: trial.curve.filter(([, value]) => known(value)).map(([step, value]) => [toX(step), toY(scale.inside(value))]),
      merit: trial.state === "finished" && known(trial.values[0]) ? outcome.merit(trial.values[0]) : -1,
    }));
    traces(svg, lines);
    pointable(svg, width, (x, y) => nearestLine(lines, x, y));
  });
}

// Trials as lines, the best ones on top. Each of `lines` has its trial, points and merit: from 0 to 1, below where it has
// not finished. A line that ends for another reason than being finished ends in the shape of its state.
function traces(svg, lines, ended = true) {
  const group = svg.appendChild(draw("g", { class: lines.length > 100 ? "many" : "few" }));
  for (const { trial, points, merit } of [...lines].sort((a, b) => a.merit - b.merit)) {
    const trace = draw("g", { class: `trace ${kind(trial.state)}`, "data-trial": trial.number });
    if (merit >= 0) trace.style.setProperty("--tone", tint(merit));
    trace.append(draw("path", { d: path(points) }));
    if (ended && (trial.state !== "finished" || points.length === 1)) {
      const [x, y] = points.at(-1);
      trace.append(draw("g", { class: `shape ${kind(trial.state)}` }, draw("use", { href: `#mark-${kind(trial.state)}`, x, y })));
    }
    group.append(trace);
  }
}

// The trial whose line is nearest above or below a place.
function nearestLine(lines, x, y) {
  let [found, least] = [undefined, 24];
  for (const { trial, points } of lines) {
    if (out.has(trial.number)) continue;
    const next = points.findIndex(([at]) => at >= x);
    const [[x0, y0], [x1, y1]] = [points[next < 1 ? 0 : next - 1], points[next < 0 ? points.length - 1 : next]];
    if (x < x0 - 12 || x > x1 + 12) continue;
    const apart = Math.abs((x1 > x0 ? y0 + ((y1 - y0) * (between(x, x0, x1) - x0)) / (x1 - x0) : y0) - y);
    if (apart < least) [found, least] = [trial.number, apart];
  }
  return found;
}

function slices() {
  for (const figure of all("#slices [data-axis]")) {
    const place = Number(figure.dataset.axis);
    const setting = settingScale(data.axes[place]);
    const longest = Math.max(0, ...setting.ticks.map((tick) => setting.text(tick).length)) * 6.5 + 8;
    const host = one(".plot", figure);
    chart(host, (width) => {
      const points = data.trials.map((trial) => ({
        trial, place: trial.places[place], spread: trial.spread[goal],
        value: trial.state === "finished" ? trial.values[goal] : null,
      }));
      const having = points.filter((point) => known(point.place));
      const scale = scaleOf(points, data.goals[goal], points.some(({ value }) => !known(value)));
      if (!scale || !having.length) return nothing(host);
      const values = { domain: scale.domain, ticks: scale.ticks, text: brief };
      // Long names stand below each other rather than side by side.
      const upright = !data.axes[place].choices || (longest < 80 && longest * setting.ticks.length <= width - 60);
      const [x, y] = upright ? [setting, values] : [values, { ...setting, domain: [...setting.domain].reverse() }];
      const { svg, toX, toY, left, bottom } = axes(host, width, upright ? 190 : Math.max(150, 26 * setting.ticks.length + 30), {
        x: x.domain, xTicks: x.ticks, xText: x.text, y: y.domain, yTicks: y.ticks,
        yText: (tick) => cut(y.text(tick), Math.floor(width / 16)),
        label: `${data.goals[goal].title} against ${data.axes[place].label}`,
      });
      if (upright) nameLane(svg, scale, left - 6, toY(scale.lane) + 3.5);
      else nameLane(svg, scale, toX(scale.lane) + 12, bottom + 15);
      shapes(svg, width, having.map((point) => {
        const along = (upright ? toX : toY)(setting.to(point.place));
        return placed(point, scale, upright ? toY : toX, along, upright);
      }));
    });
  }
}

function front() {
  const host = one("#front-plot");
  if (!host) return;
  const selects = ["#front-across", "#front-up"].map((id) => one(id));
  const title = ({ name, better }) => `${name}, ${better} is better`;
  chart(host, (width) => {
    const [across, up] = selects[0] ? selects.map(({ value }) => Number(value)) : [1, 0];
    const [goalX, goalY] = [data.goals[across], data.goals[up]];
    const finished = data.trials.filter(({ state, values }) => state === "finished" && known(values[across]) && known(values[up]));
    const along = (place) => finished.map((trial) => ({ trial, value: trial.values[place], spread: trial.spread[place] }));
    const [scaleX, scaleY] = [scaleOf(along(across), goalX, false), scaleOf(along(up), goalY, false)];
    if (!scaleX) return nothing(host);
    const { svg, toX, toY } = axes(host, width, Math.min(Math.max(width * 0.75, 260), 400), {
      x: scaleX.domain, y: scaleY.domain, xTicks: scaleX.ticks, yTicks: scaleY.ticks, xTitle: title(goalX), yTitle: title(goalY),
      label: `${goalY.title} against ${goalX.name}`,
    });
    const points = finished.map((trial) => {
      const [x, y] = [across, up].map((place) => ({ trial, value: trial.values[place], spread: trial.spread[place] }));
      const [lying, standing] = [placed(x, scaleX, toX, 0, false), placed(y, scaleY, toY, 0, true)];
      return {
        trial, x: lying.x, y: standing.y, turn: standing.turn ?? lying.turn,
        whiskers: [...lying.whiskers.map(([x1, , x2]) => [x1, standing.y, x2, standing.y]),
          ...standing.whiskers.map(([, y1, , y2]) => [lying.x, y1, lying.x, y2])],
      };
    });
    // The edge of what is beaten: between two neighbours on the front it passes where both are worse.
    const worse = ({ better }, a, b) => (better === "higher" ? Math.min(a, b) : Math.max(a, b));
    const edge = edgeOf(finished.filter(({ number }) => marked.has(number)).map(({ values }) => [values[across], values[up]]), goalX, goalY);
    const corners = edge.flatMap(([x, y], i) => (i ? [[worse(goalX, edge[i - 1][0], x), worse(goalY, edge[i - 1][1], y)], [x, y]] : [[x, y]]));
    svg.append(draw("path", { class: "stroke so-far", d: path(corners.map(([x, y]) => [toX(scaleX.inside(x)), toY(scaleY.inside(y))])) }));
    shapes(svg, width, points);
  });
  for (const select of selects) select?.addEventListener("change", () => redraws.forEach((each) => each()));
}

// Those of some points that no other one beats in both objectives, from left to right.
function edgeOf(points, goalX, goalY) {
  const sign = ({ better }) => (better === "higher" ? 1 : -1);
  const as = ([x, y]) => [sign(goalX) * x, sign(goalY) * y];
  const beaten = (a) => points.some((b) => {
    const [[ax, ay], [bx, by]] = [as(a), as(b)];
    return bx >= ax && by >= ay && (bx > ax || by > ay);
  });
  return points.filter((point) => !beaten(point)).sort((a, b) => a[0] - b[0] || a[1] - b[1]);
}

// Parallel coordinates: the parameters, and then the objectives, as axes side by side.
function together() {
  const host = one("#together-plot");
  if (!host) return;
  const scales = [
    ...data.axes.map((axis, i) => ({ ...axis, ...settingScale(axis), of: (trial) => trial.places[i] })),
    ...data.goals.map((each, i) => {
      const of = (trial) => trial.values[i];
      const scale = scaleOf(data.trials.map((trial) => ({ value: of(trial) })), each, false);
      const domain = scale ? [scale.ticks[0], scale.ticks.at(-1)] : [0, 1];
      return { label: each.title, note: `${each.better} is better`, domain, ticks: scale?.ticks ?? [], text: brief, to: (value) => value, of, merit: scale?.merit };
    }),
  ];
  for (const scale of scales) scale.lacking = data.trials.some((trial) => !known(scale.of(trial)));
  // What an axis keeps: null is all; of choices the set of those, -1 for trials without one; of numbers from, to and
  // whether trials without one are kept.
  const kept = scales.map(() => null);
  const passes = (trial) => scales.every((scale, i) => {
    const value = scale.of(trial);
    if (!kept[i]) return true;
    if (scale.choices) return kept[i].has(known(value) ? value : -1);
    return known(value) ? value >= (kept[i].from ?? -Infinity) && value <= (kept[i].to ?? Infinity) : kept[i].without;
  });

  let showKept = () => {};
  const keep = (i, what, fields = true) => {
    kept[i] = what;
    if (fields) fill(i);
    out.clear();
    for (const trial of data.trials) if (!passes(trial)) out.add(trial.number);
    fade();
    showKept();
    for (const each of sifted) each();
  };
  clear.push(() => scales.forEach((_, i) => keep(i, null)));

  // The fields beside the axes do the same as dragging.
  const fieldsets = scales.map((_, i) => one(`[data-field="${i}"]`));
  const fill = (i) => {
    for (const box of all("[type=checkbox]", fieldsets[i])) {
      box.checked = !kept[i] || (scales[i].choices ? kept[i].has(Number(box.value)) : kept[i].without);
    }
    for (const field of all("[type=number]", fieldsets[i])) field.value = kept[i]?.[field.dataset.end] ?? "";
  };
  fieldsets.forEach((fieldset, i) => fieldset.addEventListener("input", () => {
    const boxes = all("[type=checkbox]", fieldset);
    if (scales[i].choices) {
      const ticked = boxes.filter((box) => box.checked);
      return keep(i, ticked.length < boxes.length ? new Set(ticked.map((box) => Number(box.value))) : null, false);
    }
    const [from, to] = all("[type=number]", fieldset).map((field) => (field.value === "" ? null : Number(field.value)));
    const without = boxes.every((box) => box.checked);
    keep(i, from === null && to === null && without ? null : { from, to, without }, false);
  }));

  chart(host, (width) => {
    const wide = Math.max(width, 96 * scales.length);
    const [top, bottom, height] = [44, 290, 330];
    const below = bottom + 24; // where lines pass that have no value
    const most = Math.min(36, Math.floor((wide / scales.length - 12) / 6.2)); // letters between two axes
    const left = 16 + 6.2 * Math.max(8, ...scales[0].ticks.map((tick) => Math.min(most, scales[0].text(tick).length)));
    const right = wide - 70;
    const apart = (right - left) / (scales.length - 1);
    const svg = draw("svg", { viewBox: `0 0 ${wide} ${height}`, role: "img", "aria-label": "Settings and values of the trials in parallel coordinates" });
    svg.style.minWidth = `${wide}px`;
    const toX = (i) => left + i * apart;
    const toY = ({ domain, to }, value) => bottom - between((to(value) - domain[0]) / (domain[1] - domain[0] || 1), 0, 1) * (bottom - top);
    // As many digits as a place on the screen can tell.
    const valueAt = ({ domain, log }, y) => {
      const value = domain[0] + ((bottom - y) / (bottom - top)) * (domain[1] - domain[0]);
      const digits = Math.ceil(Math.log10(500 / (domain[1] - domain[0])));
      return log ? Number((10 ** value).toPrecision(3)) : Number(value.toFixed(between(digits, 0, 12)));
    };
    const band = (scale) => (bottom - top) / scale.choices.length / 2; // half of what a choice has of its axis
    // What an axis keeps when it is dragged over from one height to a lower one.
    const dragged = (scale, high, low) => {
      const without = scale.lacking && low > (bottom + below) / 2;
      if (!scale.choices) {
        return { from: low < bottom ? valueAt(scale, low) : null, to: high > top ? valueAt(scale, high) : null, without };
      }
      const over = (place) => toY(scale, place) - band(scale) < low && toY(scale, place) + band(scale) > high;
      return new Set([...scale.ticks.filter(over), ...(without ? [-1] : [])]);
    };
    const grip = (scale, i) => {
      const rect = draw("rect", { class: "grip", x: toX(i) - 14, y: top - 8, width: 28, height: height - top + 8 });
      rect.append(draw("title", {}, `Drag to keep a range of ${scale.label}`));
      let start;
      const at = ({ clientY }) => ((clientY - svg.getBoundingClientRect().top) * wide) / svg.getBoundingClientRect().width;
      rect.addEventListener("pointerdown", (event) => {
        event.stopPropagation();
        event.preventDefault();
        start = at(event);
        rect.setPointerCapture(event.pointerId);
      });
      rect.addEventListener("pointermove", (event) => {
        if (start === undefined) return;
        event.stopPropagation();
        const ends = [start, at(event)].sort((a, b) => a - b);
        if (ends[1] - ends[0] > 4) keep(i, dragged(scale, ...ends));
      });
      rect.addEventListener("pointerup", (event) => Math.abs(at(event) - start) > 4 || keep(i, null));
      rect.addEventListener("lostpointercapture", () => (start = undefined));
      return rect;
    };
    const merit = scales[data.axes.length + goal].merit;
    const lines = data.trials.map((trial) => ({
      trial,
      points: scales.map((scale, i) => [toX(i), known(scale.of(trial)) ? toY(scale, scale.of(trial)) : below]),
      merit: trial.state === "finished" && known(trial.values[goal]) ? merit(trial.values[goal]) : -1,
    }));
    traces(svg, lines, false);
    scales.forEach((scale, i) => {
      const x = toX(i);
      svg.append(draw("line", { class: "axis", x1: x, x2: x, y1: top, y2: bottom }));
      const name = draw("text", { class: "name", x, y: 14, "text-anchor": "middle" }, cut(scale.label, Math.min(most, 22)));
      name.append(draw("title", {}, scale.label));
      svg.append(name);
      if (scale.note) svg.append(draw("text", { class: "tick", x, y: 28, "text-anchor": "middle" }, scale.note));
      for (const tick of scale.ticks) {
        const y = bottom - ((tick - scale.domain[0]) / (scale.domain[1] - scale.domain[0] || 1)) * (bottom - top);
        svg.append(draw("line", { class: "axis", x1: x - 3, x2: x + 3, y1: y, y2: y }));
        svg.append(draw("text", { class: "tick over", x: x - 7, y: y + 3.5, "text-anchor": "end" }, cut(scale.text(tick), most)));
      }
      if (scale.lacking) svg.append(draw("text", { class: "tick over", x: x - 7, y: below + 3.5, "text-anchor": "end" }, "none"));
    });
    const bars = draw("g");
    svg.append(bars, ...scales.map(grip));
    showKept = () => {
      bars.replaceChildren();
      scales.forEach((scale, i) => {
        const bar = (high, low) => bars.append(draw("rect", { class: "kept", x: toX(i) - 6, y: high, width: 12, height: Math.max(2, low - high) }));
        if (!kept[i]) return;
        if (!scale.choices) bar(kept[i].to === null ? top : toY(scale, kept[i].to), kept[i].from === null ? bottom : toY(scale, kept[i].from));
        for (const place of scale.choices ? kept[i] : []) if (place >= 0) bar(toY(scale, place) - band(scale) + 1, toY(scale, place) + band(scale) - 1);
        if (scale.lacking && (scale.choices ? kept[i].has(-1) : kept[i].without)) bar(below - 8, below + 8);
      });
    };
    showKept();
    pointable(svg, wide, (x, y) => nearestLine(lines, x, y));
    host.replaceChildren(svg);
  });
}

function every() {
  const table = one("#every-table");
  if (!table) return;
  const [field, select] = [one("#filter"), one("#state")];
  const rows = [...table.tBodies[0].rows].map((row) => ({ row, text: row.textContent.toLowerCase() }));
  const update = () => {
    const wanted = field?.value.trim().toLowerCase() ?? "";
    for (const { row, text } of rows) {
      row.hidden = out.has(Number(row.dataset.trial)) || !text.includes(wanted) || !["", row.dataset.state].includes(select?.value ?? "");
    }
    const left = rows.filter(({ row }) => !row.hidden).length;
    const total = plural(rows.length, "trial");
    for (const note of all("[data-left]")) note.textContent = left < rows.length ? `${left} of ${total}` : total;
    for (const button of all("[data-clear]")) button.hidden = left === rows.length;
  };
  field?.addEventListener("input", update);
  select?.addEventListener("change", update);
  sifted.push(update);
  clear.push(() => {
    if (field) field.value = "";
    if (select) select.value = "";
    update();
  });
  for (const button of all("[data-clear]")) {
    button.addEventListener("click", () => {
      for (const each of clear) each();
      one("[tabindex]", button.closest("section")).focus({ preventScroll: true }); // the button has gone
    });
  }
  update();
}

// What is pointed at, chosen by the keyboard, or by a trial's number in a table.
function choice() {
  for (const select of all("[data-goal]")) {
    select.addEventListener("change", () => {
      goal = Number(select.value);
      for (const each of all("[data-goal]")) each.value = goal;
      for (const each of redraws) each();
    });
  }
  for (const host of all("[data-steps]")) {
    host.addEventListener("keydown", (event) => {
      const numbers = data.trials.map(({ number }) => number).filter((number) => !out.has(number));
      const [at, last] = [numbers.indexOf(shown), numbers.length - 1];
      const next = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: last }[event.key];
      if (event.key === "Escape") choose(opening);
      if (next === undefined || last < 0) return;
      event.preventDefault();
      choose(numbers[between(next, 0, last)]);
    });
  }
  for (const link of all("[data-choose]")) link.addEventListener("click", () => choose(Number(link.dataset.choose)));
  for (const table of all("table:has(tr[data-trial])")) {
    table.addEventListener("pointerover", (event) => {
      const row = event.target.closest("tr[data-trial]");
      mark(row ? Number(row.dataset.trial) : chosen);
    });
    table.addEventListener("pointerleave", () => mark(chosen));
  }
  mark(chosen);
}

start([front, history, curves, slices, together, every, choice]);
