"""Show the notebooks of ``examples/`` as pages, with their outputs and a link to the file."""

import base64
import json
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each notebook, its pictures, and the notebook itself."""
    for path in sorted((ROOT / "examples").glob("*.ipynb")):
        page, pictures = as_page(json.loads(path.read_text()), path.stem)
        files.append(File.generated(config, f"examples/{path.stem}.md", content=page))
        for name, picture in pictures.items():
            files.append(File.generated(config, f"examples/{name}", content=picture))
        source = f"examples/{path.name}"
        files.append(File(source, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def as_page(notebook: dict[str, Any], name: str) -> tuple[str, dict[str, bytes]]:
    """The notebook in Markdown, and the pictures in it by their names."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in _joined(cell["outputs"]):
            if picture := output.get("data", {}).get("image/png"):
                file = f"{name}-{len(pictures) + 1}.png"
                pictures[file] = base64.b64decode(picture)
                parts.append(f"![What the code above draws]({file})")
            else:
                parts.append(_as_text(output))
    title, rest = parts[0].split("\n", 1)
    link = f"[Download this notebook]({name}.ipynb){{ .md-button download }}"
    return "\n\n".join([title, rest.strip(), link, *parts[1:]]), pictures


def _joined(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is printed in several pieces, in one."""
    joined: list[dict[str, Any]] = []
    for output in outputs:
        if joined and output.get("name") == joined[-1].get("name", "other"):
            text = [*joined[-1]["text"], *output["text"]]
            joined[-1] = {**output, "text": text}
        else:
            joined.append(output)
    return joined


def _as_text(output: dict[str, Any]) -> str:
    """What a cell printed; a table stays one, and progress bars are left out."""
    if output["output_type"] == "stream":
        return f"```text\n{''.join(output['text'])}\n```" if output["name"] == "stdout" else ""
    data = output["data"]
    if "text/markdown" in data:
        return "".join(data["text/markdown"])
    return f"```text\n{''.join(data['text/plain'])}\n```"
