"""Translations and help pages: complete, in step with the schemas, valid for the front end."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from scripts.assets.help_pictures import PICTURE, shown_inputs
from scripts.assets.locales import (
    FOLDER,
    HELP,
    MAIN,
    NODES,
    as_message,
    as_plain,
    as_text,
    help_pages,
    locale_files,
    stored,
    with_fields,
)

# Names that Chinese users know as they are.
UNTRANSLATED = {"AdaIN", "CLIP", "LAMP", "Latent", "VAE", "cfg"}
LANGUAGES = ["en", "zh"]
# The authors publish checkpoints and clips there.
LINKS = {"https://github.com/RQ-Wu/LAMP"}
REMAKE = "run: python -m scripts.assets.locales"


@pytest.fixture(scope="module")
def english(node_classes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return locale_files(node_classes.values())


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


def test_no_other_languages_are_shipped() -> None:
    found = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file()}
    assert found == {f"{language}/{name}" for language in LANGUAGES for name in (MAIN, NODES)}


@pytest.mark.parametrize("name", [MAIN, NODES])
def test_english_equals_the_schemas(english: dict[str, Any], name: str) -> None:
    text = (FOLDER / "en" / name).read_text(encoding="utf-8")
    assert text == as_text(english[name]), REMAKE


@pytest.mark.parametrize("name", [MAIN, NODES])
def test_chinese_has_the_keys_of_the_schemas(english: dict[str, Any], name: str) -> None:
    wanted = {place for place, _ in texts(english[name])}
    found = {place for place, _ in texts(stored("zh", name))}
    assert sorted(wanted - found) == [], "missing"
    assert sorted(found - wanted) == [], "not in the schemas"


def test_the_keys_are_those_that_the_host_reports(node_classes: dict[str, Any]) -> None:
    """Counted from the host's V1 view of the nodes, independently of `locale_files`."""
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


def test_equal_english_texts_have_equal_translations() -> None:
    chinese = dict(texts(stored("zh", NODES)))
    found: dict[tuple[str, str], dict[str, str]] = {}
    for place, text in texts(stored("en", NODES)):
        kind = place.rsplit(".", 1)[1]
        found.setdefault((kind, text), {})[chinese[place]] = place
    # A word such as motion or steps may name different things.
    assert [each for (kind, _), each in found.items() if kind == "tooltip" and len(each) > 1] == []


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", [MAIN, NODES])
def test_texts_are_valid_messages(language: str, name: str) -> None:
    for place, text in texts(stored(language, name)):
        assert text == text.strip() and text, place
        # The front end reads {x} as a placeholder, @ as a link and | as a plural.
        assert not re.search(r"[{}@$|]", re.sub(r"\{'[{}@$|]'\}", "", text)), place


def test_placeholders_are_escaped_and_unescaped() -> None:
    text, message = "{motion} at 5 $ | a@b", "{'{'}motion{'}'} at 5 {'$'} {'|'} a{'@'}b"
    assert as_message(text) == message and as_plain(message) == text


@pytest.mark.parametrize("name", [MAIN, NODES])
def test_chinese_texts_are_chinese(name: str) -> None:
    strange = [
        (place, text)
        for place, text in texts(stored("zh", name))
        if not is_chinese(text)
        and (text not in UNTRANSLATED or place.endswith(("tooltip", "description")))
    ]
    assert strange == []


def test_menu_values_are_not_translated() -> None:
    """The node would receive the translated value. So tooltips name the values themselves."""
    fields = {
        place.rsplit(".", 1)[1]
        for language in LANGUAGES
        for place, _ in texts(stored(language, NODES))
    }
    assert fields == {"display_name", "description", "name", "tooltip"}


# --- search -------------------------------------------------------------------------------------


def test_every_node_has_search_terms(node_classes: dict[str, Any]) -> None:
    for name, terms in search_terms(node_classes).items():
        assert terms and terms == [term.lower() for term in dict.fromkeys(terms)], name


@pytest.mark.parametrize("query", ["animate", "image to video", "video"])
def test_the_main_nodes_are_found_and_toys_are_not(
    node_classes: dict[str, Any], query: str
) -> None:
    terms = search_terms(node_classes)
    found = {name for name, each in terms.items() if any(query in term for term in each)}
    assert {"LAMP_LoadMotion", "LAMP_KSampler"} <= found
    assert not [name for name in found if "Toy" in name]


def search_terms(node_classes: dict[str, Any]) -> dict[str, list[str]]:
    schemas = {name: node.GET_SCHEMA() for name, node in node_classes.items()}
    if not hasattr(next(iter(schemas.values())), "search_aliases"):
        pytest.skip("the search of this host has no other terms than the name")
    return {name: schema.search_aliases for name, schema in schemas.items()}


# --- help pages ---------------------------------------------------------------------------------


def page(node: str, language: str) -> str:
    return (HELP / help_pages(node)[language]).read_text(encoding="utf-8")


def test_pictures_show_the_inputs_of_today(node_classes: dict[str, Any]) -> None:
    for name, node in node_classes.items():
        inputs = node.INPUT_TYPES()
        names = [*inputs.get("required", {}), *inputs.get("optional", {})]
        assert shown_inputs(name) == names, f"run: python -m scripts.assets.help_pictures {name}"


def test_every_node_has_both_pages_and_no_page_is_left_over(node_classes: dict[str, Any]) -> None:
    found = {path.relative_to(HELP).as_posix() for path in HELP.rglob("*") if path.is_file()}
    pages = {page for node in node_classes for page in help_pages(node).values()}
    assert found == pages | {f"{node}/{PICTURE}" for node in node_classes}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_page_shows_its_node(node_classes: dict[str, Any], language: str) -> None:
    """The front end resolves pictures from web/docs, in every language."""
    for name in node_classes:
        shown = re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", page(name, language))
        assert [place for _, place in shown] == [f"{name}/{PICTURE}"]
        assert shown[0][0] and is_chinese(shown[0][0]) == (language == "zh")
        with Image.open(HELP / shown[0][1]) as picture:
            assert picture.width >= 300
        assert (HELP / shown[0][1]).stat().st_size < 40_000


@pytest.mark.parametrize("language", LANGUAGES)
def test_inputs_and_outputs_equal_the_tooltips(node_classes: dict[str, Any], language: str) -> None:
    definitions = stored(language, NODES)
    for name in node_classes:
        text = page(name, language)
        schema = node_classes[name].GET_SCHEMA()
        assert with_fields(text, schema, definitions[name], language) == text, REMAKE


@pytest.mark.parametrize("language", LANGUAGES)
def test_pages_name_every_input_output_and_menu_value(
    node_classes: dict[str, Any], language: str
) -> None:
    """From the host's V1 view of the nodes, independently of `with_fields`."""
    silent = []
    for name, node in node_classes.items():
        text, schema = page(name, language), node.GET_SCHEMA()
        inputs = node.INPUT_TYPES()
        shown = {**inputs.get("required", {}), **inputs.get("optional", {})}
        words = {f"`{spec[1].get('display_name') or key}`" for key, spec in shown.items()}
        words |= {f"`{output.display_name or output.id}`" for output in schema.outputs or []}
        # Long menus are the host's lists of samplers and schedulers, or files.
        menus = [getattr(field, "options", None) or [] for field in schema.inputs or []]
        short = {str(value) for menu in menus if len(menu) <= 5 for value in menu}
        words |= {value for value in short if not value.endswith(".safetensors")}
        silent += [f"{name}: {word}" for word in sorted(words) if word not in text]
    assert silent == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_pages_have_the_same_sections(node_classes: dict[str, Any], language: str) -> None:
    sections = {
        "en": ["Typical workflow", "Inputs", "Outputs", "Common mistakes"],
        "zh": ["典型连接", "输入", "输出", "常见错误"],
    }[language]
    for name in node_classes:
        text = page(name, language)
        assert re.findall(r"^## (.+)$", text, re.MULTILINE) == sections, name
        assert is_chinese(text) == (language == "zh"), name
        # The side panel of the front end is too narrow for tables.
        assert not re.search(r"^\|", text, re.MULTILINE), name
        # Code does not wrap within a word there.
        code = [word for span in re.findall(r"`([^`]+)`", text) for word in span.split()]
        assert [word for word in code if len(word) > 25] == [], name


@pytest.mark.parametrize("language", LANGUAGES)
def test_pages_use_the_display_names_of_our_nodes(
    node_classes: dict[str, Any], language: str
) -> None:
    names = {definition["display_name"] for definition in stored(language, NODES).values()}
    marks = r"\*{1,2}([^*]+?)\*{1,2}" if language == "en" else r"\*\*([^*]+)\*\*|“([^”]+)”"
    for node in node_classes:
        text = " ".join(page(node, language).split())
        found = {name for groups in re.findall(marks, text) for name in _each(groups)}
        # Bold sentences are no names.
        ours = {each for each in found if "LAMP" in each and not each.endswith((".", "。"))}
        assert {each for each in ours if "_" not in each} <= names, node


def _each(groups: str | tuple[str, ...]) -> list[str]:
    return [groups] if isinstance(groups, str) else [group for group in groups if group]


def test_numbers_agree_between_the_languages(node_classes: dict[str, Any]) -> None:
    for name in node_classes:
        numbers = [re.findall(r"\d[\d.,]*\d|\d", page(name, language)) for language in LANGUAGES]
        assert set(numbers[0]) == set(numbers[1]), name


def test_pages_link_to_the_authors_only(node_classes: dict[str, Any]) -> None:
    for name in node_classes:
        for language in LANGUAGES:
            assert set(re.findall(r"\w+://[\w./-]+", page(name, language))) <= LINKS, name
            assert "<" not in page(name, language), name


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("node", ["LAMP_LoadMotion", "LAMP_ConvertOfficial"])
def test_pages_say_where_published_motions_are(node: str, language: str) -> None:
    text = page(node, language)
    assert LINKS <= set(re.findall(r"https://[\w./-]+", text)) and "CC BY-NC" in text
    steps = page("LAMP_ConvertOfficial", language)
    assert "models/diffusers" in steps and "Stable Diffusion 1.4" in steps


def test_the_pack_serves_the_folder_of_help_pages() -> None:
    root = Path(__file__).parents[2]
    assert HELP == root / "web" / "docs"
    assert 'WEB_DIRECTORY = "./web"' in (root / "__init__.py").read_text(encoding="utf-8")
