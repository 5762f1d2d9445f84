/** Keeping what is on the screen and what the server has the same, with as few looks as that takes. */

import { ServerError } from "./api.mjs"
import { t } from "./lang.mjs"

const SETTLE_MS = 120 // several broadcasts in a row cause one look at the server
const ANY = "any" // no revision the server has: look in any case

export class Sync {
  #known = "" // the revision on the screen
  #heard = "" // the newest one a broadcast or an answer has named since the last look
  #settling = 0

  /**
   * @param {import("./store.mjs").ReviewStore} store @param {import("./outbox.mjs").Outbox} outbox
   * @param {{ask: (since?: string) => Promise<any>, complain: (message: string) => void, saved: () => void}} does
   */
  constructor(store, outbox, does) {
    Object.assign(this, { store, outbox, does })
    outbox.addEventListener("saved", ({ detail }) => this.#saved(detail))
    outbox.addEventListener("adopted", () => this.look())
    outbox.addEventListener("refused", ({ detail }) => {
      does.complain(t("A verdict was not accepted: {message}", { message: detail.message }))
      this.#known = "" // what is on the screen is not what the server has
      store.answered(true)
      this.look()
    })
  }

  /** Ask for everything, or for what has changed. */
  async refresh() {
    let dealtWith
    do {
      dealtWith = this.outbox.acknowledged
      this.#heard = ""
      const answer = await this.does.ask(this.#known || undefined)
      if (dealtWith !== this.outbox.acknowledged) continue // asked before, answered after a verdict was stored: ask again
      this.#known = answer.revision
      this.store.load(answer)
      this.#missing(answer.missing)
    } while (dealtWith !== this.outbox.acknowledged)
    if (this.#heard) this.look(this.#heard)
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
    if (follows(this.#known, answer.revision, parcel)) this.#known = answer.revision
    if (store.state) Object.assign(store.state, { undo: answer.undo ?? null, redo: answer.redo ?? null })
    store.update(answer.changed ?? [])
    const turned = answer.undone ?? answer.redone
    if (turned && !parcel.events.length) store.turned(turned.keys)
    store.answered()
    this.look(answer.revision)
    this.does.saved()
  }

  #missing(missing) {
    if (!missing?.length) return
    const [{ name, why }] = missing
    const rest = missing.length > 1 ? ` ${t("and {n} more", { n: missing.length - 1 })}` : ""
    this.does.complain(t("{name} cannot be shown: {why}", { name, why: why + rest }))
  }
}

/** Whether nobody else was at work in between: revisions count verdicts and undos. */
function follows(known, now, { what, events }) {
  const [[verdicts, undos], [verdictsNow, undosNow]] = [known, now].map((revision) => String(revision).split(".").map(Number))
  if (what === "labels") return verdictsNow - verdicts === events.length && undos === undosNow
  return verdicts === verdictsNow && undosNow - undos === 1
}
