/** An order to mend one candidate: a prompt proposed from the reasons, a spot painted over, seeds; or a file corrected by hand. */

import { ServerError, imageAddress, keepCorrected, keepMask, lendFile, orderRepair, repairPrompt, unreachable } from "./api.mjs"
import { button, element, openDialog } from "./dom.mjs"
import { count, t } from "./lang.mjs"
import { reasonWord, wantsReasons } from "./words.mjs"

const MOST_SEEDS = 8
const BRUSH = 0.06 // of the picture's width

/**
 * @param {import("./store.mjs").ReviewStore} store @param {import("./api.mjs").CandidateSet} set @param {import("./words.mjs").Candidate} candidate
 * @param {{reviewer: string, say: (message: string) => void, changed: () => void}} does
 */
export function openRepair(store, set, candidate, does) {
  const mask = new Mask(imageAddress(set, candidate.key, "full"), candidate)
  const trouble = element("p", { class: "dialog-trouble", role: "alert" })
  const prompt = element("textarea", { rows: 4, maxlength: 4000, "aria-label": t("What the editor is told") })
  const from = element("select", {}, element("option", { value: "source", text: t("the photograph, once more") }), element("option", { value: "candidate", text: t("this image") }))
  const seeds = element("input", { type: "number", min: 1, max: MOST_SEEDS, value: 2 })
  const order = button({ class: "primary" }, t("Order the repair"), element("kbd", { text: "Ctrl+Enter" }))
  let written = false // by the reviewer: no proposal overwrites it
  prompt.addEventListener("input", () => (written = true))
  mask.addEventListener("painted", () => (from.value = "candidate")) // a mask belongs to this image

  const attempt = async (action) => {
    trouble.textContent = ""
    try {
      await action()
    } catch (error) {
      if (!(error instanceof ServerError) && !unreachable(error)) throw error
      trouble.textContent = error instanceof ServerError ? error.message : t("ComfyUI does not answer. Nothing was ordered; try again.")
    }
  }
  const propose = () =>
    attempt(async () => {
      const proposed = await repairPrompt(set, candidate.key)
      if (written) return
      prompt.value = proposed.prompt
      if (proposed.from) from.value = proposed.from
    })
  order.addEventListener("click", () =>
    attempt(async () => {
      order.disabled = true
      try {
        const blob = await mask.png()
        const id = blob ? await keepMask(set, candidate.key, blob) : null
        const number = Math.max(1, Math.min(MOST_SEEDS, Number(seeds.value) || 1))
        await orderRepair(set, { reviewer: does.reviewer, key: candidate.key, prompt: prompt.value.trim(), count: number, from: from.value, mask: id })
        dialog.close()
        does.say(t("Ordered. The node Repair Candidates makes it in the next run of the graph."))
        does.changed()
      } finally {
        order.disabled = false
      }
    }),
  )
  const hand = (file) =>
    attempt(async () => {
      const kept = await keepCorrected(set, candidate.key, file, does.reviewer)
      dialog.close()
      does.say(t("{name} is kept as the correction of this image. Look at it under Corrections.", { name: kept.name }))
      does.changed()
    })

  const dialog = openDialog(
    t("Repair this image"),
    element(
      "div",
      { class: "repair" },
      element("div", { class: "repair-picture" }, mask.frame, mask.tools),
      element(
        "div",
        { class: "repair-order" },
        reasonsOf(store, candidate, propose),
        element("label", {}, element("span", { text: t("What the editor is told") }), prompt),
        element("div", { class: "repair-row" }, element("label", {}, element("span", { text: t("Start from") }), from), element("label", {}, element("span", { text: t("Tries") }), seeds)),
        trouble,
        order,
        byHand(set, candidate, hand, attempt),
      ),
    ),
    element("div", { class: "dialog-end" }, button({ class: "quiet", on: { click: () => dialog.close() } }, t("Close"), element("kbd", { text: "Esc" }))),
  )
  dialog.classList.add("wide")
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) order.click()
  })
  void propose()
  prompt.focus()
}

/** The chips write the prompt; they exist for a verdict that something is wrong. */
function reasonsOf(store, candidate, changed) {
  if (!wantsReasons(candidate)) return element("p", { class: "quiet", text: t("Give it the verdict “Needs correction” and reasons, and the prompt is proposed from them.") })
  const chips = store.reasons.map((reason) => {
    const chip = button({ class: "chip", "aria-pressed": String(candidate.reasons.includes(reason)), text: reasonWord(reason) })
    chip.addEventListener("click", () => {
      store.toggleReason(candidate.key, reason)
      chip.setAttribute("aria-pressed", String(store.get(candidate.key)?.reasons.includes(reason)))
      setTimeout(changed, 250) // once the reason is stored
    })
    return chip
  })
  return element("div", { class: "chips", role: "group", "aria-label": t("Reasons") }, ...chips)
}

/** @param {(file: File) => void} hand @param {(action: () => Promise<void>) => Promise<void>} attempt says what goes wrong */
function byHand(set, candidate, hand, attempt) {
  const choose = element("input", { type: "file", accept: "image/*", "aria-label": t("A file corrected by hand") })
  choose.addEventListener("change", () => choose.files?.[0] && hand(choose.files[0]))
  const box = element(
    "div",
    { class: "by-hand" },
    element("b", { text: t("Or correct it yourself") }),
    element("p", {}, element("a", { href: imageAddress(set, candidate.key, "full"), download: candidate.name, text: t("Take the file") }), t(", edit it in any program, and drop it here:")),
    choose,
    elsewhere(set, candidate, attempt),
  )
  for (const name of ["dragenter", "dragover", "drop"]) box.addEventListener(name, (event) => event.preventDefault())
  box.addEventListener("drop", (event) => event.dataTransfer?.files[0] && hand(event.dataTransfer.files[0]))
  return box
}

/** A working copy for a program at this machine; the page itself starts none. */
function elsewhere(set, candidate, attempt) {
  const path = element("input", { readonly: true, "aria-label": t("Where the working copy lies") })
  const copy = button({ class: "chip", text: t("Copy") })
  copy.addEventListener("click", () => {
    path.select()
    void navigator.clipboard?.writeText(path.value).then(() => (copy.textContent = t("Copied")), () => {}) // refused: it is selected, Ctrl+C copies it
  })
  const shown = element("div", { class: "working-copy", hidden: true }, path, copy)
  const said = element("p", { class: "quiet", role: "status", text: t("Makes a working copy at this machine and shows where. Open it in your program and save: the result comes back by itself, as often as you save.") })
  const make = button({ class: "chip", text: t("Edit in another program") })
  make.addEventListener("click", () =>
    attempt(async () => {
      path.value = (await lendFile(set, candidate.key)).path
      shown.hidden = false
      path.focus()
      path.select()
      said.textContent = t("Open this file in your program and save it there. You may close this window.")
    }),
  )
  return element("div", { class: "elsewhere" }, make, shown, said)
}

/** Painting over the spot to be made anew. White there, black elsewhere, in the size of the picture. */
class Mask extends EventTarget {
  #erasing = false
  #painted = false

  /** @param {string} address @param {{width: number, height: number}} size */
  constructor(address, { width, height }) {
    super()
    this.canvas = element("canvas", { width, height, "aria-label": t("Paint over what shall be made anew") })
    this.context = /** @type {CanvasRenderingContext2D} */ (this.canvas.getContext("2d"))
    this.frame = element("div", { class: "paint" }, element("img", { src: address, alt: "" }), this.canvas)
    this.frame.style.aspectRatio = `${width} / ${height}`
    this.brush = element("input", { type: "range", min: 1, max: 25, value: BRUSH * 100, "aria-label": t("Width of the brush") })
    const erase = button({ class: "chip", "aria-pressed": "false", text: t("Erase") })
    erase.addEventListener("click", () => {
      this.#erasing = !this.#erasing
      erase.setAttribute("aria-pressed", String(this.#erasing))
    })
    const clear = button({ class: "chip", text: t("Clear"), on: { click: () => this.#clear() } })
    this.tools = element("div", { class: "paint-tools" }, element("label", {}, element("span", { text: t("Brush") }), this.brush), erase, clear, element("span", { class: "quiet", text: t("Paint over the spot; without paint the whole image is made anew.") }))
    this.canvas.addEventListener("pointerdown", (event) => this.#stroke(event))
  }

  #clear() {
    this.context.clearRect(0, 0, this.canvas.width, this.canvas.height)
    this.#painted = false
  }

  #stroke(event) {
    event.preventDefault()
    this.canvas.setPointerCapture(event.pointerId)
    const { context, canvas } = this
    context.globalCompositeOperation = this.#erasing ? "destination-out" : "source-over"
    Object.assign(context, { lineWidth: (Number(this.brush.value) / 100) * canvas.width, lineCap: "round", lineJoin: "round", strokeStyle: "#fff" })
    const at = ({ offsetX, offsetY }) => [(offsetX / canvas.clientWidth) * canvas.width, (offsetY / canvas.clientHeight) * canvas.height]
    let [x, y] = at(event)
    const draw = (to) => {
      context.beginPath()
      context.moveTo(x, y)
      ;[x, y] = to
      context.lineTo(x, y)
      context.stroke()
    }
    draw([x, y + 0.01])
    if (!this.#erasing) this.#painted = true
    this.dispatchEvent(new Event("painted"))
    const move = (moved) => draw(at(moved))
    canvas.addEventListener("pointermove", move)
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => canvas.removeEventListener("pointermove", move), { once: true })
  }

  /** @returns {Promise<Blob|null>} null without paint */
  async png() {
    if (!this.#painted) return null
    const { width, height } = this.canvas
    const flat = element("canvas", { width, height })
    const context = flat.getContext("2d")
    context.fillStyle = "#000"
    context.fillRect(0, 0, width, height)
    context.drawImage(this.canvas, 0, 0)
    return new Promise((resolve) => flat.toBlob(resolve, "image/png"))
  }
}

/** Orders that wait, and what came back. @param {import("./words.mjs").Candidate} candidate */
export function repairLine({ repairs, corrections }) {
  const parts = [repairs ? count(repairs, "{n} repair waits for the next run.", "{n} repairs wait for the next run.") : "", corrections?.length ? count(corrections.length, "{n} correction came back.", "{n} corrections came back.") : ""]
  return parts.filter(Boolean).join(" ")
}
