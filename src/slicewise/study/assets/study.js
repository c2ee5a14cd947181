// The reader's pages: consent, then case by case the viewer and the form. The server says where the reader stands; every
// answer is sent at once and sent again until the server has it.
import { createPanel, navigate, number, VIEWS, windowOf } from "./panel.js";
import { createTools } from "./tools.js";

const $ = (id) => document.getElementById(id);
const session = crypto.getRandomValues(new Uint32Array(3)).join("-");
let state = null, panel = null, tools = null, lo = 0, hi = 1;

async function refresh() {
  state = await (await fetch("state")).json();
  document.title = state.title;
  const reading = state.place >= 0 && state.place < state.total && !state.closed;
  $("closed").hidden = !state.closed;
  $("intro").hidden = state.place >= 0 || state.closed;
  $("end").hidden = state.place < state.total || state.closed;
  $("back-end").hidden = !state.back;
  $("reading").hidden = !reading;
  if (!$("intro").hidden) intro();
  if (reading) await open();
  document.body.dataset.place = state.place;
}

function intro() {
  document.querySelector(".title").textContent = state.title;
  $("consent-text").replaceChildren(...state.consent.map((line) => element("p", line)));
  $("scale").replaceChildren(...state.anchors.map((anchor, i) => element("li", `${i + 1}: ${anchor}`)));
  $("count").textContent = `There are ${state.total} cases.`;
  $("agree").onchange = () => { $("begin").disabled = !$("agree").checked; };
  $("begin").onclick = async () => { await save("done", ""); await refresh(); };
}

function element(name, text, attributes = {}) {
  const node = document.createElement(name);
  if (text) node.textContent = text;
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

// One case ------------------------------------------------------------------------------------------------------------

async function open() {
  if (!panel) await build();
  const practice = state.place < state.practice;
  $("where").textContent = practice
    ? `Practice case ${state.place + 1} of ${state.practice}`
    : `Case ${state.place - state.practice + 1} of ${state.total - state.practice}`;
  $("practice").hidden = !practice;
  $("progress").value = state.place / state.total;
  $("back").hidden = !state.back;
  $("next").textContent = state.place + 1 === state.total ? "Finish" : "Next case";
  for (const set of document.querySelectorAll("fieldset"))
    for (const input of set.querySelectorAll("input")) input.checked = state.answers[set.dataset.item] === input.value;
  $("comment").value = state.answers.comment ?? "";
  $("form").scrollTop = 0;
  active = 0;
  ready();
  $("cover").hidden = false;
  $("cover").textContent = "reading …";
  [lo, hi] = [state.windows[0].lo, state.windows[0].hi];
  try {
    await panel.load(`volume/${state.place}`, { shape: state.shape, range: [-1024, 3071] }, lo, hi);
    $("cover").hidden = true;
    setView("all");
    tools.adopt(panel);
    press();
    read(null);
    panel.canvas.focus();
    await save("opened", "");
  } catch (error) {
    $("cover").textContent = `The volume could not be read (${error.message}). Reload the page; your answers are saved.`;
  }
}

async function build() {
  panel = await createPanel($("stage"), "Volume", {
    moved: () => read(null), windowed: setWindow, touched: () => {}, hovered: (_, hit) => read(hit),
  });
  $("stage").append($("cover"));
  [...state.windows.map((w) => w.name), "Own range"].forEach((name, i) => {
    const button = element("button", null, { type: "button" });
    button.append(element("small", String(i + 1)), name);
    button.onclick = () => panel.about && setWindow(...windowOf(state.windows, i, panel.about));
    $("windows").append(button);
  });
  for (const name of Object.keys(VIEWS)) {
    const button = element("button", name, { type: "button" });
    button.onclick = () => setView(name);
    $("views").append(button);
  }
  tools = createTools($("tools"), { panels: () => [panel], windowed: setWindow, changed: () => read(null) });
  $("pause").onclick = pause;
  $("theme").onclick = () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  };
  const rate = state.anchors.map((anchor, i) => [String(i + 1), `${i + 1} ${anchor}`]);
  state.structures.forEach((name, i) => {
    const set = element("fieldset", null, { "data-item": `s${i}` });
    set.append(element("legend", name), element("div", null, { class: "options" }));
    $("structures").append(set);
    options(set, [...rate, ["0", "n/j"]]);
    set.querySelector(".options").lastChild.classList.add("none");
    set.querySelector(".options").lastChild.title = "Cannot be judged in this volume";
  });
  options(document.querySelector('[data-item="guess"]'), [["real", "real"], ["synthetic", "synthetic"]]);
  options(document.querySelector('[data-item="confidence"]'), state.confidence.map((text, i) => [String(i + 1), text]));
}

function options(set, values) {
  for (const [value, text] of values) {
    const label = element("label"), input = element("input", null, { type: "radio", name: set.dataset.item, value });
    label.append(input, text);
    input.onchange = () => { save(set.dataset.item, value); ready(); };
    set.querySelector(".options").append(label);
  }
}

const answered = () => [...document.querySelectorAll("fieldset")].every((set) => set.querySelector("input:checked"));
function ready() { $("next").disabled = !answered() || waiting > 0 || finishing; }

let typing = null;
$("comment").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(comment, 600);
});
$("comment").addEventListener("change", comment);
function comment() {
  clearTimeout(typing);
  typing = null;
  if (($("comment").value || "") !== (state.answers.comment ?? "")) save("comment", $("comment").value);
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  finish();
});

// On to the next case, once everything before is saved.
let finishing = false;
async function finish() {
  if (!answered() || finishing) return;
  finishing = true;
  ready();
  if (typing) comment();
  const answer = await save("done", "");
  if (answer?.truth) await feedback(answer.truth);
  finishing = false;
  await refresh();
}

async function feedback(truth) {
  const right = state.answers.guess === truth;
  $("feedback-text").textContent = `${right ? "Right" : "Wrong"}: this volume is ${truth}; you said ${state.answers.guess}.`;
  $("feedback").showModal();
  await new Promise((done) => { $("feedback").onclose = done; });
}
$("understood").onclick = () => $("feedback").close();

async function back() {
  await chain;
  await save("back", "");
  await refresh();
}
$("back").onclick = back;
$("back-end").onclick = back;

function pause() {
  tools.play(false);
  $("paused").showModal();
}
$("resume").onclick = () => $("paused").close();

// Saving --------------------------------------------------------------------------------------------------------------

let chain = Promise.resolve(), waiting = 0, active = 0, refused = false;
function save(item, value) {
  const place = state.place;
  value = value.toWellFormed?.() ?? value;
  state.answers[item] = value;
  waiting += 1;
  tell("saving …");
  chain = chain.then(() => send({ place, item, value, session, active_ms: Math.round(active) })).then((answer) => {
    waiting -= 1;
    if (!waiting && !refused) tell("saved");
    ready();
    return answer;
  });
  return chain;
}

async function send(answer) {
  for (let pause = 500; ; pause = Math.min(pause * 2, 8000)) {
    try {
      const reply = await fetch("answers", { method: "POST", body: JSON.stringify(answer), headers: { "Content-Type": "application/json" } });
      if (reply.ok) { refused = false; return await reply.json(); }
      if (reply.status === 409) { // open elsewhere at another case, or closed: what the server has is what counts
        if (answer.item !== "opened") setTimeout(() => location.reload(), 800);
        return null;
      }
      if (reply.status < 500) { // this one answer cannot be stored; the others continue
        refused = true;
        tell(`not saved: ${(await reply.json()).error}`, true);
        return null;
      }
    } catch { /* the network or the server is away */ }
    tell("not saved yet, trying again", true);
    await new Promise((done) => setTimeout(done, pause));
  }
}

function tell(text, wrong = false) {
  $("saved").textContent = text;
  $("saved").classList.toggle("wrong", wrong);
}
addEventListener("beforeunload", (event) => { if (waiting || typing) event.preventDefault(); });

// Reading time: while the page is seen, and something was done in the last minute.
let last = performance.now(), touched = last;
for (const kind of ["pointermove", "pointerdown", "wheel", "keydown", "touchmove"])
  addEventListener(kind, () => { touched = performance.now(); }, { passive: true, capture: true });
setInterval(() => {
  const now = performance.now();
  if (!document.hidden && !$("paused").open && now - touched < 60000) active += Math.min(now - last, 2000);
  last = now;
}, 250);

// Picture and keys ----------------------------------------------------------------------------------------------------

function setWindow(newLo, newHi) {
  [lo, hi] = [newLo, newHi];
  panel.setWindow(lo, hi);
  press();
  read(null);
}
function setView(name) {
  panel.setView(name);
  [...$("views").children].forEach((b) => b.setAttribute("aria-pressed", String(b.textContent === name)));
}
function press() {
  [...$("windows").children].forEach((button, i) => {
    const [l, h] = windowOf(state.windows, i, panel.about ?? { range: [-1024, 3071] });
    button.setAttribute("aria-pressed", String(l === lo && h === hi));
  });
  tools.window(lo, hi);
}
function read(hit) {
  if (!panel?.about) return;
  const at = hit ?? { voxel: panel.voxel(), hu: panel.hu(panel.voxel()) };
  $("readout").innerHTML =
    `<span><b>${number(at.hu)}</b> HU ${hit ? "under the cursor" : "at the crosshair"}</span>` +
    `<span>slice ${state.shape[0] - at.voxel[2]} of ${state.shape[0]}</span><span>W ${number(hi - lo)} L ${number((hi + lo) / 2)}</span>` +
    (panel.slab ? `<span>slab of ${panel.slab.mm.toFixed(1)} mm</span>` : "") +
    (tools.said(panel) ? `<span><b>${tools.said(panel)}</b></span>` : "");
}

addEventListener("keydown", (event) => {
  if (!state || $("reading").hidden || document.querySelector("dialog[open]")) return;
  if (event.key === "Enter" && event.ctrlKey) { event.preventDefault(); finish(); return; } // waits for what is being saved
  if (event.key === "Escape") { panel.canvas.focus(); return; }
  const set = event.target.closest?.("fieldset");
  if (set) {
    const input = [...set.querySelectorAll("input")].find((i) => i.value === event.key) ??
      (/^[1-3]$/.test(event.key) ? set.querySelectorAll("input")[Number(event.key) - 1] : null);
    if (input) {
      event.preventDefault();
      input.click();
      const sets = [...document.querySelectorAll("fieldset")], after = sets[sets.indexOf(set) + 1];
      (after ? after.querySelector("input:checked") ?? after.querySelector("input") : $("comment")).focus();
    }
    return;
  }
  if (event.target.closest?.("textarea, input, select")) return;
  if (event.target.closest?.("button") && ["Enter", " "].includes(event.key)) return;
  if (tools.key(event) || navigate(panel, event, setWindow, state.windows)) { event.preventDefault(); return; }
  if (event.key.toLowerCase() === "r" && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    const open = [...document.querySelectorAll("fieldset")].find((s) => !s.querySelector("input:checked"));
    (open?.querySelector("input") ?? $("next")).focus();
  }
}, true);

refresh().catch((error) => document.body.append(element("p", `The study could not start: ${error.message}`, { class: "bad" })));
