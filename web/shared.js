// What several of the pack's extensions use. Registers nothing.
import { api } from '../../scripts/api.js'
import { app } from '../../scripts/app.js'

export const LOADER = 'LAMP_LoadMotion'

// The texts of the page's language, of { en: ..., zh: ... }.
export const inLanguage = (texts) =>
    texts[app.extensionManager?.setting.get('Comfy.Locale') === 'zh' ? 'zh' : 'en']

export function tell(severity, detail) {
    app.extensionManager.toast.add({ severity, summary: 'LAMP', detail, life: 15000 })
}

export const widgetOf = (node, name) => node.widgets?.find((widget) => widget.name === name)

export function choicesOf(node, name) {
    const widget = widgetOf(node, name)
    const given = widget?.options?.values ?? []
    return typeof given === 'function' ? given(widget, node) : given
}

export function select(node, name, value) {
    const widget = widgetOf(node, name)
    widget.value = value
    widget.callback?.(value)
    node.setDirtyCanvas?.(true, true)
}

// The header of a motion file, from the host's own route.
export async function header(file) {
    try {
        const answer = await api.fetchApi(`/view_metadata/lamp_motion?filename=${encodeURIComponent(file)}`)
        return answer.ok ? await answer.json() : {}
    } catch {
        return {} // no such route, or a header that is too long for it
    }
}

// An entry of a header that is JSON; null if it is damaged.
export function parsed(metadata, name) {
    try {
        return JSON.parse(metadata[name] ?? '{}')
    } catch {
        return null
    }
}

// The picture of a motion file, empty if it has none that is safe to show.
export function thumbnail(metadata) {
    const picture = metadata['modelspec.thumbnail'] ?? ''
    return /^data:image\/(jpeg|png|webp);base64,/.test(picture) ? picture : ''
}
