// The panel about the model: shows what GET /model says.

import { element, percent, pngAddress, sentence, svg } from "./elements.js";
import { getModel } from "./service.js";

const METRICS = {
  roc_auc: "ROC AUC",
  balanced_accuracy: "balanced accuracy",
  accuracy: "accuracy",
  expected_calibration_error: "calibration error",
  called_first: "share called {first}",
  threshold: "threshold",
};

const SECTIONS = {
  "What it is": about,
  Measured: ({ metrics, classes }) =>
    Object.entries(metrics).map(([split, sources]) => measured(split, sources, classes[0])),
  Calibration: ({ calibration }) => paragraphs(calibration.rule),
  Threshold: ({ threshold_rule: rule }) => paragraphs(rule),
  Limits: ({ limits }) => [list(limits)],
  "How it learned": ({ learning_curve: curve }) => (curve ? chart(curve) : []),
  "Its weights": weights,
  Data: ({ data }) => paragraphs(...Object.entries(data).map(pictures)),
};

/** Fill the panel, once. */
export async function showModel(panel) {
  if (panel.dataset.filled) return;
  panel.dataset.filled = "yes";
  try {
    const model = await getModel();
    const parts = Object.entries(SECTIONS).flatMap(([title, show]) => section(title, show, model));
    panel.replaceChildren(...parts, link(model));
  } catch (error) {
    delete panel.dataset.filled;
    panel.replaceChildren(element("p", { role: "alert" }, error.message));
  }
}

/** Metadata of an artifact may hold anything: a section that cannot show it is left out. */
function section(title, show, model) {
  try {
    const parts = show(model);
    return parts.length ? [element("h2", {}, title), ...parts] : [];
  } catch {
    return [];
  }
}

function about({ name, version, network, explanation, classes, threshold }) {
  const parameters = network.parameters.toLocaleString("en");
  return paragraphs(
    `Model ${name}, version ${version}: ${network.summary}; ${parameters} parameters`,
    `It answers ${classes[0]} at a probability of ${percent(threshold)} or more`,
    `Heat maps: ${explanation.name}. ${explanation.description.replace(/\.$/, "")}`,
  );
}

/** One split's metrics: a row for each that some source has, a column for each source. */
function measured(split, sources, first) {
  const columns = Object.values(sources);
  const rows = Object.entries(METRICS).map(([key, words]) => [
    words.replace("{first}", first),
    ...columns.map((metrics) => metrics[key]?.toFixed?.(3) ?? "–"),
  ]);
  const given = rows.filter(([, ...values]) => values.some((value) => value !== "–"));
  const caption = `${split} pictures`;
  const attributes = { class: "wide", tabindex: 0, role: "group", "aria-label": caption };
  return element("div", attributes, table(caption, ["source", ...Object.keys(sources)], given));
}

function table(caption, heads, rows) {
  const made = element("table", {}, element("caption", {}, caption));
  made.insertRow().append(...heads.map((text) => element("th", { scope: "col" }, text)));
  for (const [head, ...values] of rows) {
    const cells = values.map((value) => element("td", {}, value));
    made.insertRow().append(element("th", { scope: "row" }, head), ...cells);
  }
  return made;
}

/** Lines over epochs or iterations, on one scale. */
function chart({ x: axis, series }) {
  const points = Object.values(series).flat();
  const [[left, right], [low, high]] = [0, 1].map((i) => rangeOf(points.map((each) => each[i])));
  const place = ([x, y]) => `${(x - left) / (right - left)},${(high - y) / (high - low)}`;
  const ends = Object.entries(series).map(
    ([name, line]) => `${name}: ${short(line[0][1])} → ${short(line.at(-1)[1])}`,
  );
  const heights = `${short(low)} to ${short(high)}`;
  const edges = `Left to right: ${axis} ${left} to ${right}. Bottom to top: ${heights}.`;
  return [
    svg(
      "svg",
      { viewBox: "0 0 1 1", preserveAspectRatio: "none", class: "curve", "aria-hidden": true },
      ...Object.values(series).map((line) => svg("polyline", { points: line.map(place) })),
    ),
    element("p", { class: "small" }, edges),
    list(ends, "lines small"),
  ];
}

const short = (number) => number.toPrecision(3);

function rangeOf(values) {
  const [least, most] = [Math.min(...values), Math.max(...values)];
  return [least, most === least ? least + 1 : most];
}

function weights({ weights_png: png, classes }) {
  if (!png) return [];
  const text = `Grey is zero. Brighter red, green or blue is evidence for ${classes[0]}.`;
  const image = element("img", { src: pngAddress(png), alt: "The weights as a picture" });
  return [element("figure", { class: "weights" }, image, element("figcaption", {}, text))];
}

function pictures([split, { pictures: count, classes }]) {
  const counts = Object.entries(classes).map(([name, n]) => `${n.toLocaleString("en")} ${name}`);
  return `${split}: ${count.toLocaleString("en")} pictures (${counts.join(", ")})`;
}

/** The same as JSON. It is a copy, because a link would not send the key. */
function link(model) {
  const json = new Blob([JSON.stringify(model, null, 1)], { type: "application/json" });
  const all = element("a", { href: URL.createObjectURL(json) }, "All of this as JSON");
  return element("p", {}, all);
}

function paragraphs(...texts) {
  return texts.filter(Boolean).map((text) => element("p", {}, sentence(text)));
}

function list(texts, kind = "") {
  return element("ul", { class: kind }, ...texts.map((text) => element("li", {}, text)));
}
