// The label browser: a virtual list that draws only the rows in sight, and a dialog for one row.
(async () => {
  const ROW = 38, HEAD = 42, SPARE = 8;
  const $ = (id) => document.getElementById(id);
  const store = $("label-data");
  if (!store) return;
  const grid = $("grid"), body = $("rows"), status = $("count"), dialog = $("row");
  const state = { key: "place", descending: false, active: 0 };
  const drawn = new Map();
  let rows, found = new Uint32Array(0);

  const make = (tag, text, name) => {
    const node = document.createElement(tag);
    if (text !== undefined && text !== null) node.textContent = text;
    if (name) node.className = name;
    return node;
  };
  const percent = (value, scale) => (value < 0 ? "–" : `${((100 * value) / scale).toFixed(scale > 100 ? 1 : 0)} %`);

  try {
    rows = new Rows(await unpackRows(store.textContent.trim()));
  } catch (error) {
    status.textContent = `The rows could not be unpacked (${error.message}). A browser from 2023 or later can.`;
    return;
  }
  const data = rows.data;

  const choices = { decision: $("decision"), reason: $("reason"), answer: $("answer"), category: $("category"), agreement: $("agreement"), truth: $("truth") };
  const fill = (select, names, limit) => {
    if (names.length < 2 || names.length > limit) { select.closest("label").hidden = true; return; }
    names.forEach((name, i) => { const o = make("option", name || "(none)"); o.value = i; select.append(o); });
  };
  fill(choices.reason, data.reasonNames, 100);
  fill(choices.answer, data.values, 100);
  fill(choices.category, data.categoryNames, 500);
  choices.agreement.closest("label").hidden = rows.annotators.length < 2;
  choices.truth.closest("label").hidden = !data.gold;
  grid.classList.toggle("plain", !data.gold);
  grid.querySelector('[data-sort="right"]').parentElement.hidden = !data.gold;

  function refresh() {
    const begun = performance.now();
    const query = { text: $("search").value };
    for (const [name, select] of Object.entries(choices)) query[name] = select.value;
    found = rows.find(query, state.key, state.descending);
    state.active = 0;
    grid.scrollTop = 0;
    grid.setAttribute("aria-rowcount", found.length + 1);
    drawn.clear();
    body.replaceChildren();
    body.style.height = `${found.length * ROW}px`;
    draw();
    const kept = found.reduce((sum, i) => sum + data.kept[i], 0);
    status.textContent = `${found.length.toLocaleString("en")} of ${rows.size.toLocaleString("en")} rows, ${kept.toLocaleString("en")} kept`;
    grid.dataset.ms = (performance.now() - begun).toFixed(1);
  }

  function line(i, at) {
    const row = make("div", null, "row line");
    row.setAttribute("role", "row");
    row.setAttribute("aria-rowindex", at + 2);
    row.id = `r${at}`;
    row.dataset.at = at;
    row.style.top = `${at * ROW}px`;
    const cell = (text, name) => {
      const node = make("div", text, `cell ${name ?? ""}`);
      node.setAttribute("role", "gridcell");
      row.append(node);
    };
    cell((rows.place(i) + 1).toLocaleString("en"), "number muted");
    cell(data.questions[i]);
    cell(rows.answer(i) ?? "no answer");
    cell(percent(data.confidences[i], 10000), "number");
    cell(rows.annotators.length ? `${rows.agreeing[i]} of ${rows.annotators.length}` : "–", "number");
    cell(data.kept[i] ? "✓ kept" : "✕ dropped", data.kept[i] ? "yes" : "no");
    if (data.gold) { const right = rows.right(i); cell(right < 0 ? "–" : right ? "✓ right" : "✕ wrong", right < 0 ? "muted" : right ? "yes" : "no"); }
    return row;
  }

  function draw() {
    const first = Math.max(0, Math.floor((grid.scrollTop - HEAD) / ROW) - SPARE);
    const last = Math.min(found.length, Math.ceil((grid.scrollTop + grid.clientHeight) / ROW) + SPARE);
    for (const [at, node] of drawn) {
      if (at < first || at >= last) { node.remove(); drawn.delete(at); }
    }
    for (let at = last - 1; at >= first; at--) {
      if (!drawn.has(at)) {
        drawn.set(at, line(found[at], at));
        body.insertBefore(drawn.get(at), drawn.get(at + 1) ?? null);
      }
      const active = at === state.active;
      drawn.get(at).classList.toggle("active", active);
      drawn.get(at).setAttribute("aria-selected", String(active));
    }
    const shown = found.length && state.active >= first && state.active < last;
    if (shown) grid.setAttribute("aria-activedescendant", `r${state.active}`);
    else grid.removeAttribute("aria-activedescendant");
  }

  function move(to) {
    if (!found.length) return;
    state.active = Math.max(0, Math.min(found.length - 1, to));
    const top = state.active * ROW;
    const room = grid.clientHeight - HEAD - ROW;
    if (top < grid.scrollTop) grid.scrollTop = top;
    else if (top > grid.scrollTop + room) grid.scrollTop = top - room;
    draw();
  }

  function sort(key) {
    const numeric = ["confidence", "agreement", "right"].includes(key);
    state.descending = state.key === key ? !state.descending : numeric;
    state.key = key;
    for (const button of grid.querySelectorAll("[data-sort]")) {
      const own = button.dataset.sort === key;
      button.parentElement.setAttribute("aria-sort", own ? (state.descending ? "descending" : "ascending") : "none");
      button.querySelector("span").textContent = own ? (state.descending ? " ▼" : " ▲") : "";
    }
    refresh();
  }

  function openRow(at) {
    if (!found.length) return;
    move(at);
    const i = found[state.active], d = rows.detail(i), full = data.details;
    $("row-title").textContent = `Row ${(rows.place(i) + 1).toLocaleString("en")}${rows.fullId(i) ? ` · ${rows.fullId(i)}` : ""}`;
    const parts = [make("p", d < 0 ? data.questions[i] : full.questions[d], "question")];
    const options = d >= 0 && full.options.length ? full.options[d] : [];
    if (options.length) parts.push(optionList(options, i));
    if (d < 0) parts.push(make("p", "The options and responses of this row are not in this file, which would be too large with those of all rows; the command “semievol export” writes them all.", "muted small"));
    parts.push(why(i), annotations(i, d));
    $("row-body").replaceChildren(...parts);
    if (!dialog.open) dialog.showModal();
    $("row-body").parentElement.scrollTop = 0;
  }

  function optionList(options, i) {
    const list = make("ol", null, "options");
    options.forEach((text, k) => {
      const letter = String.fromCharCode(65 + k);
      const chosen = rows.answer(i) === letter || rows.answer(i) === text;
      const gold = data.gold && [letter, text].includes(data.gold.names[data.gold.codes[i]]);
      const item = make("li", `${letter}. ${text}${chosen ? "  ← label" : ""}${gold ? "  ✓ gold" : ""}`, chosen ? "chosen" : "");
      list.append(item);
    });
    return list;
  }

  function why(i) {
    const box = make("div", null, "why");
    const kept = data.kept[i];
    const score = data.confidences[i] < 0 ? "it has no confidence" : `confidence ${percent(data.confidences[i], 10000)}`;
    const cut = data.threshold === null ? "" : `, the cut is ${(100 * data.threshold).toFixed(1)} %`;
    box.append(make("strong", kept ? "✓ Kept" : "✕ Dropped", kept ? "yes" : "no"));
    const reason = data.reasonNames[data.reasons[i]];
    box.append(` with the label ${rows.answer(i) ?? "(none)"}: ${kept ? "" : `${reason}; `}${score}${cut}.`);
    if (data.gold && data.gold.codes[i] >= 0) box.append(` Hidden gold: ${data.gold.names[data.gold.codes[i]]}.`);
    return box;
  }

  function annotations(i, d) {
    const table = make("table");
    const head = make("tr");
    for (const name of ["asked", "answer", "confidence", "response"]) head.append(make("th", name, name === "confidence" ? "number" : ""));
    head.querySelectorAll("th").forEach((th) => { th.scope = "col"; });
    table.append(make("caption", "The annotators' answers to this row", "hidden"), make("thead"), make("tbody"));
    table.tHead.append(head);
    data.annotators.forEach((annotator, k) => {
      const text = d < 0 ? "" : data.details.texts[k][d];
      if (annotator.justifies && annotator.answers[i] < 0 && annotator.confidences[i] < 0 && !text) return;
      const row = make("tr");
      const name = make("th", annotator.justifies ? "justification" : annotator.id);
      name.scope = "row";
      row.append(name, make("td", rows.value(annotator.answers[i]) ?? "abstained"), make("td", percent(annotator.confidences[i], 100), "number"), make("td", text || "–", "response"));
      table.tBodies[0].append(row);
    });
    return table;
  }

  $("search").addEventListener("input", refresh);
  for (const select of Object.values(choices)) select.addEventListener("change", refresh);
  $("clear").addEventListener("click", () => {
    $("search").value = "";
    for (const select of Object.values(choices)) select.value = "";
    refresh();
    $("search").focus();
  });
  for (const button of grid.querySelectorAll("[data-sort]")) button.addEventListener("click", () => sort(button.dataset.sort));
  let waiting = false;
  grid.addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; draw(); });
  });
  new ResizeObserver(() => draw()).observe(grid);
  body.addEventListener("click", (event) => {
    const row = event.target.closest(".row");
    if (row) openRow(Number(row.dataset.at));
  });
  grid.addEventListener("keydown", (event) => {
    if (event.target !== grid) return;
    const page = Math.floor(grid.clientHeight / ROW) - 2;
    const to = { ArrowDown: state.active + 1, ArrowUp: state.active - 1, PageDown: state.active + page, PageUp: state.active - page, Home: 0, End: found.length - 1 }[event.key];
    if (to !== undefined) move(to);
    else if (event.key === "Enter" || event.key === " ") openRow(state.active);
    else return;
    event.preventDefault();
  });
  $("previous").addEventListener("click", () => openRow(state.active - 1));
  $("next").addEventListener("click", () => openRow(state.active + 1));
  $("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowRight") openRow(state.active + 1);
    if (event.key === "ArrowLeft") openRow(state.active - 1);
  });
  dialog.addEventListener("close", () => grid.focus({ preventScroll: true }));
  refresh();
  grid.dataset.ready = "true";
})();
