/* The step viewer. Places in the compact rows are those of dmr_gym.report.records.ViewerRecord. */
const [ACTION, OBSERVATION, COMPLETION, REASON, END, PROMPT_TOKENS, COMPLETION_TOKENS, KL, PLAYED, TREE, SOURCE] = Array(11).keys();
const ENDS = ["goes on", "solved", "ended without success"];

function stepViewer(evaluation, precisions) {
  const data = evaluation.viewer, n = precisions.length, unit = evaluation.unit;
  const text = (index) => (index < 0 ? null : data.strings[index]);
  const episodes = data.episodes.map(([policy, task, seed, success, score, time, capped, instruction, observation, rows], index) => ({
    index, policy, task, seed, success, score, time, capped, instruction, observation,
    steps: rows.map(([state, precision, called, high, llm, router, type]) => ({ state, precision, called, high, llm, router, type })),
  }));
  const answer = (step, p) => data.states[step.state][p];
  const same = (a, b) => Boolean(a && b) && a[ACTION] >= 0 && a[ACTION] === b[ACTION] && a[OBSERVATION] === b[OBSERVATION];
  const saidOther = (a, b) => Boolean(a && b) && a[ACTION] >= 0 && b[ACTION] >= 0 && a[ACTION] !== b[ACTION];
  const differs = (step) => precisions.some((_, p) => saidOther(answer(step, p), answer(step, step.precision)));
  const tag = (p) => (p === n - 1 ? "top" : String(p % 4));
  const badge = (p, full) => h("span", { class: `badge precision ${full ? "full" : ""}`, "data-p": tag(p) }, precisions[p]);
  const ending = (episode) => (episode.success ? h("span", { class: "good" }, "✓ solved") : h("span", { class: "bad" }, episode.capped ? "✗ not solved, step limit" : "✗ not solved"));

  const option = (label, value) => h("option", { value: String(value) }, label.length > 90 ? `${label.slice(0, 89)}…` : label);
  const chooser = (label, all, names) => {
    const select = h("select", { change: () => filter() }, option(all, -1), names.map((one, i) => option(one, i)));
    return [select, h("label", {}, label, select)];
  };
  const [byPolicy, policyLabel] = chooser("policy", "all policies", data.policies);
  const [byTask, taskLabel] = chooser("task", "all tasks", data.tasks);
  const [byResult, resultLabel] = chooser("result", "solved or not", ["not solved", "solved"]);
  const [byType, typeLabel] = chooser("step type", "all types", data.types);
  const onlyDiffering = h("input", { type: "checkbox", change: () => filter() });
  const differLabel = h("label", { class: "check" }, onlyDiffering, "only steps where precisions differ");

  const count = h("output", { "aria-live": "polite" }), body = h("div");
  const button = (label, keys, act) => h("button", { type: "button", "aria-keyshortcuts": keys, click: act }, label);
  const moves = {
    lastEpisode: button("« episode", "Shift+ArrowLeft", () => moveEpisode(-1)), lastStep: button("‹ step", "ArrowLeft", () => moveStep(-1)),
    nextStep: button("step ›", "ArrowRight", () => moveStep(1)), nextEpisode: button("episode »", "Shift+ArrowRight", () => moveEpisode(1)),
  };
  const names = { lastEpisode: "previous episode", lastStep: "previous step", nextStep: "next step", nextEpisode: "next episode" };
  for (const [key, label] of Object.entries(names)) moves[key].setAttribute("aria-label", label);

  let found = [], place = 0, at = 0;
  const counts = (step) => (Number(byType.value) < 0 || step.type === Number(byType.value)) && (!onlyDiffering.checked || differs(step));
  const first = (episode) => Math.max(0, episode.steps.findIndex(counts));
  function filter() {
    const wanted = (select, value) => Number(select.value) < 0 || Number(select.value) === value;
    const before = found[place]?.index;
    found = episodes.filter((e) => wanted(byPolicy, e.policy) && wanted(byTask, e.task) && wanted(byResult, e.success) && e.steps.some(counts));
    const kept = found.findIndex((e) => e.index === before);
    place = Math.max(0, kept);
    if (found.length && (kept < 0 || !counts(found[place].steps[at]))) at = first(found[place]);
    show();
  }
  function moveEpisode(by) {
    if (!found[place + by]) return;
    place += by; at = first(found[place]); show();
  }
  function moveStep(by) {
    const { steps } = found[place] ?? { steps: [] };
    for (let t = at + by; t >= 0 && t < steps.length; t += by) if (counts(steps[t])) { at = t; return show(); }
    return undefined;
  }
  function moveTo(t) { at = t; show(); }
  function jump([episode, step]) {
    for (const select of [byPolicy, byTask, byResult, byType]) select.value = "-1";
    onlyDiffering.checked = false; filter();
    place = found.findIndex((e) => e.index === episode); at = step; show(); root.focus();
  }

  const fact = (label, ...value) => h("div", {}, h("dt", {}, label), h("dd", {}, value));
  function meter(share) {
    return g("svg", { class: "meter", viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" }, g("rect", { width: 100 * share, height: 10, fill: "var(--top)" }));
  }
  const block = (value, kind) => (known(value) ? h("pre", { dir: "auto", class: kind || null, tabindex: value.length > 600 ? "0" : null }, value) : null);

  function after(value, label, [success, seconds]) {
    if (!known(success)) return h("li", {}, `${label}: the tree does not reach so far`);
    return h("li", {}, `${label}: `, success ? h("span", { class: "good" }, "solved") : h("span", { class: "bad" }, "not solved"),
      ` after ${amount(seconds, unit)}`, known(value) ? `, return ${fixed(value, 3)}` : "");
  }
  function ledTo(episode, step, p) {
    const own = answer(step, step.precision), other = answer(step, p), lines = [];
    if (p === step.precision) lines.push(h("li", {}, "This episode: ", ending(episode), ` after ${plural(episode.steps.length, "step")}, ${amount(episode.time, unit)}`));
    else if (!other || other[ACTION] < 0 && other[OBSERVATION] < 0) {
      lines.push(h("li", {}, "Not known: no episode here took this choice in this state, and it was not asked. ",
        h("code", {}, "agents/evaluate.py --alternatives"), " or routing trees tell."));
    } else {
      if (same(own, other)) lines.push(h("li", {}, "The same step, and the same answer of the world."));
      else if (own[ACTION] >= 0 && own[ACTION] === other[ACTION]) lines.push(h("li", {}, "The same action."));
      if (other[END] === 1) lines.push(h("li", {}, "It would have ", h("span", { class: "good" }, "solved"), " the task at once."));
      if (other[PLAYED]) {
        const ref = episodes[other[PLAYED][0]];
        lines.push(h("li", {}, `${visible(data.policies[ref.policy])}, seed ${ref.seed}, chose it here: `, ending(ref),
          ` after ${plural(ref.steps.length, "step")}, ${amount(ref.time, unit)} `, h("button", { type: "button", click: () => jump(other[PLAYED]) }, "go there")));
      }
    }
    if (other?.[TREE]) {
      const [value, bestSuccess, bestSeconds, highSuccess, highSeconds] = other[TREE];
      lines.push(after(value, known(value) ? "routing tree, best from here on" : "routing tree, best known from here on", [bestSuccess, bestSeconds]),
        after(null, `routing tree, then always ${visible(precisions.at(-1))}`, [highSuccess, highSeconds]));
    }
    return h("ul", {}, lines);
  }
  function choice(episode, step, p) {
    const one = answer(step, p), chosen = p === step.precision;
    const completion = one && text(one[COMPLETION]), action = one && text(one[ACTION]);
    return h("section", { class: "choice precision", "data-p": tag(p), "aria-label": `${visible(precisions[p])}${chosen ? ", chosen" : ""}` },
      h("h4", {}, badge(p, chosen), chosen ? "chosen" : "not chosen", !chosen && one && saidOther(one, answer(step, step.precision)) ? h("span", { class: "bad" }, "another action") : null),
      block(action, "said"), known(action) && action === "" ? h("p", { class: "note" }, "No action could be read.") : null,
      completion && completion.trim() !== action ? h("details", {}, h("summary", {}, "whole completion"), block(completion)) : null,
      one && one[REASON] >= 0 ? h("p", {}, h("span", { class: "bad" }, "not carried out: "), text(one[REASON])) : null,
      one && one[OBSERVATION] >= 0 && (chosen || !same(one, answer(step, step.precision))) ? [h("p", { class: "note" }, "the world answers"), block(text(one[OBSERVATION]))] : null,
      h("dl", { class: "facts" },
        p < n - 1 ? fact("KL", one && known(one[KL]) ? `${short(one[KL])} nats` : "not known") : null,
        one && known(one[PROMPT_TOKENS]) ? fact("tokens", `${one[PROMPT_TOKENS]} in, ${one[COMPLETION_TOKENS]} out`) : null,
        one && one[END] === 2 ? fact("end", ENDS[2]) : null),
      h("p", { class: "note" }, "what it leads to"), ledTo(episode, step, p));
  }
  function past(episode) {
    const before = episode.steps.slice(0, at);
    return h("details", { open: pastIsOpen, toggle: (event) => { pastIsOpen = event.target.open; } }, h("summary", {}, `History before this step (${plural(before.length, "step")})`),
      block(text(episode.observation)), h("ol", { class: "past" }, before.map((step) => {
        const one = answer(step, step.precision);
        return h("li", {}, h("p", {}, badge(step.precision), " ", h("bdi", {}, h("strong", {}, text(one[ACTION]) ?? "(no text on record)"))), h("p", { dir: "auto" }, text(one[OBSERVATION]) ?? ""));
      })));
  }
  let pastIsOpen = false;

  function track(episode) {
    const buttons = episode.steps.map((step, t) => h("button", {
      type: "button", class: `precision ${counts(step) ? "" : "dim"} ${differs(step) ? "differs" : ""}`, "data-p": tag(step.precision), tabindex: t === at ? "0" : "-1",
      "aria-current": t === at ? "step" : null, "aria-label": `step ${t + 1}, ${visible(precisions[step.precision])}${differs(step) ? ", precisions differ" : ""}`, click: () => moveTo(t),
    }, String(t + 1)));
    return h("ol", { class: "track", "aria-label": "steps of the episode" }, buttons.map((one) => h("li", {}, one)));
  }
  function show() {
    const episode = found[place], inTrack = body.querySelector(".track")?.contains(document.activeElement);
    moves.lastEpisode.disabled = !found[place - 1]; moves.nextEpisode.disabled = !found[place + 1];
    if (!episode) {
      moves.lastStep.disabled = moves.nextStep.disabled = true;
      count.textContent = "no episode fits these filters";
      body.replaceChildren();
      return;
    }
    const { steps } = episode, step = steps[at];
    moves.lastStep.disabled = !steps.slice(0, at).some(counts); moves.nextStep.disabled = !steps.slice(at + 1).some(counts);
    count.textContent = visible(`episode ${place + 1} of ${found.length}, step ${at + 1} of ${steps.length}: ${precisions[step.precision]}`);
    const seen = at ? text(answer(steps[at - 1], steps[at - 1].precision)[OBSERVATION]) : text(episode.observation);
    body.replaceChildren(
      h("h3", {}, h("bdi", {}, data.tasks[episode.task])),
      h("dl", { class: "facts" }, fact("policy", data.policies[episode.policy]), fact("seed", String(episode.seed)), fact("result", ending(episode)),
        known(episode.score) ? fact("score", fixed(episode.score, 3)) : null, fact("time", amount(episode.time, unit))),
      block(text(episode.instruction)), track(episode),
      h("h4", {}, `Step ${at + 1} of ${steps.length}, ${visible(data.types[step.type])}: `, badge(step.precision, true)),
      h("dl", { class: "facts" },
        fact("router", known(step.high) ? [`p(${visible(precisions.at(-1))}) `, meter(step.high), ` ${fixed(step.high, 3)}`] : step.called ? "asked" : "not asked"),
        fact("latency", `LLM ${amount(step.llm, unit)}`, step.called ? `, router ${amount(step.router, unit)}` : "")),
      h("p", { class: "note" }, "the agent sees"), block(seen) ?? h("p", {}, "No text on record."), past(episode),
      h("div", { class: "choices" }, precisions.map((_, p) => choice(episode, step, n - 1 - p))));
    if (inTrack) body.querySelector("[aria-current=step]").focus();
  }
  function keys(event) {
    if (event.target instanceof HTMLSelectElement || event.altKey || event.ctrlKey || event.metaKey || !found[place]) return;
    const { steps } = found[place], end = (list) => list.findIndex((t) => counts(steps[t]));
    const up = [...steps.keys()], acts = {
      ArrowRight: () => (event.shiftKey ? moveEpisode(1) : moveStep(1)), ArrowLeft: () => (event.shiftKey ? moveEpisode(-1) : moveStep(-1)),
      Home: () => moveTo(Math.max(0, end(up))), End: () => moveTo(up.toReversed()[Math.max(0, end(up.toReversed()))]),
      d: () => { const next = up.find((t) => t > at && differs(steps[t])); if (next !== undefined) moveTo(next); },
    };
    const act = acts[event.key];
    if (!act) return;
    event.preventDefault(); act();
  }
  const left = data.left_out ? `The page has room for ${data.tasks.length} of ${data.tasks.length + data.left_out} tasks; --mb of agents/report.py makes more. ` : "";
  const cut = data.cut ? `${plural(data.cut, "long text")} cut. ` : "";
  const asked = data.asked_tasks ? `Every precision was asked at each step of ${plural(data.asked_tasks, "task")}. ` : "";
  const grown = data.tree_tasks ? `Routing trees are known of ${plural(data.tree_tasks, "task")}. ` : "";
  const root = h("div", { class: "viewer", tabindex: "0", role: "group", "aria-label": "step viewer", keydown: keys },
    h("div", { class: "filters" }, policyLabel, taskLabel, resultLabel, typeLabel, differLabel),
    h("p", { class: "keys" }, "Keys in this box: ", h("kbd", {}, "←"), " ", h("kbd", {}, "→"), " step, ", h("kbd", {}, "Shift ←"), " ", h("kbd", {}, "Shift →"), " episode, ",
      h("kbd", {}, "Home"), " ", h("kbd", {}, "End"), " first and last step, ", h("kbd", {}, "d"), " next step where precisions differ. A dot marks such a step."),
    h("div", { class: "row moves" }, moves.lastEpisode, moves.lastStep, moves.nextStep, moves.nextEpisode, count), body);
  filter();
  return [h("p", { class: "note" }, left, cut, asked, grown, `${plural(episodes.length, "episode")}.`), root];
}
