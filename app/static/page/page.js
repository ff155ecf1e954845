// The page: takes pictures from wherever they come, and sends a few at a time.

import { Card, element, percent } from "./card.js";
import { showModel } from "./model.js";
import { Refusal, explain, mayAsk } from "./service.js";

const AT_ONCE = 2;
const SAID = 20; // messages that are kept, since readers aloud come after

const root = document.documentElement;
const answers = document.getElementById("answers");
const status = document.getElementById("status");
const chosen = document.getElementById("file");

const waiting = [];
let running = 0;

/** Make cards for these files, the first on top, and send them when their turn comes. */
function ask(files) {
  mayAsk();
  const cards = [...files].map((file) => new Card(file));
  for (const card of cards) card.stop.signal.addEventListener("abort", () => cancelled(card), { once: true });
  answers.prepend(...cards.map((card) => card.item));
  waiting.push(...cards);
  next();
}

function next() {
  while (running < AT_ONCE && waiting.length) {
    running++;
    send(waiting.shift()).finally(() => {
      running--;
      next();
    });
  }
}

async function send(card) {
  try {
    const { told, milliseconds } = await explain(card.file, card.stop.signal, card);
    card.answer(told, milliseconds);
    say(`${card.file.name}: ${told.words}, ${percent(told.cat_probability)}`);
  } catch (error) {
    if (error.name === "AbortError") return; // its card is gone already
    const known = error instanceof Refusal;
    const [title, detail] = known ? [error.title, error.message] : ["No answer", String(error)];
    card.refuse(title, detail);
    say(`${card.file.name}: ${title}. ${detail}`);
  }
}

/** Take a card away, whether its turn has come or not. */
function cancelled(card) {
  const turn = waiting.indexOf(card);
  if (turn >= 0) waiting.splice(turn, 1);
  const focused = card.item.contains(document.activeElement);
  card.item.remove();
  if (focused) chosen.focus();
  say(`${card.file.name}: cancelled`);
}

/** Tell people who do not see the page. */
function say(text) {
  status.append(element("p", {}, text));
  if (status.childElementCount > SAID) status.firstElementChild.remove();
}

for (const input of [chosen, document.getElementById("camera")]) {
  input.addEventListener("change", () => {
    ask(input.files);
    input.value = ""; // the same picture may be chosen again
  });
}

for (const button of document.querySelectorAll("[data-example]")) {
  button.addEventListener("click", async () => {
    const name = button.dataset.example;
    // Where the service is gone, its card says so.
    const picture = await fetch(`static/${name}`).then((answer) => answer.blob(), () => new Blob());
    ask([new File([picture], name, { type: picture.type })]);
  });
}

document.addEventListener("paste", (event) => {
  if (event.clipboardData?.files.length) ask(event.clipboardData.files);
});

let over = 0; // elements that the pointer drags files over: entering one comes before leaving another
document.addEventListener("dragenter", () => root.classList.toggle("dragging", ++over > 0));
document.addEventListener("dragleave", () => root.classList.toggle("dragging", --over > 0));
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  over = 0;
  root.classList.remove("dragging");
  if (event.dataTransfer?.files.length) ask(event.dataTransfer.files);
});

const panel = document.getElementById("model");
panel.addEventListener("toggle", () => {
  if (!panel.open) return;
  mayAsk();
  showModel(panel.querySelector("div"));
});

const base = new URL(".", location.href).href;
for (const code of document.querySelectorAll("#program code")) {
  code.textContent = code.textContent.replace(/\S+(?=predict|explain)/, base);
  const copy = document.createElement("button");
  copy.className = "button quiet";
  copy.textContent = "Copy";
  copy.onclick = async () => {
    await navigator.clipboard.writeText(code.textContent);
    copy.textContent = "Copied";
    say("Copied");
  };
  // Browsers have a clipboard for pages only over HTTPS, or from the same machine.
  if (navigator.clipboard) code.parentElement.after(copy);
}

chosen.multiple = true;
chosen.required = false;
root.classList.add("js");
