// What a motion file says about itself, on Load LAMP Motion before anything runs: as the tooltip of its
// menu, and below the inputs once a file is chosen. And the warning of nodes/words.py about a prompt that
// lacks the words of a motion.
import { api } from '../../scripts/api.js'
import { app } from '../../scripts/app.js'
import { header, inLanguage, LOADER, parsed, tell, thumbnail, widgetOf } from './shared.js'

const NAME = 'about'
const SHOWN = 300 // characters of a text from a file

const TEXTS = {
    en: {
        words: 'Prompt',
        video: 'Trained on',
        frames: 'frames',
        fps: 'fps',
        license: 'License',
        missing: ({ motion, words }) => `The prompt lacks words of the motion ${motion}: ${words}.`
    },
    zh: {
        words: '提示词',
        video: '训练片段',
        frames: '帧',
        fps: 'fps',
        license: '许可证',
        missing: ({ motion, words }) => `提示词缺少运动模式 ${motion} 的词语：${words}。`
    }
}

const shorten = (text) => String(text).slice(0, SHOWN)

const FILLERS = 'a an the of in on at to and near with is are'.split(' ')

// The words that all captions share, as MotionConfig.trigger.
function triggerWords({ prompt, captions }) {
    if (prompt || !captions?.length) return prompt ?? ''
    const [first, ...others] = captions.map(
        (caption) => String(caption).toLowerCase().match(/[\p{L}\p{N}_]+/gu) ?? []
    )
    const sets = others.map((words) => new Set(words)) // quick for hostile files, too
    const shared = first.filter((word) => sets.every((words) => words.has(word)))
    return shared.filter((word) => !FILLERS.includes(word)).join(' ')
}

function describe(metadata) {
    const config = parsed(metadata, 'lamp.config')
    if (!config) return '' // Load LAMP Motion reports a damaged file
    const text = inLanguage(TEXTS)
    const { width, height, frames, fps } = config
    const video = [
        frames && `${frames} ${text.frames}`,
        width && height && `${width} x ${height}`,
        fps && `${Math.round(fps * 100) / 100} ${text.fps}`
    ].filter(Boolean)
    const words = triggerWords(config)
    const license = metadata['modelspec.license']
    return [
        words && `${text.words}: ${shorten(words)}`,
        video.length && `${text.video}: ${video.join(', ')}`,
        license && `${text.license}: ${shorten(license)}`
    ]
        .filter(Boolean)
        .join('\n')
}

function addWidget(node) {
    const area = document.createElement('div')
    const picture = document.createElement('img')
    const text = document.createElement('div')
    area.style.cssText = 'display: flex; gap: 8px; overflow: auto; font-size: 11px; white-space: pre-wrap'
    picture.style.cssText = 'height: 100%; max-width: 40%; object-fit: contain'
    area.append(picture, text)
    const widget = node.addDOMWidget(NAME, 'lamp_about', area, {
        serialize: false, // no input of the node
        getMinHeight: () => 60,
        getValue: () => text.textContent,
        setValue: (value) => {
            text.textContent = value // never as HTML: it is text from a file
        }
    })
    widget.serialize = false // no part of the saved workflow
    widget.lampPicture = picture
    return widget
}

function show(node, metadata, text) {
    const known = widgetOf(node, NAME)
    if (!text && !known) return
    const widget = known ?? addWidget(node)
    const picture = thumbnail(metadata)
    widget.lampPicture.src = picture
    widget.lampPicture.hidden = !picture
    widget.value = text
    node.setDirtyCanvas?.(true, true)
}

async function update(node, widget, chosen) {
    const file = widget.value
    const metadata = await header(file)
    if (widget.value !== file) return // another one was chosen meanwhile
    const text = describe(metadata)
    widget.tooltip = text || widget.lampTooltip
    if (chosen) show(node, metadata, text)
}

app.registerExtension({
    name: 'lamp-motion.Motions',
    setup() {
        api.addEventListener('lamp.missing_words', ({ detail }) =>
            tell('warn', inLanguage(TEXTS).missing(detail))
        )
    },
    nodeCreated(node) {
        if (node.comfyClass !== LOADER) return
        const widget = widgetOf(node, 'motion_name')
        if (!widget) return
        widget.lampTooltip = widget.tooltip // the host's, for files that tell nothing
        const { callback } = widget
        widget.callback = function () {
            const result = callback?.apply(this, arguments)
            update(node, widget, true)
            return result
        }
    },
    afterConfigureGraph() {
        for (const node of app.graph.nodes) {
            if (node.comfyClass !== LOADER) continue
            const widget = widgetOf(node, 'motion_name')
            if (widget) update(node, widget, false)
        }
    }
})
