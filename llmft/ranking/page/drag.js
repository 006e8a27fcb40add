// Dragging an answer by its handle, with mouse, pen or finger. The others make room as it passes;
// the order changes when it is dropped. Escape puts it back.

const EDGE = 72; // pixels from the window's edge where the page begins to scroll

export function draggable(list, dropped, allowed) {
  list.addEventListener("pointerdown", (event) => {
    const handle = event.target.closest(".handle");
    if (!handle || event.button !== 0 || !allowed()) return;
    event.preventDefault();
    begin(list, handle.closest("li"), event, dropped);
  });
}

function begin(list, item, event, dropped) {
  const items = [...list.children];
  const from = items.indexOf(item);
  const top = (li) => li.getBoundingClientRect().top + scrollY;
  const boxes = items.map((li) => ({ top: top(li), height: li.offsetHeight }));
  const room = from + 1 < boxes.length ? boxes[from + 1].top - boxes[from].top
    : boxes[from].top - boxes[from - 1].top - boxes[from - 1].height + boxes[from].height;
  const start = event.clientY + scrollY;
  let y = event.clientY;
  let to = from;
  let frame = 0;

  const lay = () => {
    const by = y + scrollY - start;
    const middle = boxes[from].top + boxes[from].height / 2 + by;
    to = boxes.filter((box, at) => at !== from && box.top + box.height / 2 < middle).length;
    items.forEach((li, at) => {
      let shift = 0;
      if (at > from && at <= to) shift = -room;
      if (at < from && at >= to) shift = room;
      li.style.transform = li === item ? `translateY(${by}px)` : shift ? `translateY(${shift}px)` : "";
    });
  };
  const scroll = () => {
    const beyond = Math.min(0, y - EDGE) || Math.max(0, y + EDGE - innerHeight);
    if (beyond) {
      scrollBy({ top: beyond / 6, behavior: "instant" });
      lay();
    }
    frame = requestAnimationFrame(scroll);
  };
  const move = (next) => {
    if (next.pointerId !== event.pointerId) return;
    y = next.clientY;
    lay();
  };
  const end = (taken) => {
    cancelAnimationFrame(frame);
    stop.abort();
    // Where it is dropped it is already: nothing is eased once more.
    list.classList.replace("dragging", "dropping");
    item.classList.remove("held");
    for (const li of items) li.style.transform = "";
    if (taken) dropped(Number(item.dataset.answer), to, to !== from);
    list.classList.remove("dropping");
  };
  const stop = new AbortController();
  const on = (target, name, act) =>
    target.addEventListener(name, act, { signal: stop.signal, capture: true });
  const own = (act) => (next) => next.pointerId === event.pointerId && act();
  on(list, "pointermove", move);
  on(list, "pointerup", own(() => end(true)));
  on(list, "pointercancel", own(() => end(false)));
  on(window, "blur", () => end(false));
  on(window, "keydown", (key) => {
    if (key.key === "Escape") end(false);
    key.preventDefault();
    key.stopImmediatePropagation(); // no key moves an answer while one is in the hand
  });
  list.setPointerCapture(event.pointerId);
  list.classList.add("dragging");
  item.classList.add("held");
  scroll();
}
