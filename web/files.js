// Files that a workflow needs: a motion dropped on Load LAMP Motion is chosen there, and a clip folder
// that does not exist is named when the workflow opens.
import { app } from '../../scripts/app.js'

const TEXTS = {
    en: {
        unknown: (file) => `Copy ${file} to models/lamp_motion, press R, and choose it here.`,
        missing: (folder) => `The clip folder ${folder} does not exist. Create it, add clips, press R.`
    },
    zh: {
        unknown: (file) => `请把 ${file} 复制到 models/lamp_motion，按 R，然后在此选择。`,
        missing: (folder) => `片段文件夹 ${folder} 不存在。请创建它，放入片段，然后按 R。`
    }
}

function warn(kind, value) {
    const language = app.extensionManager.setting.get('Comfy.Locale') === 'zh' ? 'zh' : 'en'
    const detail = TEXTS[language][kind](value)
    app.extensionManager.toast.add({ severity: 'warn', summary: 'LAMP', detail, life: 15000 })
}

function menu(node, name) {
    const widget = node.widgets?.find((widget) => widget.name === name)
    const given = widget?.options?.values ?? []
    return { widget, choices: typeof given === 'function' ? given(widget, node) : given }
}

const isMotion = (item) => item.kind === 'file' || item.name?.endsWith('.safetensors')

function choose(node, file) {
    const { widget, choices } = menu(node, 'motion_name')
    // The server lists motions in sub-folders with their path.
    const found = choices.find((choice) => choice.split(/[\\/]/).pop() === file.name)
    if (!found) return warn('unknown', file.name)
    widget.value = found
    widget.callback?.(found)
    node.setDirtyCanvas?.(true, true)
}

app.registerExtension({
    name: 'lamp-motion.Files',
    nodeCreated(node) {
        if (node.comfyClass !== 'LAMP_LoadMotion') return
        node.onDragOver = (event) => [...(event.dataTransfer?.items ?? [])].some(isMotion)
        node.onDragDrop = (event) => {
            const file = [...(event.dataTransfer?.files ?? [])].find(isMotion)
            if (file) choose(node, file)
            return Boolean(file)
        }
    },
    afterConfigureGraph() {
        for (const node of app.graph.nodes) {
            if (node.comfyClass !== 'LAMP_TrainingClips') continue
            const { widget, choices } = menu(node, 'folder')
            if (widget && !choices.includes(widget.value)) warn('missing', widget.value)
        }
    }
})
