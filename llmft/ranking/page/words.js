// What the page says: how far it is, what went wrong, the prompt, and how it ended.

export const $ = (id) => document.getElementById(id);

export function say(text) {
  // The same words twice in a row are read twice only if the text changes.
  $("live").textContent = $("live").textContent === text ? `${text}\u00a0` : text;
}

export function trouble(text, again) {
  $("banner").hidden = text === null;
  if (text === null) return;
  if ($("trouble").textContent !== text) $("trouble").textContent = text;
  $("retry").hidden = !again;
  $("retry").onclick = again;
}

export function status(text, kind = "") {
  $("saved").textContent = text;
  $("saved").className = kind;
}

export function progress(told) {
  const left = told.total - told.rated;
  $("rater").textContent = told.rater;
  $("count").textContent = `${told.rated} of ${told.total} rated, ${left} left`;
  $("progress").max = told.total;
  $("progress").value = told.rated;
}

export function turn({ role, content }) {
  const box = document.createElement("div");
  box.className = `turn ${["user", "assistant", "system"].includes(role) ? role : ""}`;
  if (role) {
    const name = document.createElement("p");
    name.className = "role";
    name.textContent = role;
    box.append(name);
  }
  const text = document.createElement("div");
  text.className = "text";
  text.dir = "auto";
  text.textContent = content;
  box.append(text);
  return box;
}

export function showDone({ rated, total, done }) {
  document.title = "Done";
  const more = done.left ? ` ${done.left} more are left in the file for another time.` : "";
  $("done-title").textContent = done.left ? "Done for this time" : "Everything is rated";
  $("done-text").textContent = `Thank you. ${rated} of ${total} are rated and saved.${more}`;
  $("agreement").hidden = done.agreement === null;
  if (done.agreement !== null) {
    const alpha = done.agreement.toFixed(2);
    $("agreement").textContent =
      `Agreement between raters: ${alpha} (Krippendorff's alpha; 1 is perfect, 0 as by chance).`;
  }
  $("go-on").hidden = !done.go_on || done.left > 0;
  $("command").textContent = done.go_on;
}
