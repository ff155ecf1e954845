// The page: takes pictures from wherever they come, and sends a few at a time.

import { Card, percent } from "./card.js";
import { showModel } from "./model.js";
import { Refusal, explain } from "./service.js";

const AT_ONCE = 2;

const root = document.documentElement;
const answers = document.getElementById("answers");
const status = document.getElementById("status");
const chosen = document.getElementById("file");

const waiting = [];
let running = 0;

/** Make cards for these files, the first on top, and send them when their turn comes. */
function ask(files) {
  const cards = [...files].map((file) => new Card(file));
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
  const started = performance.now();
  try {
    const told = await explain(card.file, card.stop.signal, (share) => card.progress(share));
    card.answer(told, performance.now() - started);
    status.textContent = `${card.file.name}: ${told.words}, ${percent(told.cat_probability)}`;
  } catch (error) {
    if (error.name === "AbortError") {
      card.item.remove();
      status.textContent = `${card.file.name}: cancelled`;
      chosen.focus();
      return;
    }
    const known = error instanceof Refusal;
    card.refuse(known ? error.title : "No answer", known ? error.message : String(error));
    status.textContent = `${card.file.name}: ${card.title.textContent}`;
  }
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
panel.addEventListener("toggle", () => panel.open && showModel(panel.querySelector("div")));

const base = new URL(".", location.href).href;
for (const code of document.querySelectorAll("#program code")) {
  code.textContent = code.textContent.replace(/\S+(?=predict|explain)/, base);
  const copy = document.createElement("button");
  copy.className = "button quiet";
  copy.textContent = "Copy";
  copy.onclick = async () => {
    await navigator.clipboard.writeText(code.textContent);
    status.textContent = copy.textContent = "Copied";
  };
  // Browsers have a clipboard for pages only over HTTPS, or from the same machine.
  if (navigator.clipboard) code.parentElement.after(copy);
}

chosen.multiple = true;
chosen.required = false;
root.classList.add("js");
