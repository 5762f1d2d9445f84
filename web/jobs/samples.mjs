/** Samples as a matrix: a column per prompt, a row per step, the newest on top. A click shows one large, beside the same prompt of another step. */

import { button, element, openDialog } from "../review/dom.mjs"
import { t } from "../review/lang.mjs"
import { sampleAddress } from "./api.mjs"

/** @typedef {{step: number, prompt: number, v: number}} Sample */

export class Samples {
  /** @param {HTMLElement} root @param {import("./api.mjs").JobName} name */
  constructor(root, name) {
    this.name = name
    this.table = element("table", { class: "matrix" })
    root.append(element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": t("Samples") }, this.table))
    this.drawn = ""
  }

  /** @param {Sample[]} samples @param {string[]} prompts */
  draw(samples, prompts) {
    const mark = JSON.stringify([samples, prompts])
    if (mark === this.drawn) return
    this.drawn = mark
    this.samples = samples
    const columns = [...new Set(samples.map(({ prompt }) => prompt))].sort((a, b) => a - b)
    const steps = [...new Set(samples.map(({ step }) => step))].sort((a, b) => b - a)
    const word = (prompt) => prompts[prompt] || t("Prompt {n}", { n: prompt + 1 })
    const cell = (step, prompt) => {
      const sample = samples.find((each) => each.step === step && each.prompt === prompt)
      if (!sample) return element("td")
      const alt = t("Step {step}: {prompt}", { step, prompt: word(prompt) })
      const picture = element("img", { src: sampleAddress(this.name, sample, 256), alt, loading: "lazy" })
      return element("td", {}, button({ title: alt, on: { click: () => this.#open(sample, word(prompt)) } }, picture))
    }
    this.table.replaceChildren(
      element("thead", {}, element("tr", {}, element("th", { scope: "col", text: t("Step") }), ...columns.map((prompt) => element("th", { scope: "col", title: word(prompt) }, element("span", { text: word(prompt) }))))),
      element("tbody", {}, ...steps.map((step) => element("tr", {}, element("th", { scope: "row", text: step.toLocaleString() }), ...columns.map((prompt) => cell(step, prompt))))),
    )
    this.table.hidden = !samples.length
  }

  /** @param {Sample} sample @param {string} word */
  #open(sample, word) {
    const same = (this.samples ?? []).filter(({ prompt }) => prompt === sample.prompt)
    let now = same.findIndex(({ step }) => step === sample.step)
    const figure = (label) => {
      const [image, caption] = [element("img", { alt: label }), element("figcaption")]
      return { root: element("figure", {}, image, caption), show: (each) => ((image.src = each ? sampleAddress(this.name, each) : ""), (image.hidden = !each), (caption.textContent = each ? t("Step {step}", { step: each.step }) : t("no earlier one"))) }
    }
    const [before, after] = [figure(t("Before")), figure(t("Now"))]
    const show = (index) => {
      now = Math.max(0, Math.min(same.length - 1, index))
      before.show(same[now - 1])
      after.show(same[now])
    }
    const arrows = element("div", { class: "deeds" }, button({ text: t("Earlier"), on: { click: () => show(now - 1) } }), button({ text: t("Later"), on: { click: () => show(now + 1) } }), button({ text: t("Close"), on: { click: () => dialog.close() } }))
    const dialog = openDialog(word, element("div", { class: "pair" }, before.root, after.root), arrows)
    dialog.classList.add("wide")
    dialog.addEventListener("keydown", (event) => {
      if (event.key === "ArrowLeft") show(now - 1)
      if (event.key === "ArrowRight") show(now + 1)
    })
    show(now)
  }
}
