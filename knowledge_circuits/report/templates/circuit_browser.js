// Draws one circuit of the page's data: nodes as a grid of layers x heads (+ MLP), the strongest edges over it.
// The data's format is described in circuit_browser.py. Nothing here is fetched or stored.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("circuit-data").textContent);
  if (!data.groups) return;
  const { layers: L, heads: H } = data, LAST = L * (H + 1) + 1; // nodes: 0 is input, LAST is logits
  // What the trends' axes span at least: counts start at 0, so that a saturated one looks saturated.
  const RANGES = { entropy: [Infinity, -Infinity], faithfulness: [0, 1], edges: [0, 0], nodes: [0, LAST + 1] };
  const SVG = "http://www.w3.org/2000/svg";
  const INPUTS = { q: "into a query", k: "into a key", v: "into a value", other: "into an MLP or the logits" };
  const element = (id) => document.getElementById(id);
  const controls = { task: element("task"), type: element("type"), band: element("band") };
  const span = element("span"); // "" is the whole prompt, else the number of a token span
  const slider = element("epoch"), shownEdges = element("edge-count"), play = element("play");
  const state = { rows: [], index: 0, node: null, timer: null };

  // --- reading -------------------------------------------------------------------------------------------------

  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

  function read(row) {
    const [step, epoch, edges, nodes, entropy, faithfulness, levels, packed, spans] = row;
    const views = { "": unpack(levels, packed) };
    spans.forEach((part, number) => { if (part) views[number] = unpack(...part); });
    return { step, epoch, edges, nodes, entropy, faithfulness, views };
  }

  function unpack(levels, packed) {
    const view = new DataView(bytes(packed).buffer), found = [];
    for (let at = 0; at < view.byteLength; at += 8) {
      const target = targetOf(view.getUint16(at + 2, true)), inclusion = view.getInt16(at + 6, true);
      found.push({
        source: view.getUint16(at, true),
        ...target,
        score: view.getInt16(at + 4, true) / 32767,
        inclusion: inclusion < 0 ? null : inclusion / 32767,
      });
    }
    return { levels: bytes(levels), strongest: found };
  }

  function targetOf(column) { // a column of the score matrix: its node and which input of it
    const width = 3 * H + 1, layer = Math.floor(column / width), place = column % width;
    if (layer === L) return { node: L * (H + 1) + 1, input: "other" };
    if (place === 3 * H) return { node: 1 + layer * (H + 1) + H, input: "other" };
    return { node: 1 + layer * (H + 1) + (place % H), input: "qkv"[Math.floor(place / H)] };
  }

  function nodeName(node) {
    if (node === 0) return "input";
    if (node === L * (H + 1) + 1) return "logits";
    const layer = Math.floor((node - 1) / (H + 1)), head = (node - 1) % (H + 1);
    return head === H ? `m${layer}` : `a${layer}.h${head}`;
  }

  // --- the grid, drawn once --------------------------------------------------------------------------------------

  const cell = Math.max(26, Math.min(64, 860 / (H + 2))), pitch = Math.max(34, Math.min(78, 620 / L));
  const box = { w: cell - 8, h: Math.min(26, pitch * 0.5) }, left = 66, gap = cell * 0.35;
  const width = left + cell * (H + 1) + gap + 16, height = pitch * (L + 2.1);

  function place(node) { // the centre of a node's cell, and its row and column for the arrow keys
    const middle = left + (cell * H) / 2;
    if (node === 0) return { x: middle, y: height - pitch * 0.45, row: -1, column: 0 };
    if (node === L * (H + 1) + 1) return { x: middle, y: pitch * 0.5, row: L, column: 0 };
    const layer = Math.floor((node - 1) / (H + 1)), head = (node - 1) % (H + 1), mlp = head === H;
    return {
      x: left + cell * (head + 0.5) + (mlp ? gap : 0),
      y: height - pitch * (layer + 1.45 + (mlp ? 0.35 : 0)),
      row: layer,
      column: head,
    };
  }

  function draw(parent, kind, attributes, text) {
    const made = document.createElementNS(SVG, kind);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    if (text !== undefined) made.textContent = text;
    parent.append(made);
    return made;
  }

  const picture = element("picture");
  picture.setAttribute("viewBox", `0 0 ${width.toFixed(0)} ${height.toFixed(0)}`);
  picture.style.maxWidth = `${Math.round(width * 1.25)}px`;
  for (let layer = 0; layer < L; layer++) {
    draw(picture, "text", { x: 4, y: place(1 + layer * (H + 1)).y + 4, class: "layer" }, `layer ${layer}`);
  }
  const edgeLayer = draw(picture, "g", { class: "edges" });
  const cells = Array.from({ length: L * (H + 1) + 2 }, (_, node) => makeCell(node));

  function makeCell(node) {
    const at = place(node), name = nodeName(node);
    const wide = node === 0 || node === LAST ? Math.max(box.w, 52) : box.w;
    const group = draw(picture, "g", { class: "node", role: "button", tabindex: node === 0 ? 0 : -1, "data-node": node });
    draw(group, "rect", { x: at.x - wide / 2, y: at.y - box.h / 2, width: wide, height: box.h, rx: 4 });
    const label = name.includes(".") ? name.split(".")[1] : name;
    draw(group, "text", { x: at.x, y: at.y + 3.6, "text-anchor": "middle" }, label);
    const hint = draw(group, "title", {});
    group.addEventListener("mouseenter", () => highlight(node));
    group.addEventListener("mouseleave", () => highlight(state.node));
    group.addEventListener("focus", () => highlight(node));
    group.addEventListener("blur", () => highlight(state.node));
    group.addEventListener("click", () => pin(node));
    group.addEventListener("keydown", (event) => pressed(event, node));
    return { group, hint, wide, ...at };
  }


  // --- one circuit -------------------------------------------------------------------------------------------------

  const current = () => state.rows[state.index];
  const view = () => current().views[span.value] ?? { levels: new Uint8Array(LAST + 1), strongest: [] };
  const number = (value, digits) => (value === null ? "not known" : value.toFixed(digits));

  // 0..1 -> from the weak to the strong colour of the page's mode
  const shade = (level) => `color-mix(in srgb, var(--strong) ${Math.round(100 * level)}%, var(--weak))`;

  function show() {
    const circuit = current();
    if (!circuit) return;
    slider.value = state.index;
    const when = `epoch ${circuit.epoch} (step ${circuit.step.toLocaleString("en")})`;
    slider.setAttribute("aria-valuetext", when);
    element("epoch-name").textContent = when;
    element("circuit-numbers").textContent =
      `At ${when}: entropy ${number(circuit.entropy, 2)}${circuit.entropy === null ? "" : " nats"}, ` +
      `${circuit.edges.toLocaleString("en")} edges, ${circuit.nodes.toLocaleString("en")} nodes, ` +
      `faithfulness ${number(circuit.faithfulness, 2)}.`;
    cells.forEach((one, node) => {
      const level = view().levels[node], strength = ((level - 1) / 254) ** 2;
      one.group.classList.toggle("absent", level === 0);
      const rect = one.group.firstChild;
      rect.style.fill = level ? shade((level - 1) / 254) : "";
      rect.nextSibling.style.fill = level > 130 ? "var(--on-strong)" : "";
      const said = level ? `in the circuit, strength ${strength.toFixed(2)}` : "not in the circuit";
      one.hint.textContent = `${nodeName(node)}: ${said}`;
      one.group.setAttribute("aria-label", one.hint.textContent);
    });
    drawEdges();
    drawTrends();
    highlight(state.node);
  }

  function drawEdges() {
    edgeLayer.replaceChildren();
    const strongest = view().strongest.slice(0, Number(shownEdges.value));
    for (const edge of strongest.slice().reverse()) {
      const from = cells[edge.source], to = cells[edge.node], share = Math.sqrt(Math.abs(edge.score));
      const x = to.x + { q: -0.28, k: 0, v: 0.28, other: 0 }[edge.input] * to.wide;
      const top = from.y - box.h / 2, bottom = to.y + box.h / 2, bend = (top - bottom) * 0.5;
      draw(edgeLayer, "path", {
        d: `M${from.x.toFixed(1)},${top.toFixed(1)} C${from.x.toFixed(1)},${(top - bend).toFixed(1)} ` +
           `${x.toFixed(1)},${(bottom + bend).toFixed(1)} ${x.toFixed(1)},${bottom.toFixed(1)}`,
        class: `edge ${edge.input}${edge.score < 0 ? " negative" : ""}`,
        "stroke-width": (0.5 + 3.6 * share).toFixed(2),
        "stroke-opacity": ((0.25 + 0.6 * share) * (0.2 + 0.8 * (edge.inclusion ?? 1))).toFixed(2),
        "data-source": edge.source,
        "data-target": edge.node,
      });
    }
  }

  function drawTrends() {
    for (const name of ["entropy", "faithfulness", "edges", "nodes"]) {
      const chart = element(`trend-${name}`), values = state.rows.map((row) => row[name]);
      const known = values.filter((value) => value !== null), [floor, ceiling] = RANGES[name];
      const top = Math.max(...known, ceiling), low = Math.min(...known, floor), span = top - low || 1;
      const x = (i) => 3 + (154 * i) / Math.max(values.length - 1, 1), y = (v) => 31 - (28 * (v - low)) / span;
      chart.replaceChildren();
      const points = values.map((v, i) => (v === null ? "" : `${x(i).toFixed(1)},${y(v).toFixed(1)}`)).filter(Boolean);
      draw(chart, "polyline", { points: points.join(" ") });
      const now = values[state.index];
      draw(chart, "path", { d: `M${x(state.index).toFixed(1)},1 V33` });
      const digits = { entropy: 2, faithfulness: 2 }[name];
      element(`value-${name}`).textContent =
        now === null ? "–" : digits ? now.toFixed(digits) : now.toLocaleString("en");
    }
  }

  // --- one node ----------------------------------------------------------------------------------------------------

  function highlight(node) {
    for (const path of edgeLayer.children) {
      const own = Number(path.dataset.source) === node || Number(path.dataset.target) === node;
      path.classList.toggle("faded", node !== null && !own);
    }
    cells.forEach((one, index) => one.group.classList.toggle("chosen", index === node));
    element("node-detail").replaceChildren(...describe(node));
  }

  function describe(node) {
    const line = (text) => Object.assign(document.createElement("p"), { textContent: text });
    if (node === null) {
      return [line("Point at a node, or move to it with Tab and the arrow keys, to see its edges alone. Enter keeps it.")];
    }
    const drawn = view().strongest.slice(0, Number(shownEdges.value));
    const list = (edges, name) => {
      const kept = (edge) => (edge.inclusion === null ? "" : ` (${Math.round(100 * edge.inclusion)}% of resamples)`);
      const texts = edges.slice(0, 5).map(
        (edge) => `${name(edge)} ${edge.score < 0 ? "−" : "+"}${Math.abs(edge.score).toFixed(2)}${kept(edge)}`,
      );
      return texts.length ? texts.join(", ") + (edges.length > 5 ? ` and ${edges.length - 5} more` : "") : "none drawn";
    };
    const input = (edge) => (edge.input === "other" ? "" : `<${edge.input}>`);
    return [
      line(cells[node].hint.textContent + "."),
      line(`Edges in: ${list(drawn.filter((e) => e.node === node), (e) => nodeName(e.source) + (input(e) && ` → ${input(e)}`))}.`),
      line(`Edges out: ${list(drawn.filter((e) => e.source === node), (e) => nodeName(e.node) + input(e))}.`),
    ];
  }

  function pin(node) {
    state.node = state.node === node ? null : node;
    cells.forEach((one, index) => one.group.setAttribute("aria-pressed", index === state.node));
    highlight(state.node);
  }

  function pressed(event, node) {
    const { row, column } = cells[node];
    const step = { ArrowUp: [1, 0], ArrowDown: [-1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (event.key === "Enter" || event.key === " ") pin(node);
    else if (event.key === "Escape") pin(state.node);
    else if (step) {
      const at = Math.max(-1, Math.min(L, row + step[0])), to = Math.max(0, Math.min(H, column + step[1]));
      const next = at === -1 ? 0 : at === L ? LAST : 1 + at * (H + 1) + to;
      cells.forEach((one, index) => one.group.setAttribute("tabindex", index === next ? 0 : -1));
      cells[next].group.focus();
    } else return;
    event.preventDefault();
  }

  // --- controls ------------------------------------------------------------------------------------------------------

  function fill(select, names) {
    select.replaceChildren(...names.map(([value, text]) => new Option(text, value)));
  }

  function choose() {
    const wanted = data.groups.find((group) => Object.keys(controls).every((key) => group[key] === controls[key].value));
    const epoch = current()?.epoch;
    state.rows = wanted ? wanted.rows.map(read) : [];
    element("no-circuit").hidden = state.rows.length > 0;
    element("circuit-view").hidden = state.rows.length === 0;
    slider.max = Math.max(state.rows.length - 1, 0);
    const same = state.rows.findIndex((row) => row.epoch === epoch);
    state.index = same >= 0 ? same : state.rows.length - 1;
    show();
  }

  function stop() {
    clearInterval(state.timer);
    state.timer = null;
    play.textContent = "Play";
  }

  function start() {
    if (state.index >= state.rows.length - 1) state.index = 0;
    else state.index += 1;
    show();
    play.textContent = "Stop";
    state.timer = setInterval(() => {
      if (state.index >= state.rows.length - 1) return stop();
      state.index += 1;
      show();
    }, 700);
  }

  // What a selector offers: the values of its key, each once; types and bands are those of the chosen task.
  function offer(key, text, first) {
    const groups = data.groups.filter((group) => key === "task" || group.task === controls.task.value);
    const before = controls[key].value || first;
    fill(controls[key], [...new Map(groups.map((group) => [group[key], text(group)])).entries()]);
    if (groups.some((group) => group[key] === before)) controls[key].value = before;
    controls[key].parentElement.hidden = groups.every((group) => group[key] === "");
  }

  function offerGroups() {
    offer("type", (group) => (group.symbol ? `${group.symbol} (${group.type})` : group.type), "revised");
    offer("band", (group) => group.band, "high");
    choose();
  }

  offer("task", (group) => group.task);
  controls.task.addEventListener("change", offerGroups);
  for (const key of ["type", "band"]) controls[key].addEventListener("change", choose);
  fill(span, [["", "whole prompt"], ...data.spans.map((name, number) => [number, name])]);
  span.parentElement.hidden = data.spans.length === 0;
  span.addEventListener("change", show);
  shownEdges.addEventListener("change", show);
  slider.addEventListener("input", () => { stop(); state.index = Number(slider.value); show(); });
  play.addEventListener("click", () => (state.timer ? stop() : start()));
  for (const [input, text] of Object.entries(INPUTS)) {
    const item = document.createElement("li");
    const swatch = document.createElementNS(SVG, "svg");
    swatch.setAttribute("viewBox", "0 0 24 8");
    draw(swatch, "path", { d: "M0,4 H24", class: `edge ${input}`, "stroke-width": 3 });
    item.append(swatch, text);
    element("edge-legend").append(item);
  }
  offerGroups();
})();
