// The panel about the model: what GET /model tells, for people.

import { brief, drawn, element, percent } from "./card.js";
import { hasKey, model } from "./service.js";

const METRICS = {
  roc_auc: ["ROC AUC", (value) => value.toFixed(3)],
  balanced_accuracy: ["balanced accuracy", share],
  accuracy: ["accuracy", share],
  expected_calibration_error: ["calibration error", (value) => value.toFixed(3)],
  called_first: ["called {first}", share],
};
const SECTIONS = [about, measured, calibration, threshold, limits, learning, weights, trained, link];

/** Fill the panel, once. */
export async function showModel(panel) {
  if (panel.dataset.filled) return;
  panel.dataset.filled = "yes";
  try {
    const told = await model();
    panel.replaceChildren(...SECTIONS.flatMap((section) => readable(section, told)));
  } catch (error) {
    delete panel.dataset.filled;
    panel.replaceChildren(element("p", { role: "alert" }, error.message));
  }
}

/** An artifact's metadata may hold anything: what a section cannot show is left out. */
function readable(section, told) {
  try {
    return section(told);
  } catch {
    return [];
  }
}

function about(told) {
  const [first] = told.classes;
  return [
    element("p", {}, `${told.name}, version ${told.version}. ${told.network.summary}, ${told.network.parameters.toLocaleString("en")} parameters. It says ${first} from ${brief(told.threshold)} on.`),
    element("p", {}, `Heat maps: ${told.explanation.name}. ${told.explanation.description}`),
  ];
}

function measured(told) {
  const [first] = told.classes;
  return Object.entries(told.metrics).flatMap(([split, sources]) => [
    element("h2", {}, `Measured on ${split} pictures`),
    table(sources, first),
  ]);
}

function calibration(told) {
  const { rule } = told.calibration;
  return rule ? [element("h2", {}, "Calibration"), element("p", {}, sentence(rule))] : [];
}

function threshold(told) {
  const rule = told.threshold_rule;
  return rule ? [element("h2", {}, "Threshold"), element("p", {}, sentence(rule))] : [];
}

function limits(told) {
  return [element("h2", {}, "Limits"), element("ul", {}, ...told.limits.map((each) => element("li", {}, each)))];
}

function learning(told) {
  return told.learning_curve ? [element("h2", {}, "How it learned"), curve(told.learning_curve)] : [];
}

function weights(told) {
  if (!told.weights_png) return [];
  const [first] = told.classes;
  const alt = `Weights as a picture: grey is zero, brighter colours speak for ${first}`;
  return [
    element("h2", {}, "Its weights"),
    element("figure", { class: "weights" }, element("img", { src: `data:image/png;base64,${told.weights_png}`, alt }), element("figcaption", {}, `Grey is zero; brighter red, green or blue speaks for ${first}.`)),
  ];
}

function trained(told) {
  const lines = [...readable(data, told.data), ...readable(settings, told.training)];
  return lines.length ? [element("h2", {}, "Data and training"), element("ul", {}, ...lines.map((each) => element("li", {}, each)))] : [];
}

/** To the same as JSON; where it needs a key, which links do not send, to a copy of it. */
function link(told) {
  const copy = () => URL.createObjectURL(new Blob([JSON.stringify(told, null, 1)], { type: "application/json" }));
  return [element("p", {}, element("a", { href: hasKey() ? copy() : "model" }, "All of it as JSON"))];
}

function sentence(text) {
  return `${text[0].toUpperCase()}${text.slice(1)}.`;
}

/** A measured share, which may be all or none. */
function share(value) {
  return value === 0 || value === 1 ? `${100 * value} %` : percent(value);
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
      ...caption(Object.values(sources)),
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

/** The threshold that was measured with: the service may have been given another. */
function caption(sources) {
  const [at, ...others] = new Set(sources.map((told) => told.threshold));
  return typeof at === "number" && !others.length ? [element("caption", {}, `With a threshold of ${brief(at)}`)] : [];
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
