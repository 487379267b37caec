// The page on which answers are ranked. `element` and `server` are given by Gradio; WORDS and NAMED (whether the rater's
// name is that of the login) stand above. What people and models wrote is put in as text (textContent), never as markup.
const one = (selector) => element.querySelector(selector);
const all = (selector) => [...element.querySelectorAll(selector)];
const make = (tag, kind, text) => {
  const made = document.createElement(tag);
  if (kind) made.className = kind;
  if (text !== undefined) made.textContent = text;
  return made;
};
const DRAFT = "rank draft", NAME = "rank name";
let rater = "", task = null, places = [], busy = false;
let tieNext = false, order = []; // by keyboard: the next answer ties with the last one; the answers as they were pressed

for (const each of all("[data-word]")) each.textContent = WORDS[each.dataset.word];

const fields = Object.fromEntries(all(".field").map((field) => [field.dataset.field, field]));
const typed = (name) => fields[name].querySelector("textarea").value;
const type = (name, text) => {
  fields[name].querySelector("textarea").value = text || "";
  fields[name].hidden = !text;
};
const complain = (text) => {
  one(".problem").hidden = !text;
  one(".problem").textContent = text || "";
};
const fill = (text, values) => text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
const interval = (found) =>
  `${found.value.toFixed(2)} [${found.low.toFixed(2)}, ${found.high.toFixed(2)}]`;

// What is asked of the server. Nothing on the page changes until it has answered.
async function ask(name, question) {
  if (busy) return null;
  busy = true;
  element.querySelector(".rank").setAttribute("aria-busy", "true");
  try {
    const said = await server[name]({ rater, ...question });
    if (!said || typeof said !== "object" || !("mine" in said || "error" in said)) throw new Error("no answer");
    complain(said.error);
    return said.error ? null : said;
  } catch (error) {
    complain(WORDS.not_saved);
    return null;
  } finally {
    busy = false;
    element.querySelector(".rank").removeAttribute("aria-busy");
  }
}

function keepDraft() {
  const draft = { rater, row: task && task.row, places, note: typed("note"), better: typed("better") };
  sessionStorage.setItem(DRAFT, JSON.stringify(draft));
}

// What this person had on the page before it was loaded again, or {}.
function keptDraft() {
  const draft = JSON.parse(sessionStorage.getItem(DRAFT) || "{}");
  return draft.rater === rater ? draft : {};
}

function showState(said) {
  rater = said.rater;
  one(".start").hidden = true;
  one(".progress").textContent = fill(WORDS.progress, said);
  one(".who").textContent = rater;
  const found = said.agreement, tau = found.kendall_tau, alpha = found.krippendorff_alpha;
  one(".agreement").textContent = found.prompts
    ? fill(WORDS.agreement, {
        prompts: found.prompts,
        tau: tau ? interval(tau) : "–",
        alpha: alpha ? interval(alpha) : "–",
      })
    : WORDS.no_agreement;
}

function show(said, before) {
  if (!said) return;
  showState(said);
  task = said.task;
  one(".work").hidden = !task;
  one(".finished").hidden = Boolean(task);
  if (!task) {
    sessionStorage.removeItem(DRAFT);
    one("[data-does=again]").focus(); // what an Enter too many may press: not Undo
    return;
  }
  const number = task.answers.length;
  places = Array(number).fill(null);
  type("note", "");
  type("better", "");
  const draft = keptDraft();
  if (before) {
    if (before.ranks) places = before.ranks;
    type("note", before.note);
    type("better", before.better_answer);
  } else if (draft.row === task.row && draft.places.length === number) {
    places = draft.places;
    type("note", draft.note);
    type("better", draft.better);
  }
  const prompt = one(".prompt");
  prompt.replaceChildren();
  for (const turn of task.prompt) {
    prompt.append(make("div", "role", WORDS.roles[turn.role] || turn.role));
    const text = make("div", "text", turn.content);
    text.dir = "auto";
    prompt.append(text);
  }
  one(".answers").replaceChildren(...task.answers.map(card));
  showPlaces();
  window.scrollTo(0, 0);
  prompt.scrollTop = 0;
  document.activeElement?.blur(); // the keys are the page's
}

function chip(answer) {
  const made = make("span", "chip", answer + 1);
  made.dataset.answer = answer;
  made.setAttribute("aria-hidden", "true");
  return made;
}

function card(text, answer) {
  const made = make("article", "answer");
  made.dataset.answer = answer;
  made.setAttribute("aria-label", fill(WORDS.answer, { number: answer + 1 }));
  const shown = make("div", "text", text.trim() ? text : WORDS.empty);
  shown.dir = "auto";
  const row = make("div", "row");
  row.setAttribute("role", "group");
  row.append(chip(answer));
  for (let place = 0; place < task.answers.length; place++) {
    const button = make("button", "", WORDS.places[place] || String(place + 1));
    button.type = "button";
    button.dataset.place = place;
    button.setAttribute("aria-label", fill(WORDS.put, { number: answer + 1, place: place + 1 }));
    button.onclick = (event) => {
      places[answer] = places[answer] === place ? null : place;
      showPlaces();
      if (event.detail) button.blur(); // after a click Enter saves; by keyboard the button keeps the focus
    };
    row.append(button);
  }
  made.append(row, shown);
  return made;
}

const missing = () => places.flatMap((place, answer) => (place === null ? [answer] : []));
const last = () => Math.max(-1, ...places.filter((place) => place !== null));

function showPlaces() {
  const slots = places.map((_, place) => {
    const slot = make("li", "", WORDS.places[place] || String(place + 1));
    slot.dataset.place = place;
    for (const answer of places.keys()) if (places[answer] === place) slot.append(chip(answer));
    return slot;
  });
  one(".places").replaceChildren(...slots);
  for (const each of all(".answer")) {
    const place = places[each.dataset.answer];
    each.classList.toggle("placed", place !== null);
    for (const button of each.querySelectorAll("button"))
      button.setAttribute("aria-pressed", String(Number(button.dataset.place) === place));
  }
  for (const each of all(".chip")) each.classList.toggle("placed", places[each.dataset.answer] !== null);
  one("[data-does=save]").disabled = missing().length > 1;
  one("[data-does=equal]").setAttribute("aria-pressed", String(tieNext));
  keepDraft();
}

// By keyboard: numbers of the answers from the best to the worst, = between equal ones.
function pressed(answer) {
  if (!task || answer >= places.length || places[answer] !== null) return;
  places[answer] = tieNext && last() >= 0 ? last() : Math.min(last() + 1, places.length - 1);
  tieNext = false;
  order.push(answer);
  showPlaces();
}
function equal() {
  if (last() < 0) places.fill(0); // = first of all: all are equal
  else tieNext = !tieNext;
  showPlaces();
}
function takeBack() {
  tieNext = false;
  let answer = order.pop();
  if (answer === undefined || places[answer] === null) answer = places.indexOf(last());
  if (answer >= 0) places[answer] = null;
  if (missing().length === places.length) order = [];
  showPlaces();
}

async function judge(judgement) {
  const given = { note: typed("note"), better_answer: typed("better") };
  const said = await ask("ranking_judge", { row: task.row, judgement: { ...given, ...judgement } });
  if (!said) return;
  sessionStorage.removeItem(DRAFT);
  tieNext = false;
  order = [];
  show(said);
}

const does = {
  save() {
    const left = missing();
    if (left.length > 1) return complain(WORDS.unplaced);
    // The one that is left takes the first free place: where the worse answer was placed first, that is above it.
    const free = places.findIndex((_, place) => !places.includes(place));
    const ranks = places.map((place) => (place === null ? (tieNext ? last() : free) : place));
    judge({ ranks });
  },
  equal,
  bad: () => judge({ all_bad: true }),
  skip: () => judge({ skipped: true }),
  async undo() {
    const said = await ask("ranking_undo", {});
    if (!said) return;
    if (!said.before) return complain(WORDS.nothing_to_undo);
    tieNext = false;
    order = [];
    show(said, said.before);
  },
  note: () => write("note"),
  better: () => write("better"),
  again: async () => show(await ask("ranking_task", {})),
  leave() {
    sessionStorage.removeItem(NAME);
    if (NAMED) return location.assign("logout");
    for (const part of [".work", ".finished"]) one(part).hidden = true;
    one(".agreement").textContent = "";
    task = null;
    begin();
  },
};
function write(name) {
  fields[name].hidden = false;
  fields[name].querySelector("textarea").focus();
}
for (const button of all("[data-does]"))
  button.onclick = (event) => {
    if (event.detail) button.blur();
    does[button.dataset.does]();
  };
for (const field of Object.values(fields)) field.querySelector("textarea").oninput = keepDraft;

const KEYS = { b: "bad", s: "skip", u: "undo", n: "note", a: "better", "=": "equal", "＝": "equal" };
function onKey(event) {
  if (!element.isConnected) return document.removeEventListener("keydown", onKey);
  const writing = event.target.matches?.("input, textarea, select, [contenteditable]");
  if (writing && event.target.tagName === "TEXTAREA" && element.contains(event.target)) {
    if (event.key === "Escape") event.target.blur();
    else if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && task) does.save();
    else return;
    return event.preventDefault();
  }
  if (writing || event.ctrlKey || event.metaKey || event.altKey || event.isComposing || event.repeat) return;
  const finished = !one(".finished").hidden;
  if (!task && !(finished && event.key.toLowerCase() === "u")) return;
  if (event.key === "Enter") {
    if (event.target.closest?.("button, a, summary")) return; // it presses that
    does.save();
  } else if (/^[0-9]$/.test(event.key)) pressed((Number(event.key) + 9) % 10);
  else if (event.key === "Backspace") takeBack();
  else if (KEYS[event.key.toLowerCase()]) does[KEYS[event.key.toLowerCase()]]();
  else return;
  event.preventDefault();
}
document.addEventListener("keydown", onKey);

// By drag, with mouse, pen or finger: a number to a place.
element.addEventListener("pointerdown", (event) => {
  const from = event.target.closest(".chip");
  if (!from || !task || event.button) return;
  event.preventDefault();
  const answer = Number(from.dataset.answer), ghost = chip(answer);
  ghost.classList.add("dragged");
  let over = null, moved = false;
  const move = (now) => {
    if (!moved && Math.hypot(now.clientX - event.clientX, now.clientY - event.clientY) < 5) return;
    if (!moved) one(".rank").append(ghost);
    moved = true;
    ghost.style.left = `${now.clientX}px`;
    ghost.style.top = `${now.clientY}px`;
    const slot = document.elementFromPoint(now.clientX, now.clientY)?.closest(".places li");
    if (over !== slot) over?.classList.remove("over");
    over = slot;
    over?.classList.add("over");
  };
  const stop = (now) => {
    for (const name of ["pointermove", "pointerup", "pointercancel"])
      document.removeEventListener(name, name === "pointermove" ? move : stop);
    ghost.remove();
    if (now.type === "pointercancel") return;
    if (!moved) pressed(answer); // a tap is as the key of that number
    else {
      places[answer] = over ? Number(over.dataset.place) : null;
      showPlaces();
    }
  };
  document.addEventListener("pointermove", move);
  document.addEventListener("pointerup", stop);
  document.addEventListener("pointercancel", stop);
});

function begin() {
  const form = one(".start"), input = one("[name=rater]");
  form.hidden = false;
  one(".start label").hidden = NAMED;
  input.disabled = NAMED; // an empty one would keep the form from being sent
  input.value = NAMED ? "" : localStorage.getItem(NAME) || "";
  (NAMED ? one(".start button") : input).focus();
  form.onsubmit = async (event) => {
    event.preventDefault();
    rater = input.value.trim();
    const said = await ask("ranking_task", { row: keptDraft().row });
    if (!said) return;
    if (!NAMED) localStorage.setItem(NAME, said.rater);
    sessionStorage.setItem(NAME, said.rater);
    document.activeElement?.blur();
    show(said);
  };
}
// A page that is loaded again, in the same tab, goes on where it was.
rater = sessionStorage.getItem(NAME) || "";
if (rater) ask("ranking_task", { row: keptDraft().row }).then((said) => (said ? show(said) : begin()));
else begin();
