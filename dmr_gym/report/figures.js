const KINDS = {
  high: "highest precision alone", low: "lower precision alone", router: "router", start: "KL-ST where GRPO and PPO began",
  grpo: "GRPO", ppo: "PPO", random: "random routing with the same shares", oracle: "best routing of each task",
};
const shade = (p, n) => (p === n - 1 ? "var(--top)" : `var(--p${p % 4})`);
const nicely = (low, high, share = 0.06) => {
  const room = (high - low || Math.abs(high) || 1) * share;
  return [low - room, high + room];
};

function tables(evaluation) {
  return evaluation.tables.map((one, index) => {
    const body = [table(one.columns, one.rows, one.left, one.kinds), one.notes.map((note) => h("p", { class: "note" }, note))];
    return index === 0 ? [h("h3", {}, one.title), body] : h("details", {}, h("summary", {}, one.title), body);
  });
}

/* Success against time, with 95 % intervals, the frontier of the policies, and the oracle. */
function pareto(evaluation) {
  let column = "all";
  const buttons = [["all", "time of all episodes"], ["solved", "time of solved episodes (the paper's)"]].map(([key, text]) =>
    h("button", { type: "button", "aria-pressed": String(key === column), click: () => { column = key; renew(); } }, text));
  const host = h("div");
  const renew = () => {
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(["all", "solved"][i] === column)));
    host.replaceChildren(drawn((width) => draw(width)));
  };
  const draw = (width) => {
    const points = evaluation.points.filter((point) => known(point[column]));
    const oracle = column === "all" ? evaluation.oracle : [], reach = column === "all" ? evaluation.reach : [];
    const all = [...points, ...oracle];
    const xs = all.flatMap((p) => [p[column], ...(p[`${column}_ci`] ?? [])]).concat(reach.map(([, time]) => time));
    const ys = all.flatMap((p) => [p.success, ...(p.success_ci ?? [])]).concat(reach.map(([success]) => success));
    if (!xs.length) return g("svg", {});
    const [x0, x1] = nicely(Math.min(...xs), Math.max(...xs)), [y0, y1] = nicely(100 * Math.min(...ys), 100 * Math.max(...ys));
    const chart = axes({
      width, height: Math.max(280, Math.min(440, width * .62)),
      x: { low: Math.max(0, x0), high: x1, title: `mean time of ${column} episodes (${evaluation.unit})` },
      y: { low: Math.max(0, y0), high: Math.min(102, y1), title: "tasks solved (%)" },
      label: `Success against time. ${all.map((p) => `${p.name}: ${percent(p.success)}, ${amount(p[column], evaluation.unit)}`).join("; ")}`,
    });
    const { svg, px, py, box } = chart;
    if (reach.length) {  // stairs from the axis to the right edge: what can be reached lies below, even of a single point
      const steps = reach.map(([success, time], i) => `${i ? "H" : "M"}${px(time).toFixed(1)}${i ? "" : `,${box.bottom}`}V${py(100 * success).toFixed(1)}`);
      svg.append(g("path", { class: "reach", d: `${steps.join("")}H${box.right}`, fill: "none", stroke: "var(--oracle)", "stroke-width": 1.6 }));
    }
    const front = points.filter((p) => p.front[column]).sort((a, b) => a[column] - b[column]);
    lines(chart, [{ points: front.map((p) => [p[column], 100 * p.success]), color: "var(--soft)", dash: "5 4", width: 1.4 }]);
    for (const p of points) {
      const color = `var(--${p.kind})`, ci = p[`${column}_ci`];
      const bar = { stroke: color, "stroke-width": 1.2, opacity: p.kind === "random" ? .35 : .55 };
      if (ci) svg.append(g("line", { x1: px(ci[0]), x2: px(ci[1]), y1: py(100 * p.success), y2: py(100 * p.success), ...bar }));
      if (p.success_ci) svg.append(g("line", { x1: px(p[column]), x2: px(p[column]), y1: py(100 * p.success_ci[0]), y2: py(100 * p.success_ci[1]), ...bar }));
    }
    for (const p of all) {
      const drawing = shape(p.kind, px(p[column]), py(100 * p.success), p.kind === "random" ? 5 : 6);
      drawing.append(g("title", {}, `${p.name}: ${percent(p.success)} solved, ${amount(p[column], evaluation.unit)}`));
      svg.append(drawing);
    }
    const together = new Map();  // points in one place share a name
    for (const p of all) {
      const x = px(p[column]), y = py(100 * p.success), key = `${p.kind} ${x.toFixed(1)} ${y.toFixed(1)}`;
      const label = p.kind === "random" ? "" : visible(p.name.replace(/^(router|always) /, ""));
      const there = together.get(key);
      if (there?.label) there.label = p.kind === "oracle" ? "oracle" : `${there.label}, ${label}`;
      else together.set(key, { x, y, kind: p.kind, label });
    }
    name(chart, [...together.values()]);
    return svg;
  };
  const kinds = [...new Set([...evaluation.points, ...evaluation.oracle].map(({ kind }) => kind))];
  const entries = kinds.map((kind) => [KINDS[kind] ?? kind, shape(kind, 13, 7, 5)]);
  const hasFront = ["all", "solved"].some((key) => evaluation.points.filter((p) => p.front[key]).length > 1);
  if (hasFront) entries.push(["frontier of the policies", stroke("var(--soft)", "5 4", 1.4)]);
  if (evaluation.reach.length) entries.push(["exact frontier of the routing trees", stroke("var(--oracle)", null, 1.6)]);
  const pair = (values, scale, digits) => (values ? `${fixed(scale * values[0], digits)} to ${fixed(scale * values[1], digits)}` : "–");
  const digits = DIGITS[evaluation.unit] ?? 2;
  renew();
  return [h("h3", {}, "Success and time"), h("div", { class: "row" }, buttons), h("figure", {}, host, legend(entries),
    h("figcaption", {}, `Bars: 95 % bootstrap intervals over tasks. Times: ${evaluation.prices}.`,
      evaluation.oracle.length ? "" : " No oracle: agents/tree_report.py makes one from routing trees."),
    evaluation.notes.map((note) => h("p", { class: "note" }, note))),
  numbers(["policy", "solved %", "95 %", `time of all, ${evaluation.unit}`, "95 %", `of solved, ${evaluation.unit}`, "95 %"],
    [...evaluation.points, ...evaluation.oracle].map((p) => [p.name, fixed(100 * p.success, 1), pair(p.success_ci, 100, 1),
      fixed(p.all, digits), pair(p.all_ci, 1, digits), fixed(p.solved, digits), pair(p.solved_ci, 1, digits)]))];
}

/* Share of the highest precision by step index, for one policy beside its random twin. */
function useByIndex(evaluation, precisions) {
  const top = precisions.at(-1), host = h("div");
  const routed = evaluation.use.filter(({ kind }) => kind !== "high" && kind !== "low");
  const list = routed.length ? routed : evaluation.use;
  const select = h("select", { change: () => renew() }, list.map((use, i) => h("option", { value: String(i) }, use.policy)));
  const first = list.findIndex(({ policy }) => policy.startsWith("router p"));
  select.value = String(Math.max(0, first));
  const renew = () => {
    const use = list[Number(select.value)];
    const twin = evaluation.use.find(({ like }) => like === use.policy);
    const shown = [[use, `var(--${use.kind})`, null], ...(twin ? [[twin, "var(--random)", "5 4"]] : [])];
    const longest = Math.max(...shown.map(([one]) => one.steps.length));
    const draw = (width) => {
      const chart = axes({
        width, height: 260, x: { low: 1, high: Math.max(2, longest), title: "step of the episode", ticks: ticks(1, longest, width / 70).filter(Number.isInteger) },
        y: { low: 0, high: 100, title: `steps at ${visible(top)} (%)`, ticks: [0, 25, 50, 75, 100] },
        label: `Share of steps at ${top} by step of the episode: ${use.policy}${twin ? `, and ${twin.policy}` : ""}. The numbers are in the table below.`,
      });
      lines(chart, shown.map(([one, color, dash]) => ({
        color, dash, dots: one === use,
        points: one.steps.map((n, t) => [t + 1, 100 * one.high[t] / n]),
        band: one.steps.map((n, t) => [t + 1, ...wilson(one.high[t], n).map((v) => 100 * v)]),
      })));
      return chart.svg;
    };
    host.replaceChildren(drawn(draw), legend(shown.map(([one, color, dash]) => [one.policy, stroke(color, dash)])),
      h("p", { class: "note" }, "Bands: 95 % intervals (Wilson), steps of different episodes taken as independent. Late steps belong to the few episodes that last so long."),
      numbers(["step", ...shown.flatMap(([one]) => [`${one.policy}: at ${top}`, "steps"])],
        Array.from({ length: longest }, (_, t) => [String(t + 1), ...shown.flatMap(([one]) => [String(one.high[t] ?? "–"), String(one.steps[t] ?? "–")])])));
  };
  renew();
  return h("figure", {}, h("h3", {}, `Share of ${visible(top)} by step of the episode`),
    h("label", { class: "row" }, "policy", select), host);
}

/* Share of every precision by step type, a bar a policy and type. */
function useByType(evaluation, precisions) {
  const routed = evaluation.use.filter(({ kind }) => kind !== "high" && kind !== "low");
  const list = routed.length ? routed : evaluation.use;
  const rows = list.flatMap((use) => Object.entries(use.by_type).map(([type, counts]) => ({ use, type, counts, sum: counts.reduce((a, b) => a + b, 0) })));
  const high = ({ counts }) => counts.at(-1), tall = 22, n = precisions.length;
  const draw = (width) => {
    const left = Math.min(190, width * .46), height = 8 + rows.length * tall + 40;
    const label = `Share of each precision by step type. ${rows.map((row) => `${row.use.policy}, ${row.type}: ${percent(high(row) / row.sum)} ${precisions.at(-1)}`).join("; ")}`;
    const chart = axes({ width, height, left, top: 4, label, x: { low: 0, high: 100, title: "steps (%)", ticks: [0, 25, 50, 75, 100] }, y: { low: 0, high: 1, ticks: [] } });
    rows.forEach((row, i) => {
      const y = 8 + i * tall;
      let from = 0;
      row.counts.forEach((count, p) => {
        const share = 100 * count / row.sum;
        chart.svg.append(g("rect", { x: chart.px(from), y, width: Math.max(0, chart.px(from + share) - chart.px(from)), height: tall - 8, fill: shade(p, n),
          opacity: row.use.kind === "random" ? .45 : .95 }, g("title", {}, `${precisions[p]}: ${count} of ${row.sum} steps`)));
        from += share;
      });
      const [low, up] = wilson(high(row), row.sum).map((v) => 100 - 100 * v), mid = y + (tall - 8) / 2;
      chart.svg.append(g("path", { d: `M${chart.px(low)},${mid - 4}v8m0,-4H${chart.px(up)}m0,-4v8`, stroke: "var(--ink)", fill: "none", "stroke-width": 1.3 }));
      const text = visible(`${row.use.policy.replace(/^router /, "")}, ${row.type}`), room = Math.floor((left - 10) / 6.3);
      chart.svg.append(g("text", { class: "axis", x: left - 6, y: y + 11, "text-anchor": "end" }, text.length > room ? `${text.slice(0, room - 1)}…` : text));
    });
    return chart.svg;
  };
  return h("figure", {}, h("h3", {}, "Share of precisions by step type"), drawn(draw),
    legend([...precisions.map((p, i) => [p, swatch(shade(i, n))]), ["95 % interval of the highest", g("path", { d: "M3,3v8m0,-4H23m0,-4v8", stroke: "var(--ink)", fill: "none" })]]),
    h("p", { class: "note" }, "Pale bars: random routing."),
    numbers(["policy", "step type", "steps", ...precisions.map((p) => `${p} %`)],
      rows.map(({ use, type, counts, sum }) => [use.policy, type, String(sum), ...counts.map((count) => fixed(100 * count / sum, 1))]), 2));
}

/* KLs on a logarithmic axis, with the threshold and its plateau. */
function histogram(one, record, p, n) {
  const { edges, counts } = one, tau = known(one.threshold) ? Math.log10(Math.max(one.threshold, 1e-8)) : edges.at(-1);
  const limit = known(one.threshold) ? short(one.threshold) : "∞";
  const power = (value) => ["⁰", "¹", "²", "³", "⁴", "⁵", "⁶", "⁷", "⁸", "⁹"][Math.abs(value)] ?? Math.abs(value);
  const draw = (width) => {
    const decades = ticks(edges[0], edges.at(-1), Math.min(width / 60, 8)).filter(Number.isInteger);
    const between = [0, 1, 2].flatMap((i) => [1, 2, 5].map((m) => Math.floor(edges[0]) + i + Math.log10(m)))
      .filter((v) => v >= edges[0] && v <= edges.at(-1));
    const whole = edges.at(-1) - edges[0] < 2 ? between : decades, most = Math.max(...counts);
    const chart = axes({
      width, height: 240, x: { low: edges[0], high: edges.at(-1), title: "KL to the highest precision (nats, log scale)", ticks: whole, format: (v) => (whole === between ? short(10 ** v) : `10${v < 0 ? "⁻" : ""}${power(v)}`) },
      y: { low: 0, high: most * 1.06, title: "steps", ticks: ticks(0, most, 4).filter(Number.isInteger) },
      label: `Histogram of the KLs of ${one.precision}: ${percent(one.above)} of ${record.steps} steps lie above the threshold of ${limit} nats, ${one.origin}.`,
    });
    const { px, py, box, svg } = chart;
    if (one.plateau) {
      const [a, b] = one.plateau.map((v) => px(Math.log10(Math.max(v, 1e-8))));
      svg.append(g("rect", { x: a, y: box.top, width: b - a, height: box.bottom - box.top, fill: "var(--soft)", opacity: .16 }));
    }
    counts.forEach((count, i) => {
      if (count) svg.append(g("rect", { x: px(edges[i]) + .5, y: py(count), width: Math.max(1, px(edges[i + 1]) - px(edges[i]) - 1), height: box.bottom - py(count), fill: shade(p, n) },
        g("title", {}, `${plural(count, "step")} from ${short(10 ** edges[i])} to ${short(10 ** edges[i + 1])} nats`)));
    });
    svg.append(g("line", { x1: px(tau), x2: px(tau), y1: box.top, y2: box.bottom, stroke: "var(--ink)", "stroke-width": 1.6, "stroke-dasharray": "5 4" }));
    return svg;
  };
  const entries = [[`τ = ${limit} nats (${one.origin})`, stroke("var(--ink)", "5 4", 1.6)]];
  if (one.plateau) entries.push(["plateau", swatch("var(--soft)", .25)]);
  return h("figure", {}, h("h4", {}, `${visible(one.precision)}: ${percent(one.above)} of ${plural(record.steps, "step")} above τ`), drawn(draw), legend(entries),
    numbers(["from (nats)", "to", "steps"], counts.map((count, i) => [short(10 ** edges[i]), short(10 ** edges[i + 1]), String(count)]).filter((row) => row[2] !== "0")));
}

const COUNTED = { action: "action steps", click: "clicks alone", all: "all steps and all of their tokens" };
function kls(world) {
  return world.kls.map((record) => [
    h("h3", {}, `Panel ${visible(record.panel)}`),
    h("p", { class: "note" }, `${plural(record.episodes, "episode")} of the highest precision, ${COUNTED[record.kind] ?? visible(record.kind)}. `,
      record.is_lower_bound ? "These KLs are lower bounds: only the likeliest tokens were told apart. " : "", h("code", {}, record.folder)),
    h("p", { class: "note" }, record.trainings.length
      ? ["τ is the threshold of ", record.trainings.map((one, i) => [i ? ", " : "", h("code", {}, one)]), "."]
      : "No training on this data set is in this report: τ is what KL-ST takes where no --threshold is given."),
    h("div", { class: "grid2 wide" }, record.histograms.map((one, p) => histogram(one, record, p, world.precisions.length)))]);
}

const SERIES = ["var(--high)", "var(--grpo)", "var(--router)", "var(--ppo)", "var(--low)", "var(--random)"];
function curve(one, x) {
  const series = Object.entries(one.series), all = series.flatMap(([, points]) => points);
  const draw = (width) => {
    const ys = all.map(([, y]) => y), least = Math.min(...ys), most = Math.max(...ys), isShare = one.unit.startsWith("share");
    const [low0, high0] = nicely(least, most), y0 = isShare ? Math.max(0, low0) : low0, y1 = isShare ? Math.min(1, high0) : high0;
    const xs = all.map(([u]) => u), low = Math.min(...xs), high = Math.max(...xs);
    const chart = axes({
      width, height: 210, left: 52, x: { low, high: high > low ? high : low + 1, title: x, ticks: ticks(low, high, Math.min(8, width / 60)).filter(Number.isInteger) },
      y: { low: y0, high: y1, title: one.unit },
      label: `${one.title}: ${series.map(([label, points]) => `${label} from ${short(points[0][1])} to ${short(points.at(-1)[1])}`).join("; ")}`,
    });
    lines(chart, series.map(([, points], i) => ({ points, color: SERIES[i % SERIES.length], dash: i % 2 ? "6 3" : null, dots: points.length < 25 })));
    return chart.svg;
  };
  return h("figure", {}, h("h4", {}, one.title), drawn(draw),
    legend(series.map(([label], i) => [label, stroke(SERIES[i % SERIES.length], i % 2 ? "6 3" : null)])),
    numbers([x, ...series.map(([label]) => label)], [...new Set(all.map(([u]) => u))].sort((a, b) => a - b).map((u) =>
      [String(u), ...series.map(([, points]) => { const hit = points.find(([v]) => v === u); return hit ? short(hit[1]) : "–"; })])));
}

function training(record) {
  const main = record.curves.filter((one) => one.main), rest = record.curves.filter((one) => !one.main);
  return [h("h3", {}, record.method), h("p", { class: "note" }, h("code", {}, record.folder)),
    record.curves.length ? h("div", { class: "grid2" }, main.map((one) => curve(one, record.x))) : h("p", {}, "No update is on record yet."),
    rest.length ? h("details", {}, h("summary", {}, `${plural(rest.length, "more curve")}`), h("div", { class: "grid2" }, rest.map((one) => curve(one, record.x)))) : null];
}
