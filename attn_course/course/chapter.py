"""Start a new chapter: `make chapter NAME=04_spatial_group_enhance`."""

import re
import subprocess
import sys
from pathlib import Path

from attn_course.course.export import ROOT

TEMPLATE = Path(__file__).with_name("chapter_template.md")


def create_chapter(name: str, notebooks: Path) -> Path:
    """Write a chapter's text twin from the template and return the twin's path.

    Args:
        name: Number and mechanism, as in `04_spatial_group_enhance`.
        notebooks: The folder of the notebooks.

    Raises:
        ValueError: The name has another form.
        FileExistsError: There is such a chapter already.
    """
    if not re.fullmatch(r"\d\d(_[a-z0-9]+)+", name):
        raise ValueError(f"name={name!r} is no chapter; pass one like 04_spatial_group_enhance")
    twin = notebooks / "text" / f"{name}.md"
    if twin.exists():
        raise FileExistsError(f"{twin} exists; a chapter is written once")
    number, module = name.split("_", maxsplit=1)
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
    twin.write_text(text, encoding="utf-8")
    return twin


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("name the chapter: make chapter NAME=04_spatial_group_enhance")
    try:
        created = create_chapter(sys.argv[1], ROOT / "notebooks")
    except (ValueError, FileExistsError) as error:
        sys.exit(str(error))
    subprocess.run([sys.executable, "-m", "jupytext", "--sync", created], check=True)
    print(f"now write {created.relative_to(ROOT)}, or its notebook, and run `make notebooks`")
