/** Every request about trainings. What the answers hold is written in nodes/job_routes.py. */

import { request } from "../review/api.mjs"

const HOME = new URL("../../", import.meta.url) // …/flenwheel/

/** One training. @typedef {{project: string, id: string}} JobName */
/** @typedef {"new"|"queued"|"running"|"stopping"|"stopped"|"lost"|"failed"|"done"} State */
/**
 * A line of the list.
 * @typedef {JobName & {name: string, kind: string, engine: string, architecture: string, base_model: string, rank: number|null, steps: number, step: number, state: State,
 *   phase: string, loss: number|null, pace_s: number|null, left_s: number|null, checkpoint: number, attempts: number, cause: string, created: number, hours: string,
 *   place: number|null, dry: boolean, hold: boolean, uses_card: boolean, peak_bytes: number|null, registered: string, problem: string}} Job
 */
/** @typedef {[number[], number[]]} Course steps and values */
/**
 * @typedef {Job & {from: number, events: number, losses: Course, validation: Course, checkpoints: number[], samples: {step: number, prompt: number, v: number}[],
 *   prompts: string[], notes: string[], log: string[], tail: string[], folder: string, can_open: boolean, configs: string[], damaged: number, tried: {id: string, words: string}[]}} Details
 */

const path = ({ project, id }, rest = "") => `jobs/${encodeURIComponent(project)}/${encodeURIComponent(id)}${rest}`

/** @returns {Promise<{jobs: Job[], card: string|null, waits: string|null}>} */
export const jobs = () => request("jobs")
/** @param {JobName} name @param {number} since number of events already known @returns {Promise<Details>} */
export const details = (name, since) => request(path(name, `?since=${since}`))
/** @param {JobName} name @param {"stop"|"start"|"hold"|"open"} what @param {object} [json] @returns {Promise<Job>} */
export const act = (name, what, json = {}) => request(path(name, `/${what}`), { json })
/** The graph that shows the LoRA. @param {JobName} name @returns {Promise<{name: string, workflow: object|null}>} */
export const scene = (name) => request(path(name, "/try"))

/** @param {JobName} name @param {{step: number, prompt: number, v: number}} sample @param {number} [size] px */
export const sampleAddress = (name, { step, prompt, v }, size) => new URL(path(name, `/sample/${step}/${prompt}?v=${v}${size ? `&size=${size}` : ""}`), HOME).href
/** @param {JobName} name @param {string} file */
export const configAddress = (name, file) => new URL(path(name, `/config/${encodeURIComponent(file)}`), HOME).href
/** @param {JobName|null} name null: the list */
export const pageAddress = (name) => new URL(`jobs/page${name ? `?${new URLSearchParams({ project: name.project, job: name.id })}` : ""}`, HOME).href
