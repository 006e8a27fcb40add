// Talking with the program. Nothing counts as saved before the program has said so; while it
// cannot be reached, the same request is made again until it can.

const token = location.pathname.split("/")[1];
const waits = [1, 2, 4, 8]; // seconds between tries; the last one repeats

class Refused extends Error {}

async function once(path, body) {
  const options = body && {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-Llmft-Token": token },
    body: JSON.stringify(body),
  };
  const answer = await fetch(path, { cache: "no-store", ...options });
  const told = await answer.json();
  if (answer.ok) return told;
  if (answer.status === 403) {
    throw new Refused(
      "The program was started anew, under another address. Open the address that it printed.",
    );
  }
  if (answer.status < 500) throw new Refused(`The program does not take this: ${told.error}.`);
  throw new Error(`The program could not save: ${told.error}.`);
}

// Returns the program's answer, or null where it refuses; `trouble` is told in words, and null
// when it is over. `trouble` gets a function that tries again at once.
export async function ask(path, body, trouble) {
  for (let tries = 0; ; tries++) {
    try {
      const told = await once(path, body);
      trouble(null);
      return told;
    } catch (error) {
      if (error instanceof Refused) {
        trouble(error.message, null);
        return null;
      }
      const spoken = error.message.startsWith("The program");
      const why = spoken ? error.message : "The program cannot be reached.";
      const kept = body ? " Your ranking is kept on this page, and is not saved yet." : "";
      await new Promise((done) => {
        const again = () => {
          clearTimeout(timer);
          done();
        };
        const timer = setTimeout(again, 1000 * waits[Math.min(tries, waits.length - 1)]);
        trouble(`${why}${kept} Trying again by itself …`, again);
      });
    }
  }
}

// What is not saved yet outlives a reload of the page, or a phone that puts it to sleep. It is one
// rater's: another one, in the same window, sees the answers in another order.
const place = ({ rater, item }) => `${rater} ${item}`;

export const drafts = {
  get(told) {
    try {
      return JSON.parse(sessionStorage.getItem(place(told)));
    } catch {
      return null;
    }
  },
  set(told, draft) {
    try {
      if (draft) sessionStorage.setItem(place(told), JSON.stringify(draft));
      else sessionStorage.removeItem(place(told));
    } catch {
      // The browser keeps nothing: the draft lives as long as the page.
    }
  },
};
