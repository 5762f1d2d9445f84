/** Verdicts with a finger: right is good, left is reject, up needs correction. Nothing counts before the colour shows, and dragging back cancels. */

const ENOUGH = 0.22 // of the stage's width or height
const START_PX = 14

/**
 * @param {HTMLElement} stage @param {() => boolean} ready false while the picture is zoomed or split: dragging then moves it
 * @param {(label: import("./words.mjs").Label) => void} label
 */
export function listenToSwipes(stage, ready, label) {
  /** @type {{x: number, y: number, id: number}|null} */
  let start = null
  const verdict = ({ clientX, clientY }) => {
    if (!start) return null
    const [x, y] = [(clientX - start.x) / stage.clientWidth, (clientY - start.y) / stage.clientHeight]
    if (Math.abs(x) > Math.abs(y)) return x > ENOUGH ? "good" : x < -ENOUGH ? "reject" : null
    return y < -ENOUGH ? "needs_correction" : null
  }
  const end = () => {
    start = null
    stage.style.removeProperty("--swipe")
    delete stage.dataset.swipe
  }
  stage.addEventListener("pointerdown", (event) => {
    if (event.pointerType === "touch" && event.isPrimary && ready()) start = { x: event.clientX, y: event.clientY, id: event.pointerId }
    else end() // a second finger
  })
  stage.addEventListener("pointermove", (event) => {
    if (!start || event.pointerId !== start.id) return
    const [x, y] = [event.clientX - start.x, event.clientY - start.y]
    if (Math.hypot(x, y) < START_PX) return
    stage.style.setProperty("--swipe", `translate(${x}px, ${Math.min(0, y)}px) rotate(${x / 60}deg)`)
    stage.dataset.swipe = verdict(event) ?? "none"
  })
  stage.addEventListener("pointerup", (event) => {
    const given = verdict(event)
    end()
    if (!given) return
    navigator.vibrate?.(12)
    label(/** @type {import("./words.mjs").Label} */ (given))
  })
  stage.addEventListener("pointercancel", end)
}
