// Small helpers for building the page. Text is never read as HTML.

/** An HTML element with attributes and children (elements or text). */
export function element(name, attributes = {}, ...children) {
  return build(document.createElement(name), attributes, children);
}

/** The same for SVG. */
export function svg(name, attributes = {}, ...children) {
  return build(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function build(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

/** A PNG in base64 as the address of an image. */
export function pngAddress(base64) {
  return `data:image/png;base64,${base64}`;
}

/** A probability as text: 0.99893 is "99.9 %", 0.5 is "50 %", and nothing is ever certain. */
export function percent(probability) {
  if (probability >= 0.9995) return "over 99.9 %";
  if (probability < 0.0005) return "under 0.1 %";
  return `${Number((100 * probability).toFixed(1))} %`;
}

export function sentence(text) {
  return `${text[0].toUpperCase()}${text.slice(1)}.`;
}
