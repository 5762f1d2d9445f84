/** Making elements. Text from outside always becomes a text node, never markup. */

const SVG = "http://www.w3.org/2000/svg"

/**
 * @param {string} tag
 * @param {Record<string, any>} [attributes] `class`, `text`, `on` (an object of listeners), `dataset`; a property that is
 *   false, null or undefined is left out; everything else is an attribute.
 * @param {...(Node|string|null|undefined|false)} children
 * @returns {any}
 */
export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag)
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue
    if (name === "text") node.textContent = value
    else if (name === "on") for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener)
    else if (name === "dataset") Object.assign(node.dataset, value)
    else node.setAttribute(name, value === true ? "" : String(value))
  }
  node.append(...children.filter((child) => child || child === ""))
  return node
}

/** One of the symbols drawn in review.html. @param {string} name */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg")
  svg.setAttribute("class", "icon")
  svg.setAttribute("aria-hidden", "true")
  const use = document.createElementNS(SVG, "use")
  use.setAttribute("href", `#icon-${name}`)
  svg.append(use)
  return svg
}

/** @param {Record<string, any>} attributes as for `element` */
export const button = (attributes, ...children) => element("button", { type: "button", ...attributes }, ...children)

/** @param {string} selector @returns {any} */
export const find = (selector) => document.querySelector(selector)
