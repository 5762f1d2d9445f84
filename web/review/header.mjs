/** Everything around the images: counts, progress, filters, the state of saving, errors and the way on. */

import { graphAddress } from "./api.mjs"
import { button, element, find, icon } from "./dom.mjs"
import { FILTERS, LABELS, ORDERS, plural, stageWord, wordFor } from "./words.mjs"

export class Header {
  /** @param {import("./store.mjs").ReviewStore} store @param {import("./outbox.mjs").Outbox} outbox @param {import("./api.mjs").CandidateSet} set */
  constructor(store, outbox, set) {
    Object.assign(this, { store, outbox, set })
    find("#order").replaceChildren(...ORDERS.map(({ name, word }) => element("option", { value: name, text: word })))
    find("#order").addEventListener("change", ({ target }) => {
      store.choose({ order: target.value })
      find("#grid").focus() // the keys go on with the images
    })
    find("#hide-decided").addEventListener("click", () => store.choose({}))
    find("#trouble-close").addEventListener("click", () => this.complain(""))
    find("#to-graph").href = graphAddress()
    store.addEventListener("change", () => this.draw())
    outbox.addEventListener("change", () => this.#saving())
  }

  draw() {
    const { store, set } = this
    const { counts } = store
    find("#project-name").textContent = store.project.name
    find("#set-name").textContent = `${stageWord(set.stage)} ${set.version} · ${store.project.instance_token}`
    document.title = `${counts.undecided ? `(${counts.undecided}) ` : ""}${store.project.name} – FLENwheel review`
    this.#progress(counts)
    this.#filters()
    find("#order").value = store.order
    find("#hide-decided").hidden = !store.stale
    find("#hide-decided").textContent = `Hide ${store.stale} ${store.filter === "undecided" ? "decided" : "that changed"}`
    this.#empty(counts)
    this.#undo()
    this.#saving()
  }

  #progress(counts) {
    for (const { label } of LABELS) find(`#progress .${label}`).style.width = `${(100 * counts[label]) / Math.max(1, counts.total)}%`
    const decided = counts.total - counts.undecided
    const bar = find("#progress")
    bar.setAttribute("aria-valuemax", String(counts.total))
    bar.setAttribute("aria-valuenow", String(decided))
    bar.setAttribute("aria-valuetext", `${decided} of ${counts.total} decided`)
    const text = counts.total && !counts.undecided ? `All ${counts.total} decided` : `${decided} of ${counts.total} decided`
    if (find("#decided").textContent !== text) find("#decided").textContent = text // aria-live: say it only when it changes
  }

  #filters() {
    const { candidates, filter } = this.store
    const focused = find("#filters").contains(document.activeElement) ? document.activeElement.dataset.filter : null
    const chips = FILTERS.map((known) => ({ ...known, count: candidates.filter(known.holds).length }))
      .filter(({ always, count, name }) => always || count || name === filter)
      .map(({ name, word, count }) =>
        button(
          { class: `filter ${name}`, "aria-pressed": String(name === filter), dataset: { filter: name }, on: { click: () => this.store.choose({ filter: name }) } },
          word,
          element("span", { text: String(count) }),
        ),
      )
    find("#filters").replaceChildren(...chips)
    if (focused) find(`#filters [data-filter="${focused}"]`)?.focus()
  }

  #empty(counts) {
    const box = find("#empty")
    box.hidden = this.store.view.length > 0
    if (box.hidden) return
    const filter = FILTERS.find((known) => known.name === this.store.filter)
    const words = !counts.total
      ? ["No candidates here yet", "Run the graph; the images appear by themselves."]
      : this.store.filter === "undecided"
        ? ["Everything is decided", "Continue the graph, or look through the verdicts with the filters above."]
        : [`Nothing under “${filter?.word}”`, "Choose another filter above."]
    box.replaceChildren(element("h2", { text: words[0] }), element("p", { text: words[1] }))
  }

  #undo() {
    const step = this.store.undoable
    find("#undo").disabled = !step
    if (!step) return find("#undo-what").replaceChildren("Undo")
    const onlyLabel = step.before.label !== step.what.label
    const what = onlyLabel ? (step.what.label ? wordFor(step.what.label) : "Withdraw") : step.before.note !== step.what.note ? "Note" : "Reason"
    return find("#undo-what").replaceChildren(`Undo “${what}”`)
  }

  #saving() {
    const { outbox } = this
    const state = outbox.size ? (outbox.trouble ? "away" : "busy") : "saved"
    const words = { saved: "All saved", busy: `Saving ${outbox.size}`, away: `${outbox.size} not saved yet` }
    for (const saving of document.querySelectorAll(".saving")) {
      saving.dataset.state = state
      if (saving.lastChild.textContent !== words[state]) saving.replaceChildren(icon(state), element("span", { text: words[state] }))
    }
    const ready = this.store.candidates.length > 0 && !this.store.counts.undecided && !outbox.size
    find("#continue").disabled = !ready
    find("#continue").title = ready ? "Queue the graph again from here" : outbox.size ? "Waits until everything is saved" : "Waits until everything is decided"
    this.#trouble()
  }

  /** Say what went wrong, until it is closed. @param {string} message */
  complain(message) {
    this.complaint = message
    this.#trouble()
  }

  #trouble() {
    const message = this.complaint || this.outbox.trouble || ""
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
    this.toastTimer = setTimeout(() => toast.classList.remove("up"), 5_000)
  }
}

/** @param {import("./store.mjs").ReviewStore} store */
export const summary = ({ counts }) =>
  `${plural(counts.good, "image")} good, ${counts.needs_correction} to correct, ${counts.reject} rejected`
