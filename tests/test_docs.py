"""The documents: their code runs, and what they name exists."""

import importlib
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from test_floors import FLOORS

from smoothsa_jax.config.load import load_config
from smoothsa_jax.config.values import flatten
from smoothsa_jax.errors import UserError
from smoothsa_jax.models.build import PARTS

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "configs" / "README.md",
        ROOT / "benchmarks" / "README.md",
        *(ROOT / "docs").glob("*.md"),
    ]
)
FOLDERS = ("smoothsa_jax", "configs", "data", "benchmarks", "tests", "notebooks", "docs")
SUFFIXES = (".py", ".md", ".ipynb", ".sh", ".yaml", ".toml")
# Names of files and entries that the documents make up.
INVENTED = ("NAME", "mine", "from_tokens", "mask_entropy")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def each_page(function):
    return pytest.mark.parametrize("page", PAGES, ids=name_of)(function)


def snippets(page: str, language: str = "python") -> list[str]:
    text = (ROOT / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


# ------------------------------------------------------------------------------- the code runs


@pytest.mark.slow
def test_the_snippets_on_building_on_slots_run():
    found = snippets("docs/use.md")
    assert len(found) == 5
    names: dict = {}
    for number, snippet in enumerate(found, start=1):
        exec(compile(snippet, f"docs/use.md, snippet {number}", "exec"), names)

    found, outputs, slot_size = names["found"], names["outputs"], names["model"].slot_size
    assert found.slots.shape == (3, 4, slot_size) and found.masks.shape == (3, 90, 120)
    assert found.soft_masks.shape == (3, 4, 90, 120)
    assert outputs["slots"].shape == (2, 3, 4, slot_size)
    assert outputs["warm_queries"].shape == (2, 4, slot_size)
    assert names["masks"].shape == (2, 3, 90, 120)
    # The same samples with other queries give other slots.
    assert np.abs(names["several"][0] - names["several"][1]).max() > 1e-3
    # A step along the gradient makes the slot larger, as the text says.
    slots, features = outputs["slots"][:, 0], names["features"]
    share = jax.jit(names["share_of_slot_0"])
    step = 1e-2 * names["direction"] / np.abs(names["direction"]).max()
    assert share(slots + step, features) > share(slots, features)
    assert names["gradient"].keys() == names["trained"].keys()
    moved = {name for name, x in names["gradient"].items() if np.abs(x).max() > 0}
    assert {"aggregator.value.kernel", "aggregator.gru.input.kernel"} & moved, moved


# ------------------------------------------------------------------------ what is named exists


def texts() -> dict[str, str]:
    """name -> text, of every file that may mention a document or a key."""
    files = [ROOT / "README.md", ROOT / "main.py", ROOT / "pyproject.toml"]
    for folder in FOLDERS:
        files += [x for x in (ROOT / folder).rglob("*") if x.suffix in SUFFIXES]
    return {name_of(x): x.read_text() for x in sorted(files)}


def test_every_document_that_is_mentioned_exists():
    missing = []
    for name, text in texts().items():
        if name == "tests/test_docs.py":
            continue
        for mention in re.findall(r"(?<![\w/])docs/[\w./-]*\w", text):
            if not (ROOT / mention).exists():
                missing.append(f"{name}: {mention}")
    assert not missing, missing


def test_every_section_of_the_method_that_is_mentioned_exists():
    headings = re.findall(r"^##+ ([\d.]+?)\.? ", (ROOT / "docs" / "design.md").read_text(), re.M)
    assert "1.1" in headings and "7" in headings
    for name, text in texts().items():
        pattern = r"(?:docs/design\.md,|[Mm]ethod)\s+sections?\s+(\d+(?:\.\d+)?)"
        for section in re.findall(pattern, text):
            assert section in headings, f"{name}: section {section}"


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    words = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {word.replace(" ", "-") for word in words}


@each_page
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


def gallery() -> set[str]:
    """Every key of every config of the gallery, groups included."""
    keys: set[str] = set()
    for file in sorted((ROOT / "configs").glob("*.py")):
        if "def get_config" not in file.read_text():
            continue
        data = importlib.import_module(f"configs.{file.stem}")
        for words in ("", *data.WORDS, "slotdiffusion,tokenizer"):
            try:
                config = data.get_config(words)
            except UserError:  # a word that goes with another one
                assert words
                continue
            for key in flatten(config):
                parts = key.split(".")
                keys |= {".".join(parts[:length]) for length in range(1, len(parts) + 1)}
    return keys


@pytest.fixture(scope="module")
def keys() -> set[str]:
    return gallery()


@each_page
def test_every_key_in_the_documents_is_one_of_the_gallery(page, keys):
    text = page.read_text()
    given = re.findall(r"--(?:no)?config\.([A-Za-z_][\w.]*\w)", text)
    # In backticks; not `train.zip` or `log.jsonl`.
    groups = "train|eval|checkpoint|mesh|log|optimizer|losses|weights|companions"
    groups += "".join(rf"|model\.{part}" for part in (*PARTS, "num_slots", "slot_size"))
    inside = re.findall(rf"`((?:{groups})(?:\.\w+)*)", text)
    given += [key for key in inside if not re.search(r"\.(zip|jsonl|json|lmdb|py)$", key)]
    made_up = set(INVENTED)
    assert not [key for key in given if key not in keys and not made_up & set(key.split("."))]


@each_page
def test_every_config_in_the_documents_loads(page):
    for spec in set(re.findall(r"\bconfigs/(?!systems)\w+\.py(?::[\w,]+)?", page.read_text())):
        if any(name in re.split(r"[/.:,]", spec) for name in INVENTED):
            continue
        assert load_config(str(ROOT / spec)).name


# -------------------------------------------------------------------------------------- habits


def test_the_readme_is_short_and_has_the_commands_that_ci_reads():
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= 750  # three minutes, with commands and tables
    for marker in ("command: run", "command: test", "command: torch tests"):
        assert f"<!-- {marker} -->\n```bash\n" in text


@each_page
def test_dated_figures_stand_in_the_measurements_alone(page):
    if page.name != "measurements.md":
        assert not re.findall(r"\b20\d\d-\d\d-\d\d\b", page.read_text())


def test_the_house_names_every_folder_and_every_floor():
    text = (ROOT / "docs" / "house.md").read_text()
    for folder in (x for x in (ROOT / "smoothsa_jax").iterdir() if (x / "__init__.py").exists()):
        assert f"{folder.name}/" in text, folder.name
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", text, flags=re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, len(FLOORS) + 1))
    for (_, row), floor in zip(rows, FLOORS, strict=True):
        named = set(re.findall(r"`([\w.]+)`", row))
        parts = {name for name in floor if name.startswith("models.") and len(FLOORS[2]) > 2}
        assert named == set(floor) or named == set(floor) - parts, row
