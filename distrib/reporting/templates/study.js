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
const sign = ({ better }) => (better === "higher" ? 1 : -1); // of an objective: by it, more is better
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
function pointable(svg, nearest) {
  const found = (event) => {
    const { x, y } = pointerIn(svg, event);
    return nearest(x, y) ?? chosen;
  };
  svg.addEventListener("pointermove", (event) => mark(found(event)));
  svg.addEventListener("pointerdown", (event) => choose(found(event)));
  svg.addEventListener("pointerleave", () => mark(chosen));
}

// The values of an objective as a scale: `points` have a value, and may have a spread. What lies far off on the worse side
// is shown at its end; beside the values is a lane for trials that have none.
function scaleOf(points, { better }, lane) {
  const values = points.map(({ value }) => value).filter(known).sort((a, b) => a - b);
  if (!values.length) return null;
  const [lower, upper] = [0.25, 0.75].map((share) => values[Math.round(share * (values.length - 1))]);
  const reach = values.length > 7 && upper > lower ? 3 * (upper - lower) : Infinity;
  const near = values.filter((value) => (better === "higher" ? value >= lower - reach : value <= upper + reach));
  let ends = [near[0], near.at(-1)];
  for (const { value, spread } of points) {
    if (value >= near[0] && value <= near.at(-1) && known(spread)) ends = [Math.min(ends[0], value - spread), Math.max(ends[1], value + spread)];
  }
  const at = ticks(...widened(...ends), 4);
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

// Trials, epochs or rungs as an axis: its domain, and whole numbers as its ticks.
const counted = (first, last, width) => ({
  x: first === last ? [first - 0.5, last + 0.5] : [first, last],
  xTicks: inner(first, last, false, Math.min(last - first, width / 70)).filter(Number.isInteger),
});

// A parameter as an axis: its domain, its ticks and their texts, and the place of a trial's setting.
function settingScale({ choices, log, low, high }) {
  if (choices) {
    return { domain: [-0.5, choices.length - 0.5], ticks: choices.map((_, i) => i), text: (i) => choices[i], to: (place) => place };
  }
  const to = (value) => (log ? Math.log10(value) : value);
  const room = low === high ? 0.5 : 0.05 * (to(high) - to(low));
  return { domain: [to(low) - room, to(high) + room], ticks: inner(low, high, log), text: log ? ofLog : brief, to };
}

// Where a value stands on a scale, in pixels: `at`, the ends of its whisker, and on which side it lies beyond, if it does.
function standing({ value, spread }, scale, to) {
  if (!known(value)) return { at: to(scale.lane) };
  const ends = known(spread) ? [value - spread, value + spread].map((end) => to(scale.inside(end))) : null;
  return { at: to(scale.inside(value)), ends, side: scale.beyond(value) };
}

// Trials as shapes. Each of `points` has its trial, and as x and y where it stands.
function shapes(svg, points) {
  const order = ({ trial }) => (marked.has(trial.number) ? 2 : trial.state === "finished" ? 1 : 0);
  for (const { trial, x, y } of [...points].sort((a, b) => order(a) - order(b))) {
    const group = draw("g", { class: `shape ${kind(trial.state)}`, "data-trial": trial.number });
    group.classList.toggle("front", marked.has(trial.number));
    if (x.ends) group.append(draw("line", { class: "whisker", x1: x.ends[0], x2: x.ends[1], y1: y.at, y2: y.at }));
    if (y.ends) group.append(draw("line", { class: "whisker", x1: x.at, x2: x.at, y1: y.ends[0], y2: y.ends[1] }));
    group.append(draw("circle", { class: "halo", cx: x.at, cy: y.at, r: 8 }));
    const turn = y.side ? 90 + 90 * y.side : -90 * x.side;
    if (y.side || x.side) group.append(draw("path", { class: "beyond", transform: `translate(${x.at} ${y.at}) rotate(${turn})`, d: "M-4 7l4 4l4 -4" }));
    group.append(draw("use", { href: `#mark-${kind(trial.state)}`, x: x.at, y: y.at }));
    svg.append(group);
  }
  pointable(svg, (left, top) => {
    let [found, least] = [undefined, 30];
    for (const { trial, x, y } of points) {
      const apart = Math.hypot(x.at - left, y.at - top);
      if (apart < least && !out.has(trial.number)) [found, least] = [trial.number, apart];
    }
    return found;
  });
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
    const { svg, toX, toY, left, right } = axes(host, width, 260, {
      ...counted(first, last, width), y: scale.domain, yTicks: scale.ticks, xTitle: "trial", yTitle: data.goals[goal].name,
      label: `${data.goals[goal].title} of the trials in their order`,
    });
    nameLane(svg, scale, left - 6, toY(scale.lane) + 3.5);
    let best = -Infinity;
    let line = "";
    for (const { trial, value } of points) {
      const merit = trial.state === "finished" && known(value) ? sign(data.goals[goal]) * value : -Infinity;
      if (merit <= best) continue;
      best = merit;
      const [x, y] = [toX(trial.number).toFixed(1), toY(scale.inside(value)).toFixed(1)];
      line += line ? `H${x}V${y}` : `M${x} ${y}`;
    }
    if (line) svg.append(draw("path", { class: "stroke so-far", d: `${line}H${right}` }));
    shapes(svg, points.map((point) => ({ trial: point.trial, x: { at: toX(point.trial.number) }, y: standing(point, scale, toY) })));
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
      ...counted(first, last, width), y: scale.domain, yTicks: scale.ticks, xTitle: data.step, yTitle: data.goals[0].name, label: `${data.goals[0].title} of the trials while they learnt`,
    });
    const lines = drawn.map((trial) => ({
      trial,
      points: trial.curve.filter(([, value]) => known(value)).map(([step, value]) => [toX(step), toY(scale.inside(value))]),
      merit: trial.state === "finished" && known(trial.values[0]) ? outcome.merit(trial.values[0]) : -1,
    }));
    traces(svg, lines);
    pointable(svg, (x, y) => nearestLine(lines, x, y));
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
      shapes(svg, having.map((point) => {
        const along = { at: (upright ? toX : toY)(setting.to(point.place)) };
        const value = standing(point, scale, upright ? toY : toX);
        return { trial: point.trial, x: upright ? along : value, y: upright ? value : along };
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
    const [pointsX, pointsY] = [across, up].map((place) => finished.map(({ values, spread }) => ({ value: values[place], spread: spread[place] })));
    const [scaleX, scaleY] = [scaleOf(pointsX, goalX, false), scaleOf(pointsY, goalY, false)];
    if (!scaleX) return nothing(host);
    const { svg, toX, toY } = axes(host, width, Math.min(Math.max(width * 0.75, 260), 400), {
      x: scaleX.domain, y: scaleY.domain, xTicks: scaleX.ticks, yTicks: scaleY.ticks, xTitle: title(goalX), yTitle: title(goalY),
      label: `${goalY.title} against ${goalX.name}`,
    });
    // The edge of what is beaten: between two neighbours on the front it passes where both are worse.
    const edge = [];
    const corners = finished.filter(({ number }) => marked.has(number)).map(({ values }) => [values[across], values[up]]);
    corners.sort((a, b) => sign(goalX) * (b[0] - a[0]) || sign(goalY) * (b[1] - a[1]));
    for (const [x, y] of corners) {
      const last = edge.at(-1);
      if (last && sign(goalY) * (y - last[1]) <= 0) continue; // beaten in the two objectives that are shown
      if (last) edge.push([x, last[1]]);
      edge.push([x, y]);
    }
    if (sign(goalX) > 0) edge.reverse(); // from left to right
    svg.append(draw("path", { class: "stroke so-far", d: path(edge.map(([x, y]) => [toX(scaleX.inside(x)), toY(scaleY.inside(y))])) }));
    shapes(svg, finished.map((trial, i) => ({ trial, x: standing(pointsX[i], scaleX, toX), y: standing(pointsY[i], scaleY, toY) })));
  });
  for (const select of selects) select?.addEventListener("change", () => redraws.forEach((each) => each()));
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

  // What an axis keeps stands in its fields: a box for each choice and, of number -1, for trials without a value, and the
  // ends of a range. Dragging along the axis fills them.
  let showKept = () => {};
  const sift = () => {
    out.clear();
    for (const trial of data.trials) if (!scales.every((scale) => passes(scale, trial))) out.add(trial.number);
    fade();
    showKept();
    for (const each of sifted) each();
  };
  scales.forEach((scale, i) => {
    const fieldset = one(`[data-field="${i}"]`);
    scale.boxes = new Map(all("[type=checkbox]", fieldset).map((box) => [Number(box.value), box]));
    scale.ends = all("[type=number]", fieldset);
    fieldset.addEventListener("input", sift);
  });
  const endsOf = ({ ends }) => ends.map(({ value }) => (value === "" ? null : Number(value)));
  const passes = (scale, trial) => {
    const value = scale.of(trial);
    const box = scale.boxes.get(known(value) ? value : -1);
    if (scale.choices || !known(value)) return box.checked;
    const [from, to] = endsOf(scale);
    return value >= (from ?? -Infinity) && value <= (to ?? Infinity);
  };
  const fill = (scale, ends = [], keeps = () => true) => {
    scale.ends.forEach((field, end) => (field.value = ends[end] ?? ""));
    for (const [place, box] of scale.boxes) box.checked = keeps(place);
  };
  clear.push(() => {
    for (const scale of scales) fill(scale);
    sift();
  });
  for (const scale of scales) fill(scale); // a browser may have kept what stood in them

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
    // Where a choice stands on its axis, or what has no value below it, from the upper to the lower end.
    const lane = (scale, place) => {
      const [middle, half] = place < 0 ? [below, 8] : [toY(scale, place), (bottom - top) / scale.choices.length / 2];
      return [middle - half, middle + half];
    };
    // Keeps what is dragged over, from one height to a lower one.
    const drag = (scale, high, low) => {
      const over = (place) => (place < 0 ? low > (bottom + below) / 2 : lane(scale, place)[0] < low && lane(scale, place)[1] > high);
      fill(scale, [low < bottom ? valueAt(scale, low) : null, high > top ? valueAt(scale, high) : null], over);
      sift();
    };
    const grip = (scale, i) => {
      const rect = draw("rect", { class: "grip", x: toX(i) - 14, y: top - 8, width: 28, height: height - top + 8 });
      rect.append(draw("title", {}, `Drag to keep a range of ${scale.label}`));
      let start;
      const at = (event) => pointerIn(svg, event).y;
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
        if (ends[1] - ends[0] > 4) drag(scale, ...ends);
      });
      rect.addEventListener("pointerup", (event) => {
        if (Math.abs(at(event) - start) > 4) return;
        fill(scale);
        sift();
      });
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
    showKept = () => bars.replaceChildren(...scales.flatMap((scale, i) => {
      const [places, [from, to]] = [[...scale.boxes.keys()].filter((place) => scale.boxes.get(place).checked), endsOf(scale)];
      if (places.length === scale.boxes.size && !known(from) && !known(to)) return []; // it keeps all
      const kept = places.map((place) => lane(scale, place)).map(([high, low]) => [high + 1, low - 1]);
      if (!scale.choices) kept.push([known(to) ? toY(scale, to) : top, known(from) ? toY(scale, from) : bottom]);
      return kept.map(([high, low]) => draw("rect", { class: "kept", x: toX(i) - 6, y: high, width: 12, height: Math.max(2, low - high) }));
    }));
    showKept();
    pointable(svg, (x, y) => nearestLine(lines, x, y));
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
