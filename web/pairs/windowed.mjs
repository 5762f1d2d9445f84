/** A long list of equally high lines, of which only those near the window exist. */

import { element } from "../review/dom.mjs"

const OVERSCAN = 4

export class Windowed {
  /** @type {Map<number, HTMLElement>} */
  #lines = new Map()
  #count = 0
  #height = 1
  /** @type {(number: number) => HTMLElement} */
  #make = () => element("div")

  /** @param {HTMLElement} scroller */
  constructor(scroller) {
    this.scroller = scroller
    this.sheet = element("div", { class: "lines", role: "presentation" })
    scroller.replaceChildren(this.sheet)
    scroller.addEventListener("scroll", () => this.#show(), { passive: true })
    new ResizeObserver(() => this.#show()).observe(scroller)
  }

  /** A line that has the focus stays as it is if it is still in its place. @param {number} count @param {number} height px @param {(number: number) => HTMLElement} make */
  set(count, height, make) {
    const [at, used] = [...this.#lines].find(([, line]) => line.contains(document.activeElement)) ?? [-1, null]
    const stays = used && at < count && make(at).dataset.key === used.dataset.key ? used : null
    this.#count = count
    this.#height = height
    this.#make = make
    this.sheet.style.height = `${count * height}px`
    for (const [number, line] of this.#lines) {
      if (line === stays) continue
      line.remove()
      this.#lines.delete(number)
    }
    this.#show()
  }

  /** Bring a line into the window. @param {number} number @returns {HTMLElement|undefined} */
  reveal(number) {
    const { scroller } = this
    const top = number * this.#height
    if (top < scroller.scrollTop) scroller.scrollTop = top
    if (top + this.#height > scroller.scrollTop + scroller.clientHeight) scroller.scrollTop = top + this.#height - scroller.clientHeight
    this.#show()
    return this.#lines.get(number)
  }

  #show() {
    const { scrollTop, clientHeight } = this.scroller
    if (!clientHeight) return
    const from = Math.max(0, Math.floor(scrollTop / this.#height) - OVERSCAN)
    const to = Math.min(this.#count - 1, Math.floor((scrollTop + clientHeight) / this.#height) + OVERSCAN)
    for (const [number, line] of this.#lines) {
      if ((number >= from && number <= to) || line.contains(document.activeElement)) continue
      for (const image of line.querySelectorAll("img")) image.removeAttribute("src") // cancels what is still loading
      line.remove()
      this.#lines.delete(number)
    }
    for (let number = from; number <= to; number += 1) if (!this.#lines.has(number)) this.#put(number)
  }

  /** @param {number} number */
  #put(number) {
    const line = this.#make(number)
    line.style.transform = `translateY(${number * this.#height}px)`
    line.style.height = `${this.#height}px`
    this.#lines.set(number, line)
    const next = [...this.#lines].filter(([other]) => other > number).sort(([a], [b]) => a - b)[0]
    this.sheet.insertBefore(line, next?.[1] ?? null) // Tab goes by the order in the page
  }
}
