/** The panel behind “Find”: words, one choice for each facet, and views kept under a name. */

import { ServerError, keepView, unreachable, views } from "./api.mjs"
import { button, element, find } from "./dom.mjs"
import { FIRST_VIEW, facetsOf } from "./filters.mjs"
import { t } from "./lang.mjs"

export class Finder {
  /** @param {import("./store.mjs").ReviewStore} store @param {import("./api.mjs").CandidateSet} set @param {(message: string) => void} complain */
  constructor(store, set, complain) {
    this.store = store
    this.set = set
    this.complain = complain
    this.panel = find("#finder")
    this.kept = []
    find("#find").addEventListener("click", () => this.toggle())
    store.addEventListener("change", (/** @type {any} */ { detail }) => detail.what === "view" && this.#button())
  }

  get isOpen() {
    return !this.panel.hidden
  }

  toggle(open = !this.isOpen) {
    this.panel.hidden = !open
    find("#find").setAttribute("aria-expanded", String(open))
    if (!open) return find("#grid").focus({ preventScroll: true })
    this.draw()
    this.panel.querySelector("input").focus()
    void this.#learn()
  }

  #button() {
    const { facets, search } = this.store.shown
    const number = Object.values(facets).filter(Boolean).length + (search ? 1 : 0)
    find("#find-count").textContent = number ? String(number) : ""
    find("#find").classList.toggle("active", number > 0)
  }

  draw() {
    const { shown, candidates } = this.store
    const search = element("input", { type: "search", value: shown.search, placeholder: t("Words in the prompt, name or note"), "aria-label": t("Find words") })
    search.addEventListener("input", () => this.store.choose({ search: search.value }))
    const facets = facetsOf(candidates).map(({ name, word, values, say = (value) => value }) => {
      const options = values.map(([value, number]) => element("option", { value, text: `${say(value)} (${number})`, selected: shown.facets[name] === value }))
      const select = element("select", {}, element("option", { value: "", text: t("any") }), ...options)
      select.addEventListener("change", () => this.store.choose({ facets: { ...this.store.shown.facets, [name]: select.value } }))
      return element("label", {}, element("span", { text: t(word) }), select)
    })
    const clear = button({ class: "quiet", text: t("Show everything again"), on: { click: () => this.#apply({ ...FIRST_VIEW, filter: "all", order: shown.order }) } })
    this.panel.replaceChildren(search, element("div", { class: "facets" }, ...facets), this.#views(), element("div", { class: "finder-end" }, clear, button({ class: "quiet", on: { click: () => this.toggle(false) } }, t("Close"), element("kbd", { text: "Esc" }))))
  }

  #views() {
    const kept = this.kept.map(({ name, filter }) =>
      element(
        "span",
        { class: "view" },
        button({ class: "chip", text: name, on: { click: () => this.#apply({ ...FIRST_VIEW, ...filter }) } }),
        button({ class: "quiet forget", text: "×", "aria-label": t("Forget the view {name}", { name }), on: { click: () => this.#keep(name, null) } }),
      ),
    )
    const name = element("input", { placeholder: t("Name of this view"), maxlength: 60, "aria-label": t("Name of this view") })
    const keep = () => name.value.trim() && this.#keep(name.value.trim(), this.store.shown)
    name.addEventListener("keydown", (event) => event.key === "Enter" && keep())
    return element("div", { class: "views", role: "group", "aria-label": t("Views") }, ...kept, name, button({ class: "chip", text: t("Keep this view"), on: { click: keep } }))
  }

  #apply(view) {
    this.store.choose(view)
    this.draw()
  }

  async #learn() {
    await this.#asking(async () => (this.kept = await views(this.set.project)))
  }

  async #keep(name, filter) {
    await this.#asking(async () => (this.kept = await keepView(this.set.project, name, filter)))
  }

  async #asking(action) {
    try {
      await action()
      if (this.isOpen && !this.panel.contains(document.activeElement?.closest("select"))) this.panel.querySelector(".views")?.replaceWith(this.#views())
    } catch (error) {
      if (error instanceof ServerError) this.complain(error.message)
      else if (!unreachable(error)) throw error
    }
  }
}
