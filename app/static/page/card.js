// One picture's card: waiting, then its answer or the reason why there is none.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes and children; text is never read as HTML. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

export function drawn(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** 0.99893 as "99.9 %", never as a certainty: for what the model thinks. */
export function percent(p) {
  if (p >= 0.9995) return "over 99.9 %";
  if (p < 0.0005) return "under 0.1 %";
  return `${(100 * p).toFixed(1)} %`;
}

/** A threshold: 0.5 as "50 %". */
export function brief(p) {
  return percent(p).replace(".0 ", " ");
}

export class Card {
  constructor(file) {
    this.file = file;
    const template = document.getElementById("card").content;
    this.item = template.cloneNode(true).firstElementChild;
    this.title = this.item.querySelector("h2");
    this.told = this.item.querySelector(".told");
    this.waiting = this.item.querySelector(".progress");
    this.bar = this.item.querySelector("progress");
    this.bar.setAttribute("aria-label", file.name);
    this.title.textContent = "Waiting";
    this.stop = new AbortController();
    const cancel = this.waiting.querySelector("button");
    cancel.setAttribute("aria-label", `Cancel ${file.name}`);
    cancel.onclick = () => this.stop.abort();
    const picture = this.item.querySelector("img");
    picture.alt = file.name;
    picture.onload = () => URL.revokeObjectURL(picture.src);
    picture.onerror = () => {
      URL.revokeObjectURL(picture.src);
      picture.classList.add("broken"); // a format this browser does not know
    };
    picture.src = URL.createObjectURL(file);
  }

  progress(share) {
    this.title.textContent = share < 1 ? "Sending" : "Looking";
    if (share < 1) this.bar.value = share;
    else this.bar.removeAttribute("value");
  }

  busy() {
    this.title.textContent = "Busy, trying again";
    this.bar.removeAttribute("value");
  }

  answer(told, milliseconds) {
    const { first } = document.body.dataset;
    this.settle(told.words);
    this.told.append(
      element("p", { class: "number" }, element("b", {}, percent(told.cat_probability)), ` probability of ${first}`),
      bar(told, first),
      element(
        "div",
        { class: "views" },
        figure("seen", told.picture_png, "The picture as the model saw it", seen(told)),
        figure("why", told.overlay_png, "The heat map over the picture", why(told, first)),
      ),
      element("p", { class: "small" }, reckoning(told)),
      this.facts(`${told.original.width}×${told.original.height} ${told.original.format}`, `${Math.round(milliseconds)} ms`),
    );
  }

  refuse(title, detail) {
    this.settle(title);
    this.item.classList.add("refused");
    this.told.append(element("p", {}, detail), this.facts());
  }

  /** Waiting is over: whoever is at its button goes on from the title. */
  settle(title) {
    const focused = this.waiting.contains(document.activeElement);
    this.waiting.remove();
    this.title.textContent = title;
    if (focused) this.title.focus();
  }

  facts(...more) {
    return element("p", { class: "facts" }, [this.file.name, ...more].join(" · "));
  }
}

function bar(told, first) {
  const from = 100 * told.threshold;
  const side = told.cat_probability >= told.threshold ? "for" : "against";
  const anchor = from < 25 ? "start" : from > 75 ? "end" : "middle";
  const text = `${first} from ${brief(told.threshold)} on`;
  return drawn(
    "svg",
    { class: "bar", role: "img", "aria-label": `${percent(told.cat_probability)}; ${text}` },
    drawn("rect", { class: "track", width: "100%", height: 10, rx: 5 }),
    drawn("rect", { class: side, width: `${100 * told.cat_probability}%`, height: 10, rx: 5 }),
    drawn("line", { x1: `${from}%`, x2: `${from}%`, y1: -3, y2: 16 }),
    drawn("text", { x: `${from}%`, y: 32, "text-anchor": anchor }, text),
  );
}

function figure(kind, png, alt, caption) {
  return element(
    "figure",
    { class: kind },
    element("img", { src: `data:image/png;base64,${png}`, alt }),
    element("figcaption", {}, ...caption),
  );
}

function seen(told) {
  const side = told.heat.length;
  const notes = told.warnings.map((note) => ` ${note[0].toUpperCase()}${note.slice(1)}.`);
  return [element("b", {}, "What the model saw"), element("br"), `${side}×${side} pixels.`, ...notes];
}

function why(told, first) {
  return [
    element("b", { title: told.method.description }, "Why"),
    element("br"),
    element("span", { class: "legend" }, `for ${first}`),
    element("span", { class: "legend against" }, "against"),
  ];
}

/** How the heat map was made, what it adds up to, and its scale. */
function reckoning(told) {
  const [sum, bias, logit] = [told.sum, told.bias, told.logit].map((value) => value.toFixed(2).replace("-", "−"));
  const full = Number(told.full_colour.toPrecision(2));
  return `Heat map: ${told.method.name}. Its sum ${sum} and the bias ${bias} make the logit ${logit}. Full colour from ${full} logit units a pixel on.`;
}
