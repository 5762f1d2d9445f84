/** Making elements. Text from outside always becomes a text node, never markup. */

const SVG = "http://www.w3.org/2000/svg"

/** Drawn on 16 × 16, as strokes. */
const ICONS = {
  good: "M3 8.5l3.2 3.2L13 4.8",
  needs_correction: "M3 13l.6-2.8L10.8 3a1.2 1.2 0 0 1 1.7 0l.5.5a1.2 1.2 0 0 1 0 1.7L5.8 12.4z",
  reject: "M4 4l8 8M12 4l-8 8",
  saved: "M5 8.3l2 2 4-4.3M14.3 8A6.3 6.3 0 1 1 1.7 8a6.3 6.3 0 0 1 12.6 0z",
  busy: "M14.3 8A6.3 6.3 0 1 1 8 1.7",
  away: "M8 4.5v4.2M8 11.3v.2M14.3 8A6.3 6.3 0 1 1 1.7 8a6.3 6.3 0 0 1 12.6 0z",
  undo: "M5.5 3L2.5 6l3 3M2.5 6H10a3.5 3.5 0 0 1 0 7H7",
  redo: "M10.5 3l3 3-3 3M13.5 6H6a3.5 3.5 0 0 0 0 7h3",
  left: "M10 3L5 8l5 5",
  right: "M6 3l5 5-5 5",
  repair: "M9.5 3.2a3.4 3.4 0 0 1 3.9 4.3L11 5.9 9.6 7.3l1.6 2.3a3.4 3.4 0 0 1-4.2-1L2.8 12.9a1 1 0 0 0 1.4 1.3L8.3 10",
  find: "M11.5 7a4.5 4.5 0 1 1-9 0 4.5 4.5 0 0 1 9 0zM10.3 10.3L14 14",
  suggest: "M8 2v2M8 12v2M2 8h2M12 8h2M4 4l1.3 1.3M10.7 10.7L12 12M12 4l-1.3 1.3M5.3 10.7L4 12",
}

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
  for (const child of children) if (child || child === "") node.append(child)
  return node
}

/** @param {keyof typeof ICONS} name */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg")
  svg.setAttribute("class", "icon")
  svg.setAttribute("viewBox", "0 0 16 16")
  svg.setAttribute("aria-hidden", "true")
  const path = document.createElementNS(SVG, "path")
  path.setAttribute("d", ICONS[name])
  svg.append(path)
  return svg
}

/** @param {Record<string, any>} attributes as for `element` */
export const button = (attributes, ...children) => element("button", { type: "button", ...attributes }, ...children)

/** @param {string} selector @returns {any} */
export const find = (selector) => document.querySelector(selector)

/** Pairs of a description list. @param {...[string, string|Node|null|undefined|false]} pairs those without a value are left out */
export const terms = (...pairs) => pairs.flatMap(([term, value]) => (value ? [element("dt", { text: term }), element("dd", {}, value)] : []))

/**
 * Show a dialog until it is closed, then take it away.
 * @param {string} title @param {...(Node|null|false)} content
 * @returns {HTMLDialogElement}
 */
export function openDialog(title, ...content) {
  const heading = element("h2", { text: title, id: "dialog-title" })
  const dialog = element("dialog", { class: "dialog", "aria-labelledby": "dialog-title" }, heading, ...content)
  document.body.append(dialog)
  dialog.addEventListener("close", () => dialog.remove())
  dialog.showModal()
  dialog.scrollTop = 0 // the focus may lie at its end
  return dialog
}
