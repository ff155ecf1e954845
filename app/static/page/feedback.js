// The buttons below an answer by which people say what the picture really shows.

import { giveFeedback, takeBack } from "./service.js";

/** Make the buttons of a `.feedback` element work for the picture in that file. */
export function connect(group, file) {
  const labels = [...group.querySelectorAll("button[value]")];
  const undo = group.querySelector(".undo");
  const note = group.querySelector("[aria-live]");
  let id; // of the saved picture
  let busy = false;

  async function once(work) {
    if (busy) return;
    busy = true;
    note.textContent = "Sending";
    try {
      await work();
    } catch (error) {
      note.textContent = error.message;
    }
    busy = false;
  }

  function show(label, text) {
    for (const each of labels) each.ariaPressed = each.value === label;
    undo.hidden = !label;
    note.textContent = text;
  }

  for (const button of labels) {
    button.onclick = () =>
      once(async () => {
        id = await giveFeedback(file, button.value);
        show(button.value, `Thank you. The picture was saved as ${button.value}.`);
      });
  }
  undo.onclick = () =>
    once(async () => {
      await takeBack(id);
      labels.find((each) => each.ariaPressed === "true").focus(); // this button goes
      show("", "Undone. The picture was deleted.");
    });
}
