function section(id, title, ...content) {
  return content.flat(Infinity).some(known) ? h("section", { id, "aria-labelledby": `${id}-title` }, h("h2", { id: `${id}-title` }, title), content) : null;
}
const headed = (evaluations, evaluation) => (evaluations.length > 1 ? h("h3", {}, h("code", {}, evaluation.folder)) : null);

function worldSections(world) {
  const { evaluations, precisions } = world, each = (draw) => evaluations.map((one) => [headed(evaluations, one), draw(one)]);
  return [
    section("results", "Results", each((one) => [pareto(one), tables(one)])),
    section("use", "Where precisions are used", each((one) => h("div", { class: "grid2 wide" }, useByIndex(one, precisions), useByType(one, precisions)))),
    section("steps", "Step by step", each((one) => stepViewer(one, precisions))),
    section("kl", "KL to the highest precision", kls(world)),
    section("training", "Training", world.trainings.map(training)),
    section("missing", "Not in this report", world.missing.length ? [h("p", {}, "These runs are not among those that were given. Their commands:"),
      h("ul", { class: "commands" }, world.missing.map(({ part, command }) => h("li", {}, part, h("code", {}, command))))] : null),
    section("made", "How it was made", evaluations.map((one) => h("dl", { class: "made" }, one.made.map(([label, value]) => [h("dt", {}, label), h("dd", {}, value)])))),
  ].filter(known);
}

const SHORT = { results: "results", use: "precisions", steps: "steps", kl: "KL", training: "training", missing: "missing", made: "made by" };

function page() {
  const main = h("main", { id: "main" }), links = h("nav", { "aria-label": "sections" });
  const themes = ["auto", "light", "dark"];
  let theme = 0;
  const themeButton = h("button", { type: "button", click: () => {
    theme = (theme + 1) % 3;
    if (theme) document.documentElement.dataset.theme = themes[theme]; else delete document.documentElement.dataset.theme;
    themeButton.textContent = `colours: ${themes[theme]}`;
  } }, "colours: auto");
  const label = (world) => `${world.title}${world.precisions.length ? ` (${world.precisions.join(", ")})` : ""}`;
  const worlds = report.worlds.map((world) => h("button", { type: "button", click: () => choose(world) }, label(world)));
  const subtitle = h("p", { class: "soft" });
  function choose(world) {
    worlds.forEach((button, i) => button.setAttribute("aria-pressed", String(report.worlds[i] === world)));
    subtitle.textContent = visible(world.evaluations.map((one) => `${plural(one.tasks, "task")} of panel ${one.panel}, ${plural(one.points.length, "policy").replace("policys", "policies")}, ${one.prices}`).join(" · ") || label(world));
    const sections = worldSections(world);
    main.replaceChildren(...sections);
    links.replaceChildren(...sections.map((one) => h("a", { href: `#${one.id}` }, SHORT[one.id])));
  }
  document.body.append(h("a", { class: "skip", href: "#main" }, "to the content"),
    h("div", { class: "bar" }, links, themeButton),
    h("header", { class: "top" }, h("h1", {}, "Precision routing: ", report.worlds.length === 1 ? label(report.worlds[0]) : "report"), subtitle,
      worlds.length > 1 ? h("div", { class: "row worlds", role: "group", "aria-label": "world" }, worlds) : null),
    main, h("footer", {}, report.made));
  choose(report.worlds[0]);
}
page();
