/** One candidate, large, with its source beside it and everything known about it. */

import { ServerError, history, imageAddress, pageAddress, sourceAddress, unreachable, whyNot } from "./api.mjs"
import { button, element, find, icon } from "./dom.mjs"
import { Evidence } from "./evidence.mjs"
import { ORIGINS } from "./filters.mjs"
import { language, t } from "./lang.mjs"
import { Look } from "./look.mjs"
import { forget, load } from "./pictures.mjs"
import { repairLine } from "./repair.mjs"
import { listenToSwipes } from "./swipe.mjs"
import { LABELS, reasonWord, ruleWord, wantsReasons, wordFor } from "./words.mjs"

const AHEAD = 3 // candidates whose pictures are fetched in advance

export class Viewer {
  #asked = "" // key whose history is shown or on its way
  #shown = "" // key whose pictures are shown
  /** @type {string|undefined} */
  #source // key of the source that hangs there
  /** @type {HTMLImageElement[]} */
  #ahead = [] // kept, so that the browser does not drop what it fetches

  /**
   * @param {import("./store.mjs").ReviewStore} store @param {import("./api.mjs").CandidateSet} set
   * @param {{label: (label: import("./words.mjs").Label|null) => void, repair: () => void, closed: () => void}} does
   */
  constructor(store, set, does) {
    this.store = store
    this.set = set
    this.does = does
    this.room = find("#viewer")
    this.note = find("#note")
    this.look = new Look()
    this.evidence = new Evidence(store, set, { faces: (faces) => this.look.align(faces) })
    this.note.addEventListener("change", () => store.note(this.#shown, this.note.value))
    find("#viewer-close").addEventListener("click", () => this.close())
    find("#viewer-previous").addEventListener("click", () => store.move(-1))
    find("#viewer-next").addEventListener("click", () => store.move(1))
    find("#viewer-zoom").addEventListener("click", () => this.look.toggleZoom())
    find("#viewer-split").addEventListener("click", () => this.look.toggleSplit())
    find("#viewer-hold").addEventListener("pointerdown", () => this.look.hold(true))
    for (const event of ["pointerup", "pointerleave", "pointercancel"]) find("#viewer-hold").addEventListener(event, () => this.look.hold(false))
    find("#viewer-repair").addEventListener("click", () => does.repair())
    find("#verdicts").append(
      ...LABELS.map(({ label, word, key, icon: symbol }) =>
        button(
          { class: `verdict ${label}`, dataset: { label }, "aria-keyshortcuts": key, on: { click: () => does.label(label) } },
          icon(symbol),
          element("span", { text: t(word) }),
          element("kbd", { text: key }),
        ),
      ),
    )
    listenToSwipes(find("#stage"), () => !this.look.zoomed && !this.look.split, (label) => does.label(label))
    store.addEventListener("change", () => this.draw())
  }

  get isOpen() {
    return !this.room.hidden
  }

  open() {
    if (this.isOpen || !this.store.current) return
    this.#swap(true)
    find("#stage").focus({ preventScroll: true })
    this.draw()
  }

  close() {
    this.saveNote()
    this.look.hold(false)
    this.#swap(false)
    this.does.closed()
  }

  /** Not a <dialog>: its top layer would cover the messages about saving. */
  #swap(open) {
    this.room.hidden = !open
    document.body.toggleAttribute("data-viewer", open)
    for (const other of this.room.parentElement.children) other.inert = open && other !== this.room && other.tagName !== "FOOTER" // the next undo stays in reach
  }

  /** A note being typed is kept before anything else happens. */
  saveNote() {
    if (this.#shown && this.store.get(this.#shown)?.note !== this.note.value.trim()) this.store.note(this.#shown, this.note.value)
  }

  draw() {
    const candidate = this.store.get(this.store.current)
    if (!this.isOpen || !candidate) return
    if (this.#shown !== candidate.key) this.#turnTo(candidate)
    const { counts } = this.store
    find("#viewer-decided").textContent = t("{decided} of {total} decided", { decided: counts.total - counts.undecided, total: counts.total })
    find("#viewer-place").textContent = t("{place} of {total}", { place: this.store.position + 1, total: this.store.view.length })
    for (const verdict of this.room.querySelectorAll(".verdict")) verdict.setAttribute("aria-pressed", String(verdict.dataset.label === candidate.label))
    this.room.dataset.label = candidate.label ?? "undecided"
    this.room.toggleAttribute("data-rule", Boolean(ruleWord(candidate)))
    find("#viewer-label").textContent = `${wordFor(candidate.label)} ${ruleWord(candidate)}`.trim()
    const { suggestion, disagreement } = candidate
    find("#suggestion").hidden = !(suggestion && !candidate.label) && !disagreement
    find("#suggestion").textContent = disagreement ? t("You and the score disagree: {what}.", { what: disagreement }) : suggestion ? t("Suggested by the machine: {label}. {why}", { label: wordFor(suggestion.label), why: suggestion.why }) : ""
    if (document.activeElement !== this.note) this.note.value = candidate.note
    this.#reasons(candidate)
    this.#repairs(candidate)
    void this.#history(candidate)
  }

  #turnTo(candidate) {
    this.saveNote()
    this.#shown = candidate.key
    this.note.value = candidate.note
    const { prompt, name } = candidate
    const placed = () => this.look.place()
    hang("#picture", imageAddress(this.set, candidate.key, "full"), { alt: t("Candidate: {prompt}", { prompt: prompt || name || "" }), thumb: imageAddress(this.set, candidate.key, 256), placed, image: this.#ahead.find(({ dataset }) => dataset.key === candidate.key) })
    const other = this.#counterpart(candidate)
    for (const needed of ["#source-figure", "#viewer-hold", "#viewer-split"]) find(needed).hidden = !other
    if (other && this.#source !== other.key) hang("#source", other.address, { alt: t("Source: {name}", { name: other.name }), placed })
    this.#source = other?.key
    find("#source-word").textContent = candidate.corrects ? t("Before") : t("Source")
    find("#source-name").textContent = other?.name ?? ""
    find("#viewer-name").textContent = name ?? ""
    this.evidence.show(candidate)
    this.#fetchAhead()
  }

  /** What a candidate is held against: the image it corrects, else the photograph it was made from. */
  #counterpart({ corrects, source }) {
    if (corrects) return { ...corrects, address: imageAddress({ ...this.set, stage: corrects.stage }, corrects.key, "full") }
    return source && { ...source, address: sourceAddress(this.set, source.key) }
  }

  #reasons(candidate) {
    const enabled = wantsReasons(candidate)
    find("#reasons-hint").textContent = enabled ? "" : t("after Needs correction or Reject")
    find("#reasons").replaceChildren(
      ...this.store.reasons.map((reason) =>
        button({
          class: "chip",
          disabled: !enabled,
          "aria-pressed": String(candidate.reasons.includes(reason)),
          text: reasonWord(reason),
          on: { click: () => this.store.toggleReason(candidate.key, reason) },
        }),
      ),
    )
  }

  #repairs(candidate) {
    find("#repairs").textContent = repairLine(candidate)
    const back = (candidate.corrections ?? []).map(({ stage, key, name, label }) =>
      element("a", { class: "sibling", dataset: { label: label ?? "undecided" }, href: pageAddress({ ...this.set, stage }), title: name }, load(element("img", { alt: name }), imageAddress({ ...this.set, stage }, key, 256))),
    )
    find("#corrections").replaceChildren(...back)
  }

  /** What was decided before. Asked for when a candidate comes up, not after each key. */
  async #history(candidate) {
    if (this.#asked === candidate.key || this.store.state?.blind) return
    this.#asked = candidate.key
    const list = find("#history")
    list.replaceChildren()
    try {
      const events = await history(this.set, candidate.key)
      if (this.#asked !== candidate.key) return
      list.replaceChildren(...events.map(entry).reverse())
      if (!events.length) list.append(element("li", { class: "quiet", text: t("No verdict yet.") }))
    } catch (error) {
      if (!(error instanceof ServerError) && !unreachable(error)) throw error
      if (this.#asked === candidate.key) list.replaceChildren(element("li", { class: "quiet", text: t("The history cannot be read just now.") }))
    }
  }

  #fetchAhead() {
    const { view, position } = this.store
    const next = view.slice(position + 1, position + 1 + AHEAD).map(({ key }) => key)
    forget(this.#ahead.filter(({ dataset, isConnected }) => !next.includes(dataset.key) && !isConnected))
    this.#ahead = next.map((key) => this.#ahead.find(({ dataset }) => dataset.key === key) ?? load(element("img", { dataset: { key } }), imageAddress(this.set, key, "full")))
  }

  /** Ask for the history again: a verdict has been stored. */
  forgetHistory() {
    this.#asked = ""
    this.draw()
  }
}

/** Put a new picture into its place, `image` if it was fetched ahead. Another element, because the old one shows the old picture until the new one has arrived. */
function hang(place, address, { alt, thumb = "", placed, image = element("img") }) {
  Object.assign(image, { id: place.slice(1), alt, draggable: false })
  const figure = find(place).closest("figure")
  figure.classList.remove("broken")
  image.addEventListener("load", () => {
    figure.classList.remove("broken")
    image.style.removeProperty("background-image")
    placed()
  })
  image.addEventListener("error", async () => {
    figure.dataset.broken = t("This image cannot be shown")
    figure.classList.add("broken")
    const why = await whyNot(address)
    if (why && image.isConnected) figure.dataset.broken = why
  })
  forget([find(place)])
  find(place).replaceWith(image)
  load(image, address, true)
  if (image.naturalWidth) placed()
  else if (thumb) hangFirst(thumb, image)
}

let small = element("img")

/** Show the thumbnail until the whole picture is there. */
function hangFirst(thumb, image) {
  forget([small])
  small = element("img")
  small.addEventListener("load", () => !image.naturalWidth && (image.style.backgroundImage = `url("${thumb}")`))
  load(small, thumb, true)
}

function entry({ label, reasons, note, at, reviewer, origin, pass, undone }) {
  const when = new Date(at)
  const who = origin === "person" ? reviewer : `${reviewer} (${t(ORIGINS[origin] ?? origin)})`
  const during = pass && pass !== "first" ? `, ${pass}` : ""
  return element(
    "li",
    { class: undone ? "undone" : "" },
    element("b", { text: [label ? wordFor(label) : t("Withdrawn"), ...reasons.map(reasonWord)].join(" · ") }),
    element("time", { datetime: at, text: ` ${who}${during}, ${Number.isNaN(when.valueOf()) ? at : when.toLocaleString(language())}` }),
    undone && element("span", { class: "tag", text: t("undone") }),
    note && element("q", { text: note }),
  )
}
