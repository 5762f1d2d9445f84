/**
 * The grid of candidates. Only the rows near the screen exist, so 5,000 cost what 50 cost. Follows the ARIA grid pattern: the scroller (or
 * whatever has the focus for it) names the current cell with aria-activedescendant.
 */

import { imageAddress } from "./api.mjs"
import { button, element, icon } from "./dom.mjs"
import { t } from "./lang.mjs"
import { forget, load } from "./pictures.mjs"
import { LABELS, reasonWord, ruleWord, similarityWords, wordFor } from "./words.mjs"

/** Narrowest card in px, and what its caption takes; a phone gets two in a row. */
const SIZES = [
  { cell: 116, caption: 30 },
  { cell: 164, caption: 56 },
  { cell: 230, caption: 74 },
  { cell: 340, caption: 74 },
]
export const COMPACT = { cell: 92, caption: 0, gap: 6 }
const USUAL = 1
const GAP_PX = 14
const OVERSCAN = 2 // rows above and below the window
const AHEAD_MS = 100
const [NARROWEST, WIDEST] = [0.66, 1.5] // of a picture's width : height, so that one panorama does not flatten every card
const THUMBS = [256, 512, 1024] // what the server makes

export class Grid {
  /** @type {Map<number, HTMLElement>} rows that exist */
  #rows = new Map()
  #columns = 1
  #rowHeight = 1
  #thumb = 256
  #ahead = 0
  /** @type {Map<string, HTMLImageElement>} from the layout before, so that nothing flickers */
  #hung = new Map()
  /** @type {WeakMap<HTMLElement, string>} what a card says; writing the same again would draw the whole window anew */
  #said = new WeakMap()
  size = USUAL

  /**
   * @param {HTMLElement} scroller @param {import("./store.mjs").ReviewStore} store @param {import("./api.mjs").CandidateSet} set
   * @param {{open: () => void, label: (label: import("./words.mjs").Label) => void}} does
   * @param {{measures?: {cell: number, caption: number, gap: number}, focus?: HTMLElement, covered?: () => number}} [options] `focus`: what has it in the
   *   scroller's place; `covered`: px at its lower edge over which something lies
   */
  constructor(scroller, store, set, does, { measures, focus = scroller, covered = () => 0 } = {}) {
    this.scroller = scroller
    this.store = store
    this.set = set
    this.does = does
    this.measures = measures
    this.focus = focus
    this.covered = covered
    this.sheet = element("div", { class: "sheet", role: focus === scroller ? "presentation" : "grid", "aria-label": focus === scroller ? null : t("Candidates") })
    scroller.append(this.sheet)
    scroller.addEventListener("scroll", () => this.#show(), { passive: true })
    scroller.addEventListener("click", (event) => this.#clicked(event))
    if (!measures) this.#lendQuicks()
    this.watcher = new ResizeObserver(() => this.layout())
    this.watcher.observe(scroller)
    this.follow = (/** @type {any} */ { detail }) => this.#follow(detail)
    store.addEventListener("change", this.follow)
  }

  dispose() {
    clearTimeout(this.#ahead)
    forget(this.sheet.querySelectorAll("img"))
    this.watcher.disconnect()
    this.store.removeEventListener("change", this.follow)
  }

  get columns() {
    return this.#columns
  }

  /** Rows that fit the window: what PageDown moves by. */
  get page() {
    return Math.max(1, Math.floor(this.scroller.clientHeight / this.#rowHeight))
  }

  /** Larger or smaller cards. @param {number} by */
  resize(by) {
    this.size = Math.max(0, Math.min(SIZES.length - 1, this.size + by))
    this.layout()
  }

  #follow({ what, key }) {
    if (what === "view") return this.layout()
    if (what !== "current") for (const cell of this.sheet.querySelectorAll(key ? `[data-key="${key}"]` : ".card")) this.#mark(cell, this.store.get(cell.dataset.key))
    if (what === "current") this.#reveal()
  }

  /** Measure, and draw everything anew. */
  layout() {
    const { view } = this.store
    const width = this.sheet.clientWidth
    if (!width) return
    const kept = this.#seen // what others add above must not push it away
    const { cell, caption, gap } = this.measures ?? { ...SIZES[this.size], gap: GAP_PX }
    this.#columns = Math.max(2, Math.floor((width + gap) / (cell + gap)))
    const wide = (width - gap * (this.#columns - 1)) / this.#columns
    const shapes = view.map((candidate) => candidate.width / candidate.height).sort((a, b) => a - b)
    const shape = Math.max(NARROWEST, Math.min(WIDEST, shapes[Math.floor(shapes.length / 2)] || 1)) // the median
    const picture = Math.round(wide / shape)
    this.#rowHeight = picture + caption + gap
    this.gap = gap
    const thumb = this.#thumb
    this.#thumb = THUMBS.find((size) => size >= Math.max(wide, picture) * Math.min(2, devicePixelRatio)) ?? 1024
    const count = Math.ceil(view.length / this.#columns)
    this.sheet.style.height = `${Math.max(0, count * this.#rowHeight - gap)}px`
    this.sheet.style.setProperty("--columns", String(this.#columns))
    this.sheet.style.setProperty("--caption", `${caption}px`)
    this.sheet.style.setProperty("--gap", `${gap}px`)
    this.sheet.dataset.size = this.measures ? "compact" : String(this.size)
    const table = this.focus === this.scroller ? this.scroller : this.sheet
    table.setAttribute("aria-rowcount", String(count))
    table.setAttribute("aria-colcount", String(this.#columns))
    const before = this.#pictures()
    this.sheet.replaceChildren()
    this.#rows.clear()
    if (kept !== null) this.scroller.scrollTop = this.#top - kept
    this.#hung = thumb === this.#thumb ? before : new Map()
    this.#reveal()
    this.#hung = new Map()
    forget([...before.values()].filter(({ isConnected }) => !isConnected))
  }

  /** The pictures that hang there, by key. @returns {Map<string, HTMLImageElement>} */
  #pictures() {
    return new Map([...this.sheet.querySelectorAll(".card")].map((card) => [card.dataset.key, card.querySelector("img")]))
  }

  /** How far below the upper edge the current candidate is seen; null where it is not. */
  get #seen() {
    const card = this.sheet.querySelector(".card.current")
    if (!card || card.dataset.key !== this.store.current) return null
    const [{ top, bottom }, window] = [card.getBoundingClientRect(), this.scroller.getBoundingClientRect()]
    const scale = window.height / this.scroller.offsetHeight || 1 // of a canvas around it
    return bottom > window.top && top < window.bottom ? (top - window.top) / scale - this.sheet.offsetTop : null
  }

  get #top() {
    return Math.floor(this.store.position / this.#columns) * this.#rowHeight
  }

  /** Scroll the current candidate into view. */
  #reveal() {
    const { scroller, store, focus } = this
    const top = this.#top
    const padding = this.sheet.offsetTop
    if (store.position >= 0) {
      if (top < scroller.scrollTop) scroller.scrollTop = top
      const bottom = top + this.#rowHeight + padding + this.covered()
      if (bottom > scroller.scrollTop + scroller.clientHeight) scroller.scrollTop = bottom - scroller.clientHeight
    }
    this.#show()
    for (const cell of this.sheet.querySelectorAll(".card")) this.#select(cell)
    if (store.current) focus.setAttribute("aria-activedescendant", this.#id(store.current))
    else focus.removeAttribute("aria-activedescendant")
  }

  /** Make the rows in the window exist; those near it a moment later, when the verdict that has moved the window is on its way. */
  #show() {
    this.#make(0)
    this.#ahead ||= setTimeout(() => {
      this.#ahead = 0
      const [from, to] = this.#make(OVERSCAN)
      for (const [number, row] of this.#rows) {
        if (number >= from && number <= to) continue
        forget(row.querySelectorAll("img"))
        row.remove()
        this.#rows.delete(number)
      }
    }, AHEAD_MS)
  }

  /** Rows in the window and so many around it, where they are missing. @param {number} around @returns {[number, number]} the first and the last */
  #make(around) {
    const { scrollTop, clientHeight } = this.scroller
    const last = Math.ceil(this.store.view.length / this.#columns) - 1
    const from = Math.max(0, Math.floor(scrollTop / this.#rowHeight) - around)
    const to = Math.min(last, Math.floor((scrollTop + clientHeight) / this.#rowHeight) + around)
    for (let number = from; number <= to; number += 1) {
      if (this.#rows.has(number)) continue
      const row = this.#row(number)
      this.#rows.set(number, row)
      this.sheet.append(row)
    }
    return [from, to]
  }

  #row(number) {
    const first = number * this.#columns
    const row = element("div", { class: "row", role: "row", "aria-rowindex": number + 1 })
    row.style.transform = `translateY(${number * this.#rowHeight}px)`
    row.style.height = `${this.#rowHeight - (this.gap ?? GAP_PX)}px`
    const candidates = this.store.view.slice(first, first + this.#columns)
    row.append(...candidates.map((candidate, column) => this.#card(candidate, column + 1)))
    return row
  }

  #id(key) {
    return `${this.measures ? "compact" : "candidate"}-${key}`
  }

  /** @param {import("./words.mjs").Candidate} candidate @param {number} column */
  #card(candidate, column) {
    const image = this.#hung.get(candidate.key) ?? this.#image(candidate.key)
    const picture = element("div", { class: "picture", "data-broken": t("This image cannot be shown") }, image, element("span", { class: "mark" }))
    const card = element(
      "div",
      { class: "card", role: "gridcell", id: this.#id(candidate.key), "aria-colindex": column, dataset: { key: candidate.key } },
      picture,
      !this.measures && this.#caption(candidate),
    )
    picture.classList.toggle("broken", image.complete && image.hasAttribute("src") && !image.naturalWidth)
    this.#select(card)
    this.#mark(card, candidate)
    return card
  }

  #image(key) {
    const image = element("img", { alt: "", decoding: "async", draggable: "false" })
    for (const event of ["error", "load"]) image.addEventListener(event, () => image.parentElement?.classList.toggle("broken", event === "error"))
    return load(image, imageAddress(this.set, key, this.#thumb))
  }

  /** Buttons for the pointer, on the card it is over: one set, since those of every card would be half of what there is to draw. */
  #lendQuicks() {
    const quick = LABELS.map(({ label, word, key, icon: symbol }) =>
      button({ class: `quick ${label}`, tabindex: -1, title: `${t(word)} (${key})`, "aria-label": t(word), dataset: { label } }, icon(symbol)),
    )
    const quicks = element("div", { class: "quicks" }, ...quick)
    this.sheet.addEventListener("pointerover", ({ target }) => {
      const picture = target.closest(".card")?.querySelector(".picture")
      if (picture && !picture.contains(quicks)) picture.append(quicks)
    })
  }

  #caption(candidate) {
    const words = similarityWords(candidate)
    const badge = element("span", { class: `similarity ${words.band}`, title: candidate.score_note || null }, element("b", { text: words.figure }), words.word)
    const { sample, suggestion, corrections } = candidate
    return element(
      "div",
      { class: "caption" },
      element(
        "div",
        { class: "line" },
        badge,
        sample && element("span", { class: "tag", text: t("sample"), title: t("Flagged for manual sampling") }),
        corrections?.length ? element("span", { class: "tag", text: t("repaired") }) : null,
        suggestion ? element("span", { class: `tag hint ${suggestion.label}`, title: t("Suggested: {label}. {why}", { label: wordFor(suggestion.label), why: suggestion.why }) }, icon("suggest")) : null,
      ),
      element("p", { class: "prompt", text: candidate.prompt || candidate.name || "", title: candidate.name ?? "" }),
    )
  }

  #select(card) {
    const { selected, current } = this.store
    const { key } = card.dataset
    const chosen = String(selected.size ? selected.has(key) : key === current)
    if (card.getAttribute("aria-selected") !== chosen) card.setAttribute("aria-selected", chosen)
    card.classList.toggle("current", key === current)
    card.classList.toggle("chosen", selected.has(key))
  }

  #mark(card, candidate) {
    if (!candidate) return
    const { label, reasons, prompt, name } = candidate
    const { figure, word } = similarityWords(candidate)
    const rule = ruleWord(candidate)
    const machine = candidate.suggestion && !label ? t("suggested: {label}", { label: wordFor(candidate.suggestion.label) }) : ""
    const words = [`${wordFor(label)} ${rule}`.trim(), ...reasons.map(reasonWord), `${figure} ${word}`.trim(), machine, prompt || name].filter(Boolean).join(", ")
    if (this.#said.get(card) === words) return
    this.#said.set(card, words)
    card.dataset.label = label ?? "undecided"
    card.toggleAttribute("data-rule", Boolean(rule))
    card.setAttribute("aria-label", words)
    const mark = card.querySelector(".mark")
    mark.replaceChildren()
    mark.title = rule
    if (label) mark.append(icon(label), element("span", { text: wordFor(label) }))
    if (rule) mark.append(element("small", { text: rule }))
  }

  #clicked(event) {
    const card = event.target.closest(".card")
    if (!card) return
    const { key } = card.dataset
    this.focus.focus({ preventScroll: true })
    if (event.shiftKey) return this.store.selectTo(key)
    if (event.ctrlKey || event.metaKey) {
      this.store.goTo(key)
      return this.store.toggleSelected(key)
    }
    const label = event.target.closest("[data-label].quick")?.dataset.label
    const again = this.store.current === key
    this.store.goTo(key)
    if (label) this.does.label(label)
    else if (!this.measures || again) this.does.open()
  }
}
