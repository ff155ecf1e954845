// The panel about the model: what GET /model tells, for people.

import { drawn, element, percent } from "./card.js";
import { model } from "./service.js";

const METRICS = {
  roc_auc: ["ROC AUC", (value) => value.toFixed(3)],
  balanced_accuracy: ["balanced accuracy", percent],
  accuracy: ["accuracy", percent],
  expected_calibration_error: ["calibration error", (value) => value.toFixed(3)],
  called_first: ["called {first}", percent],
};

/** Fill the panel, once. */
export async function showModel(panel) {
  if (panel.dataset.filled) return;
  panel.dataset.filled = "yes";
  try {
    const told = await model();
    panel.replaceChildren(...parts(told));
  } catch (error) {
    delete panel.dataset.filled;
    panel.replaceChildren(element("p", { role: "alert" }, error.message));
  }
}

function parts(told) {
  const [first] = told.classes;
  const shown = [
    element("p", {}, `${told.name}, version ${told.version}. ${told.network.summary}, ${told.network.parameters.toLocaleString("en")} parameters. It says ${first} from ${told.threshold} on.`),
    element("p", {}, `Heat maps: ${told.explanation.name}. ${told.explanation.description}`),
  ];
  for (const [split, sources] of Object.entries(told.metrics)) {
    shown.push(element("h2", {}, `Measured on ${split} pictures`), table(sources, first));
  }
  if (told.calibration?.rule) shown.push(element("h2", {}, "Calibration"), element("p", {}, sentence(told.calibration.rule)));
  if (told.threshold_rule) shown.push(element("h2", {}, "Threshold"), element("p", {}, sentence(told.threshold_rule)));
  if (told.limits.length) {
    shown.push(element("h2", {}, "Limits"), element("ul", {}, ...told.limits.map((each) => element("li", {}, each))));
  }
  if (told.learning_curve) shown.push(element("h2", {}, "How it learned"), curve(told.learning_curve));
  if (told.weights_png) {
    const alt = `Weights as a picture: grey is zero, brighter colours speak for ${first}`;
    shown.push(
      element("h2", {}, "Its weights"),
      element("figure", { class: "weights" }, element("img", { src: `data:image/png;base64,${told.weights_png}`, alt }), element("figcaption", {}, `Grey is zero; brighter red, green or blue speaks for ${first}.`)),
    );
  }
  const trained = [...data(told.data), ...settings(told.training)];
  if (trained.length) shown.push(element("h2", {}, "Data and training"), element("ul", {}, ...trained.map((each) => element("li", {}, each))));
  shown.push(element("p", {}, element("a", { href: "model" }, "All of it as JSON")));
  return shown;
}

function sentence(text) {
  return `${text[0].toUpperCase()}${text.slice(1)}.`;
}

function data(splits) {
  return Object.entries(splits).flatMap(([split, values]) => {
    if (typeof values?.pictures !== "number") return [];
    const classes = Object.entries(values.classes ?? {}).map(([name, count]) => `${count.toLocaleString("en")} ${name}`);
    const sources = Object.keys(values.sources ?? {});
    const counted = classes.length ? ` (${classes.join(", ")})` : "";
    const from = sources.length ? ` from ${sources.join(", ")}` : "";
    return [`${split}: ${values.pictures.toLocaleString("en")} pictures${counted}${from}`];
  });
}

function settings(training) {
  const plain = Object.entries(training).filter(([, value]) => typeof value !== "object");
  const told = plain.map(([name, value]) => `${name.replaceAll("_", " ")} ${value}`);
  return told.length ? [`settings: ${told.join(", ")}`] : [];
}

function table(sources, first) {
  const names = Object.keys(sources);
  const rows = Object.entries(METRICS).filter(([key]) => names.some((name) => typeof sources[name][key] === "number"));
  return element(
    "div",
    { class: "wide", tabindex: 0, role: "group", "aria-label": "Metrics" },
    element(
      "table",
      {},
      element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "source"), ...names.map((name) => element("th", { scope: "col" }, name)))),
      element(
        "tbody",
        {},
        ...rows.map(([key, [words, write]]) =>
          element(
            "tr",
            {},
            element("th", { scope: "row" }, words.replace("{first}", first)),
            ...names.map((name) => element("td", {}, typeof sources[name][key] === "number" ? write(sources[name][key]) : "–")),
          ),
        ),
      ),
    ),
  );
}

const WIDE = 480;
const HIGH = 200;
const LEFT = 40;
const RIGHT = 90; // room for the names of the lines
const BOTTOM = 30;
const TOP = 12;

function curve(told) {
  const lines = Object.entries(told.series);
  const points = lines.flatMap(([, line]) => line);
  const [most, high] = [0, 1].map((axis) => Math.max(...points.map((point) => point[axis])));
  const least = Math.min(...points.map((point) => point[0]));
  const low = Math.min(0, ...points.map((point) => point[1]));
  const x = (value) => LEFT + ((value - least) / (most - least || 1)) * (WIDE - LEFT - RIGHT);
  const y = (value) => HIGH - BOTTOM - ((value - low) / (high - low || 1)) * (HIGH - BOTTOM - TOP);
  const ends = lines.map(([, line]) => y(line.at(-1)[1]));
  const places = apart(ends, 14);
  const at = (value) => drawn("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, String(Number(value.toPrecision(2))));
  return drawn(
    "svg",
    { class: "curve", viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": `Learning curve: ${lines.map(([name, line]) => `${name} from ${line[0][1]} to ${line.at(-1)[1]}`).join("; ")}` },
    ...[low, (low + high) / 2, high].flatMap((value) => [drawn("line", { x1: LEFT, x2: WIDE - RIGHT, y1: y(value), y2: y(value) }), at(value)]),
    drawn("text", { x: LEFT, y: HIGH - 8 }, String(least)),
    drawn("text", { x: WIDE - RIGHT, y: HIGH - 8, "text-anchor": "end" }, `${told.x} ${most}`),
    ...lines.map(([, line]) => drawn("path", { d: `M${line.map((point) => `${x(point[0])} ${y(point[1])}`).join("L")}` })),
    ...lines.map(([name], i) => drawn("text", { x: WIDE - RIGHT + 6, y: places[i] + 4 }, name)),
  );
}

/** Heights moved so that names of lines that end together do not cover each other. */
function apart(heights, gap) {
  const order = heights.map((height, i) => [height, i]).sort((a, b) => a[0] - b[0]);
  const moved = [];
  let last = -Infinity;
  for (const [height, i] of order) moved[i] = last = Math.max(height, last + gap);
  return moved;
}
