// A node's result that is a text, shown in the node: the paths that were written, a score, a report.
// The front end by itself draws one for its own Preview as Text only.
import { app } from '../../scripts/app.js'

const NAME = 'result'

function addWidget(node) {
    const area = document.createElement('textarea')
    area.className = 'comfy-multiline-input'
    area.readOnly = true
    const widget = node.addDOMWidget(NAME, 'lamp_text', area, {
        serialize: false, // no input of the node
        getMinHeight: () => 60,
        getValue: () => area.value,
        setValue: (text) => {
            area.value = text
        }
    })
    widget.serialize = false // no part of the saved workflow
    return widget
}

app.registerExtension({
    name: 'LAMP.TextResult',
    beforeRegisterNodeDef(nodeType, nodeData) {
        if (!nodeData.name.startsWith('LAMP_')) return
        const onExecuted = nodeType.prototype.onExecuted
        nodeType.prototype.onExecuted = function (output) {
            onExecuted?.apply(this, arguments)
            if (!output?.text) return
            const widget = this.widgets?.find((widget) => widget.name === NAME) ?? addWidget(this)
            widget.value = output.text.join('\n')
        }
    }
})
