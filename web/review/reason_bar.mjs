/**
 * The bar that asks why, after a verdict that something is wrong. In the first pass it never stands in the way: the reviewer has already moved
 * on, and may ignore it; R turns the number keys into reasons until any other key is pressed. In the strict pass it asks first: the verdict
 * counts with its first reason.
 */

import { imageAddress } from "./api.mjs"
import { button, element, find, icon } from "./dom.mjs"
import { t } from "./lang.mjs"
import { forget, load } from "./pictures.mjs"
import { reasonWord, wantsReasons, wordFor } from "./words.mjs"

export class ReasonBar {
  /** @type {string|null} key of the candidate it asks about */
  #about = null
  #choosing = false
  #justAsked = false // the verdict itself moves on once; moving again is an answer too
  /** @type {{label: import("./words.mjs").Label, answers: Record<string, boolean>|undefined}|null} a verdict that waits for its reason */
  #pending = null

  /**
   * @param {import("./store.mjs").ReviewStore} store @param {import("./api.mjs").CandidateSet} set
   * @param {{answered: () => void}} does told when a verdict that had to have a reason has got it
   */
  constructor(store, set, does) {
    this.store = store
    this.set = set
    this.does = does
    this.bar = find("#reason-bar")
    this.image = element("img", { dataset: { key: "" } })
    store.addEventListener("change", (/** @type {any} */ { detail }) => this.#follow(detail))
  }

  #follow({ what, key }) {
    if (this.#pending && what === "current" && this.store.current !== this.#about) this.stop()
    if (what === "verdict" && key !== this.#about) {
      this.#ask(key)
      this.#justAsked = true
    } else if (what === "current") {
      if (!this.#justAsked) this.#ask(this.store.current)
      this.#justAsked = false
      this.#choosing = this.#choosing && this.#pending !== null
    }
    this.#draw()
  }

  /** Ask about a candidate if something is wrong with it. */
  #ask(key) {
    const candidate = this.store.get(key)
    this.#about = candidate && (wantsReasons(candidate) || (this.#pending && key === this.#about)) ? key : null
  }

  /** A verdict that may not stand without a reason. */
  require(key, label, answers) {
    this.#about = key
    this.#pending = { label, answers }
    this.#choosing = true
    this.#draw()
  }

  /** Start or end choosing. */
  toggle() {
    const current = this.store.get(this.store.current)
    if (current && wantsReasons(current)) this.#about = current.key
    this.#choosing = this.#about !== null && !this.#choosing
    this.#draw()
  }

  stop() {
    this.#pending = null
    this.#choosing = false
    this.#draw()
  }

  /** @param {string} key as the keyboard names it @returns {boolean} whether it was for the bar */
  takes(key) {
    if (!this.#choosing || !this.#about) return false
    const reason = this.store.reasons[Number(key) - 1]
    if (/^[1-9]$/.test(key)) {
      if (reason) this.#choose(reason)
      return true
    }
    if (key === "r") return false
    const answered = key === "Enter" && !this.#pending && this.strict
    this.stop() // any other key means that the reviewer is done with it
    if (answered) this.does.answered()
    return key === "Enter" || key === "Escape"
  }

  #choose(reason) {
    const key = this.#about
    if (!key) return
    if (!this.#pending) return void this.store.toggleReason(key, reason)
    const { label, answers } = this.#pending
    this.#pending = null
    this.strict = true
    this.store.label(key, label, [reason], answers)
    this.#about = key
    this.#choosing = true
    this.#draw()
  }

  /** @param {string} key */
  #hang(key) {
    if (this.image.dataset.key === key) return
    forget([this.image])
    this.image = element("img", { alt: "", dataset: { key } })
    if (key) load(this.image, imageAddress(this.set, key, 256))
  }

  #draw() {
    if (this.#about) this.#ask(this.#about)
    const candidate = this.store.get(this.#about)
    this.bar.hidden = !candidate
    this.#hang(candidate?.key ?? "")
    if (!candidate) this.#choosing = false
    this.bar.classList.toggle("choosing", this.#choosing)
    this.bar.classList.toggle("of-current", this.#about === this.store.current)
    if (!candidate) return this.bar.replaceChildren()
    const label = this.#pending?.label ?? candidate.label
    const chips = this.store.reasons.map((reason, index) =>
      button(
        { class: "chip", "aria-pressed": String(!this.#pending && candidate.reasons.includes(reason)), on: { click: () => this.#choose(reason) } },
        this.#choosing && index < 9 ? element("kbd", { text: String(index + 1) }) : null,
        reasonWord(reason),
      ),
    )
    const hint = this.#pending ? t("needed: choose with 1–9") : this.strict && this.#choosing ? t("1–9 for more, Enter goes on") : this.#choosing ? t("1–9 choose, R when done") : t("optional")
    this.bar.replaceChildren(
      this.image,
      element("div", { class: "question" }, element("b", {}, icon(label ?? "good"), label === "reject" ? t("Why reject?") : t("What needs correction?")), element("span", { text: hint })),
      element("div", { class: "chips", role: "group", "aria-label": t("Reasons: {label}", { label: wordFor(label) }) }, ...chips),
      button({ class: "quiet", "aria-label": this.#choosing ? t("Done") : t("Choose with the keyboard"), on: { click: () => this.toggle() } }, element("kbd", { text: "R" })),
    )
    return undefined
  }
}
