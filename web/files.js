// Files that a workflow needs: a motion dropped on Load LAMP Motion, or on the canvas, is chosen there,
// and a clip folder that does not exist is named when the workflow opens.
import { app } from '../../scripts/app.js'
import { choicesOf, inLanguage, LOADER, select, tell, widgetOf } from './shared.js'

const LONGEST_HEADER = 100_000_000 // bytes, as in the library safetensors

const TEXTS = {
    en: {
        chosen: (file) =>
            `${file} is chosen in Load LAMP Motion. To open the workflow that made it, press Ctrl+O.`,
        unknown: (file) =>
            `Copy ${file} to models/lamp_motion, press R, and choose it in Load LAMP Motion. ` +
            'To open the workflow that made it, press Ctrl+O.',
        missing: (folder) => `The clip folder ${folder} does not exist. Create it, add clips, press R.`
    },
    zh: {
        chosen: (file) => `已在“加载LAMP运动模式”中选择 ${file}。要打开生成它的工作流，请按 Ctrl+O。`,
        unknown: (file) =>
            `请把 ${file} 复制到 models/lamp_motion，按 R，然后在“加载LAMP运动模式”中选择。` +
            '要打开生成它的工作流，请按 Ctrl+O。',
        missing: (folder) => `片段文件夹 ${folder} 不存在。请创建它，放入片段，然后按 R。`
    }
}

const text = (kind, value) => inLanguage(TEXTS)[kind](value)

const isMotion = (item) => item.kind === 'file' || item.name?.endsWith('.safetensors')

// The value for a file in a loader's menu. The server lists motions in sub-folders with their path.
function choiceFor(node, file) {
    return choicesOf(node, 'motion_name').find((choice) => choice.split(/[\\/]/).pop() === file.name)
}

function choose(node, file) {
    const found = choiceFor(node, file)
    if (!found) return tell('warn', text('unknown', file.name))
    select(node, 'motion_name', found)
    tell('info', text('chosen', file.name))
}

// --- drops on the canvas, which the front end answers by opening the workflow in the file ----------

const passedOn = new WeakSet()

async function hasMotion(file) {
    try {
        const start = new DataView(await file.slice(0, 8).arrayBuffer())
        const length = Number(start.getBigUint64(0, true))
        if (length > LONGEST_HEADER) return false
        const header = JSON.parse(await file.slice(8, 8 + length).text())
        return 'lamp.format' in header.__metadata__
    } catch {
        return false // no safetensors file, or one without metadata
    }
}

// The only loader on the canvas, else a new one at the place of the drop.
function chooseOnCanvas(event, file) {
    const { graph } = app.canvas
    const loaders = graph.nodes.filter((node) => node.comfyClass === LOADER)
    if (loaders.length === 1) return choose(loaders[0], file)
    const node = LiteGraph.createNode(LOADER)
    if (!choiceFor(node, file)) return tell('warn', text('unknown', file.name))
    node.pos = app.canvas.convertEventToCanvasOffset(event)
    graph.add(node)
    choose(node, file)
}

// Let the front end treat a drop as if this listener did not exist.
function passOn(event, target, file) {
    const dataTransfer = new DataTransfer()
    dataTransfer.items.add(file)
    const { clientX, clientY } = event
    const again = new DragEvent('drop', {
        bubbles: true,
        cancelable: true,
        clientX,
        clientY,
        dataTransfer
    })
    passedOn.add(again)
    target.dispatchEvent(again)
}

async function onDrop(event) {
    const [file, ...others] = event.dataTransfer?.files ?? []
    if (event.defaultPrevented || passedOn.has(event)) return
    if (app.dragOverNode?.onDragDrop) return // the front end gives the file to this node
    if (others.length || !file?.name.endsWith('.safetensors')) return
    // Whether it is a motion is known only after the front end's own listener would have run.
    event.preventDefault()
    event.stopPropagation()
    const { target } = event
    if (await hasMotion(file)) chooseOnCanvas(event, file)
    else passOn(event, target, file)
}

const SKIPPED = [2, 4] // modes of nodes that do not run: muted and bypassed
const told = new Set() // folders; an undo opens the workflow again, too

app.registerExtension({
    name: 'lamp-motion.Files',
    setup() {
        // The front end listens on the document: nodes come before this listener, it comes after.
        document.body.addEventListener('drop', onDrop)
    },
    nodeCreated(node) {
        if (node.comfyClass !== LOADER) return
        node.onDragOver = (event) => [...(event.dataTransfer?.items ?? [])].some(isMotion)
        node.onDragDrop = (event) => {
            const file = [...(event.dataTransfer?.files ?? [])].find(isMotion)
            if (file) choose(node, file)
            return Boolean(file)
        }
    },
    afterConfigureGraph() {
        for (const node of app.graph.nodes) {
            if (node.comfyClass !== 'LAMP_TrainingClips' || SKIPPED.includes(node.mode)) continue
            if (node.inputs?.some(({ name, link }) => name === 'folder' && link != null)) continue
            const folder = widgetOf(node, 'folder')?.value
            if (!folder || told.has(folder) || choicesOf(node, 'folder').includes(folder)) continue
            told.add(folder)
            tell('warn', text('missing', folder))
        }
    }
})
