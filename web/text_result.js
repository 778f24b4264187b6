// A node's result that is a text, shown in the node: the paths that were written, a score, a report.
// The front end by itself draws one for its own Preview as Text only.
import { app } from '../../scripts/app.js'
import { ComfyWidgets } from '../../scripts/widgets.js'

const NAME = 'result'

function show(node, text) {
    let widget = node.widgets?.find((widget) => widget.name === NAME)
    if (!widget) {
        widget = ComfyWidgets.STRING(node, NAME, ['STRING', { multiline: true }], app).widget
        widget.options.read_only = true
        if (widget.element) widget.element.readOnly = true
        // Neither a part of the saved workflow nor an input of the node.
        widget.serialize = widget.options.serialize = false
    }
    widget.value = text
}

app.registerExtension({
    name: 'LAMP.TextResult',
    beforeRegisterNodeDef(nodeType, nodeData) {
        if (!nodeData.name.startsWith('LAMP_')) return
        const onExecuted = nodeType.prototype.onExecuted
        nodeType.prototype.onExecuted = function (output) {
            onExecuted?.apply(this, arguments)
            if (output?.text) show(this, output.text.join('\n'))
        }
    }
})
