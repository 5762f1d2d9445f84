/**
 * The page's words in the reader's language. The English text is the key, so that code reads as what people see; `locales/<language>/main.json`
 * holds the translations under "flenwheel", and ComfyUI serves them all at /i18n. A text without a translation stays English.
 */

/** @type {Record<string, string>} */
let words = {}
let spoken = "en"

/** @param {string} text English, with {names} for what is put in @param {Record<string, string|number>} [values] @returns {string} */
export function t(text, values = {}) {
  return (words[text] ?? text).replace(/\{(\w+)\}/g, (whole, name) => String(values[name] ?? whole))
}

/** For texts in tables that are made before the language is known: marks the text for the list of words. @param {string} text */
export const mark = (text) => text

/** @param {number} number @param {string} one @param {string} many English texts with {n} @returns {string} */
export const count = (number, one, many) => t(number === 1 ? one : many, { n: number.toLocaleString(language()) })

export const language = () => spoken

/**
 * Learn the words of a language, before anything is drawn.
 * @param {(path: string) => Promise<any>} ask GET of ComfyUI, as JSON
 */
export async function learn(ask) {
  const [settings, all] = await Promise.all([ask("settings"), ask("i18n")]).catch(() => [{}, {}]) // English will do
  const wanted = settings["Comfy.Locale"] ?? navigator.language.split("-")[0]
  words = all[wanted]?.flenwheel ?? {}
  spoken = Object.keys(words).length ? wanted : "en"
}

/** Put the words into what review.html has written down in English. @param {Document} root */
export function translate(root) {
  root.documentElement.lang = spoken
  for (const node of root.querySelectorAll("[data-t]")) node.textContent = t(node.textContent.trim())
  for (const attribute of ["aria-label", "title", "placeholder", "alt", "data-broken"]) {
    for (const node of root.querySelectorAll(`[data-t-${attribute}]`)) node.setAttribute(attribute, t(node.getAttribute(attribute) ?? ""))
  }
}
