/** The strict pass: four questions about each image that passed, and what the chosen ones cover. */

import { ServerError, agreement, coverage, unreachable } from "./api.mjs"
import { button, element, find, openDialog } from "./dom.mjs"
import { mark, t } from "./lang.mjs"

/** The number key that says no, what is asked, and the reason that a no stands for. */
export const QUESTIONS = [
  { name: "character", key: "5", word: mark("Is it the character?"), reason: "identity" },
  { name: "anatomy", key: "6", word: mark("Is the anatomy right?"), reason: "anatomy" },
  { name: "artefacts", key: "7", word: mark("Is it free of artefacts?"), reason: "artefact" },
  { name: "gap", key: "8", word: mark("Does it fill a gap?"), reason: null },
]
const [FEW, MANY] = [10, 20] // how many the process wants picked

export class Questions {
  /** @type {Record<string, boolean>} answers for the current candidate that are not stored yet */
  #no = {}
  #about = ""

  /** @param {import("./store.mjs").ReviewStore} store */
  constructor(store) {
    this.store = store
    this.box = find("#questions")
    this.box.hidden = false
    store.addEventListener("change", () => this.draw())
  }

  #answers() {
    const candidate = this.store.get(this.store.current)
    if (this.#about !== this.store.current) {
      this.#about = this.store.current ?? ""
      this.#no = Object.fromEntries(Object.entries(candidate?.answers ?? {}).filter(([, yes]) => !yes))
    }
    return Object.fromEntries(QUESTIONS.map(({ name }) => [name, this.#no[name] !== false]))
  }

  /** @param {string} name */
  toggle(name) {
    this.#answers()
    if (this.#no[name] === false) delete this.#no[name]
    else this.#no[name] = false
    this.draw()
  }

  /**
   * What a verdict comes with.
   * @param {import("./words.mjs").Label} label
   * @returns {{answers: Record<string, boolean>, reasons: string[], objection: string}} `objection`: why the verdict does not fit the answers
   */
  with(label) {
    const answers = this.#answers()
    const failed = QUESTIONS.filter(({ name, reason }) => !answers[name] && reason)
    const objection = label === "good" && failed.length ? t("You answered no to “{question}”. Choose another verdict, or take the no back.", { question: t(failed[0].word) }) : ""
    return { answers, reasons: failed.map(({ reason }) => String(reason)), objection }
  }

  draw() {
    const answers = this.#answers()
    this.box.replaceChildren(
      ...QUESTIONS.map(({ name, key, word }) =>
        button({ class: "question-row", "aria-pressed": String(answers[name]), on: { click: () => this.toggle(name) } }, element("kbd", { text: key }), element("span", { text: t(word) }), element("b", { text: answers[name] ? t("yes") : t("no") })),
      ),
    )
  }
}

/**
 * How the pass went, what the good ones cover, what is missing, and how far the reviewer agrees with themselves.
 * @param {import("./api.mjs").CandidateSet} set @param {string} reviewer @param {HTMLElement} report @param {(message: string) => void} complain
 */
export async function showCoverage(set, reviewer, report, complain) {
  try {
    const [map, agreed] = await Promise.all([coverage(set), agreement(set, reviewer)])
    const advice = set.stage === "card" ? "" : map.picked < FEW ? t("Pick {few} to {many}: {n} so far.", { few: FEW, many: MANY, n: map.picked }) : map.picked > MANY ? t("{n} picked; {few} to {many} are enough.", { n: map.picked, few: FEW, many: MANY }) : t("{n} picked: enough for a strong set.", { n: map.picked })
    const covers = element(
      "section",
      { class: "report" },
      element("h3", { text: t("What the set covers") }),
      advice ? element("p", { text: advice }) : null,
      map.missing?.length ? element("p", {}, element("b", { text: t("Still missing: ") }), map.missing.join(", ")) : null,
      table(t("Angle"), map.angle),
      table(t("Expression"), map.expression),
      element("h3", { text: t("Your agreement with yourself") }),
      ...agreements(agreed),
    )
    const dialog = openDialog(
      t("This pass, and what the set covers"),
      element("div", { class: "reports" }, report, covers),
      element("div", { class: "dialog-end" }, button({ class: "primary", autofocus: true, text: t("Close"), on: { click: () => dialog.close() } })),
    )
    dialog.classList.add("wide")
  } catch (error) {
    if (!(error instanceof ServerError) && !unreachable(error)) throw error
    complain(error instanceof ServerError ? error.message : t("ComfyUI does not answer."))
  }
}

function table(title, rows) {
  if (!rows?.length) return null
  const head = element("tr", {}, ...[title, t("Photos"), t("Good"), t("Picked")].map((text) => element("th", { scope: "col", text })))
  const body = rows.map(({ value, sources, good, picked }) => element("tr", { class: good ? "" : "gap" }, element("th", { scope: "row", text: value }), ...[sources, good, picked].map((number) => element("td", { text: String(number ?? 0) }))))
  return element("table", { class: "coverage" }, head, ...body)
}

function agreements(agreed) {
  const lines = [
    [t("First and strict pass"), agreed.first_strict],
    [t("First pass and repeat"), agreed.first_repeat],
  ].filter(([, told]) => told?.both)
  if (!lines.length) return [element("p", { class: "quiet", text: t("Known once images were seen twice: in the strict pass or in a repeat.") })]
  return lines.map(([title, { both, same, share }]) => element("p", { text: t("{title}: the same verdict on {same} of {both} ({percent} %).", { title, same, both, percent: Math.round(100 * (share ?? same / both)) }) }))
}
