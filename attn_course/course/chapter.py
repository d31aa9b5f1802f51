"""Start a new chapter: `make chapter NAME=04_spatial_group_enhance`."""

import re
import sys
from pathlib import Path

import jupytext

from attn_course.course import provenance
from attn_course.course.anatomy import fold
from attn_course.course.export import write_if_changed
from attn_course.course.twins import as_notebook, as_twin, twin_of

TEMPLATE = Path(__file__).with_name("chapter_template.md")


def create_chapter(name: str, root: Path) -> Path:
    """Write a chapter's text twin and its notebook from the template; return the twin's path.

    Args:
        name: Number and mechanism, as in `04_spatial_group_enhance`.
        root: The folder that holds `notebooks/`.

    Raises:
        ValueError: The name has another form, or its number or its module is taken.
    """
    if not re.fullmatch(r"\d\d(_[a-z0-9]+)+", name):
        raise ValueError(f"NAME={name} is no chapter; give one like 04_spatial_group_enhance")
    number, module = name.split("_", maxsplit=1)
    notebook = root / "notebooks" / f"{name}.ipynb"
    twin = twin_of(notebook)
    taken = {path.stem for path in (*twin.parent.glob("*.md"), *notebook.parent.glob("*.ipynb"))}
    for other in sorted(taken):
        if other.partition("_")[0] == number:
            free = min({f"{n:02}" for n in range(1, 100)} - {path[:2] for path in taken})
            raise ValueError(f"NAME={name}: number {number} is taken by {other}; {free} is free")
        if other.partition("_")[2] == module:
            raise ValueError(f"NAME={name}: {other} is about {module} already")
    words = {
        "NAME": name,
        "NUMBER": str(int(number)),
        "MODULE": module,
        "TITLE": module.replace("_", " ").capitalize(),
        "CLASS": "".join(word.capitalize() for word in module.split("_")),
    }
    text = TEMPLATE.read_text(encoding="utf-8")
    for placeholder, word in words.items():
        text = text.replace(f"<<{placeholder}>>", word)
    content = jupytext.reads(text, fmt="md:myst")
    fold(content)
    provenance.record(content, root)
    write_if_changed(notebook, as_notebook(content))
    write_if_changed(twin, as_twin(content))
    return twin


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("name the chapter: make chapter NAME=04_spatial_group_enhance")
    try:
        created = create_chapter(sys.argv[1], Path.cwd())
    except (ValueError, OSError) as error:
        sys.exit(f"make chapter: {error}")
    print(f"now write {created.relative_to(Path.cwd())}, or its notebook: see CONTRIBUTING.md")
