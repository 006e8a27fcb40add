// The list of answers on the page: one card each, in the order of the ranking.

import { isTiedAbove, placeOf, tiedWith } from "./order.js";

export const letter = (x) => String.fromCharCode(65 + x);
const names = (xs) => xs.map(letter).join(" and ");

// Fills the list with cards for these answers ({text, copies}), numbered as they come.
export function build(list, answers) {
  const template = document.getElementById("answer");
  list.replaceChildren(
    ...answers.map((answer, x) => {
      const li = template.content.cloneNode(true).querySelector("li");
      li.dataset.answer = x;
      const name = li.querySelector(".name");
      const text = li.querySelector(".text");
      name.textContent = `Answer ${letter(x)}`;
      if (answer.copies > 1) name.textContent += `, given ${answer.copies} times`;
      // What a model wrote is text, and never markup.
      text.textContent = answer.text;
      if (!answer.text.trim()) {
        text.textContent = "an empty answer";
        text.classList.add("empty");
      }
      text.id = `text-${x}`;
      li.querySelector(".card").setAttribute("aria-describedby", text.id);
      li.querySelector(".up").setAttribute("aria-label", `Move answer ${letter(x)} up`);
      li.querySelector(".down").setAttribute("aria-label", `Move answer ${letter(x)} down`);
      li.querySelector(".tie").setAttribute("aria-label", `Tie answer ${letter(x)} with the one above`);
      return li;
    }),
  );
}

const card = (list, x) => list.querySelector(`li[data-answer="${x}"]`);

// Puts the cards into the order of the groups; what had the focus keeps it, and moves are eased.
export function arrange(list, groups, allBad) {
  const focused = list.contains(document.activeElement) ? document.activeElement : null;
  const before = new Map([...list.children].map((li) => [li, li.getBoundingClientRect().top]));
  const order = groups.flat();
  order.forEach((x, at) => {
    const li = card(list, x);
    if (list.children[at] !== li) list.insertBefore(li, list.children[at]);
    const place = placeOf(groups, x);
    const tied = isTiedAbove(groups, x);
    const mates = tiedWith(groups, x);
    li.classList.toggle("tied", tied);
    li.classList.toggle("tied-below", at + 1 < order.length && isTiedAbove(groups, order[at + 1]));
    li.querySelector(".place").textContent = place;
    li.querySelector(".card").setAttribute("aria-label", spoken(groups, x));
    li.querySelector(".up").setAttribute("aria-disabled", String(at === 0 && !mates.length));
    li.querySelector(".down").setAttribute("aria-disabled", String(at === order.length - 1 && !mates.length));
    li.querySelector(".tie").setAttribute("aria-disabled", String(at === 0));
    li.querySelector(".tie").setAttribute("aria-pressed", tied);
  });
  list.classList.toggle("all-bad", allBad);
  if (focused && document.activeElement !== focused) focused.focus({ preventScroll: true });
  ease(list, before);
}

function ease(list, before) {
  if (list.classList.contains("dropping")) return;
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  for (const li of list.children) {
    const by = before.get(li) - li.getBoundingClientRect().top;
    if (by) li.animate([{ transform: `translateY(${by}px)` }, {}], { duration: 160, easing: "ease-out" });
  }
}

export function spoken(groups, x) {
  const mates = tiedWith(groups, x);
  const tie = mates.length ? `, tied with ${names(mates)}` : "";
  return `Answer ${letter(x)}, place ${placeOf(groups, x)} of ${groups.length}${tie}`;
}

export function focusCard(list, x) {
  const target = card(list, x).querySelector(".card");
  target.focus({ preventScroll: true });
  target.scrollIntoView({ block: "nearest" });
}

// The number of the answer that an element belongs to, or null.
export function answerOf(element) {
  const li = element.closest?.("#answers li");
  return li ? Number(li.dataset.answer) : null;
}
