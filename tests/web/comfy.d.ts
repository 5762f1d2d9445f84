/** All that web/*.js may touch of ComfyUI's frontend: a new name here is a new dependency on it. */

interface SidebarTab {
  id: string
  icon: string
  title: string
  tooltip: string
  type: "custom"
  iconBadge: () => string | null
  render: (host: HTMLElement) => void | Promise<void>
  destroy: () => void
}

interface Graph {
  /** Nodes, links and widgets are LiteGraph's: their shape differs from version to version. */
  nodes: any[]
}

export const app: {
  registerExtension(extension: object): void
  graph: Graph
  loadGraphData(workflow: object, clean?: boolean, restoreView?: boolean, name?: string): Promise<void>
  canvas?: { canvas: HTMLCanvasElement; setDirty(foreground: boolean, background: boolean): void }
  nodeOutputs?: Record<string, any>
  extensionManager: {
    toast: { add(toast: { severity: string; summary: string; detail: string; life: number }): void }
    sidebarTab?: { registerSidebarTab(tab: SidebarTab): void; sidebarTabs?: SidebarTab[] }
    registerSidebarTab(tab: SidebarTab): void
  }
}

export const api: {
  fileURL(path: string): string
  fetchApi(route: string, options?: RequestInit): Promise<Response>
  addEventListener(event: string, listener: (event: { detail: any }) => void): void
}

declare global {
  var LiteGraph: { vueNodesMode?: boolean } | undefined
}
