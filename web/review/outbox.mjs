/**
 * Verdicts on their way to the server. Each is written to localStorage before anything else happens and leaves it only when the server has
 * acknowledged it, so a reload, a closed tab or a server that is away loses nothing. Sent in order, retried for ever. One request is on its way at a
 * time; the verdicts given meanwhile go together in the next one, each still a step of its own.
 *
 * Every page load has its own entry; the entries of tabs that are gone are taken over. A step whose acknowledgement was lost is sent again
 * under the same ids, and the server records it once.
 */

import { t } from "./lang.mjs"

const MOST = 5_000 // verdicts the server takes at once
const BACKOFF_MS = [500, 1_000, 2_000, 4_000, 8_000]
const BLINK_MS = 100

/** Works in plain http too, where crypto.randomUUID does not. */
const randomName = () => Array.from(crypto.getRandomValues(new Uint32Array(4)), (word) => word.toString(36)).join("")

/** `batch`: its step, where one request carries several. @typedef {{key: string, id: string, batch?: string, answers?: Record<string, boolean>} & import("./words.mjs").Verdict} LabelEvent */
/**
 * One step: verdicts given together, or taking such a step back, or giving it again. `way` is who decided in which pass.
 * @typedef {{what: "labels"|"undo"|"redo", batch: string, way: import("./api.mjs").Way, events: LabelEvent[], count: number}} Parcel
 */

export class Outbox extends EventTarget {
  #entry
  #prefix
  #post
  #way
  #failures = 0
  #timer = 0
  #sending = false
  #blink = 0 // the timer after which what is on its way lasts
  #lasts = false
  #alone = 0 // parcels at the front that go one by one, because the server refused them together
  /** @type {Parcel[]} */
  #parcels = []
  /** Why nothing gets through, in words, while that is so. @type {string|null} */
  trouble = null

  /**
   * @param {string} name of the set of candidates
   * @param {(parcel: Parcel) => Promise<any>} post resolves with the server's answer once it has stored the parcel
   * @param {() => import("./api.mjs").Way} way in which verdicts are given now
   */
  constructor(name, post, way) {
    super()
    this.#post = post
    this.#way = way
    this.#prefix = `flenwheel.outbox ${name} `
    this.#entry = this.#prefix + randomName()
  }

  /** Verdicts not acknowledged yet. */
  get size() {
    return this.#parcels.reduce((sum, { count }) => sum + count, 0)
  }

  /** @returns {"saved"|"busy"|"away"} */
  get state() {
    return this.size ? (this.trouble ? "away" : "busy") : "saved"
  }

  /** As `state`, for words: what is saved within a blink is not worth a blink. @returns {"saved"|"busy"|"away"} */
  get told() {
    return this.state === "busy" && !this.#lasts ? "saved" : this.state
  }

  /** What is not acknowledged yet, oldest first, as verdicts laid over what the server says. @returns {LabelEvent[]} */
  get events() {
    const { pass } = this.#way()
    return this.#parcels.filter(({ way }) => way.pass === pass).flatMap(({ events }) => events)
  }

  /** Take over what tabs that are gone have left, and start sending. @returns {Promise<number>} how many verdicts were found */
  async open() {
    void navigator.locks?.request(this.#entry, () => new Promise(() => {})) // held until the tab is gone, whatever ends it
    for (const entry of Object.keys(localStorage).filter((name) => name.startsWith(this.#prefix) && name !== this.#entry)) {
      if (!navigator.locks) this.#adopt(entry) // plain http in the LAN: a living tab's verdicts may be sent twice, which changes nothing
      else if (!(await navigator.locks.request(entry, { ifAvailable: true }, (lock) => lock && this.#adopt(entry)))) this.#adoptLater(entry)
    }
    this.retry()
    return this.size
  }

  #adopt(entry) {
    this.#parcels.push(...JSON.parse(localStorage.getItem(entry) ?? "[]"))
    this.#keep() // ours before theirs goes: a crash in between sends twice, never nothing
    localStorage.removeItem(entry)
    return true
  }

  /** Another tab still holds its verdicts, or was closed a moment ago: take over whatever it leaves. */
  #adoptLater(entry) {
    void navigator.locks.request(entry, () => {
      if (!localStorage.getItem(entry)) return
      this.#adopt(entry)
      this.retry()
      this.dispatchEvent(new Event("adopted"))
    })
  }

  /** One step: verdicts that undo takes back together. @param {Omit<LabelEvent, "id">[]} verdicts @returns {string} the name of the step */
  add(verdicts) {
    const batch = randomName()
    for (let from = 0; from < verdicts.length; from += MOST) {
      const events = verdicts.slice(from, from + MOST).map((verdict) => ({ id: randomName(), ...verdict }))
      this.#put({ what: "labels", batch, way: this.#way(), events, count: events.length })
    }
    return batch
  }

  /**
   * Take a step back, or give it again.
   * @param {"undo"|"redo"} what @param {string} batch the name of the step @param {Omit<LabelEvent, "id">[]} verdicts as they are from then on
   */
  turn(what, batch, verdicts) {
    const events = verdicts.map((verdict) => ({ id: "", ...verdict }))
    this.#put({ what, batch, way: this.#way(), events, count: Math.max(1, events.length) })
  }

  /** @param {Parcel} parcel */
  #put(parcel) {
    this.#parcels.push(parcel)
    this.#keep()
    if (!this.#timer) void this.#send() // at once: the way to the server and drawing then go on at the same time
  }

  /** Try again now, for example because the server is back. */
  retry() {
    if (this.size && !this.#sending) this.#schedule(0)
  }

  #keep() {
    try {
      if (this.#parcels.length) localStorage.setItem(this.#entry, JSON.stringify(this.#parcels))
      else localStorage.removeItem(this.#entry)
    } catch (error) {
      if (!(error instanceof DOMException)) throw error
      this.trouble = t("This browser keeps no data for the page. Leave the tab open until everything is saved.")
    }
    this.#changed()
  }

  #changed() {
    if (!this.size || this.trouble) this.#last(Boolean(this.size))
    else if (!this.#lasts) this.#blink ||= setTimeout(() => (this.#last(true), this.dispatchEvent(new Event("change"))), BLINK_MS)
    this.dispatchEvent(new Event("change"))
  }

  #last(lasts) {
    clearTimeout(this.#blink)
    this.#blink = 0
    this.#lasts = lasts
  }

  #schedule(delay) {
    clearTimeout(this.#timer)
    this.#timer = setTimeout(() => {
      this.#timer = 0
      void this.#send()
    }, delay)
  }

  async #send() {
    if (this.#sending || !this.#parcels.length) return
    this.#sending = true
    const taken = this.#next()
    const parcel = together(taken)
    try {
      const answer = await this.#post(parcel)
      this.#acknowledge(taken.length)
      this.dispatchEvent(new CustomEvent("saved", { detail: { answer, parcel } }))
    } catch (error) {
      if (error.status === 400 || error.status === 409) this.#refused(taken, error.message)
      else this.#away(error)
    } finally {
      this.#sending = false
      if (this.#parcels.length && !this.#timer) void this.#send()
    }
  }

  /** Parcels from the front that one request can carry. */
  #next() {
    const [first] = this.#parcels
    if (first.what !== "labels" || this.#alone) return [first]
    let events = 0
    const end = this.#parcels.findIndex((parcel) => parcel.what !== "labels" || !sameWay(parcel, first) || (events += parcel.count) > MOST)
    return end < 0 ? [...this.#parcels] : this.#parcels.slice(0, Math.max(1, end))
  }

  /** @param {number} number of parcels at the front */
  #acknowledge(number) {
    this.#parcels.splice(0, number)
    this.#alone = Math.max(0, this.#alone - number)
    this.#failures = 0
    this.trouble = null
    this.#keep()
  }

  /** The server stores nothing of a request it refuses: one by one shows which verdict it was, and the others get through. */
  #refused(taken, message) {
    const [parcel] = taken
    if (together(taken).events.length > 1 && parcel.what === "labels") {
      const single = taken.flatMap((each) => each.events.map((event) => ({ ...each, events: [event], count: 1 })))
      this.#parcels.splice(0, taken.length, ...single)
      this.#alone = Math.max(0, this.#alone - taken.length) + single.length
      return
    }
    this.#acknowledge(1)
    this.dispatchEvent(new CustomEvent("refused", { detail: { parcel, message } }))
  }

  #away(error) {
    const wait = BACKOFF_MS[Math.min(this.#failures++, BACKOFF_MS.length - 1)]
    const said = error.status ? error.message : t("ComfyUI does not answer.")
    this.trouble = `${said} ${t("Your verdicts are kept in this browser and sent as soon as it is back. You can go on.")}`
    this.#schedule(wait)
    this.#changed()
  }
}

const sameWay = ({ way: a }, { way: b }) => a.reviewer === b.reviewer && a.pass === b.pass && a.blind === b.blind

/** Several steps in one request. @param {Parcel[]} parcels @returns {Parcel} */
function together(parcels) {
  if (parcels.length === 1) return parcels[0]
  const events = parcels.flatMap(({ batch, events }) => events.map((event) => ({ batch, ...event })))
  return { ...parcels[0], events, count: events.length }
}
