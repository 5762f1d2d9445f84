/**
 * Verdicts on their way to the server. Each is written to localStorage before anything else happens and leaves it only when the server has
 * acknowledged it, so a reload, a closed tab or a server that is away loses nothing. Sent in order, in batches, retried for ever.
 *
 * Every page load has its own entry; the entries of tabs that are gone are taken over. A verdict whose acknowledgement was lost is sent
 * again under the same id, and the server records it once.
 */

const BATCH = 50
const GATHER_MS = 40 // a burst of keystrokes becomes one request
const BACKOFF_MS = [500, 1_000, 2_000, 4_000, 8_000]

/** Works in plain http too, where crypto.randomUUID does not. */
const randomName = () => Array.from(crypto.getRandomValues(new Uint32Array(4)), (word) => word.toString(36)).join("")

/** @typedef {{key: string, id?: string} & import("./words.mjs").Verdict} LabelEvent */

export class Outbox extends EventTarget {
  #entry
  #prefix
  #post
  #failures = 0
  #timer = 0
  #sending = false
  #limit = BATCH
  /** How many verdicts of this tab the server has stored. */
  acknowledged = 0
  /** @type {LabelEvent[]} */
  #events = []
  /** Why nothing gets through, in words, while that is so. @type {string|null} */
  trouble = null

  /**
   * @param {string} name of the set of candidates
   * @param {(events: LabelEvent[]) => Promise<{revision: string}>} post resolves once the server has stored them
   */
  constructor(name, post) {
    super()
    this.#post = post
    this.#prefix = `flenwheel.outbox ${name} `
    this.#entry = this.#prefix + randomName()
  }

  get size() {
    return this.#events.length
  }

  /** What is not acknowledged yet, oldest first. @returns {readonly LabelEvent[]} */
  get events() {
    return this.#events
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
    this.#events.push(...JSON.parse(localStorage.getItem(entry) ?? "[]"))
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

  /** @param {LabelEvent} event */
  add(event) {
    this.#events.push({ id: randomName(), ...event })
    this.#keep()
    if (!this.#timer) this.#schedule(GATHER_MS)
  }

  /** Try again now, for example because the server is back. */
  retry() {
    if (this.size && !this.#sending) this.#schedule(0)
  }

  #keep() {
    try {
      if (this.size) localStorage.setItem(this.#entry, JSON.stringify(this.#events))
      else localStorage.removeItem(this.#entry)
    } catch (error) {
      if (!(error instanceof DOMException)) throw error
      this.trouble = "This browser keeps no data for the page. Leave the tab open until everything is saved."
    }
    this.dispatchEvent(new Event("change"))
  }

  #schedule(delay) {
    clearTimeout(this.#timer)
    this.#timer = setTimeout(() => {
      this.#timer = 0
      void this.#send()
    }, delay)
  }

  async #send() {
    if (this.#sending || !this.size) return
    this.#sending = true
    const batch = this.#events.slice(0, this.#limit)
    try {
      const { revision } = await this.#post(batch)
      this.#acknowledge(batch.length)
      this.dispatchEvent(new CustomEvent("saved", { detail: { revision, count: batch.length } }))
    } catch (error) {
      if (error.status === 400) this.#refused(batch, error.message)
      else this.#away(error)
    } finally {
      this.#sending = false
      if (this.size && !this.#timer) this.#schedule(0)
    }
  }

  #acknowledge(count) {
    this.#events.splice(0, count)
    this.acknowledged += count
    this.#failures = 0
    this.#limit = BATCH
    this.trouble = null
    this.#keep()
  }

  /** The server stores nothing of a request it refuses: one by one shows which verdict it was, and the others get through. */
  #refused(batch, message) {
    if (batch.length > 1) {
      this.#limit = 1
      return
    }
    this.#acknowledge(1)
    this.dispatchEvent(new CustomEvent("refused", { detail: { event: batch[0], message } }))
  }

  #away(error) {
    const wait = BACKOFF_MS[Math.min(this.#failures++, BACKOFF_MS.length - 1)]
    const said = error.status ? error.message : "ComfyUI does not answer."
    this.trouble = `${said} Your verdicts are kept in this browser and sent as soon as it is back. You can go on.`
    this.#schedule(wait)
    this.dispatchEvent(new Event("change"))
  }
}
