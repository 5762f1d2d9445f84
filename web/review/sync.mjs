/** Keeping what is on the screen and what the server has the same, with as few looks as that takes. */

import { ServerError, unreachable } from "./api.mjs"
import { t } from "./lang.mjs"

const SETTLE_MS = 120 // several broadcasts in a row cause one look at the server
const PULSE_MS = 5_000 // files that came, went or were saved by another program; another ComfyUI on the same project
const ANY = "any" // no revision the server has: look in any case

export class Sync {
  #known = "" // the revision on the screen
  #heard = "" // the newest one a broadcast or an answer has named since the last look
  #settling = 0
  #feeling = false
  #inspected = false // every file, as a visit begins; the list alone trusts a folder that has not changed
  /** @type {Promise<void>|null} the question that is being asked */
  #asking = null
  /** @type {{follows: string, revision: string, changed?: any[]}[]} what the server has stored of ours while it is */
  #meanwhile = []
  #told = "" // what was said about missing files

  /**
   * @param {import("./store.mjs").ReviewStore} store @param {import("./outbox.mjs").Outbox} outbox
   * @param {{ask: (part: {since?: string, head?: number}) => Promise<any>, pulse?: (walk: boolean) => Promise<{revision: string, disk: string}>, complain: (message: string) => void, saved: () => void, returned?: (number: number) => void}} does
   *   `returned`: so many more corrections are there
   */
  constructor(store, outbox, does) {
    this.store = store
    this.outbox = outbox
    this.does = does
    outbox.addEventListener("saved", (/** @type {any} */ { detail }) => this.#saved(detail))
    outbox.addEventListener("adopted", () => this.look())
    outbox.addEventListener("refused", (/** @type {any} */ { detail }) => {
      does.complain(t("A verdict was not accepted: {message}", { message: detail.message }))
      this.#known = "" // what is on the screen is not what the server has
      store.answered(true)
      this.look()
    })
  }

  /** Ask for the first candidates where there are many; the next look then brings all. @param {number} head */
  async begin(head) {
    const answer = await this.does.ask({ head })
    if (answer.more) this.store.load(answer)
    else this.#take(answer)
  }

  /** Ask for everything, or for what has changed; one question at a time. @returns {Promise<void>} */
  refresh() {
    return (this.#asking ??= this.#ask().finally(() => (this.#asking = null)))
  }

  async #ask() {
    this.#heard = ""
    this.#meanwhile = []
    let answer = await this.does.ask({ since: this.#known || undefined })
    if (answer.partial && answer.disk !== this.store.state?.disk) answer = await this.does.ask({}) // a part says nothing of files that came or went
    this.#take(answer)
    for (const { follows, revision, changed } of this.#meanwhile.filter((saved) => newer(saved.revision, answer.revision))) {
      this.store.update(changed ?? []) // asked before it was stored, answered after
      if (follows === this.#known) this.#known = revision
      else this.#heard = revision
    }
    if (this.#heard) this.look(this.#heard)
  }

  #take(answer) {
    const { store } = this
    const [known, before] = [Boolean(store.project), corrections(store)]
    this.#known = answer.revision
    store.load(answer)
    if (!answer.partial) this.#missing(answer.missing)
    const more = corrections(store) - before
    if (known && more > 0) this.does.returned?.(more)
  }

  /** Ask now and then, and when the reviewer comes back to the page: other programs tell nobody what they save. */
  watch() {
    const feel = () => void this.#feel()
    addEventListener("focus", feel)
    document.addEventListener("visibilitychange", feel)
    setInterval(feel, PULSE_MS)
    feel()
  }

  async #feel() {
    if (document.hidden || this.outbox.size || this.#feeling || !this.store.project) return
    this.#feeling = true
    try {
      const { revision, disk } = /** @type {any} */ (await this.does.pulse?.(!this.#inspected))
      this.#inspected = true
      if (disk !== this.store.state?.disk) {
        this.#known = ""
        this.look()
      } else if (revision !== this.#known) this.look(revision)
    } catch (error) {
      if (!unreachable(error)) this.#failed(error)
    } finally {
      this.#feeling = false
    }
  }

  /** Look at the server, unless what it has is on the screen by then. @param {string} [revision] */
  look(revision = ANY) {
    this.#heard = revision
    clearTimeout(this.#settling)
    this.#settling = setTimeout(() => this.#heard !== this.#known && this.refresh().catch((error) => this.#failed(error)), SETTLE_MS)
  }

  #failed(error) {
    if (!(error instanceof ServerError)) return // not reachable: the bar says so as soon as a verdict waits, and the socket tries again
    this.does.complain(error.message)
  }

  /** @param {{answer: any, parcel: import("./outbox.mjs").Parcel}} saved */
  #saved({ answer, parcel }) {
    const { store } = this
    if (this.#asking) this.#meanwhile.push(answer)
    if (answer.follows === this.#known) this.#known = answer.revision // nobody else was at work in between
    if (store.state) Object.assign(store.state, { undo: answer.undo ?? null, redo: answer.redo ?? null })
    store.update(answer.changed ?? [])
    const turned = answer.undone ?? answer.redone
    if (turned && !parcel.events.length) store.turned(turned.keys)
    store.answered()
    this.look(answer.revision)
    this.does.saved()
  }

  #missing(missing) {
    const told = JSON.stringify(missing ?? [])
    if (told === this.#told) return
    this.#told = told
    if (!missing?.length) return
    const [{ name, why }] = missing
    const rest = missing.length > 1 ? ` ${t("and {n} more", { n: missing.length - 1 })}` : ""
    this.does.complain(t("{name} cannot be shown: {why}", { name, why: why + rest }))
  }
}

/** Whether one revision tells of something that another does not. @param {string} one @param {string} other */
function newer(one, other) {
  const [[verdict, undo], [known, undone]] = [one, other].map((revision) => revision.split(".").map(Number))
  return verdict > known || undo > undone
}

const corrections = ({ candidates }) => candidates.reduce((sum, { corrections: back }) => sum + (back?.length ?? 0), 0)
