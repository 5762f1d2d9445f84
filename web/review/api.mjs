/** Every request of the review page. Addresses are relative to the page, so that ComfyUI may live under any path. */

const TIMEOUT_MS = 20_000
const RETRY_MS = 2_000

/** The server answered, but not with what was asked for. `message` is for the user. */
export class ServerError extends Error {
  /** @param {number} status HTTP status @param {string} message */
  constructor(status, message) {
    super(message)
    this.status = status
  }
}

/** One set of candidates: a stage of a lap of a project. @typedef {{project: string, stage: string, version: string}} CandidateSet */

const within = ({ project, stage, version }) => [project, stage, version].map(encodeURIComponent).join("/")
const address = (path) => new URL(path, document.baseURI).href

/**
 * @param {string} path relative to the page @param {object} [body] posted as JSON
 * @returns {Promise<any>}
 * @throws {ServerError} the server said no; a TypeError or DOMException means that it could not be reached.
 */
async function request(path, body) {
  const post = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) }
  const response = await fetch(address(path), { ...(body ? post : { cache: "no-store" }), signal: AbortSignal.timeout(TIMEOUT_MS) })
  const answer = await response.json().catch(() => null)
  if (!response.ok) throw new ServerError(response.status, answer?.error ?? `ComfyUI answered ${response.status} ${response.statusText}.`)
  if (answer === null) throw new ServerError(response.status, "ComfyUI answered something that is not JSON. Is FLENwheel still installed?")
  return answer
}

export const projects = () => request("projects").then((answer) => answer.projects)
/** @param {CandidateSet} set */
export const listing = (set) => request(`review/${within(set)}`)
/** @param {CandidateSet} set @param {string} reviewer @param {object[]} events */
export const postLabels = (set, reviewer, events) => request(`review/${within(set)}/labels`, { reviewer, events })
/** @param {CandidateSet} set @param {string} key */
export const history = (set, key) => request(`review/${within(set)}/history/${encodeURIComponent(key)}`).then((answer) => answer.events)
/** @param {CandidateSet} set */
export const proceed = (set) => request(`review/${within(set)}/continue`, {})

/** @param {CandidateSet} set @param {string} key @param {"thumb"|"full"} size */
export const imageAddress = (set, key, size) => address(`image/${within(set)}/${encodeURIComponent(key)}?size=${size}`)
/** The photograph a candidate was made from. @param {CandidateSet} set @param {string} key */
export const sourceAddress = (set, key) => imageAddress({ ...set, stage: "source" }, key, "full")
/** @param {CandidateSet} set */
export const pageAddress = (set) => address(`review?${new URLSearchParams(set)}`)
export const graphAddress = () => address("../")

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
