/** One training, live: figures, loss, samples, log, and the buttons that stop it and let it go on. Asks anew by itself for as long as it is seen. */

import { ServerError, unreachable } from "../review/api.mjs"
import { button, element } from "../review/dom.mjs"
import { t } from "../review/lang.mjs"
import { act, configAddress, details } from "./api.mjs"
import { LossChart } from "./chart.mjs"
import { Samples } from "./samples.mjs"
import { duration, figure, isActive, kindWord, mayStart, memory, pace, stateWord } from "./words.mjs"

const LIVE_MS = 1000
const CALM_MS = 5000
const SMOOTH = 0.9

/** @typedef {{open?: () => void, tryIt?: (name: import("./api.mjs").JobName) => void, compact?: boolean, smoothing?: number}} Ways */

export class Monitor {
  /** @type {import("./api.mjs").Course} */
  #losses = [[], []]
  /** @type {import("./api.mjs").Course} */
  #validation = [[], []]
  /** @type {number[]} */
  #checkpoints = []
  #known = 0
  #timer = 0
  #over = false
  #weight

  /** @param {HTMLElement} root @param {import("./api.mjs").JobName} name @param {Ways} [ways] */
  constructor(root, name, ways = {}) {
    this.name = name
    this.ways = ways
    this.#weight = ways.smoothing ?? SMOOTH
    this.head = element("div", { class: "job-head" })
    this.bar = element("progress", { max: 1, value: 0, "aria-label": t("Progress") })
    this.say = element("p", { class: "say", role: "status" })
    this.figures = element("dl", { class: "figures" })
    this.buttons = element("div", { class: "deeds" })
    this.fault = element("div", { class: "fault", hidden: true })
    const curve = element("section", { class: "curve" })
    this.chart = new LossChart(curve)
    const slider = element("input", { type: "range", min: 0, max: 0.99, step: 0.01, value: this.#weight, on: { input: () => ((this.#weight = Number(slider.value)), this.#drawChart()) } })
    this.legend = element("p", { class: "legend" })
    curve.append(element("div", { class: "under" }, this.legend, element("label", { class: "smooth" }, t("Smoothing"), slider)))
    const pictures = element("section", { class: "pictures" })
    this.samples = new Samples(pictures, name)
    this.log = element("pre", { class: "log", tabindex: 0, "aria-label": t("Log") })
    this.more = element("details", { class: "more" }, element("summary", { text: t("Log and files") }), this.log)
    this.files = element("div", { class: "files" })
    this.more.append(this.files)
    root.classList.add("monitor")
    root.classList.toggle("small", Boolean(ways.compact))
    root.replaceChildren(this.head, this.bar, this.say, this.figures, this.fault, this.buttons, curve, pictures, this.more)
    this.root = root
    void this.#look()
  }

  dispose() {
    this.#over = true
    clearTimeout(this.#timer)
  }

  async #look() {
    clearTimeout(this.#timer)
    if (this.#over) return
    let wait = CALM_MS
    if (!document.hidden && this.root.isConnected) {
      try {
        const job = await details(this.name, this.#known)
        if (this.#over) return
        this.#take(job)
        if (isActive(job)) wait = LIVE_MS
      } catch (error) {
        if (!(error instanceof ServerError) && !unreachable(error)) throw error
        this.say.textContent = error instanceof ServerError ? error.message : t("ComfyUI does not answer. The training goes on without it.")
      }
    }
    clearTimeout(this.#timer)
    this.#timer = setTimeout(() => void this.#look(), wait)
  }

  /** @param {import("./api.mjs").Details} job */
  #take(job) {
    this.job = job
    if (job.from === 0) [this.#losses, this.#validation, this.#checkpoints] = [[[], []], [[], []], []]
    join(this.#losses, job.losses)
    join(this.#validation, job.validation)
    this.#checkpoints = [...new Set([...this.#checkpoints, ...job.checkpoints])]
    this.#known = job.events
    this.#drawHead(job)
    this.#drawChart()
    this.samples.draw(job.samples, job.prompts)
    this.#drawLog(job)
  }

  /** @param {import("./api.mjs").Details} job */
  #drawHead(job) {
    this.root.dataset.state = job.state
    this.head.replaceChildren(element("h2", { text: job.name }), element("span", { text: `${kindWord(job)} · ${job.engine}` }), element("b", { class: `state ${job.state}`, text: stateWord(job.state) }))
    this.bar.max = job.steps || 1
    this.bar.value = job.state === "done" ? job.steps : job.step
    this.say.textContent = saying(job)
    const loss = this.#losses[1].length ? figure(this.#losses[1].at(-1) ?? 0) : null
    const held = this.#validation[1].length ? figure(this.#validation[1].at(-1) ?? 0) : null
    this.figures.replaceChildren(
      ...named(
        [t("Step"), t("{step} of {steps}", { step: job.state === "done" ? job.steps : job.step, steps: job.steps })], [t("Loss"), loss], [t("Held out"), held], [t("Pace"), job.pace_s ? pace(job.pace_s) : null],
        [t("Left"), job.left_s !== null ? duration(job.left_s) : null], [t("Memory"), job.peak_bytes ? memory(job.peak_bytes) : null], [t("Checkpoint"), job.checkpoint ? String(job.checkpoint) : null],
        [t("LoRA"), job.registered || null],
      ),
    )
    this.fault.hidden = !job.tail.length && !job.tried.length
    this.fault.replaceChildren(...job.tried.map(({ words }) => element("p", { text: t("Tried next: {words}", { words }) })), job.tail.length ? element("pre", { text: job.tail.join("\n") }) : "")
    const wanted = JSON.stringify([job.state, job.hold, job.uses_card, job.registered, job.can_open])
    if (wanted !== this.buttons.dataset.drawn) this.#drawButtons(job)
    this.buttons.dataset.drawn = wanted
  }

  /** @param {import("./api.mjs").Details} job */
  #drawButtons(job) {
    const deed = (text, what, json = {}) => button({ text, on: { click: (event) => void this.#do(event.currentTarget, what, json) } })
    this.buttons.replaceChildren(
      ...[
        isActive(job) && job.state !== "stopping" && deed(t("Stop"), "stop"),
        mayStart(job) && deed(job.state === "new" ? t("Start") : t("Go on"), "start"),
        isActive(job) && job.uses_card && deed(job.hold ? t("Let ComfyUI go on") : t("Let ComfyUI wait"), "hold", { hold: !job.hold }),
        job.registered && this.ways.tryIt && button({ class: "go", text: t("Try this LoRA"), on: { click: () => this.ways.tryIt?.(this.name) } }),
        job.can_open ? button({ text: t("Open folder"), title: job.folder, on: { click: (event) => void this.#do(event.currentTarget, "open", {}) } }) : button({ text: t("Copy folder path"), title: job.folder, on: { click: (event) => void copied(event.currentTarget, job.folder) } }),
        this.ways.open && button({ text: t("Open"), on: { click: () => this.ways.open?.() } }),
      ].filter((each) => each instanceof Node),
    )
  }

  async #do(pressed, what, json) {
    pressed.disabled = true
    try {
      await act(this.name, what, json)
    } catch (error) {
      if (!(error instanceof ServerError) && !unreachable(error)) throw error
      this.say.textContent = error instanceof ServerError ? error.message : t("ComfyUI does not answer. The training goes on without it.")
      pressed.disabled = false
      return
    }
    this.buttons.dataset.drawn = ""
    await this.#look()
  }

  #drawChart() {
    if (!this.job) return
    const drawn = [["course", t("smoothed"), this.#losses], ["each", t("each step"), this.#losses], ["held", t("held out"), this.#validation], ["checkpoint", t("checkpoint"), [this.#checkpoints]]]
    this.legend.replaceChildren(...drawn.filter(([, , [steps]]) => steps.length).map(([kind, text]) => element("span", { class: kind, text })))
    this.chart.draw({ losses: this.#losses, validation: this.#validation, checkpoints: this.#checkpoints, steps: this.job.steps, weight: this.#weight })
  }

  /** @param {import("./api.mjs").Details} job */
  #drawLog(job) {
    const text = [...job.notes.map((note) => `· ${note}`), ...job.log].join("\n") || t("nothing yet")
    if (this.log.textContent !== text) {
      const atEnd = this.log.scrollTop + this.log.clientHeight >= this.log.scrollHeight - 4
      this.log.textContent = text
      if (atEnd) this.log.scrollTop = this.log.scrollHeight
    }
    const told = JSON.stringify(job.configs)
    if (told === this.files.dataset.drawn) return
    this.files.dataset.drawn = told
    const links = job.configs.map((file) => element("a", { href: configAddress(this.name, file), target: "_blank", rel: "noopener", text: file }))
    const byHand = job.configs.some((file) => file.startsWith("run-")) && element("p", { text: t("In config/. To train by hand, change a setting there and start a run file in a terminal.") })
    this.files.replaceChildren(element("code", { text: job.folder }), ...links, byHand || "")
  }
}

/** Figures with their names. @param {...[string, string|null]} pairs those without a value are left out */
const named = (...pairs) => pairs.filter(([, value]) => value).map(([name, value]) => element("div", {}, element("dt", { text: name }), element("dd", { text: value })))

/** One sentence on how it stands. @param {import("./api.mjs").Details} job */
export function saying(job) {
  if (job.state === "queued") {
    const night = job.hours ? t("It begins between {hours}.", { hours: job.hours }) : ""
    const turn = job.place && job.place > 1 ? t("Number {n} in the queue for the graphics card.", { n: job.place }) : night ? "" : job.phase || t("Waiting for its turn.")
    return [turn, night].filter(Boolean).join(" ")
  }
  if (job.state === "running") return job.phase
  if (job.state === "stopping") return t("Ends at the next step. What was done is kept.")
  return job.cause
}

/** Values of the same step replace those before: a resume repeats some. @param {import("./api.mjs").Course} course @param {import("./api.mjs").Course} more */
function join([steps, values], [newSteps, newValues]) {
  for (const [index, step] of newSteps.entries()) {
    while (steps.length && steps[steps.length - 1] >= step) {
      steps.pop()
      values.pop()
    }
    steps.push(step)
    values.push(newValues[index])
  }
}

/** @param {HTMLElement} pressed @param {string} text */
async function copied(pressed, text) {
  const before = pressed.textContent
  try {
    await navigator.clipboard.writeText(text)
    pressed.textContent = t("Copied")
  } catch {
    pressed.textContent = text // not allowed here: shown, to be copied by hand
    return
  }
  setTimeout(() => (pressed.textContent = before), 1500)
}
