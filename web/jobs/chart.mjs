/** The loss curve: every value thin, its smoothed course thick, held-out loss as a second line, checkpoints as marks. Drawn as SVG; asks nobody. */

import { element } from "../review/dom.mjs"
import { t } from "../review/lang.mjs"
import { figure } from "./words.mjs"

const SVG = "http://www.w3.org/2000/svg"
const HEIGHT = 260
const [LEFT, TOP, BOTTOM, MARGIN] = [58, 12, 228, 12]
const NARROWEST = 300 // px
const POINTS = 1400 // the lowest and the highest of each pixel or two

/** @typedef {{losses: import("./api.mjs").Course, validation: import("./api.mjs").Course, checkpoints: number[], steps: number, weight: number}} Curves */

/** Exponential mean that does not lean towards its first value. @param {number[]} values @param {number} weight 0 … 0.99 */
export function smoothed(values, weight) {
  let mean = 0
  return values.map((value, index) => {
    mean = weight * mean + (1 - weight) * value
    return mean / (1 - weight ** (index + 1))
  })
}

/** At most so many points: of each stretch the lowest and the highest, so that spikes stay. @param {number[]} steps @param {number[]} values */
export function thinned(steps, values, most = POINTS) {
  if (values.length <= most) return steps.map((step, index) => [step, values[index]])
  const told = []
  const stretch = values.length / (most / 2)
  for (let begin = 0; begin < values.length; begin += stretch) {
    const [from, to] = [Math.floor(begin), Math.min(values.length, Math.floor(begin + stretch))]
    let [low, high] = [from, from]
    for (let index = from; index < to; index++) {
      if (values[index] < values[low]) low = index
      if (values[index] > values[high]) high = index
    }
    for (const index of low < high ? [low, high] : low > high ? [high, low] : [low]) told.push([steps[index], values[index]])
  }
  return told
}

/** Round values, four to eight of them. @param {number} low @param {number} high */
export function ticks(low, high) {
  const rough = (high - low) / 6
  const unit = 10 ** Math.floor(Math.log10(rough))
  const apart = [1, 2, 5, 10].map((factor) => factor * unit).find((each) => each >= rough * 0.999) ?? 10 * unit
  const first = Math.ceil(low / apart - 1e-9)
  return Array.from({ length: Math.floor(high / apart + 1e-9) - first + 1 }, (_, index) => Number(((first + index) * apart).toPrecision(10)))
}

/** From the lowest value to the highest without the one per cent that stick out. @param {number[]} values */
function span(values) {
  const ordered = [...values].sort((a, b) => a - b)
  const [low, high] = [ordered[0], ordered[Math.min(ordered.length - 1, Math.round(0.99 * ordered.length))]]
  const air = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1
  return [low >= 0 ? Math.max(0, low - air) : low - air, high + air]
}

const svg = (tag, attributes, text) => {
  const node = document.createElementNS(SVG, tag)
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, String(value))
  if (text !== undefined) node.textContent = text
  return node
}
const path = (points) => points.map(([x, y], index) => `${index ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("")

export class LossChart {
  /** @param {HTMLElement} root */
  constructor(root) {
    this.width = this.right = NARROWEST
    this.picture = svg("svg", { role: "img" })
    this.told = element("output", { class: "told", "aria-live": "off" })
    root.append(element("div", { class: "chart" }, this.picture, this.told))
    this.picture.addEventListener("pointermove", (event) => this.#point(event))
    this.picture.addEventListener("pointerleave", () => this.#point(null))
  }

  /** @param {Curves} curves */
  draw(curves) {
    const { losses, validation, checkpoints, steps, weight } = curves
    this.curves = curves
    this.line = smoothed(losses[1], weight)
    const last = losses[0].at(-1)
    const width = (this.width = Math.max(NARROWEST, this.picture.clientWidth || 720)) // drawn at its own size, so that words keep theirs
    this.right = width - MARGIN
    this.picture.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`)
    this.picture.setAttribute("aria-label", last === undefined ? t("Loss: no step yet") : t("Loss {loss} at step {step} of {steps}", { loss: figure(this.line.at(-1) ?? 0), step: last, steps }))
    if (last === undefined) {
      this.picture.replaceChildren(svg("text", { x: (LEFT + this.right) / 2, y: (TOP + BOTTOM) / 2, class: "none", "text-anchor": "middle" }, t("no step yet")))
      return
    }
    const [low, high] = span([...losses[1], ...validation[1]])
    this.end = Math.max(steps, last, 2)
    const right = this.right
    const x = (step) => LEFT + ((right - LEFT) * step) / this.end
    const y = (loss) => BOTTOM - ((BOTTOM - TOP) * (Math.min(loss, 3 * high - 2 * low) - low)) / (high - low) // what sticks out leaves through the top
    this.place = { x, y }
    const at = (points) => path(points.map(([step, loss]) => [x(step), y(loss)]))
    this.cursor = svg("g", { class: "cursor" })
    this.picture.replaceChildren(
      ...ticks(low, high).flatMap((value) => [
        svg("line", { class: "grid", x1: LEFT, x2: right, y1: y(value), y2: y(value) }),
        svg("text", { x: LEFT - 8, y: y(value) + 4, "text-anchor": "end" }, figure(value)),
      ]),
      ...ticks(0, this.end).map((step) => svg("text", { x: x(step), y: BOTTOM + 20, "text-anchor": x(step) > right - MARGIN ? "end" : "middle" }, step.toLocaleString())),
      ...checkpoints.map((step) => svg("path", { class: "checkpoint", d: `M${x(step)} ${BOTTOM}l-4 8h8z` })),
      this.#lines(
        svg("path", { class: "each", d: at(thinned(losses[0], losses[1])) }),
        svg("path", { class: "held", d: at(thinned(validation[0], validation[1])) }),
        ...validation[0].map((step, index) => svg("circle", { class: "held", cx: x(step), cy: y(validation[1][index]), r: 2.5 })),
        svg("path", { class: "course", d: at(thinned(losses[0], this.line)) }),
      ),
      svg("circle", { class: "now", cx: x(last), cy: Math.max(TOP, y(this.line.at(-1) ?? 0)), r: 4 }),
      this.cursor,
    )
  }

  /** What is drawn inside the frame only. @param {...SVGElement} lines */
  #lines(...lines) {
    const [wide, high] = [this.right - LEFT, BOTTOM - TOP]
    const frame = svg("svg", { x: LEFT, y: TOP, width: wide, height: high, viewBox: `${LEFT} ${TOP} ${wide} ${high}` })
    frame.replaceChildren(...lines)
    return frame
  }

  /** Say the figures below the pointer. @param {PointerEvent|null} event */
  #point(event) {
    if (!event || !this.place || !this.curves) {
      this.told.textContent = ""
      this.cursor?.replaceChildren()
      return
    }
    const box = this.picture.getBoundingClientRect() // also right when the canvas is zoomed
    const step = ((((event.clientX - box.left) / box.width) * this.width - LEFT) / (this.right - LEFT)) * (this.end ?? 1)
    const [steps, values] = this.curves.losses
    let nearest = 0
    for (let index = 0; index < steps.length; index++) if (Math.abs(steps[index] - step) < Math.abs(steps[nearest] - step)) nearest = index
    const x = this.place.x(steps[nearest])
    this.cursor?.replaceChildren(svg("line", { x1: x, x2: x, y1: TOP, y2: BOTTOM }))
    this.told.textContent = t("step {step}: {loss}, smoothed {smooth}", { step: steps[nearest], loss: figure(values[nearest]), smooth: figure(this.line?.[nearest] ?? 0) })
  }
}
