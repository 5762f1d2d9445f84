/** Every request of the panel. Sets, slots and files go by name; the contract is in nodes/pair_routes.py. */

import { address, request } from "../review/api.mjs"

const LONG_MS = 600_000 // archives, the pair doctor and exports take as long as they take

/** @typedef {{name: string, width: number, height: number, v: string}} File_ */
/** @typedef {{key: string, stem: string, files: (File_|null)[], caption: string, own: boolean, problems: string[]}} Row */
/** @typedef {{slot: string, label: string, holds: string, count: number}} Slot */
/** @typedef {{id: string, name: string, instruction: string, trigger_word: string, slots: Slot[], problems: number, general: string[], notes: string[], rows: Row[]}} PairSet */
/** @typedef {{key: string, kind: string, slot: string, text: string, fix: string, drawn: boolean}} Finding */

const of = (set, rest = "") => `pairs/sets/${encodeURIComponent(set)}${rest}`

export const overview = () => request("pairs/sets")
export const create = (name) => request("pairs/sets", { json: { name } })
export const state = (set) => request(of(set), { patience_ms: LONG_MS })
/** @param {string} set @param {"controls"|"remove"|"restore"|"captions"|"replace"|"project"|"examine"|"mend"|"export"|""} what @param {object} json @returns {Promise<any>} */
export const tell = (set, what, json) => request(of(set, what && `/${what}`), { json, patience_ms: LONG_MS })
/** @param {string} set @param {string} slot @param {string} name @param {Blob} body @param {boolean} replacing */
export const put = (set, slot, name, body, replacing) =>
  request(of(set, `/files/${slot}/${encodeURIComponent(name)}${replacing ? "?replace=1" : ""}`), { method: "PUT", body, patience_ms: LONG_MS })
/** @param {string} set @param {string} slot @param {Blob} body */
export const archive = (set, slot, body) => request(of(set, `/archive?slot=${slot}`), { method: "PUT", body, patience_ms: LONG_MS })
/** @param {string} set @param {string} slot @param {File_} file @param {number} [size] px; without it the file as it is */
export const picture = (set, slot, file, size) => address(of(set, `/picture/${slot}/${encodeURIComponent(file.name)}?v=${file.v}${size ? `&size=${size}` : ""}`))
/** A finding as a picture. @param {string} set @param {Finding} finding */
export const drawn = (set, { key, kind, slot }) => address(of(set, `/drawn/${encodeURIComponent(key)}?${new URLSearchParams({ kind, slot })}`))
