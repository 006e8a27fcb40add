// The ranking as plain data: groups of answers, best first, ties in one group. No page in here.
// Every function returns new groups; `x` is an answer's number.

const find = (groups, x) => groups.findIndex((group) => group.includes(x));
const without = (groups, x) =>
  groups.map((group) => group.filter((y) => y !== x)).filter((group) => group.length);
const inserted = (groups, at, group) => [...groups.slice(0, at), group, ...groups.slice(at)];

export const separate = (count) => Array.from({ length: count }, (_, x) => [x]);

// One place up or down: out of a tie first, and past the next answer or tie else.
export function moved(groups, x, step) {
  const at = find(groups, x);
  if (groups[at].length > 1) {
    return inserted(without(groups, x), step < 0 ? at : at + 1, [x]);
  }
  const to = at + step;
  return to < 0 || to >= groups.length ? groups : inserted(without(groups, x), to, [x]);
}

// Alone in the given place, counted from 1.
export function placed(groups, x, place) {
  const rest = without(groups, x);
  return inserted(rest, Math.min(place - 1, rest.length), [x]);
}

// `=`: the answer and what is tied to it join those above; again, and they part.
export function tied(groups, x) {
  const at = find(groups, x);
  const within = groups[at].indexOf(x);
  if (within > 0) {
    const [above, below] = [groups[at].slice(0, within), groups[at].slice(within)];
    return [...groups.slice(0, at), above, below, ...groups.slice(at + 1)];
  }
  if (at === 0) return groups;
  const joined = [...groups[at - 1], ...groups[at]];
  return [...groups.slice(0, at - 1), joined, ...groups.slice(at + 1)];
}

export const isTiedAbove = (groups, x) => groups[find(groups, x)].indexOf(x) > 0;

// Dropped so that `index` of the other answers stand above; between two that are tied, it joins.
export function dropped(groups, x, index) {
  const rest = without(groups, x);
  let above = 0;
  for (const [at, group] of rest.entries()) {
    if (index === above) return inserted(rest, at, [x]);
    if (index < above + group.length) {
      const within = index - above;
      const joined = [...group.slice(0, within), x, ...group.slice(within)];
      return [...rest.slice(0, at), joined, ...rest.slice(at + 1)];
    }
    above += group.length;
  }
  return [...rest, [x]];
}

export const placeOf = (groups, x) => find(groups, x) + 1;
export const tiedWith = (groups, x) => groups[find(groups, x)].filter((y) => y !== x);
export const same = (a, b) =>
  JSON.stringify(a.map((group) => [...group].sort((x, y) => x - y))) ===
  JSON.stringify(b.map((group) => [...group].sort((x, y) => x - y)));
