/** All trainings, the newest first: how each stands, its place in the queue, its hours. In ComfyUI's sidebar and on the Jobs page. */

import { ServerError, unreachable } from "../review/api.mjs"
import { button, element } from "../review/dom.mjs"
import { t } from "../review/lang.mjs"
import { jobs } from "./api.mjs"
import { duration, isActive, kindWord, stateWord } from "./words.mjs"

const LIVE_MS = 2000
const CALM_MS = 8000

/**
 * @param {HTMLElement} root @param {{open: (job: import("./api.mjs").JobName) => void, heard?: (active: number) => void, chosen?: () => string}} ways
 *   `heard`: how many are under way; `chosen`: the id that is shown beside the list
 * @returns {{draw: () => void, dispose: () => void}}
 */
export function jobList(root, { open, heard, chosen }) {
  let timer = 0
  let over = false
  const draw = async () => {
    clearTimeout(timer)
    let wait = CALM_MS
    if (!document.hidden && root.isConnected) {
      try {
        const { jobs: found, card, waits } = await jobs()
        if (over) return
        if (found.some(isActive)) wait = LIVE_MS
        heard?.(found.filter(isActive).length)
        const rows = found.map((job) => row(job, open, chosen?.() === job.id))
        root.replaceChildren(
          element("h2", { text: t("Training") }),
          waits ? element("p", { class: "waits", text: t("ComfyUI's queue waits until the training has given the graphics card back.") }) : "",
          card ? element("p", { text: card }) : "",
          ...(rows.length ? rows : [element("p", { text: t("No training yet. Queue a graph with Train LoRA; the workflow train_character shows how.") })]),
        )
      } catch (error) {
        if (!(error instanceof ServerError) && !unreachable(error)) throw error
        root.replaceChildren(element("p", { text: error instanceof ServerError ? error.message : t("ComfyUI does not answer.") }))
      }
    }
    if (!over) timer = setTimeout(() => void draw(), wait)
  }
  void draw()
  return {
    draw: () => void draw(),
    dispose() {
      over = true
      clearTimeout(timer)
    },
  }
}

/** @param {import("./api.mjs").Job} job */
function row(job, open, shown) {
  const done = job.state === "done" ? 1 : job.steps ? job.step / job.steps : 0
  return button(
    { class: `job ${job.state}`, "aria-current": shown ? "true" : null, title: job.cause || null, on: { click: () => open({ project: job.project, id: job.id }) } },
    element("span", { class: "who" }, element("b", { text: job.name }), element("span", { text: kindWord(job) })),
    element("span", { class: `state ${job.state}`, text: stateWord(job.state) }),
    element("span", { class: "line" }, element("i", { style: `width: ${(100 * done).toFixed(1)}%` })),
    element("span", { class: "how", text: how(job) }),
  )
}

/** @param {import("./api.mjs").Job} job */
function how(job) {
  if (job.problem) return job.problem
  if (job.state === "queued") return [job.place ? t("Number {n} in the queue", { n: job.place }) : job.phase || t("Waiting for its turn."), job.hours].filter(Boolean).join(" · ")
  if (job.state === "done") return job.registered.split("/").at(-1) || t("{n} steps", { n: job.steps })
  if (job.state === "failed" || job.state === "lost") return job.cause
  const steps = t("{step} of {steps}", { step: job.step, steps: job.steps })
  return [steps, job.left_s !== null && t("{time} left", { time: duration(job.left_s) }), job.state === "running" && job.phase].filter(Boolean).join(" · ")
}
