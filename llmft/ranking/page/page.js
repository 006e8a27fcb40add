// One prompt after another: what is shown, what the rater does, and what is saved.

import { answerOf, arrange, build, focusCard, spoken } from "./cards.js";
import { draggable } from "./drag.js";
import * as order from "./order.js";
import { ask, drafts } from "./saving.js";
import { $, progress, say, showDone, status, trouble, turn } from "./words.js";

const list = $("answers");
// The prompt on the page (null: none), its ranking, and whether a request is under way.
// touched: the rater did something to it, or has said that the order is right as it stands.
const now = { told: null, groups: [], allBad: false, touched: false, busy: false };
const watch = { spent: 0, since: 0 }; // counts only while somebody can see the page

async function load(at) {
  busy(true);
  const told = await ask(at === null ? "api/item" : `api/item?at=${at}`, null, trouble);
  busy(false);
  if (told) show(told);
}

function show(told) {
  progress(told);
  now.told = told;
  const finished = told.at === null;
  $("work").hidden = $("actions").hidden = finished;
  $("done").hidden = !finished;
  if (finished) showDone(told);
  else showItem(told);
  scrollTo({ top: 0, behavior: "instant" });
  $(finished ? "done-title" : "title").focus({ preventScroll: true });
}

function showItem(told) {
  const draft = drafts.get(told);
  const fits = draft && draft.groups.flat().length === told.answers.length;
  const start = (fits && draft) || {
    groups: told.said?.ranking ?? order.separate(told.answers.length),
    allBad: told.said?.all_bad ?? false,
  };
  const touched = Boolean(fits || told.said);
  Object.assign(now, { groups: start.groups, allBad: start.allBad, touched });
  Object.assign(watch, { spent: 0, since: performance.now() });
  $("title").textContent = `Prompt ${told.at + 1} of ${told.total}`;
  document.title = `Prompt ${told.at + 1} of ${told.total}: rank the answers`;
  $("most").textContent = told.answers.length;
  $("turns").replaceChildren(...told.turns.map(turn));
  $("back").disabled = told.at === 0;
  build(list, told.answers);
  draw();
}

function draw() {
  arrange(list, now.groups, now.allBad);
  $("bad").setAttribute("aria-pressed", now.allBad);
  const changed = !unchanged();
  drafts.set(now.told, changed ? { groups: now.groups, allBad: now.allBad } : null);
  if (changed) status("Not saved yet", "unsaved");
  else status(now.told.said ? "Saved" : "", "");
}

function unchanged() {
  const { said, answers } = now.told;
  const start = said?.ranking ?? order.separate(answers.length);
  return now.allBad === (said?.all_bad ?? false) && (now.allBad || order.same(now.groups, start));
}

function change(groups, x) {
  if (now.busy) return;
  const was = JSON.stringify(now.groups);
  Object.assign(now, { groups, allBad: false, touched: true });
  draw();
  say(JSON.stringify(groups) === was ? `${spoken(groups, x)}, as before` : spoken(groups, x));
}

function toggleBad() {
  if (now.busy) return;
  Object.assign(now, { allBad: !now.allBad, touched: true });
  draw();
  say(now.allBad ? "All answers are marked as bad" : "Not all answers are bad");
}

async function save() {
  if (now.busy) return;
  const { told } = now;
  if (told.said && unchanged()) {
    load(told.next ?? told.total); // looked at again, and left as it is
    return;
  }
  if (!now.touched) {
    // The order is random at first: nobody shall save it by a slip.
    now.touched = true;
    status("Right as it stands? Then save once more", "unsaved");
    return;
  }
  busy(true);
  status("Saving …", "unsaved");
  pause();
  const seconds = watch.spent / 1000;
  const body = { item: told.item, groups: now.groups, all_bad: now.allBad, seconds };
  const answer = await ask("api/decide", body, trouble);
  busy(false);
  if (!answer) {
    status("Not saved yet", "unsaved");
    resume();
    return;
  }
  drafts.set(told, null);
  progress(answer);
  await load(answer.next ?? answer.total);
  status("Saved", "fresh");
}

function back() {
  if (now.busy) return;
  if (now.told.at === null) load(now.told.total - 1);
  else if (now.told.at > 0) load(now.told.at - 1);
}

function skip() {
  if (now.busy || now.told.at === null) return;
  if (now.told.next === null || now.told.next === now.told.at) say("No other prompt is left");
  else load(now.told.next);
}

async function finish() {
  const answer = await ask("api/finish", {}, trouble);
  if (!answer) return;
  $("done").hidden = true;
  $("bye").hidden = false;
  $("bye-title").focus();
}

function busy(is) {
  now.busy = is;
  document.body.classList.toggle("busy", is);
  $("work").setAttribute("aria-busy", is);
}

function pause() {
  if (watch.since) watch.spent += performance.now() - watch.since;
  watch.since = 0;
}

function resume() {
  watch.since ||= performance.now();
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || !now.told) return;
  const { key, target } = event;
  const act = keyAct(key, target);
  if (!act || now.busy) return;
  event.preventDefault();
  act();
}

// What a key does where the focus is, or undefined: then the browser does what it always does.
function keyAct(key, target) {
  const x = answerOf(target);
  const control = target.closest?.("button, summary, input");
  const ranking = now.told.at !== null;
  if (ranking && x !== null) {
    if (key === "ArrowUp") return () => change(order.moved(now.groups, x, -1), x);
    if (key === "ArrowDown") return () => change(order.moved(now.groups, x, 1), x);
    if (key === "=") return () => change(order.tied(now.groups, x), x);
    if (key === "ArrowLeft" || key === "ArrowRight") {
      const flat = now.groups.flat();
      const to = flat[flat.indexOf(x) + (key === "ArrowLeft" ? -1 : 1)];
      return () => to !== undefined && focusCard(list, to);
    }
    if (/^[1-9]$/.test(key) && Number(key) <= now.told.answers.length) {
      return () => change(order.placed(now.groups, x, Number(key)), x);
    }
  }
  if (key === "Backspace") return back;
  if (key === "Enter" && !control && ranking) return save;
  if ($("letters").checked || x !== null) {
    return { b: ranking && toggleBad, p: back, s: ranking && skip }[key.toLowerCase()] || undefined;
  }
  return undefined;
}

list.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  const x = answerOf(event.target);
  if (!button || x === null) return;
  // After a mouse or a finger the card has the focus, so that Enter saves and moves nothing.
  if (event.detail > 0) focusCard(list, x);
  if (button.getAttribute("aria-disabled") === "true") say(`${spoken(now.groups, x)}, as before`);
  else if (button.classList.contains("tie")) change(order.tied(now.groups, x), x);
  else change(order.moved(now.groups, x, button.classList.contains("up") ? -1 : 1), x);
});
draggable(
  list,
  (x, index, elsewhere) => {
    if (elsewhere) change(order.dropped(now.groups, x, index), x);
    focusCard(list, x);
  },
  () => !now.busy,
);
document.addEventListener("keydown", onKey);
document.addEventListener("visibilitychange", () => (document.hidden ? pause() : resume()));
for (const [id, act] of Object.entries({ back, bad: toggleBad, skip, save, again: back, finish })) {
  $(id).addEventListener("click", act);
}
load(null);
