/**
 * The bar that asks why, after a verdict that something is wrong. It never stands in the way: the reviewer has already moved on, and may
 * ignore it. R turns the number keys into reasons until any other key is pressed.
 */

import { imageAddress } from "./api.mjs"
import { button, element, find, icon } from "./dom.mjs"
import { wantsReasons, wordFor } from "./words.mjs"

export class ReasonBar {
  /** @type {string|null} key of the candidate it asks about */
  #about = null
  #choosing = false
  #justAsked = false // the verdict itself moves on once; moving again is an answer too

  /** @param {import("./store.mjs").ReviewStore} store @param {import("./api.mjs").CandidateSet} set */
  constructor(store, set) {
    Object.assign(this, { store, set, bar: find("#reason-bar") })
    store.addEventListener("change", ({ detail }) => this.#follow(detail))
  }

  #follow({ what, key }) {
    if (what === "verdict" && key !== this.#about) {
      this.#ask(key)
      this.#justAsked = true
    } else if (what === "current") {
      if (!this.#justAsked) this.#ask(this.store.current)
      this.#justAsked = false
      this.#choosing = false
    }
    this.#draw()
  }

  /** Ask about a candidate if something is wrong with it. */
  #ask(key) {
    const candidate = this.store.get(key)
    this.#about = candidate && wantsReasons(candidate) ? key : null
  }

  /** Start or end choosing. */
  toggle() {
    const current = this.store.get(this.store.current)
    if (current && wantsReasons(current)) this.#about = current.key
    this.#choosing = this.#about !== null && !this.#choosing
    this.#draw()
  }

  stop() {
    this.#choosing = false
    this.#draw()
  }

  /** @param {string} key as the keyboard names it @returns {boolean} whether it was for the bar */
  takes(key) {
    if (!this.#choosing || !this.#about) return false
    const reason = this.store.reasons[Number(key) - 1]
    if (/^[1-9]$/.test(key)) {
      if (reason) this.store.toggleReason(this.#about, reason)
      return true
    }
    if (key !== "r") this.stop() // any other key means that the reviewer is done with it
    return key === "Enter" || key === "Escape"
  }

  #draw() {
    if (this.#about) this.#ask(this.#about)
    const candidate = this.store.get(this.#about)
    this.bar.hidden = !candidate
    if (!candidate) this.#choosing = false
    this.bar.classList.toggle("choosing", this.#choosing)
    this.bar.classList.toggle("of-current", this.#about === this.store.current)
    if (!candidate) return this.bar.replaceChildren()
    const chips = this.store.reasons.map((reason, index) =>
      button(
        { class: "chip", "aria-pressed": String(candidate.reasons.includes(reason)), on: { click: () => this.store.toggleReason(candidate.key, reason) } },
        this.#choosing && index < 9 ? element("kbd", { text: String(index + 1) }) : null,
        reason,
      ),
    )
    const asked = candidate.label === "reject" ? "Why reject?" : "What needs correction?"
    this.bar.replaceChildren(
      element("img", { src: imageAddress(this.set, candidate.key, "thumb"), alt: "" }),
      element(
        "div",
        { class: "question" },
        element("b", {}, icon(candidate.label ?? "good"), asked),
        element("span", { text: this.#choosing ? "1–9 choose, R when done" : "optional" }),
      ),
      element("div", { class: "chips", role: "group", "aria-label": `Reasons: ${wordFor(candidate.label)}` }, ...chips),
      button({ class: "quiet", "aria-label": this.#choosing ? "Done" : "Choose with the keyboard", on: { click: () => this.toggle() } }, element("kbd", { text: "R" })),
    )
  }
}
