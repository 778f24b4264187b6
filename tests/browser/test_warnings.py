"""A node's warning is shown below it, until the node runs again without one."""

from __future__ import annotations

from typing import Any

import pytest

from tests.browser.conftest import front_end
from tests.browser.test_front_end import close_dialogs

GRAPH = """() => {
    app.graph.clear()
    const add = (type) => {
        const node = LiteGraph.createNode(type)
        app.graph.add(node)
        return node
    }
    const join = (from, output, to, input) =>
        from.connect(from.findOutputSlot(output), to, to.findInputSlot(input))
    const [base, image, first, decode, show] =
        ['LAMP_LoadToyBase', 'EmptyImage', 'LAMP_FirstFrameCondition', 'VAEDecode', 'PreviewImage'].map(add)
    join(base, 'vae', first, 'vae')
    join(image, 'IMAGE', first, 'image')
    join(base, 'vae', decode, 'vae')
    join(first, 'latent', decode, 'samples')
    join(decode, 'IMAGE', show, 'images')
    const set = (node, values) => Object.entries(values).forEach(([name, value]) => {
        node.widgets.find((widget) => widget.name === name).value = value
    })
    set(image, { width: 32, height: 32, color: 0x7f7f7f })
    set(first, { width: 32, height: 32, frames: 2 })
    window.setImages = (count) => set(image, { batch_size: count })
    window.told = () => first.widgets.filter(({ name }) => name === '$$node-text-preview')
        .map(({ value }) => value)
}"""  # noqa: E501
RUN = """async (count) => {
    window.setImages(count)
    const { api } = await import('/scripts/api.js')
    const end = new Promise((done) => ['success', 'error', 'interrupted'].forEach((how) =>
        api.addEventListener(`execution_${how}`, () => done(how), { once: true })))
    await app.queuePrompt(0, 1)
    const how = await end
    await new Promise((done) => setTimeout(done, 500))
    return [how, window.told()]
}"""


REPORTED = """async () => {
    app.graph.clear()
    const [base, preset] = ['LAMP_LoadToyBase', 'LAMP_TrainingPreset'].map((type) => {
        const node = LiteGraph.createNode(type)
        app.graph.add(node)
        return node
    })
    base.connect(0, preset, 'model')
    preset.widgets.find(({ name }) => name === 'card').value = '8 GB'
    const { api } = await import('/scripts/api.js')
    const end = new Promise((done) => ['success', 'error', 'interrupted'].forEach((how) =>
        api.addEventListener(`execution_${how}`, () => done(how), { once: true })))
    await app.queuePrompt(0, 1)
    return end
}"""
RESULTS = """() => app.graph.nodes
    .find(({ type }) => type === 'LAMP_TrainingPreset').widgets
    .filter(({ name }) => name === 'result').map(({ value }) => value)"""
CHANGED = """async () => {
    const { changeTracker } = app.extensionManager.workflow.activeWorkflow
    changeTracker.checkState()
    app.graph.nodes[0].title = 'other'
    changeTracker.checkState()
    const before = app.graph.nodes[0]
    await changeTracker.undo()
    await new Promise((done) => setTimeout(done, 1000))
    return app.graph.nodes[0] !== before
}"""


@pytest.mark.timeout(300)
def test_a_report_stays_when_a_change_is_undone(page: Any) -> None:
    close_dialogs(page)
    assert page.evaluate(REPORTED) == "success"
    page.wait_for_timeout(500)
    (told,) = page.evaluate(RESULTS)
    assert "GB" in told
    assert page.evaluate(CHANGED)
    assert page.evaluate(RESULTS) == [told]


@pytest.mark.timeout(300)
def test_a_warning_ends_with_the_next_run(page: Any) -> None:
    close_dialogs(page)
    page.evaluate(GRAPH)
    end, told = page.evaluate(RUN, 2)
    assert end == "success" and len(told) == 1
    if front_end(page) != "1.42":  # which cannot read the texts of ComfyUI 0.18.1
        assert "2 images" in told[0]
    assert page.evaluate(RUN, 1) == ["success", []]
