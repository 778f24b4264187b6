// Choosing a motion by eye: a button on LAMP Trainer shows the motions of its newest run side by side, each
// with its sample, step and scores. A click sets the loader on the canvas, or adds one. Motions that have
// no file are saved from a training state first (nodes/training_run.py), where there is one.
import { api } from '../../scripts/api.js'
import { app } from '../../scripts/app.js'
import { choicesOf, header, inLanguage, LOADER, parsed, select, tell, thumbnail, widgetOf } from './shared.js'

const TEXTS = {
    en: {
        button: 'Choose a motion by eye',
        hint: 'Click the sample that moves best: Load LAMP Motion then uses its motion. The numbers compare the sample with your clips: lower is better.',
        close: 'Close',
        none: (name) =>
            `There is no motion named ${name} yet. Run the training. keep_motions saves several motions of a run.`,
        step: 'step',
        best: 'best',
        stopped: 'stopped',
        state: 'saved when chosen',
        others: 'All samples of this run. Those that are not above have no file: keep_motions saves more motions.',
        failed: (reason) => `The motion was not saved: ${reason}`,
        held_out_loss: 'held-out loss',
        sample_motion: 'motion',
        sample_likeness: 'drift from frame 1',
        chosen: (file) => `${file} is chosen in Load LAMP Motion.`
    },
    zh: {
        button: '看样片挑选运动模式',
        hint: '点击运动最好的样片，“加载LAMP运动模式”就会使用它。数值是样片与片段的差异，越小越好。',
        close: '关闭',
        none: (name) => `还没有名为 ${name} 的运动模式。请先训练。keep_motions 会保存一次训练中的多个运动模式。`,
        step: '步数',
        best: '最佳',
        stopped: '已停止',
        state: '选择时保存',
        others: '本次训练的全部样片。上面没有列出的没有文件：用 keep_motions 可保存更多运动模式。',
        failed: (reason) => `运动模式未能保存：${reason}`,
        held_out_loss: '留出损失',
        sample_motion: '运动量',
        sample_likeness: '偏离首帧',
        chosen: (file) => `已在“加载LAMP运动模式”中选择 ${file}。`
    }
}

const plain = (file) => file.replaceAll('\\', '/')

// Files in the motion folder, with the time of their last change where the server tells it.
async function motionFiles() {
    const timed = await api.fetchApi('/experiment/models/lamp_motion')
    if (timed.ok) return timed.json()
    const named = await api.fetchApi('/models/lamp_motion')
    return named.ok ? (await named.json()).map((name) => ({ name, modified: 0 })) : []
}

// The motions of the trainer's name: file, its time, the run's name, number of the run, end of the name.
async function motionsOf(name) {
    const begin = plain(name)
        .replace(/[.*+?^${}()|[\]\\]/g, '\\$&')
        .replace(/%[^%]+%/g, '[^/]+') // a date
    const pattern = new RegExp(`^(${begin}_(\\d+))((?:-.*)?)\\.safetensors$`)
    return (await motionFiles()).flatMap(({ name: file, modified }) => {
        const found = plain(file).match(pattern)
        return found ? [{ file, modified, run: found[1], number: Number(found[2]), end: found[3] }] : []
    })
}

// The states of a run at other steps than those of its motions.
function statesOf(trainer, run, steps) {
    return choicesOf(trainer, 'resume').flatMap((state) => {
        const found = plain(state).match(/^(.*)\/state-step(\d+)(?:-\d+)?\.safetensors$/)
        if (found?.[1] !== run || steps.includes(Number(found[2]))) return []
        const metadata = { 'lamp.config': JSON.stringify({ steps: Number(found[2]) }) }
        return [{ motion: { run, end: '-state', state }, metadata }]
    })
}

// Saves the motion of a state; its file, or null after an error.
async function saved(state) {
    const asked = { method: 'POST', body: JSON.stringify({ state }) }
    const answer = await api.fetchApi('/lamp/motion_of_state', asked)
    const { motion, error } = await answer.json().catch(() => ({ error: answer.statusText }))
    if (!motion) tell('error', inLanguage(TEXTS).failed(error))
    return motion ?? null
}

function fileUrl(run, filename) {
    // The time, since a run that goes on writes the same files, of which the browser keeps copies.
    const rand = Date.now()
    const place = new URLSearchParams({ type: 'output', subfolder: `lamp_training/${run}`, filename, rand })
    return api.apiURL(`/view?${place}`)
}

function card({ run, end }, metadata, use) {
    const text = inLanguage(TEXTS)
    const { steps } = parsed(metadata, 'lamp.config') ?? {}
    const scores = Object.entries(parsed(metadata, 'lamp.scores') ?? {})
    const marks = ['best', 'stopped', 'state'].filter((mark) => end.includes(mark)).map((mark) => text[mark])
    const button = document.createElement('button')
    const picture = document.createElement('img')
    const label = document.createElement('div')
    button.style.cssText = 'padding: 6px; cursor: pointer; background: none; color: inherit; border: 1px solid #888'
    picture.style.cssText = 'width: 200px; display: block'
    label.style.cssText = 'max-width: 200px; white-space: pre-wrap; font-size: 12px; text-align: left'
    picture.onerror = () => {
        picture.onerror = null
        picture.src = thumbnail(metadata)
        picture.hidden = !thumbnail(metadata)
    }
    picture.src = fileUrl(run, `sample-step${String(steps).padStart(6, '0')}.webp`)
    // Never as HTML: it is text from a file.
    label.textContent = [
        [`${text.step} ${Number(steps)}`, ...marks].join(', '),
        ...scores.map(([name, value]) => `${text[name] ?? name} ${Number(value).toPrecision(3)}`)
    ].join('\n')
    button.append(picture, label)
    button.addEventListener('click', use)
    return button
}

// Title, explanation and a button that closes the dialog.
function heading(dialog) {
    const text = inLanguage(TEXTS)
    const area = document.createElement('div')
    const title = document.createElement('strong')
    const hint = document.createElement('div')
    const close = document.createElement('button')
    area.style.cssText = 'flex-basis: 100%; display: grid; grid-template-columns: 1fr auto; gap: 8px'
    hint.style.cssText = 'grid-column: 1 / 3; font-size: 12px'
    close.style.cssText = 'padding: 2px 8px; cursor: pointer; background: none; color: inherit; border: 1px solid #888'
    title.textContent = text.button
    hint.textContent = text.hint
    close.textContent = text.close
    close.addEventListener('click', () => dialog.close())
    area.append(title, close, hint)
    return area
}

// The comparison of all samples, if the run has one.
function allSamples(run) {
    const area = document.createElement('div')
    const picture = document.createElement('img')
    area.style.cssText = 'flex-basis: 100%; font-size: 12px'
    picture.style.cssText = 'max-width: 100%; display: block'
    picture.onerror = () => area.remove()
    picture.src = fileUrl(run, 'samples.png')
    area.append(inLanguage(TEXTS).others, picture)
    return area
}

// The loaders of motions of this training, else the only loader, else a new one.
function loadersFor(trainer, motions) {
    const loaders = trainer.graph.nodes.filter((node) => node.comfyClass === LOADER)
    const files = motions.map(({ file }) => file)
    const same = loaders.filter((node) => files.includes(widgetOf(node, 'motion_name')?.value))
    if (same.length) return same
    if (loaders.length === 1) return loaders
    const loader = LiteGraph.createNode(LOADER)
    loader.pos = [trainer.pos[0], trainer.pos[1] + trainer.size[1] + 60]
    trainer.graph.add(loader)
    const link = trainer.getInputLink(trainer.findInputSlot('model'))
    const from = link && trainer.graph.getNodeById(link.origin_id)
    if (from) from.connect(link.origin_slot, loader, 'model')
    else if (link) trainer.graph.inputNode?.slots[link.origin_slot]?.connect(loader.inputs[loader.findInputSlot('model')], loader)
    return [loader]
}

async function choose(trainer) {
    const text = inLanguage(TEXTS)
    const name = widgetOf(trainer, 'name').value.trim().replace(/\.safetensors$/, '')
    const all = await motionsOf(name)
    if (!all.length) return tell('warn', text.none(name))
    // Names with a date have numbers of their own.
    const day = ({ run }) => run.replace(/\d+$/, '')
    const later = (a, b) => (day(a) === day(b) ? b.number > a.number : b.modified > a.modified)
    const { run } = all.reduce((a, b) => (later(a, b) ? b : a))
    await app.refreshComboInNodes() // states and files may be newer than the menus
    const found = await Promise.all(
        all
            .filter((motion) => motion.run === run)
            .map(async (motion) => ({ motion, metadata: await header(motion.file) }))
    )
    const stepOf = ({ metadata }) => parsed(metadata, 'lamp.config')?.steps ?? 0
    found.push(...statesOf(trainer, run, found.map(stepOf)))
    found.sort((one, other) => stepOf(one) - stepOf(other))
    const dialog = document.createElement('dialog')
    dialog.className = 'lamp-choose'
    dialog.style.cssText =
        'margin: auto; max-width: 90vw; max-height: 90vh; overflow: auto; gap: 8px; flex-wrap: wrap;' +
        'background: var(--comfy-menu-bg, #222); color: var(--input-text, #ddd); border: 1px solid #888'
    dialog.append(heading(dialog))
    for (const { motion, metadata } of found) {
        const use = async () => {
            dialog.close()
            const file = motion.file ?? (await saved(motion.state))
            if (!file) return
            await app.refreshComboInNodes() // the file is newer than the menus
            for (const loader of loadersFor(trainer, all)) select(loader, 'motion_name', file)
            tell('info', text.chosen(file))
        }
        dialog.append(card(motion, metadata, use))
    }
    dialog.append(allSamples(run))
    dialog.addEventListener('close', () => dialog.remove())
    // Some front ends prevent what Escape does to a dialog.
    dialog.addEventListener('keydown', (event) => {
        if (event.key !== 'Escape') return
        event.stopPropagation()
        dialog.close()
    })
    dialog.addEventListener('click', (event) => event.target === dialog && dialog.close())
    document.body.append(dialog)
    dialog.showModal()
    dialog.style.display = 'flex'
}

app.registerExtension({
    name: 'lamp-motion.Choose',
    nodeCreated(node) {
        if (node.comfyClass !== 'LAMP_Trainer') return
        const { button } = inLanguage(TEXTS)
        const widget = node.addWidget('button', button, null, () => choose(node), { serialize: false })
        widget.serialize = false // no part of the saved workflow
    }
})
