/** What the Jobs page calls things. No DOM, no state. */

import { mark, t } from "../review/lang.mjs"

/** @type {Record<import("./api.mjs").State, string>} */
const STATES = {
  new: mark("not started"), queued: mark("waiting"), running: mark("training"), stopping: mark("stopping"), stopped: mark("stopped"),
  lost: mark("broke off"), failed: mark("failed"), done: mark("done"),
}
/** @param {import("./api.mjs").State} state */
export const stateWord = (state) => t(STATES[state] ?? state)

const KINDS = { character: mark("Character LoRA"), edit: mark("Edit LoRA") }
/** @param {import("./api.mjs").Job} job */
export const kindWord = (job) => (job.dry ? t("Dry run: {kind}", { kind: t(KINDS[job.kind] ?? "LoRA") }) : t(KINDS[job.kind] ?? "LoRA"))

/** @param {import("./api.mjs").Job} job */
export const isActive = ({ state }) => state === "queued" || state === "running" || state === "stopping"
/** @param {import("./api.mjs").Job} job */
export const mayStart = ({ state, problem }) => !problem && (state === "new" || state === "stopped" || state === "lost" || state === "failed")

/** 1 h 5 min, 3 min 20 s, 12 s. @param {number} seconds */
export function duration(seconds) {
  const whole = Math.round(seconds)
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor((whole % 3600) / 60), whole % 60]
  if (hours) return t("{h} h {m} min", { h: hours, m: minutes })
  return minutes ? t("{m} min {s} s", { m: minutes, s: rest }) : t("{s} s", { s: rest })
}

/** Seconds per step as trainers say it. @param {number} seconds */
export const pace = (seconds) => (seconds >= 1 ? t("{n} s per step", { n: seconds.toPrecision(2) }) : t("{n} steps per s", { n: (1 / seconds).toPrecision(2) }))

/** @param {number} bytes */
export const memory = (bytes) => (bytes < 2 ** 30 ? `${Math.round(bytes / 2 ** 20)} MiB` : `${(bytes / 2 ** 30).toFixed(1)} GiB`)

/** @param {number} loss */
export const figure = (loss) => (loss === 0 || (Math.abs(loss) >= 0.001 && Math.abs(loss) < 1000) ? String(Number(loss.toPrecision(4))) : loss.toExponential(2))
