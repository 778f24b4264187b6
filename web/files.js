// Files that a workflow needs: a motion dropped on Load LAMP Motion, or on the canvas, is chosen there,
// and a clip folder that does not exist is named when the workflow opens.
import { app } from '../../scripts/app.js'
import { choicesOf, header, inLanguage, LOADER, select, tell, widgetOf } from './shared.js'

const LONGEST_HEADER = 100_000_000 // bytes, as in the library safetensors

const TEXTS = {
    en: {
        chosen: (file) =>
            `${file} is chosen in Load LAMP Motion. To open the workflow that made it, press Ctrl+O.`,
        unknown: (file) =>
            `Copy ${file} to models/lamp_motion, press R, and choose it in Load LAMP Motion. ` +
            'To open the workflow that made it, press Ctrl+O.',
        other: (file) =>
            `models/lamp_motion already has a ${file}, and it may be another motion, so nothing was chosen. ` +
            'If it is the same, choose it in the menu. Otherwise copy the dropped file there under another ' +
            'name, press R, and choose that.',
        missing: (folder) => `The clip folder ${folder} does not exist. Create it, add clips, press R.`
    },
    zh: {
        chosen: (file) => `已在“加载LAMP运动模式”中选择 ${file}。要打开生成它的工作流，请按 Ctrl+O。`,
        unknown: (file) =>
            `请把 ${file} 复制到 models/lamp_motion，按 R，然后在“加载LAMP运动模式”中选择。` +
            '要打开生成它的工作流，请按 Ctrl+O。',
        other: (file) =>
            `models/lamp_motion 中已有 ${file}，但可能是另一个运动模式，因此没有选择。如果相同，请在菜单中选择它；` +
            '否则请把拖放的文件换一个名称复制到那里，按 R，然后选择。',
        missing: (folder) => `片段文件夹 ${folder} 不存在。请创建它，放入片段，然后按 R。`
    }
}

const text = (kind, value) => inLanguage(TEXTS)[kind](value)

const isMotion = (item) => item.kind === 'file' || item.name?.endsWith('.safetensors')

// The header's texts of a dropped safetensors file; empty for any other file.
async function headerOf(file) {
    try {
        const start = new DataView(await file.slice(0, 8).arrayBuffer())
        const length = Number(start.getBigUint64(0, true))
        if (length > LONGEST_HEADER) return {}
        return JSON.parse(await file.slice(8, 8 + length).text()).__metadata__ ?? {}
    } catch {
        return {}
    }
}

// Two motions often have one name: the trainer's default, or in two folders.
const OF_CONTENT = ['lamp.format', 'lamp.config', 'lamp.rank', 'lamp.run', 'modelspec.date']
const isSame = (one, other) =>
    'lamp.format' in other && OF_CONTENT.every((name) => one[name] === other[name])

// The values in a loader's menu that have a file's name. Those in sub-folders have their path.
const namesakes = (node, file) =>
    choicesOf(node, 'motion_name').filter((choice) => choice.split(/[\\/]/).pop() === file.name)

// The value of a dropped file in a loader's menu; without one it says why.
async function choiceFor(node, file) {
    const named = namesakes(node, file)
    const dropped = await headerOf(file)
    const headers = await Promise.all(named.map(header))
    const found = named.find((_, i) => isSame(dropped, headers[i]))
    if (!found) tell('warn', text(named.length ? 'other' : 'unknown', file.name))
    return found
}

async function choose(node, file) {
    const found = await choiceFor(node, file)
    if (!found) return
    if (!node.graph) app.canvas.graph.add(node)
    select(node, 'motion_name', found)
    tell('info', text('chosen', found))
}

// --- drops on the canvas, which the front end answers by opening the workflow in the file ----------

const passedOn = new WeakSet()

// The only loader on the canvas, else a new one at the place of the drop.
function chooseOnCanvas(event, file) {
    const { graph } = app.canvas
    const loaders = graph.nodes.filter((node) => node.comfyClass === LOADER)
    if (loaders.length === 1) return choose(loaders[0], file)
    const node = LiteGraph.createNode(LOADER)
    node.pos = app.canvas.convertEventToCanvasOffset(event)
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
    if ('lamp.format' in (await headerOf(file))) chooseOnCanvas(event, file)
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
