/** One candidate, large, with its source beside it and everything known about it. */

import { ServerError, history, imageAddress, sourceAddress } from "./api.mjs"
import { button, element, find, icon } from "./dom.mjs"
import { LABELS, similarityWords, wantsReasons, wordFor } from "./words.mjs"

const AHEAD = 2 // candidates whose pictures are fetched in advance

export class Viewer {
  #asked = "" // key whose history is shown or on its way
  #shown = "" // key whose pictures are shown
  /** @type {string|undefined} */
  #source // key of the source that hangs there
  #ahead = [] // kept, so that the browser does not drop what it fetches

  /**
   * @param {import("./store.mjs").ReviewStore} store @param {import("./api.mjs").CandidateSet} set
   * @param {{label: (label: import("./words.mjs").Label|null) => void, closed: () => void}} does
   */
  constructor(store, set, does) {
    Object.assign(this, { store, set, does })
    this.room = find("#viewer")
    this.note = find("#note")
    this.note.addEventListener("change", () => store.note(this.#shown, this.note.value))
    find("#viewer-close").addEventListener("click", () => this.close())
    find("#viewer-previous").addEventListener("click", () => store.move(-1))
    find("#viewer-next").addEventListener("click", () => store.move(1))
    find("#verdicts").append(
      ...LABELS.map(({ label, word, key, icon: symbol }) =>
        button(
          { class: `verdict ${label}`, dataset: { label }, "aria-keyshortcuts": key, on: { click: () => does.label(label) } },
          icon(symbol),
          element("span", { text: word }),
          element("kbd", { text: key }),
        ),
      ),
    )
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
    this.#swap(false)
    this.does.closed()
  }

  /** Not a <dialog>: its top layer would cover the messages about saving. */
  #swap(open) {
    this.room.hidden = !open
    document.body.toggleAttribute("data-viewer", open)
    for (const other of this.room.parentElement.children) other.inert = open && other !== this.room
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
    find("#viewer-decided").textContent = `${counts.total - counts.undecided} of ${counts.total} decided`
    find("#viewer-place").textContent = `${this.store.position + 1} of ${this.store.view.length}`
    for (const verdict of this.room.querySelectorAll(".verdict")) verdict.setAttribute("aria-pressed", String(verdict.dataset.label === candidate.label))
    this.room.dataset.label = candidate.label ?? "undecided"
    find("#viewer-label").textContent = wordFor(candidate.label)
    if (document.activeElement !== this.note) this.note.value = candidate.note
    this.#reasons(candidate)
    void this.#history(candidate)
  }

  #turnTo(candidate) {
    this.saveNote()
    this.#shown = candidate.key
    this.note.value = candidate.note
    const { source, prompt, seed, editor, width, height, sample, name, distance } = candidate
    const thumb = imageAddress(this.set, candidate.key, "thumb")
    hang("#picture", imageAddress(this.set, candidate.key, "full"), { alt: `Candidate: ${prompt || name}`, thumb })
    find("#source-figure").hidden = !source
    if (source && this.#source !== source.key) hang("#source", sourceAddress(this.set, source.key), { alt: `Source: ${source.name}` })
    this.#source = source?.key
    find("#source-name").textContent = source?.name ?? ""
    find("#viewer-name").textContent = name
    find("#viewer-prompt").textContent = prompt || "No prompt was recorded."
    const words = similarityWords(candidate)
    find("#viewer-similarity").className = `similarity large ${words.band}`
    find("#viewer-similarity").replaceChildren(element("b", { text: words.figure }), words.word)
    find("#facts").replaceChildren(
      ...[
        ["Face distance", distance === null ? null : distance.toFixed(3)],
        ["Seed", seed === null ? null : String(seed)],
        ["Editor", editor],
        ["Size", `${width} × ${height} px`],
        ["Manual sample", sample ? "yes" : null],
      ].flatMap(([term, value]) => (value ? [element("dt", { text: term }), element("dd", { text: value })] : [])),
    )
    this.#fetchAhead()
  }

  #reasons(candidate) {
    const enabled = wantsReasons(candidate)
    find("#reasons-hint").textContent = enabled ? "optional" : "after Needs correction or Reject"
    find("#reasons").replaceChildren(
      ...this.store.reasons.map((reason) =>
        button(
          {
            class: "chip",
            disabled: !enabled,
            "aria-pressed": String(candidate.reasons.includes(reason)),
            text: reason,
            on: { click: () => this.store.toggleReason(candidate.key, reason) },
          },
        ),
      ),
    )
  }

  /** What was decided before. Asked for when a candidate comes up, not after each key. */
  async #history(candidate) {
    if (this.#asked === candidate.key) return
    this.#asked = candidate.key
    const list = find("#history")
    list.replaceChildren()
    try {
      const events = await history(this.set, candidate.key)
      if (this.#asked !== candidate.key) return
      list.replaceChildren(...events.map(entry).reverse())
      if (!events.length) list.append(element("li", { class: "quiet", text: "No verdict yet." }))
    } catch (error) {
      if (!(error instanceof ServerError || error instanceof TypeError || error instanceof DOMException)) throw error
      if (this.#asked === candidate.key) list.replaceChildren(element("li", { class: "quiet", text: "The history cannot be read just now." }))
    }
  }

  #fetchAhead() {
    const { view, position } = this.store
    this.#ahead = view.slice(position + 1, position + 1 + AHEAD).map((candidate) => {
      const image = new Image()
      image.src = imageAddress(this.set, candidate.key, "full")
      return image
    })
  }

  /** Ask for the history again: a verdict has been stored. */
  forgetHistory() {
    this.#asked = ""
    this.draw()
  }
}

/** Put a new picture into its place. A new element, because an old one shows the old picture until the new one has arrived. */
function hang(place, address, { alt, thumb = "" }) {
  const image = element("img", { id: place.slice(1), src: address, alt })
  if (thumb) image.style.backgroundImage = `url("${thumb}")`
  const figure = find(place).closest("figure")
  figure.classList.remove("broken")
  image.addEventListener("load", () => image.style.removeProperty("background-image"))
  image.addEventListener("error", () => figure.classList.add("broken"))
  find(place).replaceWith(image)
}

function entry({ label, reasons, note, at, reviewer, origin }) {
  const when = new Date(at)
  const who = origin === "person" ? reviewer : `${reviewer} (${origin})`
  const word = label ? wordFor(label) : "Withdrawn"
  return element(
    "li",
    {},
    element("b", { text: [word, ...reasons].join(" · ") }),
    element("time", { datetime: at, text: ` ${who}, ${Number.isNaN(when.valueOf()) ? at : when.toLocaleString()}` }),
    note && element("q", { text: note }),
  )
}
