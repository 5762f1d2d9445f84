/** Every request of the review. Addresses are relative to this file, so that ComfyUI may live under any path and the page may be any page. */

const TIMEOUT_MS = 20_000
const RETRY_MS = 2_000
const HOME = new URL("../../", import.meta.url) // …/flenwheel/

/** The server answered, but not with what was asked for. `message` is for the user. */
export class ServerError extends Error {
  /** @param {number} status HTTP status @param {string} message */
  constructor(status, message) {
    super(message)
    this.status = status
  }
}

/** Whether a fault means that the server could not be reached. @param {unknown} error */
export const unreachable = (error) => error instanceof TypeError || error instanceof DOMException

/** One set of candidates: a stage of a lap of a project. @typedef {{project: string, stage: string, version: string}} CandidateSet */
/** @typedef {"first"|"strict"|"repeat"} Pass */
/** Who decides, and how. @typedef {{reviewer: string, pass: Pass, blind: boolean}} Way */

const within = ({ project, stage, version }) => [project, stage, version].map(encodeURIComponent).join("/")
/** @param {string} path relative to …/flenwheel/ */
export const address = (path) => new URL(path, HOME).href
const query = (values) => {
  const given = Object.entries(values).filter(([, value]) => value !== undefined && value !== null && value !== "")
  return given.length ? `?${new URLSearchParams(given.map(([name, value]) => [name, String(value)]))}` : ""
}

/**
 * @param {string} path relative to …/flenwheel/ @param {{method?: string, json?: any, body?: Blob, patience_ms?: number}} [sent]
 * @returns {Promise<any>}
 * @throws {ServerError} the server said no; a TypeError or DOMException means that it could not be reached.
 */
export async function request(path, { method, json, body, patience_ms = TIMEOUT_MS } = {}) {
  const content = body ?? (json === undefined ? undefined : JSON.stringify(json))
  const headers = content === undefined ? undefined : { "Content-Type": body ? body.type || "application/octet-stream" : "application/json" }
  const options = { method: method ?? (content === undefined ? "GET" : "POST"), headers, body: content, cache: /** @type {const} */ ("no-store") }
  const response = await fetch(address(path), { ...options, signal: AbortSignal.timeout(patience_ms) })
  const answer = await response.json().catch(() => null)
  if (!response.ok) throw new ServerError(response.status, answer?.error ?? `ComfyUI answered ${response.status} ${response.statusText}.`)
  if (answer === null) throw new ServerError(response.status, "ComfyUI answered something that is not JSON. Is FLENwheel still installed?")
  return answer
}

/** Anything of ComfyUI itself. @param {string} path */
export const ask = (path) => request(`../${path}`)
export const projects = () => request("projects").then((answer) => answer.projects)
/**
 * @param {CandidateSet} set @param {Way} way
 * @param {{since?: string, head?: number}} [part] what has changed since a revision, or so many to begin with; without it everything
 */
export const listing = (set, { reviewer, pass, blind }, part = {}) => request(`review/${within(set)}${query({ reviewer, pass, blind: blind ? 1 : "", walk: 0, ...part })}`)
/** @param {CandidateSet} set @param {boolean} walk look at every file @returns {Promise<{revision: string, disk: string}>} */
export const pulse = (set, walk) => request(`review/${within(set)}/pulse${query({ walk: walk ? 1 : "" })}`)
/** Which tab of ComfyUI asks, where this page lies in one: the graph there then shows how the run goes. */
export const asker = () => ({ client_id: /** @type {any} */ (window.parent).comfyAPI?.api?.api?.clientId ?? null })

/** @param {CandidateSet} set @param {"labels"|"undo"|"redo"|"session"|"continue"} what @param {object} json */
export const tell = (set, what, json) => request(`review/${within(set)}/${what}`, { json })
/** @param {CandidateSet} set @param {string} key */
export const history = (set, key) => request(`review/${within(set)}/history/${encodeURIComponent(key)}`).then((answer) => answer.events)
/** @param {CandidateSet} set @param {string} key */
export const evidence = (set, key) => request(`review/${within(set)}/evidence/${encodeURIComponent(key)}`)
/** @param {CandidateSet} set */
export const coverage = (set) => request(`review/${within(set)}/coverage`)
/** @param {CandidateSet} set @param {string} reviewer */
export const agreement = (set, reviewer) => request(`review/${within(set)}/agreement${query({ reviewer })}`)

/** @param {CandidateSet} set @param {string} key */
export const repairPrompt = (set, key) => request(`review/${within(set)}/repair/prompt/${encodeURIComponent(key)}`)
/** @param {CandidateSet} set @param {object} order */
export const orderRepair = (set, order) => request(`review/${within(set)}/repair`, { json: order }).then((answer) => answer.order)
/** @param {CandidateSet} set @param {string} key @param {Blob} png white where it shall be repainted @returns {Promise<string>} its id */
export const keepMask = (set, key, png) => request(`review/${within(set)}/mask/${encodeURIComponent(key)}`, { method: "PUT", body: png }).then((answer) => answer.mask)
/** @param {CandidateSet} set @param {string} key @param {Blob} file @param {string} reviewer */
export const keepCorrected = (set, key, file, reviewer) =>
  request(`review/${within(set)}/corrected/${encodeURIComponent(key)}${query({ reviewer })}`, { method: "PUT", body: file }).then((answer) => answer.corrected)

/** A working copy for another program at this machine. @param {CandidateSet} set @param {string} key @returns {Promise<{name: string, path: string}>} */
export const lendFile = (set, key) => request(`review/${within(set)}/editing/${encodeURIComponent(key)}`, { json: {} })

/** @param {string} project */
export const views = (project) => request(`views/${encodeURIComponent(project)}`).then((answer) => answer.views)
/** @param {string} project @param {string} name @param {object|null} filter null deletes */
export const keepView = (project, name, filter) => request(`views/${encodeURIComponent(project)}`, { json: { name, filter } }).then((answer) => answer.views)

/** A file with these candidates, for people. @param {CandidateSet} set @param {{keys: string[], format: "html"|"png", title: string}} what @returns {Promise<Blob>} */
export async function exported(set, what) {
  const headers = { "Content-Type": "application/json" }
  const response = await fetch(address(`review/${within(set)}/export`), { method: "POST", headers, body: JSON.stringify(what) })
  if (!response.ok) throw new ServerError(response.status, (await response.json().catch(() => null))?.error ?? `ComfyUI answered ${response.status}.`)
  return response.blob()
}

/** @param {CandidateSet} set @param {string} key @param {string|number} size "full", or the longer edge in pixels */
export const imageAddress = (set, key, size) => address(`image/${within(set)}/${encodeURIComponent(key)}?size=${size}`)
/** Why a picture does not come, in the server's words; empty when it does not answer. @param {string} from its address @returns {Promise<string>} */
export const whyNot = (from) => fetch(from, { cache: "no-store" }).then((answer) => (answer.ok ? "" : answer.json())).then((answer) => answer?.error ?? "").catch(() => "")
/** The photograph a candidate was made from. @param {CandidateSet} set @param {string} key @param {string|number} [size] */
export const sourceAddress = (set, key, size = "full") => imageAddress({ ...set, stage: "source" }, key, size)
/** @param {CandidateSet & {pass?: Pass, blind?: boolean}} set */
export const pageAddress = ({ project, stage, version, pass, blind }) =>
  address(`review${query({ project, stage, version, pass: pass === "first" ? "" : pass, blind: blind ? 1 : "" })}`)

/**
 * Listen to ComfyUI's broadcasts for as long as the page lives.
 * @param {CandidateSet} set
 * @param {{changed: (revision: string) => void, connected: () => void, lost: () => void}} hears `connected` also after each reconnection
 */
export function listen(set, hears) {
  const socket = new WebSocket(address("../ws").replace(/^http/, "ws"))
  socket.onopen = hears.connected
  socket.onmessage = ({ data }) => {
    if (typeof data !== "string") return // previews of a running graph are binary
    const { type, data: event } = JSON.parse(data)
    const ours = type === "flenwheel.review" && event.project === set.project && event.stage === set.stage && event.version === set.version
    if (ours) hears.changed(event.revision)
  }
  socket.onclose = () => {
    hears.lost()
    setTimeout(() => listen(set, hears), RETRY_MS)
  }
}
