// One picture's card: it waits, then shows the answer or the reason why there is none.

import { element, percent, pngAddress, sentence } from "./elements.js";
import { connect } from "./feedback.js";

export class Card {
  constructor(file) {
    this.file = file;
    this.stop = new AbortController();
    this.item = copyOf("card").firstElementChild;
    this.title = this.item.querySelector("h2");
    this.body = this.item.querySelector(".answer");
    this.progress = this.item.querySelector("progress");
    this.progress.ariaLabel = file.name;
    const cancel = this.item.querySelector("button");
    cancel.ariaLabel = `Cancel ${file.name}`;
    cancel.onclick = () => this.stop.abort();
    showPicture(this.item.querySelector("img"), file);
  }

  onProgress = (share) => {
    this.title.textContent = share < 1 ? "Sending" : "Waiting for the answer";
    if (share < 1) this.progress.value = share;
    else this.progress.removeAttribute("value");
  };

  onBusy = () => {
    this.title.textContent = "The service is busy. Trying again";
    this.progress.removeAttribute("value");
  };

  showAnswer(answer, milliseconds) {
    const { width, height, format } = answer.original;
    const facts = [`${width}×${height} ${format}`, `${Math.round(milliseconds)} ms`];
    const part = answerPart(answer);
    connect(part.querySelector(".feedback"), this.file);
    this.finish(answer.words, part, facts);
  }

  showRefusal(title, detail) {
    this.item.classList.add("refused");
    this.item.querySelector(".picture")?.remove();
    this.finish(title, element("p", {}, detail), []);
  }

  /** End the waiting. If its button had the focus, the title gets it. */
  finish(title, part, facts) {
    const waiting = this.progress.parentElement;
    const focused = waiting.contains(document.activeElement);
    waiting.remove();
    this.title.textContent = title;
    if (focused) this.title.focus();
    const text = [this.file.name, ...facts].join(" · ");
    this.body.append(part, element("p", { class: "facts small" }, text));
  }
}

function copyOf(template) {
  return document.importNode(document.getElementById(template).content, true);
}

async function showPicture(image, file) {
  image.alt = file.name;
  image.src = URL.createObjectURL(file);
  // This browser may not know the format.
  await image.decode().catch(() => image.parentElement.remove());
  URL.revokeObjectURL(image.src);
}

function answerPart(answer) {
  const { cat_probability: probability, threshold, heat, warnings, views = [] } = answer;
  const part = copyOf("answer");
  const find = (selector) => part.querySelector(selector);
  for (const each of part.querySelectorAll(".share")) each.textContent = percent(probability);
  const [mark, label] = part.querySelectorAll(".threshold span");
  [mark.textContent, label.textContent] = [percent(threshold), answer.label];
  const bar = find(".bar");
  bar.ariaLabel = `${percent(probability)}, threshold ${percent(threshold)}`;
  bar.classList.add(probability < threshold ? "against" : "for");
  bar.style.setProperty("--share", `${100 * probability}%`);
  bar.style.setProperty("--threshold", `${100 * threshold}%`);
  const pixels = `${heat[0].length}×${heat.length} pixels.`;
  find(".seen span").textContent = [pixels, ...warnings.map(sentence)].join(" ");
  const [seen, why] = part.querySelectorAll("img");
  seen.src = pngAddress(answer.picture_png);
  why.src = pngAddress(answer.overlay_png);
  if (views.length > 1) find(".views ul").append(...views.map(viewItem));
  else find(".views").remove();
  find(".sum").textContent = sumText(answer);
  return part;
}

/** One view of the picture. */
function viewItem({ box, cat_probability: probability, picture_png: png }) {
  const image = element("img", { src: pngAddress(png), alt: "" });
  return element("li", {}, image, placeOf(box), element("br"), percent(probability));
}

/** Where a box lies, in words; its edges are fractions of the picture's sides. */
function placeOf([left, top, right, bottom]) {
  if (right - left > 0.99 && bottom - top > 0.99) return "whole";
  const [x, y] = [(left + right) / 2, (top + bottom) / 2];
  const words = [y < 0.45 && "top", y > 0.55 && "bottom", x < 0.45 && "left", x > 0.55 && "right"];
  return words.filter(Boolean).join(" ") || "middle";
}

/** How the heat map was made, what it adds up to, and its scale. */
function sumText({ method, full_colour: full, ...values }) {
  const number = (name) => values[name].toFixed(2).replace("-", "−");
  return (
    `Heat map: ${method.name}. Its sum ${number("sum")} plus the bias ${number("bias")} is the` +
    ` logit ${number("logit")}. The strongest colour means ${full.toPrecision(2)} or more per pixel.`
  );
}
