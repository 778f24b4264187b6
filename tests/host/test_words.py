"""The words of a motion are missed in every queued prompt, also where the loader is cached."""

from __future__ import annotations

from typing import Any

from scripts.server.server import ComfyServer
from scripts.workflows import load_api


def test_missing_words_are_told_for_every_prompt(server: ComfyServer) -> None:
    graph = load_api("lamp_animate_image_toy")
    (loader,) = (n for n, each in graph.items() if each["class_type"] == "LAMP_LoadMotion")
    (text,) = (n for n, each in graph.items() if "Prompt" in each["_meta"]["title"])
    (sampler,) = (n for n, each in graph.items() if each["class_type"] == "LAMP_KSampler")
    graph[sampler]["inputs"]["steps"] = 1
    told: list[Any] = []

    def hear(event: dict[str, Any]) -> None:
        if event["type"] == "lamp.missing_words":
            told.append(event["data"]["words"])

    def run(prompt: str) -> list[str]:
        graph[text]["inputs"]["text"] = prompt
        return server.queue(graph, hear).check().cached

    run("a red bird")
    assert told == ["horse, runs"]
    assert loader in run("a red bird near the sea")
    assert told[1:] == ["horse, runs"] and "horse, runs" in server.log_text()
    run("a horse near the sea runs")
    assert len(told) == 2
