/** Everything around the images: counts, progress, pace, filters, the state of saving, errors, the next undo and the way on. */

import { pageAddress } from "./api.mjs"
import { button, element, find, icon } from "./dom.mjs"
import { FILTERS, ORDERS } from "./filters.mjs"
import { count, t } from "./lang.mjs"
import { LABELS, PASSES, stageWord, wordFor } from "./words.mjs"

const LATE_MS = 100

export class Header {
  #late = 0 // the timer after which the header is drawn in any case
  #drawn = -Infinity // when it was

  /**
   * @param {import("./store.mjs").ReviewStore} store @param {import("./outbox.mjs").Outbox} outbox @param {import("./api.mjs").CandidateSet} set
   * @param {import("./api.mjs").Way} way @param {{pace: import("./session.mjs").Pace, suggested: () => void}} parts
   */
  constructor(store, outbox, set, way, { pace, suggested }) {
    this.store = store
    this.outbox = outbox
    this.set = set
    this.way = way
    this.pace = pace
    find("#order").replaceChildren(...ORDERS.map(({ name, word }) => element("option", { value: name, text: t(word) })))
    find("#order").addEventListener("change", ({ target }) => {
      store.choose({ order: target.value })
      find("#grid").focus() // the keys go on with the images
    })
    this.#passes()
    find("#hide-decided").addEventListener("click", () => store.choose({}))
    find("#accept-suggested").addEventListener("click", suggested)
    find("#trouble-close").addEventListener("click", () => this.complain(""))
    store.addEventListener("change", () => this.#soon())
    outbox.addEventListener("change", () => this.#saving())
  }

  #passes() {
    const { set, way } = this
    const options = PASSES.map(({ pass, word, hint }) => element("option", { value: pageAddress({ ...set, pass }), text: t(word), title: t(hint), selected: pass === way.pass && !way.blind }))
    options.push(element("option", { value: pageAddress({ ...set, blind: true }), text: t("Blind pass"), title: t("No scores, no names, shuffled."), selected: way.blind && way.pass === "first" }))
    find("#pass").replaceChildren(...options)
    find("#pass").addEventListener("change", ({ target }) => location.assign(keepEmbedded(target.value)))
  }

  /**
   * Once per frame, however much has changed, and ten times a second at most; not while a verdict is on its way, whose answer changes the same
   * figures. A hidden tab has no frames.
   */
  #soon() {
    const draw = () => {
      clearTimeout(this.#late)
      this.#late = 0
      this.#drawn = performance.now()
      this.draw()
    }
    this.#late ||= setTimeout(draw, LATE_MS)
    if (!this.outbox.size && performance.now() - this.#drawn > LATE_MS) requestAnimationFrame(() => this.#late && draw())
  }

  draw() {
    const { store, set } = this
    const { counts, project } = store
    if (!project) return
    document.body.toggleAttribute("data-blind", Boolean(store.state?.blind))
    find("#project-name").textContent = project.name
    find("#set-name").textContent = `${stageWord(set.stage)} ${set.version} · ${project.instance_token}`
    document.title = `${counts.undecided ? `(${counts.undecided}) ` : ""}${project.name} – FLENwheel`
    this.#progress(counts)
    this.#filters()
    find("#order").value = store.order
    find("#hide-decided").hidden = !store.stale
    find("#hide-decided").textContent = store.filter === "undecided" ? t("Hide {n} decided", { n: store.stale }) : t("Hide {n} that changed", { n: store.stale })
    find("#accept-suggested").hidden = store.filter !== "suggested"
    find("#selection").textContent = store.selected.size ? count(store.selected.size, "{n} selected: a verdict goes to all", "{n} selected: a verdict goes to all") : ""
    this.#empty(counts)
    this.#steps()
    this.#saving()
  }

  #progress(counts) {
    for (const { label } of LABELS) find(`#progress .${label}`).style.width = `${(100 * counts[label]) / Math.max(1, counts.total)}%`
    const decided = counts.total - counts.undecided
    const text = counts.total && !counts.undecided ? t("All {total} decided", { total: counts.total }) : t("{decided} of {total} decided", { decided, total: counts.total })
    const bar = find("#progress")
    bar.setAttribute("aria-valuemax", String(counts.total))
    bar.setAttribute("aria-valuenow", String(decided))
    bar.setAttribute("aria-valuetext", text)
    if (find("#decided").textContent !== text) find("#decided").textContent = text // aria-live: say it only when it changes
    find("#pace").textContent = this.pace.words(counts.undecided)
  }

  #filters() {
    const { candidates, filter } = this.store
    const counts = { ...this.store.counts, all: this.store.counts.total }
    const numberOf = ({ name, holds }) => counts[name] ?? (this.store.incomplete ? 0 : candidates.filter(holds).length)
    const shown = FILTERS.map((known) => ({ ...known, number: numberOf(known) })).filter(({ always, number, name }) => always || number || name === filter)
    const names = shown.map(({ name }) => name).join()
    if (names !== this.names) this.#chips(shown)
    this.names = names
    for (const { name, number } of shown) {
      const chip = find(`#filters [data-filter="${name}"]`)
      chip.setAttribute("aria-pressed", String(name === filter))
      if (chip.lastChild.textContent !== String(number)) chip.lastChild.textContent = String(number)
    }
  }

  #chips(shown) {
    const focused = find("#filters").contains(document.activeElement) ? /** @type {HTMLElement} */ (document.activeElement).dataset.filter : null
    const chips = shown.map(({ name, word }) =>
      button({ class: `filter ${name}`, dataset: { filter: name }, on: { click: () => this.store.choose({ filter: name }) } }, t(word), element("span")),
    )
    find("#filters").replaceChildren(...chips)
    if (focused) find(`#filters [data-filter="${focused}"]`)?.focus()
  }

  #empty(counts) {
    const box = find("#empty")
    box.hidden = this.store.view.length > 0
    if (box.hidden) return
    const { filter, facets, search } = this.store.shown
    const narrowed = search || Object.values(facets).some(Boolean)
    const word = t(FILTERS.find((known) => known.name === filter)?.word ?? "")
    const words = !counts.total
      ? this.way.pass === "first"
        ? [t("No candidates here yet"), t("Run the graph; the images appear by themselves.")]
        : [t("Nothing to look at in this pass"), t("It shows what the first pass has decided. Give verdicts there first.")]
      : filter === "undecided" && !narrowed
        ? [t("Everything is decided"), t("Continue the graph with Ctrl+Enter, or look through the verdicts with the filters above.")]
        : [t("Nothing under “{filter}”", { filter: word }), narrowed ? t("Press / and widen the search.") : t("Choose another filter above.")]
    box.replaceChildren(element("h2", { text: words[0] }), element("p", { text: words[1] }))
  }

  /** The next undo and redo, named where they always are. */
  #steps() {
    for (const [id, step, word] of /** @type {const} */ ([
      ["undo", this.store.undoable, t("Undo")],
      ["redo", this.store.redoable, t("Redo")],
    ])) {
      const what = step && !this.store.state?.blind && this.#nameOf(step)
      find(`#${id}`).disabled = !step
      find(`#${id}-what`).textContent = what ? `${word} “${what}”` : word
    }
  }

  #nameOf(step) {
    if (!("parts" in step)) return step.count > 1 ? t("{label} on {n} images", { label: step.label ? wordFor(step.label) : t("Withdraw"), n: step.count }) : t("{label} on {name}", { label: step.label ? wordFor(step.label) : t("Withdraw"), name: step.name })
    if (step.parts.length > 1) return t("{label} on {n} images", { label: wordFor(step.parts[0].after.label), n: step.parts.length })
    const { before, after } = step.parts[0]
    if (before.label !== after.label) return after.label ? wordFor(after.label) : t("Withdraw")
    if (before.note !== after.note) return t("Note")
    if (before.reasons.join() !== after.reasons.join()) return t("Reason")
    return JSON.stringify(before.answers) === JSON.stringify(after.answers) ? wordFor(after.label) : t("Answer")
  }

  #saving() {
    const { size, state, told } = this.outbox
    for (const saving of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll(".saving"))) saving.dataset.state = state
    if (told !== state) return // within a blink
    const words = { saved: t("All saved"), busy: t("Saving {n}", { n: size }), away: t("{n} not saved yet", { n: size }) }
    for (const saving of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll(".saving"))) {
      saving.dataset.said = state
      if (saving.lastChild.textContent !== words[state]) saving.replaceChildren(icon(state), element("span", { text: words[state] }))
    }
    const { undecided, total } = this.store.counts
    find("#continue").disabled = !total || size > 0
    find("#continue").classList.toggle("primary", total > 0 && !undecided && !size)
    find("#continue").title = size ? t("Waits until everything is saved") : undecided ? count(undecided, "{n} image is undecided; the graph goes on only as far as the gate allows", "{n} images are undecided; the graph goes on only as far as the gate allows") : t("Queue the graph again from here")
    this.#trouble()
  }

  /** Say what went wrong, until it is closed; empty: nothing does any more. @param {string} message */
  complain(message) {
    const said = this.complaint ?? ""
    this.complaint = message && said && !said.includes(message) ? `${said} ${message}` : message && said ? said : message
    this.#trouble()
  }

  /** Say why nothing is shown yet; empty: something is. @param {string} message */
  away(message) {
    this.absence = message
    this.#trouble()
  }

  #trouble() {
    const message = this.complaint || this.absence || this.outbox.trouble || ""
    find("#trouble").hidden = !message
    if (find("#trouble-text").textContent !== message) find("#trouble-text").textContent = message
    find("#trouble-close").hidden = !this.complaint
  }

  /** A short message that goes by itself. @param {string} message */
  say(message) {
    const toast = find("#toast")
    toast.textContent = message
    toast.classList.add("up")
    clearTimeout(this.toastTimer)
    this.toastTimer = setTimeout(() => toast.classList.remove("up"), 6_000)
  }
}

/** A page inside ComfyUI stays one. @param {string} address */
export function keepEmbedded(address) {
  const url = new URL(address)
  const here = new URLSearchParams(location.search)
  for (const name of ["embedded", "theme"]) if (here.has(name)) url.searchParams.set(name, here.get(name) ?? "")
  return url.href
}

/** @param {import("./store.mjs").ReviewStore} store */
export const summary = ({ counts }) =>
  t("{good} good, {correct} to correct, {reject} rejected", { good: counts.good, correct: counts.needs_correction, reject: counts.reject })
