// The page: takes pictures from wherever they come, and sends a few at a time.

import { Card } from "./card.js";
import { element, percent } from "./elements.js";
import { showModel } from "./model.js";
import { Refusal, explain, hasKey } from "./service.js";

const AT_ONCE = 2;
const MOST_MESSAGES = 20; // that stay: screen readers read them later

const answers = document.getElementById("answers");
const chosen = document.getElementById("file");
const status = document.getElementById("status");

const waiting = [];
let senders = 0;

/** Make a card for each file, the first on top, and send them when their turn comes. */
function ask(files) {
  if (!hasKey()) return;
  const cards = [...files].map((file) => new Card(file));
  answers.prepend(...cards.map((card) => card.item));
  for (const card of cards) {
    card.stop.signal.addEventListener("abort", () => remove(card));
    waiting.push(card);
    if (senders < AT_ONCE) sendWaiting();
  }
}

async function sendWaiting() {
  senders++;
  while (waiting.length) await send(waiting.shift());
  senders--;
}

async function send(card) {
  const { name } = card.file;
  try {
    const { answer, milliseconds } = await explain(card.file, card.stop.signal, card);
    card.showAnswer(answer, milliseconds);
    say(`${name}: ${answer.words}, ${percent(answer.cat_probability)}`);
  } catch (error) {
    if (card.stop.signal.aborted) return; // its card is gone already
    const title = error instanceof Refusal ? error.title : "No answer";
    card.showRefusal(title, error.message);
    say(`${name}: ${title}. ${error.message}`);
  }
}

/** Take away a card that was cancelled. */
function remove(card) {
  const focused = card.item.contains(document.activeElement);
  card.item.remove();
  if (focused) chosen.focus();
  say(`${card.file.name}: cancelled`);
}

/** Tell people who do not see the page. */
function say(text) {
  status.append(element("p", {}, text));
  if (status.childElementCount > MOST_MESSAGES) status.firstElementChild.remove();
}

for (const input of [chosen, document.getElementById("camera")]) {
  input.addEventListener("change", () => {
    ask(input.files);
    input.value = ""; // so that the same picture can be chosen again
  });
}

for (const button of document.querySelectorAll("[data-example]")) {
  button.addEventListener("click", async () => {
    const name = button.dataset.example;
    // Where the service is gone, the card says so.
    const picture = await fetch(`static/${name}`).then((r) => r.blob(), () => new Blob());
    ask([new File([picture], name, { type: picture.type })]);
  });
}

document.addEventListener("paste", (event) => {
  if (event.clipboardData?.files.length) ask(event.clipboardData.files);
});

const showDragging = (on) => document.body.classList.toggle("dragging", on);
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  showDragging(true);
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) showDragging(false); // the pointer has left the page
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  showDragging(false);
  if (event.dataTransfer?.files.length) ask(event.dataTransfer.files);
});

document.getElementById("ask").addEventListener("submit", (event) => event.preventDefault());

const panel = document.getElementById("model");
panel.addEventListener("toggle", () => panel.open && showModel(panel.querySelector("div")));

// The server does not know what path a proxy may have put before its own.
const base = new URL(".", location.href).href;
for (const each of document.querySelectorAll(".base")) each.textContent = base;
