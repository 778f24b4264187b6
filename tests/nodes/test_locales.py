"""Translations and help pages: complete, in step with the schemas, and fit for the front end."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from scripts.assets.help_pictures import PICTURE
from scripts.assets.locales import (
    FOLDER,
    HELP,
    MAIN,
    NODES,
    as_message,
    as_text,
    help_pages,
    locale_files,
)

# Names that Chinese users know as they are.
UNTRANSLATED = {"AdaIN", "CLIP", "LAMP", "Latent", "VAE", "cfg"}
PAGES = ["en", "zh"]


@pytest.fixture(scope="module")
def english(node_classes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return locale_files(node_classes.values())


def stored(language: str, name: str) -> dict[str, Any]:
    return json.loads((FOLDER / language / name).read_text(encoding="utf-8"))


def texts(content: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """(place, text) of every text in nested objects."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield from texts(value, f"{place}.{key}" if place else key)
    else:
        yield place, content


def is_chinese(text: str) -> bool:
    return bool(re.search(r"[\u4e00-\u9fff]", text))


# --- translations -------------------------------------------------------------------------------


def test_the_languages_are_those_promised() -> None:
    found = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file()}
    assert found == {f"{language}/{name}" for language in PAGES for name in (MAIN, NODES)}


@pytest.mark.parametrize("name", [MAIN, NODES])
def test_english_is_what_the_script_makes(english: dict[str, Any], name: str) -> None:
    text = (FOLDER / "en" / name).read_text(encoding="utf-8")
    assert text == as_text(english[name]), "run: python -m scripts.assets.locales"


@pytest.mark.parametrize("name", [MAIN, NODES])
def test_chinese_has_the_keys_of_the_schemas_and_no_others(
    english: dict[str, Any], name: str
) -> None:
    wanted = {place for place, _ in texts(english[name])}
    found = {place for place, _ in texts(stored("zh", name))}
    assert sorted(wanted - found) == [], "missing"
    assert sorted(found - wanted) == [], "not in the schemas"


def test_the_keys_are_the_schemas_own(node_classes: dict[str, Any]) -> None:
    """The English texts are the measure of the Chinese ones, so they are counted independently."""
    definitions = stored("en", NODES)
    assert set(definitions) == set(node_classes)
    for name, node in node_classes.items():
        inputs = node.INPUT_TYPES()
        shown = {**inputs.get("required", {}), **inputs.get("optional", {})}
        assert set(definitions[name].get("inputs", {})) == set(shown)
        outputs = [str(number) for number in range(len(node.RETURN_TYPES))]
        assert list(definitions[name].get("outputs", {})) == outputs
    categories = {part for node in node_classes.values() for part in node.CATEGORY.split("/")}
    assert set(stored("en", MAIN)["nodeCategories"]) == categories


@pytest.mark.parametrize("language", PAGES)
@pytest.mark.parametrize("name", [MAIN, NODES])
def test_no_text_is_empty_or_a_broken_message(language: str, name: str) -> None:
    for place, text in texts(stored(language, name)):
        assert text == text.strip() and text, place
        # The front end reads {x} as a placeholder, @ as a link and | as a plural.
        assert not re.search(r"[{}@$|]", re.sub(r"\{'[{}@$|]'\}", "", text)), place


def test_placeholders_in_tooltips_are_escaped() -> None:
    assert as_message("{motion} at 5 $ | a@b") == "{'{'}motion{'}'} at 5 {'$'} {'|'} a{'@'}b"


@pytest.mark.parametrize("name", [MAIN, NODES])
def test_chinese_texts_are_chinese(name: str) -> None:
    strange = [
        (place, text)
        for place, text in texts(stored("zh", name))
        if not is_chinese(text) and text not in UNTRANSLATED
    ]
    assert strange == []
    sentences = [t for p, t in texts(stored("zh", name)) if p.endswith(("tooltip", "description"))]
    assert [text for text in sentences if not is_chinese(text)] == []


def test_values_of_menus_are_not_translated(node_classes: dict[str, Any]) -> None:
    """A translated value would not be the one that the node gets. So tooltips name it as it is."""
    fields = {
        place.rsplit(".", 1)[1] for language in PAGES for place, _ in texts(stored(language, NODES))
    }
    assert fields == {"display_name", "description", "name", "tooltip"}


# --- help pages ---------------------------------------------------------------------------------


def test_every_node_has_both_pages_and_no_page_is_left_over(node_classes: dict[str, Any]) -> None:
    found = {path.relative_to(HELP).as_posix() for path in HELP.rglob("*") if path.is_file()}
    pages = {page for node in node_classes for page in help_pages(node).values()}
    assert found == pages | {f"{node}/{PICTURE}" for node in node_classes}


@pytest.mark.parametrize("language", PAGES)
def test_every_page_shows_its_node(node_classes: dict[str, Any], language: str) -> None:
    """The front end looks for pictures from web/docs on, in both languages."""
    for name in node_classes:
        shown = re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", page(name, language))
        assert [place for _, place in shown] == [f"{name}/{PICTURE}"]
        assert shown[0][0] and is_chinese(shown[0][0]) == (language == "zh")
        with Image.open(HELP / shown[0][1]) as picture:
            assert picture.width >= 300
        assert (HELP / shown[0][1]).stat().st_size < 40_000


def test_every_node_is_found_by_other_words(node_classes: dict[str, Any]) -> None:
    """The words that people type for it, where the host's search knows of them."""
    for name, node in node_classes.items():
        words = getattr(node.GET_SCHEMA(), "search_aliases", None)
        if words is None:
            pytest.skip("this host's search takes no other words")
        assert words and words == [word.lower() for word in dict.fromkeys(words)], name


def page(node: str, language: str) -> str:
    return (HELP / help_pages(node)[language]).read_text(encoding="utf-8")


@pytest.mark.parametrize("language", PAGES)
def test_pages_tell_of_every_input_output_and_menu(
    node_classes: dict[str, Any], language: str
) -> None:
    definitions = stored(language, NODES)
    silent = []
    for name, node in node_classes.items():
        text = page(name, language)
        schema = node.GET_SCHEMA()
        fields = [*(schema.inputs or []), *(schema.outputs or [])]
        words = {f"`{field.display_name or field.id}`" for field in fields}
        # The long menus are the host's own lists of samplers and schedulers, or files.
        menus = [getattr(field, "options", None) or [] for field in schema.inputs or []]
        short = {str(value) for menu in menus if len(menu) <= 5 for value in menu}
        words |= {f"`{value}`" for value in short if not value.endswith(".safetensors")}
        if language == "zh":
            parts = {**definitions[name].get("inputs", {}), **definitions[name].get("outputs", {})}
            words |= {part["name"] for part in parts.values()}
        silent += [f"{name}: {word}" for word in sorted(words) if word not in text]
    assert silent == []


@pytest.mark.parametrize("language", PAGES)
def test_pages_have_the_same_parts(node_classes: dict[str, Any], language: str) -> None:
    parts = {
        "en": ["Inputs", "Outputs", "Typical wiring", "Common mistakes"],
        "zh": ["输入", "输出", "典型连接", "常见错误"],
    }[language]
    for name in node_classes:
        text = page(name, language)
        assert re.findall(r"^## (.+)$", text, re.MULTILINE) == parts, name
        assert is_chinese(text) == (language == "zh"), name
        rows = [len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if "|" in line]
        assert set(rows) <= {3}, name


@pytest.mark.parametrize("language", PAGES)
def test_pages_name_our_nodes_as_they_are_shown(
    node_classes: dict[str, Any], language: str
) -> None:
    names = {definition["display_name"] for definition in stored(language, NODES).values()}
    marks = r"\*{1,2}([^*]+?)\*{1,2}" if language == "en" else r"“([^”]+)”|\*\*([^*]+)\*\*"
    for node in node_classes:
        text = " ".join(page(node, language).split())
        named = {found for groups in re.findall(marks, text) for found in _each(groups)}
        assert {n for n in named if "LAMP" in n and "_" not in n} <= names, node


def _each(groups: str | tuple[str, ...]) -> list[str]:
    return [groups] if isinstance(groups, str) else [group for group in groups if group]


def test_numbers_agree_between_the_languages(node_classes: dict[str, Any]) -> None:
    for name in node_classes:
        numbers = [re.findall(r"\d[\d.,]*\d|\d", page(name, language)) for language in PAGES]
        assert set(numbers[0]) == set(numbers[1]), name


def test_pages_link_to_nothing_outside(node_classes: dict[str, Any]) -> None:
    for name in node_classes:
        for language in PAGES:
            assert "://" not in page(name, language)
            assert "<" not in page(name, language)


def test_help_lies_where_the_pack_says() -> None:
    root = Path(__file__).parents[2]
    assert HELP == root / "web" / "docs"
    assert 'WEB_DIRECTORY = "./web"' in (root / "__init__.py").read_text(encoding="utf-8")
