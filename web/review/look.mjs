/**
 * Looking closely: candidate and source side by side, one over the other with a divider, or the source in the candidate's place; fitted, or at
 * 1:1 on the same spot from image to image. Positions are in pixels of the candidate; the source is laid so that the faces fall on each other
 * where both are known, else so that the pictures do.
 */

import { element, find } from "./dom.mjs"

/** [left, top, right, bottom] in px of its picture. @typedef {[number, number, number, number]} Box */

export class Look {
  zoomed = false
  split = false
  #spot = [0.5, 0.4] // of the candidate: what is in the middle at 1:1. Faces lie above the centre.
  #divider = 0.5
  /** @type {{candidate: Box, source: Box}|null} */
  #faces = null
  #held = false

  constructor() {
    this.stage = find("#stage")
    this.handle = element("div", { id: "divider", role: "slider", tabindex: 0, "aria-valuemin": 0, "aria-valuemax": 100 })
    new ResizeObserver(() => this.place()).observe(this.stage)
    this.stage.addEventListener("pointerdown", (event) => this.#drag(event))
    this.stage.addEventListener("dblclick", (event) => this.#zoomAt(event))
  }

  /** @param {{candidate: Box, source: Box}|null} faces */
  align(faces) {
    this.#faces = faces
    this.place()
  }

  toggleZoom() {
    this.zoomed = !this.zoomed
    this.place()
  }

  toggleSplit() {
    this.split = !this.split && !find("#source-figure").hidden
    this.place()
  }

  /** Show the source where the candidate is, while a key is held. @param {boolean} held */
  hold(held) {
    if (held === this.#held) return
    this.#held = held && !find("#source-figure").hidden
    this.place()
  }

  /** Move the divider, or the spot. @param {number} x @param {number} y in steps @returns {boolean} whether there was anything to move */
  nudge(x, y) {
    if (this.split) this.#divider = Math.max(0, Math.min(1, this.#divider + x * 0.05))
    if (this.zoomed) this.#moveSpot(x * 0.08, y * 0.08)
    this.place()
    return this.split || this.zoomed
  }

  #moveSpot(x, y) {
    this.#spot = [Math.max(0, Math.min(1, this.#spot[0] + x)), Math.max(0, Math.min(1, this.#spot[1] + y))]
  }

  /** Put both pictures where they belong. */
  place() {
    const [candidate, source] = [find("#picture"), find("#source")]
    if (!candidate.naturalWidth) return
    const over = this.split || this.#held
    this.stage.dataset.over = over ? "true" : "false"
    this.stage.dataset.zoomed = String(this.zoomed)
    const frame = candidate.parentElement
    const size = [candidate.naturalWidth, candidate.naturalHeight]
    const seen = this.#window([frame.clientWidth, frame.clientHeight], size)
    lay(candidate, seen, { scale: 1, x: 0, y: 0, size })
    if (source.naturalWidth && !find("#source-figure").hidden) this.#placeSource(source, frame, size, seen)
    const parted = this.split && !this.#held
    source.style.clipPath = parted ? `inset(0 ${100 * (1 - this.#part(source, frame))}% 0 0)` : ""
    candidate.style.clipPath = parted ? `inset(0 0 0 ${100 * this.#part(candidate, frame)}%)` : "" // also where the source ends before it
    this.#drawDivider(frame)
  }

  #placeSource(source, frame, size, seen) {
    const own = find("#source-figure .frame")
    const home = this.split || this.#held ? frame : own
    if (source.parentElement !== home) home.append(source)
    const natural = [source.naturalWidth, source.naturalHeight]
    const box = [home.clientWidth, home.clientHeight]
    if (home === own && !this.zoomed) return lay(source, fit(box, natural), { scale: 1, x: 0, y: 0, size: natural })
    lay(source, home === frame ? seen : this.#window(box, size), { ...this.#ontoCandidate(natural, size), size: natural })
  }

  /** How the source lies in the candidate's pixels. */
  #ontoCandidate(natural, size) {
    if (!this.#faces) {
      const scale = Math.min(size[0] / natural[0], size[1] / natural[1])
      return { scale, x: (size[0] - natural[0] * scale) / 2, y: (size[1] - natural[1] * scale) / 2 }
    }
    const [to, from] = [this.#faces.candidate, this.#faces.source]
    const scale = Math.sqrt(((to[2] - to[0]) * (to[3] - to[1])) / ((from[2] - from[0]) * (from[3] - from[1])))
    return { scale, x: (to[0] + to[2]) / 2 - (scale * (from[0] + from[2])) / 2, y: (to[1] + to[3]) / 2 - (scale * (from[1] + from[3])) / 2 }
  }

  /** What part of the candidate a frame shows: screen px per pixel, and where its corner lies. */
  #window(box, size) {
    if (!this.zoomed) return fit(box, size)
    const k = 1 / devicePixelRatio
    return { k, x: box[0] / 2 - this.#spot[0] * size[0] * k, y: box[1] / 2 - this.#spot[1] * size[1] * k }
  }

  /** The divider as a part of a picture's own width. */
  #part(picture, frame) {
    const [left, width] = [parseFloat(picture.style.left), parseFloat(picture.style.width)]
    return Math.max(0, Math.min(1, (this.#divider * frame.clientWidth - left) / (width || 1)))
  }

  #drawDivider(frame) {
    if (!this.split) return this.handle.remove()
    if (this.handle.parentElement !== frame) frame.append(this.handle)
    this.handle.style.left = `${100 * this.#divider}%`
    this.handle.setAttribute("aria-valuenow", String(Math.round(100 * this.#divider)))
  }

  #zoomAt(event) {
    const candidate = find("#picture")
    const box = candidate.getBoundingClientRect()
    if (!candidate.parentElement.contains(event.target)) return
    this.#spot = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height]
    this.toggleZoom()
  }

  /** Drag the divider, or the pictures when they are larger than the window. */
  #drag(event) {
    if (event.pointerType === "touch" && !this.split && !this.zoomed) return // that is a swipe
    const frame = find("#picture").parentElement
    if (!(this.split || this.zoomed) || event.button) return
    event.preventDefault()
    this.stage.setPointerCapture(event.pointerId)
    let last = [event.clientX, event.clientY]
    const onDivider = this.split && (event.target === this.handle || !this.zoomed)
    const move = ({ clientX, clientY }) => {
      const box = frame.getBoundingClientRect()
      const k = devicePixelRatio
      if (onDivider) this.#divider = Math.max(0, Math.min(1, (clientX - box.left) / box.width))
      else this.#moveSpot((-(clientX - last[0]) * k) / find("#picture").naturalWidth, (-(clientY - last[1]) * k) / find("#picture").naturalHeight)
      last = [clientX, clientY]
      this.place()
    }
    const end = () => this.stage.removeEventListener("pointermove", move)
    this.stage.addEventListener("pointermove", move)
    this.stage.addEventListener("pointerup", end, { once: true })
    this.stage.addEventListener("pointercancel", end, { once: true })
  }
}

/** Whole and centred. */
function fit(box, size) {
  const k = Math.min(box[0] / size[0], box[1] / size[1])
  return { k, x: (box[0] - size[0] * k) / 2, y: (box[1] - size[1] * k) / 2 }
}

/** @param {HTMLElement} image */
function lay(image, { k, x, y }, own) {
  image.style.width = `${own.size[0] * own.scale * k}px`
  image.style.height = `${own.size[1] * own.scale * k}px`
  image.style.left = `${x + own.x * k}px`
  image.style.top = `${y + own.y * k}px`
}
