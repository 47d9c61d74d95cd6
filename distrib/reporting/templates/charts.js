// Charts as SVG, drawn by hand. Everything from the data becomes text or a number, never markup.

const DASH = "–";
const SPACE = "\u00a0"; // one that no line breaks at

const one = (selector, root = document) => root.querySelector(selector);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const known = (value) => typeof value === "number" && Number.isFinite(value);
const words = (name) => name.replaceAll("_", " ");
const decimals = (value, digits = 3) => (known(value) ? value.toFixed(digits).replace("-", "−") : DASH);
const signed = (value, digits = 3) => (value > 0 ? "+" : "") + decimals(value, digits);
// What is not 0 or 1 is not written as 0 or 100 %.
function percent(value, digits = 0) {
  if (!known(value)) return DASH;
  const text = (100 * value).toFixed(digits);
  const least = 10 ** -digits;
  if (value > 0 && Number(text) === 0) return `<${SPACE}${least.toFixed(digits)}${SPACE}%`;
  if (value < 1 && Number(text) === 100) return `>${SPACE}${(100 - least).toFixed(digits)}${SPACE}%`;
  return `${text}${SPACE}%`;
}
const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

function setAll(element, attributes) {
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
}

// An SVG element with its attributes and children.
function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  setAll(element, attributes);
  element.append(...children);
  return element;
}

// Round numbers that cover a range, about `count` of them.
function ticks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 2.5, 5, 10].find((each) => each * power >= rough * 0.999) ?? 10);
  const first = Math.floor(low / step + 1e-9);
  const last = Math.ceil(high / step - 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

// As short as a number can be written that stands at an axis.
const brief = (value) => String(Number(value.toPrecision(6))).replace("-", "−");

// Draws into `host` now, and again whenever its width changes.
function responsive(host, render) {
  let width = 0;
  const redraw = () => {
    width = Math.round(host.clientWidth);
    if (width > 0) render(width);
  };
  new ResizeObserver(() => Math.round(host.clientWidth) !== width && redraw()).observe(host);
  redraw();
  return redraw;
}

// An empty chart with axes: the SVG, and the functions from values to pixels. Ticks are numbers unless told otherwise.
function axes(host, width, height, { x, y, xTicks, yTicks, xTitle, yTitle, label, xText = brief, yText = brief }) {
  const left = Math.max(...yTicks.map((tick) => yText(tick).length)) * 6.5 + (yTitle ? 26 : 10);
  const [right, top, bottom] = [10, 8, xTitle ? 38 : 22];
  const toX = (value) => left + ((value - x[0]) / (x[1] - x[0] || 1)) * (width - left - right);
  const toY = (value) => height - bottom - ((value - y[0]) / (y[1] - y[0] || 1)) * (height - top - bottom);
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  for (const tick of yTicks) {
    const at = toY(tick);
    svg.append(draw("line", { class: "grid", x1: left, x2: width - right, y1: at, y2: at }));
    svg.append(draw("text", { class: "tick", x: left - 6, y: at + 3.5, "text-anchor": "end" }, yText(tick)));
  }
  for (const tick of xTicks) {
    svg.append(draw("text", { class: "tick", x: toX(tick), y: height - bottom + 15, "text-anchor": "middle" }, xText(tick)));
  }
  const middle = (height - bottom + top) / 2;
  if (xTitle) svg.append(draw("text", { class: "title", x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, xTitle));
  if (yTitle) {
    const turned = { class: "title", transform: `translate(10 ${middle}) rotate(-90)`, "text-anchor": "middle" };
    svg.append(draw("text", turned, yTitle));
  }
  host.replaceChildren(svg);
  return { svg, toX, toY, left, right: width - right, top, bottom: height - bottom };
}

// What stands in the place of a chart that has nothing to show.
const nothing = (host) => host.replaceChildren(Object.assign(document.createElement("p"), { className: "soft", textContent: "No value is known." }));

// A range that has a width, also where it is of a single value.
const widened = (low, high) => (low < high ? [low, high] : [low - Math.abs(low) * 0.1 - 1e-9, high + Math.abs(high) * 0.1 + 1e-9]);

// Where a pointer is in the coordinates of a drawing.
const pointerIn = (svg, { clientX, clientY }) => new DOMPoint(clientX, clientY).matrixTransform(svg.getScreenCTM().inverse());

// An empty chart of a share against a share.
function squareAxes(host, width, highest, titles) {
  const five = [0, 0.25, 0.5, 0.75, 1];
  return axes(host, width, Math.min(width, highest), { x: [0, 1], y: [0, 1], xTicks: five, yTicks: five, ...titles });
}

// The path through points; a point that is not known leaves a gap.
function path(points) {
  let pen = "M";
  let text = "";
  for (const [x, y] of points) {
    if (known(x) && known(y)) text += `${pen}${x.toFixed(1)} ${y.toFixed(1)}`;
    pen = known(x) && known(y) ? "L" : "M";
  }
  return text;
}

// Lines over epochs. `lines` has {values, tone} and may have the index of a `ring`, `best` is the index that a dashed line
// marks, and `point` is told the index pointed at (undefined when the pointer leaves). Returns a function that shows an
// index, or none.
function lineChart(host, { epochs, lines, best, label, point }) {
  const values = lines.flatMap((line) => line.values).filter(known);
  if (!values.length) {
    nothing(host);
    return () => {};
  }
  const yTicks = ticks(...widened(Math.min(...values), Math.max(...values)), 3);
  const y = [yTicks[0], yTicks.at(-1)];
  const count = epochs.length;
  const xTicks = count < 7 ? epochs : ticks(1, epochs.at(-1), 5).filter((tick) => tick >= 1 && tick <= epochs.at(-1));
  let shown = best;
  let place = () => {};
  const render = (width) => {
    const { svg, toX, toY, top, bottom } = axes(host, width, 150, { x: [epochs[0], epochs.at(-1)], y, xTicks, yTicks, label });
    const at = (i) => (count > 1 ? toX(epochs[i]) : (toX(epochs[0]) + width) / 2);
    if (best !== undefined) svg.append(draw("line", { class: "best-line", x1: at(best), x2: at(best), y1: top, y2: bottom }));
    const cursor = draw("line", { class: "cursor", y1: top, y2: bottom });
    svg.append(cursor);
    for (const { values: line, tone } of lines) {
      svg.append(draw("path", { class: `stroke ${tone}`, d: path(line.map((value, i) => [at(i), known(value) ? toY(value) : null])) }));
    }
    for (const { values: line, tone, ring } of lines) {
      if (known(line[ring])) svg.append(draw("circle", { class: `ring ${tone}`, cx: at(ring), cy: toY(line[ring]), r: 4.5 }));
    }
    const dots = lines.map(({ tone }) => svg.appendChild(draw("circle", { class: `dot ${tone}`, r: 3.5 })));
    place = () => {
      cursor.toggleAttribute("hidden", shown === undefined);
      if (shown !== undefined) setAll(cursor, { x1: at(shown), x2: at(shown) });
      dots.forEach((dot, i) => {
        const value = lines[i].values[shown];
        dot.toggleAttribute("hidden", !known(value));
        if (known(value)) setAll(dot, { cx: at(shown), cy: toY(value) });
      });
    };
    place();
    const nearest = (event) => {
      const { x } = pointerIn(svg, event);
      let found = 0;
      for (let i = 1; i < count; i++) if (Math.abs(at(i) - x) < Math.abs(at(found) - x)) found = i;
      return found;
    };
    svg.addEventListener("pointermove", (event) => point(nearest(event)));
    svg.addEventListener("pointerdown", (event) => point(nearest(event)));
    svg.addEventListener("pointerleave", () => point(undefined));
  };
  responsive(host, render);
  return (index) => {
    shown = index;
    place();
  };
}

// The charts of a page over epochs, which a slider moves together. `linesOf` gives the lines of a chart, in the order of
// its outputs, and `tell` says which index is shown; none is, where `best` is undefined, until one is chosen: then each
// output has the value at its line's ring.
function epochCharts({ epochs, best, whose = "", linesOf, tell }) {
  const slider = one("#epoch");
  const shows = [];
  let chosen = best;
  const show = (index) => {
    tell(index);
    for (const each of shows) each(index);
  };
  for (const chart of all("#curves .chart")) {
    const lines = linesOf(chart);
    const label = `${one("figcaption b", chart).textContent}${whose} against epochs`;
    const move = lineChart(one(".plot", chart), { epochs, lines, best, label, point: (index) => show(index ?? chosen) });
    shows.push((index) => {
      move(index);
      all("output", chart).forEach((output, i) => {
        output.textContent = decimals(lines[i].values[index ?? lines[i].ring], Number(chart.dataset.digits));
      });
    });
  }
  slider.addEventListener("input", () => {
    chosen = Number(slider.value) - 1;
    show(chosen);
  });
  show(chosen);
}
