/**
 * The grid of candidates. Only the rows near the screen exist, so 5,000 cost what 50 cost. Follows the ARIA grid pattern: the scroller has
 * the focus, aria-activedescendant names the current cell.
 */

import { imageAddress } from "./api.mjs"
import { button, element, icon } from "./dom.mjs"
import { LABELS, similarityWords, wordFor } from "./words.mjs"

const CELL_PX = 208 // narrowest card of a wide window; a phone gets two in a row
const CAPTION_PX = 76 // review.css, .caption
const GAP_PX = 14
const OVERSCAN = 2 // rows above and below the window
const [NARROWEST, WIDEST] = [0.66, 1.5] // of a picture's width : height, so that one panorama does not flatten every card

export class Grid {
  /** @type {Map<number, HTMLElement>} rows that exist */
  #rows = new Map()
  #columns = 1
  #rowHeight = 1

  /**
   * @param {HTMLElement} scroller @param {import("./store.mjs").ReviewStore} store @param {import("./api.mjs").CandidateSet} set
   * @param {{open: () => void, label: (label: import("./words.mjs").Label) => void}} does
   */
  constructor(scroller, store, set, does) {
    Object.assign(this, { scroller, store, set, does })
    this.sheet = element("div", { class: "sheet", role: "presentation" })
    scroller.append(this.sheet)
    scroller.addEventListener("scroll", () => this.#show(), { passive: true })
    scroller.addEventListener("click", (event) => this.#clicked(event))
    new ResizeObserver(() => this.layout()).observe(scroller)
    store.addEventListener("change", ({ detail }) => this.#follow(detail))
  }

  get columns() {
    return this.#columns
  }

  /** Rows that fit the window: what PageDown moves by. */
  get page() {
    return Math.max(1, Math.floor(this.scroller.clientHeight / this.#rowHeight))
  }

  #follow({ what, key }) {
    if (what === "view") return this.layout()
    if (what === "verdict") for (const cell of this.sheet.querySelectorAll(`[data-key="${key}"]`)) this.#mark(cell, this.store.get(key))
    else this.#reveal()
  }

  /** Measure, and draw everything anew. */
  layout() {
    const { view } = this.store
    const width = this.sheet.clientWidth
    if (!width) return
    this.#columns = Math.max(2, Math.floor((width + GAP_PX) / (CELL_PX + GAP_PX)))
    const cell = (width - GAP_PX * (this.#columns - 1)) / this.#columns
    const shapes = view.map((candidate) => candidate.width / candidate.height).sort((a, b) => a - b)
    const shape = Math.max(NARROWEST, Math.min(WIDEST, shapes[Math.floor(shapes.length / 2)] ?? 1)) // the median
    this.#rowHeight = Math.round(cell / shape) + CAPTION_PX + GAP_PX
    const count = Math.ceil(view.length / this.#columns)
    this.sheet.style.height = `${Math.max(0, count * this.#rowHeight - GAP_PX)}px`
    this.sheet.style.setProperty("--columns", String(this.#columns))
    this.scroller.setAttribute("aria-rowcount", String(count))
    this.scroller.setAttribute("aria-colcount", String(this.#columns))
    this.sheet.replaceChildren()
    this.#rows.clear()
    this.#reveal()
  }

  /** Scroll the current candidate into view. */
  #reveal() {
    const { scroller, store } = this
    const top = Math.floor(store.position / this.#columns) * this.#rowHeight
    const padding = this.sheet.offsetTop
    if (store.position >= 0) {
      if (top < scroller.scrollTop) scroller.scrollTop = top
      const bottom = top + this.#rowHeight + padding
      if (bottom > scroller.scrollTop + scroller.clientHeight) scroller.scrollTop = bottom - scroller.clientHeight
    }
    this.#show()
    for (const cell of this.sheet.querySelectorAll(".card")) cell.setAttribute("aria-selected", String(cell.dataset.key === store.current))
    if (store.current) scroller.setAttribute("aria-activedescendant", `candidate-${store.current}`)
    else scroller.removeAttribute("aria-activedescendant")
  }

  /** Make the rows near the window exist, and no others. */
  #show() {
    const { scrollTop, clientHeight } = this.scroller
    const last = Math.ceil(this.store.view.length / this.#columns) - 1
    const from = Math.max(0, Math.floor(scrollTop / this.#rowHeight) - OVERSCAN)
    const to = Math.min(last, Math.floor((scrollTop + clientHeight) / this.#rowHeight) + OVERSCAN)
    for (const [number, row] of this.#rows) {
      if (number >= from && number <= to) continue
      for (const image of row.querySelectorAll("img")) image.removeAttribute("src") // cancels what is still loading
      row.remove()
      this.#rows.delete(number)
    }
    for (let number = from; number <= to; number += 1) {
      if (this.#rows.has(number)) continue
      const row = this.#row(number)
      this.#rows.set(number, row)
      this.sheet.append(row)
    }
  }

  #row(number) {
    const first = number * this.#columns
    const row = element("div", { class: "row", role: "row", "aria-rowindex": number + 1 })
    row.style.transform = `translateY(${number * this.#rowHeight}px)`
    row.style.height = `${this.#rowHeight - GAP_PX}px`
    const candidates = this.store.view.slice(first, first + this.#columns)
    row.append(...candidates.map((candidate, column) => this.#card(candidate, column + 1)))
    return row
  }

  /** @param {import("./words.mjs").Candidate} candidate @param {number} column */
  #card(candidate, column) {
    const words = similarityWords(candidate)
    const image = element("img", { src: imageAddress(this.set, candidate.key, "thumb"), alt: "", decoding: "async", draggable: "false" })
    image.addEventListener("error", () => image.getAttribute("src") && image.parentElement?.classList.add("broken"))
    const quick = LABELS.map(({ label, word, key, icon: symbol }) =>
      button({ class: `quick ${label}`, tabindex: -1, title: `${word} (${key})`, "aria-label": word, dataset: { label } }, icon(symbol)),
    )
    const badge = element("span", { class: `similarity ${words.band}` }, element("b", { text: words.figure }), words.word)
    const card = element(
      "div",
      { class: "card", role: "gridcell", id: `candidate-${candidate.key}`, "aria-colindex": column, dataset: { key: candidate.key } },
      element("div", { class: "picture" }, image, element("span", { class: "mark" }), element("div", { class: "quicks" }, ...quick)),
      element(
        "div",
        { class: "caption" },
        element("div", { class: "line" }, badge, candidate.sample && element("span", { class: "tag", text: "sample", title: "Flagged for manual sampling" })),
        element("p", { class: "prompt", text: candidate.prompt || candidate.name, title: candidate.name }),
      ),
    )
    card.setAttribute("aria-selected", String(candidate.key === this.store.current))
    this.#mark(card, candidate)
    return card
  }

  #mark(card, candidate) {
    const { label, origin, reasons, prompt, name } = candidate
    card.dataset.label = label ?? "undecided"
    const mark = card.querySelector(".mark")
    mark.replaceChildren()
    if (label) mark.append(icon(label), [wordFor(label), origin === "policy" && "by policy", origin === "folder" && "by folder"].filter(Boolean).join(" "))
    const { figure, word } = similarityWords(candidate)
    card.setAttribute("aria-label", [wordFor(label), ...reasons, `${figure} ${word}`.trim(), prompt || name].join(", "))
  }

  #clicked(event) {
    const card = event.target.closest(".card")
    if (!card) return
    this.scroller.focus({ preventScroll: true })
    this.store.goTo(card.dataset.key)
    const label = event.target.closest("[data-label].quick")?.dataset.label
    if (label) this.does.label(label)
    else this.does.open()
  }
}
