/* Charts as inline SVG, drawn anew whenever the room for them changes, so that letters keep their size. */
const MARKS = { high: "square", low: "square", router: "circle", start: "diamond", grpo: "up", ppo: "down", random: "cross", oracle: "star" };

function shape(kind, x, y, r) {
  const color = `var(--${kind})`, solid = { fill: color, stroke: "var(--card)", "stroke-width": 1 };
  const points = (list) => list.map(([a, b]) => `${(x + a * r).toFixed(1)},${(y + b * r).toFixed(1)}`).join(" ");
  switch (MARKS[kind]) {
    case "square": return g("rect", { x: x - r * .9, y: y - r * .9, width: r * 1.8, height: r * 1.8, ...solid });
    case "diamond": return g("polygon", { points: points([[0, -1.2], [1.2, 0], [0, 1.2], [-1.2, 0]]), ...solid });
    case "up": return g("polygon", { points: points([[0, -1.2], [1.1, .8], [-1.1, .8]]), ...solid });
    case "down": return g("polygon", { points: points([[0, 1.2], [1.1, -.8], [-1.1, -.8]]), ...solid });
    case "cross": return g("path", { d: `M${x - r * .75},${y - r * .75}l${r * 1.5},${r * 1.5}m0,${-r * 1.5}l${-r * 1.5},${r * 1.5}`, stroke: color, "stroke-width": 2, fill: "none" });
    case "star": return g("polygon", { points: points(Array.from({ length: 10 }, (_, i) => {
      const a = Math.PI * (i / 5 - .5), l = i % 2 ? .6 : 1.5; return [l * Math.cos(a), l * Math.sin(a)]; })), ...solid });
    default: return g("circle", { cx: x, cy: y, r, ...solid });
  }
}
const mark = (kind) => g("svg", { class: "kind", viewBox: "0 0 14 14", "aria-hidden": "true" }, shape(kind, 7, 7, 5));

function legend(entries) {
  return h("ul", { class: "legend" }, entries.map(([name, draw]) =>
    h("li", {}, g("svg", { viewBox: "0 0 26 14", "aria-hidden": "true" }, draw), name)));
}
const stroke = (color, dash, width = 2) =>
  g("line", { x1: 1, x2: 25, y1: 7, y2: 7, stroke: color, "stroke-width": width, "stroke-dasharray": dash });
const swatch = (color, opacity = 1) => g("rect", { x: 3, y: 2, width: 20, height: 10, fill: color, opacity });

function ticks(low, high, number) {
  const span = high - low || 1, raw = span / Math.max(1, number), power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((size) => size >= raw * .999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

/* A figure whose drawing gets its width: draw(width) returns an svg. */
function drawn(draw) {
  const host = h("div", { class: "chart" });
  let last = 0;
  new ResizeObserver(() => {
    const width = Math.floor(host.clientWidth - 16);
    if (width > 40 && width !== last) { last = width; host.replaceChildren(draw(width)); }
  }).observe(host);
  return host;
}

/* Axes with a grid; the returned x and y turn values into pixels. */
function axes({ width, height, x, y, label, left = 46, right = 10, top = 12 }) {
  const bottom = x.title === false ? 22 : 40, rows = y.ticks ?? ticks(y.low, y.high, height / 50);
  const letters = Math.max(0, ...rows.map((value) => String((y.format ?? short)(value)).length));
  left = Math.max(left, y.title ? 28 + 6.6 * letters : 0);  // the title stands left of the numbers
  const box = { left, right: width - right, top, bottom: height - bottom };
  const scale = (axis, from, to) => (value) => from + (value - axis.low) / (axis.high - axis.low || 1) * (to - from);
  const px = scale(x, box.left, box.right), py = scale(y, box.bottom, box.top);
  const svg = g("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": visible(label) });
  for (const value of rows) {
    svg.append(g("line", { class: "grid", x1: box.left, x2: box.right, y1: py(value), y2: py(value) }),
      g("text", { class: "axis", x: box.left - 6, y: py(value) + 4, "text-anchor": "end" }, (y.format ?? short)(value)));
  }
  for (const value of x.ticks ?? ticks(x.low, x.high, width / 85)) {
    svg.append(x.grid === false ? "" : g("line", { class: "grid", x1: px(value), x2: px(value), y1: box.top, y2: box.bottom }),
      g("text", { class: "axis", x: px(value), y: box.bottom + 16, "text-anchor": "middle" }, (x.format ?? short)(value)));
  }
  svg.append(g("line", { class: "edge", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }));
  if (x.title) svg.append(g("text", { x: (box.left + box.right) / 2, y: height - 6, "text-anchor": "middle" }, x.title));
  if (y.title) {
    const at = (box.top + box.bottom) / 2;
    svg.append(g("text", { x: 12, y: at, "text-anchor": "middle", transform: `rotate(-90 12 ${at})` }, y.title));
  }
  return { svg, px, py, box };
}

/* Lines through points, each {points: [[x, y]...], color, dash, band: [[x, low, high]...], dots}. */
function lines(chart, list) {
  const at = ([x, y]) => `${chart.px(x).toFixed(1)},${chart.py(y).toFixed(1)}`;
  for (const { band, color } of list) {
    if (!band?.length) continue;
    const edge = [...band.map(([x, , high]) => at([x, high])), ...band.toReversed().map(([x, low]) => at([x, low]))];
    chart.svg.append(g("polygon", { points: edge.join(" "), fill: color, opacity: .18 }));
  }
  for (const { points, color, dash, dots, width = 2 } of list) {
    if (points.length > 1)
      chart.svg.append(g("polyline", { points: points.map(at).join(" "), fill: "none", stroke: color, "stroke-width": width,
        "stroke-dasharray": dash, "stroke-linejoin": "round" }));
    if (dots || points.length === 1)
      for (const [x, y] of points) chart.svg.append(g("circle", { cx: chart.px(x), cy: chart.py(y), r: 2.6, fill: color }));
  }
}

/* Names beside points so that they cover neither each other nor a point; a thin line where one had to move away. */
function name(chart, points) {
  const taken = points.map(({ x, y }) => [x - 7, y - 7, x + 7, y + 7]);
  const { box } = chart;
  const overlap = ([a, b, c, d]) => {
    let area = 0;
    for (const [l, t, r, m] of taken) area += Math.max(0, Math.min(c, r) - Math.max(a, l)) * Math.max(0, Math.min(d, m) - Math.max(b, t));
    const inside = Math.max(0, Math.min(c, box.right) - Math.max(a, box.left)) * Math.max(0, Math.min(d, box.bottom) - Math.max(b, box.top));
    return area + 10 * ((c - a) * (d - b) - inside);
  };
  for (const point of points.filter(({ label }) => label)) {
    const wide = point.label.length * 6.6 + 4, tall = 15;
    let best = null;
    for (const radius of [11, 18, 27, 38, 52, 70])
      for (const angle of [-40, 40, -140, 140, -90, 90, 0, 180, -20, 20, -65, 65, -115, 115, -160, 160]) {
        const dx = Math.cos(angle * Math.PI / 180), dy = Math.sin(angle * Math.PI / 180);
        const lean = (v) => (1 - Math.max(-1, Math.min(1, 1.6 * v))) / 2;
        const a = point.x + radius * dx - wide * lean(dx), b = point.y + radius * dy - tall * lean(dy);
        const cost = overlap([a, b, a + wide, b + tall]);
        if (best === null || cost < best.cost - 1e-6) best = { cost, a, b, radius };
      }
    const { a, b, radius } = best;
    taken.push([a, b, a + wide, b + tall]);
    const gap = (p) => Math.hypot(p.x - Math.max(a, Math.min(p.x, a + wide)), p.y - Math.max(b, Math.min(p.y, b + tall)));
    if (radius > 18 || points.some((other) => other !== point && gap(other) < gap(point) + 3)) {
      const x = Math.max(a, Math.min(point.x, a + wide)), y = Math.max(b, Math.min(point.y, b + tall));
      chart.svg.append(g("line", { x1: point.x, y1: point.y, x2: x, y2: y, stroke: `var(--${point.kind})`, "stroke-width": .8 }));
    }
    chart.svg.append(g("text", { class: "name", x: a + wide / 2, y: b + 11.5, "text-anchor": "middle" }, point.label));
  }
}
