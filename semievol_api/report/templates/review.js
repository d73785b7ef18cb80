// Review by keyboard. The page moves on only after the server has the decision on disk.
(async () => {
  const $ = (id) => document.getElementById(id);
  const make = (tag, text, name) => {
    const node = document.createElement(tag);
    if (text !== undefined && text !== null) node.textContent = text;
    if (name) node.className = name;
    return node;
  };
  const KEYS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
  let rows = [], labels = [], decided = new Map(), at = 0, busy = false;
  const waiting = [];

  async function ask(path, body) {
    const options = body === undefined ? {} : { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } };
    const reply = await fetch(path, options);
    const value = await reply.json();
    if (!reply.ok) throw new Error(value.error ?? reply.statusText);
    return value;
  }

  // Keys typed while a decision is being saved wait their turn, in order.
  function act(step) {
    waiting.push(step);
    if (!busy) run();
  }
  async function run() {
    busy = true;
    while (waiting.length) {
      try {
        await waiting[0]();
        $("problem").hidden = true;
      } catch (error) {
        waiting.length = 0;
        const away = error instanceof TypeError;
        $("problem").textContent = away
          ? "Not saved: the review command is not running any more. Everything before this row is on disk. Start it again and open the address that it prints."
          : `Not saved: ${error.message}. Try again.`;
        $("problem").hidden = false;
        break;
      }
      waiting.shift();
    }
    busy = false;
  }

  const current = () => rows[at];
  const choices = (row) => (row.options.length ? row.options.map((text, i) => [KEYS[i], text]) : labels.map((text) => [text, ""]));

  const decide = (action, answer) => act(async () => {
    const row = current();
    if (!row) return;
    if (action === "accept" && row.answer === null) { say("No annotator gave an answer: choose one, or skip."); return; }
    const made = await ask("decide", { example_id: row.id, action, answer: action === "skip" ? null : answer ?? row.answer });
    decided.set(row.id, made);
    say(made.action === "skip" ? "Skipped." : `${made.action === "accept" ? "Accepted" : "Corrected to"} ${made.answer}. Saved.`);
    next();
  });

  const undo = () => act(async () => {
    const { undone } = await ask("undo", {});
    if (undone === null) { say("There is nothing to undo."); return; }
    decided.delete(undone);
    const place = rows.findIndex((row) => row.id === undone);
    if (place >= 0) at = place;
    say(place >= 0 ? "Taken back: decide again." : "A decision of an earlier sitting was taken back; its row comes again at the next start.");
    show();
  });

  function say(text) { $("last").textContent = text; }

  function next() {
    const free = rows.findIndex((row, i) => i > at && !decided.has(row.id));
    at = free >= 0 ? free : rows.findIndex((row) => !decided.has(row.id));
    if (at < 0) at = rows.length;
    show();
  }

  function show() {
    const row = current();
    const done = rows.filter((r) => decided.has(r.id)).length;
    $("progress").max = Math.max(rows.length, 1);
    $("progress").value = done;
    $("progress-text").textContent = `${done} of ${rows.length} decided`;
    $("card").hidden = !row;
    $("done").hidden = Boolean(row);
    $("keys").hidden = !row;
    if (!row) return;
    $("card").dataset.id = row.id;
    const why = row.audit ? "drawn at random, to audit" : "among the least certain";
    $("about").textContent = [row.category, why, row.kept ? "kept by the rule" : `dropped: ${row.reason}`].filter(Boolean).join(" · ");
    $("question").textContent = row.question;
    const sure = row.confidence === null ? "" : ` with confidence ${(100 * row.confidence).toFixed(1)} %`;
    $("proposal").textContent = row.answer === null ? "No answer was put forward." : `Put forward: ${row.answer}${sure}.`;
    const told = row.fields.map(({ name, confidence, sure }) => `${name} ${(100 * confidence).toFixed(1)} %${sure ? "" : " (below the cut)"}`);
    $("fields").hidden = !told.length;
    $("fields").textContent = `By field, least certain first: ${told.join(", ")}.`;
    $("accept").disabled = row.answer === null;
    showChoices(row);
    showSaid(row);
    const closed = choices(row).length > 0;
    $("typed").hidden = closed;
    $("answer").value = told.length ? row.answer ?? "" : "";
    const pick = row.options.length ? `${KEYS[0]} to ${KEYS[row.options.length - 1]}` : closed ? `1 to ${Math.min(labels.length, 9)}` : "E";
    $("keys").textContent = `Enter accepts, ${pick} ${closed ? "chooses another answer" : "types another answer"}, Space skips, Backspace takes the last decision back.`;
  }

  function showChoices(row) {
    const annotators = row.annotations.filter((s) => s.by !== "justification");
    $("choices").replaceChildren(...choices(row).map(([answer, text], i) => {
      const item = make("li"), button = make("button");
      button.type = "button";
      const votes = annotators.filter((s) => s.answer === answer).length;
      button.append(make("kbd", row.options.length ? answer : String(i + 1)), make("span", text || answer));
      if (annotators.length) button.append(make("span", `${votes} of ${annotators.length}${row.answer === answer ? ", put forward" : ""}`, "votes"));
      if (row.answer === answer) button.classList.add("proposed");
      button.addEventListener("click", () => decide("correct", answer));
      item.append(button);
      return item;
    }));
  }

  function showSaid(row) {
    const table = make("table"), head = make("tr");
    for (const name of ["asked", "answer", "response"]) { const th = make("th", name); th.scope = "col"; head.append(th); }
    table.append(make("thead"), make("tbody"));
    table.tHead.append(head);
    for (const { by, answer, text } of row.annotations) {
      const line = make("tr"), name = make("th", by);
      name.scope = "row";
      line.append(name, make("td", answer ?? "abstained"), make("td", text, "response"));
      table.tBodies[0].append(line);
    }
    $("annotations-body").replaceChildren(table);
  }

  function choose(key) {
    const row = current();
    const index = row.options.length ? KEYS.indexOf(key.toUpperCase()) : /^[1-9]$/.test(key) ? Number(key) - 1 : -1;
    const choice = choices(row)[index];
    if (choice) decide("correct", choice[0]);
    return Boolean(choice);
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    if (event.target.matches("input")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const pressed = event.target.closest("button, summary");
    if (event.key === "Backspace") undo();
    else if (!current()) return;
    else if (event.key === "Enter" && !pressed) decide("accept");
    else if (event.key === " " && !pressed) decide("skip");
    else if ((event.key === "e" || event.key === "E") && !choices(current()).length) $("answer").focus();
    else if (event.key.length !== 1 || !choose(event.key)) return;
    event.preventDefault();
  });
  $("accept").addEventListener("click", (event) => { event.currentTarget.blur(); decide("accept"); });
  $("skip").addEventListener("click", (event) => { event.currentTarget.blur(); decide("skip"); });
  $("undo").addEventListener("click", (event) => { event.currentTarget.blur(); undo(); });
  $("undo-last").addEventListener("click", undo);
  $("typed").addEventListener("submit", (event) => {
    event.preventDefault();
    const answer = $("answer").value.trim();
    if (!answer) return;
    $("answer").blur();
    decide("correct", answer);
  });

  act(async () => {
    const state = await ask("rows.json");
    ({ rows, labels } = state);
    decided = new Map(Object.entries(state.decided));
    at = -1;
    next();
    document.body.dataset.ready = "true";
  });
})();
