// What nodes give to look at. A result that is a text, such as a path that was written, a score or a
// report, the front end by itself draws for its own Preview as Text only.
import { api } from '../../scripts/api.js'
import { app } from '../../scripts/app.js'

const NAME = 'result'
const PROGRESS = '$$node-text-preview'
const LINE = 15 // pixels
const LETTER = 6

// A short report is shown whole. A long one scrolls.
function height(text, width) {
    const letters = Math.max(20, (width - 50) / LETTER)
    const lines = text.split('\n').map((line) => Math.ceil(Math.max(line.length, 1) / letters))
    const all = lines.reduce((sum, count) => sum + count, 1)
    return Math.min(Math.max(all * LINE, 60), 240)
}

function addWidget(node) {
    const area = document.createElement('textarea')
    area.className = 'comfy-multiline-input'
    area.readOnly = true
    const widget = node.addDOMWidget(NAME, 'lamp_text', area, {
        serialize: false, // no input of the node
        getMinHeight: () => height(area.value, node.size[0]),
        getValue: () => area.value,
        setValue: (text) => {
            area.value = text
        }
    })
    widget.serialize = false // no part of the saved workflow
    return widget
}

function showText(node, text) {
    const widget = node.widgets?.find(({ name }) => name === NAME) ?? addWidget(node)
    widget.value = text.join('\n')
}

// Nodes 2.0 draws the images of a node and, below them, its last live preview, which stays after a run.
// The trainer's last preview is the image: the loss plot.
function showOnePicture(node) {
    Object.defineProperty(node, 'hideOutputImages', {
        get() {
            const previews = app.nodePreviewImages ?? {}
            const keys = [`${node.id}`, `${node.graph?.id}:${node.id}`] // the second one in a subgraph
            return keys.some((key) => previews[key]?.length > 0)
        }
    })
}

// `6`, or `3:6` for a node in a subgraph.
function nodeOf(id) {
    let node
    let graph = app.rootGraph ?? app.graph
    for (const part of `${id}`.split(':')) {
        node = graph?.getNodeById(part)
        graph = node?.subgraph
    }
    return node
}

// The node of an output: `6`, or `UUID:6` with the UUID of its subgraph.
function nodeOfOutput(id) {
    const end = id.lastIndexOf(':')
    const subgraph = (app.rootGraph ?? app.graph)?.subgraphs?.get(id.slice(0, Math.max(end, 0)))
    return subgraph ? subgraph.getNodeById(id.slice(end + 1)) : nodeOf(id)
}

// The front end keeps the last text of a node, such as a warning, also when the node runs again and
// says nothing. The host's samplers show warnings of a motion, too.
function followTexts() {
    let silent // the node that runs, until it says something
    api.addEventListener('progress_text', () => {
        silent = undefined
    })
    api.addEventListener('executing', ({ detail }) => {
        const old = silent?.widgets?.find(({ name }) => name === PROGRESS)
        if (old && (silent.comfyClass.startsWith('LAMP_') || `${old.value}`.startsWith('LAMP: '))) silent.removeWidget(old)
        silent = nodeOf(detail)
    })
}

app.registerExtension({
    name: 'lamp-motion.Results',
    setup: followTexts,
    beforeRegisterNodeDef(nodeType, nodeData) {
        if (!nodeData.name.startsWith('LAMP_')) return
        const onExecuted = nodeType.prototype.onExecuted
        nodeType.prototype.onExecuted = function (output) {
            onExecuted?.apply(this, arguments)
            if (output?.text) showText(this, output.text)
        }
    },
    // After an undo or another tab, the front end makes all nodes anew and restores their pictures alone.
    onNodeOutputsUpdated(outputs) {
        for (const [id, output] of Object.entries(outputs ?? {})) {
            const node = output?.text && nodeOfOutput(id)
            if (node?.comfyClass?.startsWith('LAMP_')) showText(node, output.text)
        }
    },
    nodeCreated(node) {
        if (node.comfyClass === 'LAMP_Trainer') showOnePicture(node)
        // Its contact sheet: Nodes 2.0 takes what a node with a VIDEO input shows for a video.
        if (node.comfyClass === 'LAMP_TrainingClips') node.previewMediaType = 'image'
    }
})
