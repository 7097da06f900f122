"""Show the notebooks of ``examples/`` on the site, which takes pages from ``docs/`` only."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
NOTEBOOKS = [f"examples/{path.name}" for path in sorted((ROOT / "examples").glob("*.ipynb"))]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Leave notebooks that are not there out of the navigation, and the section if none is."""
    for section in config.nav:
        for title, pages in section.items():
            if isinstance(pages, list):
                section[title] = [page for page in pages if not _lacks(page)]
    config.nav = [section for section in config.nav if all(section.values())]
    return config


def _lacks(page: dict[str, str]) -> bool:
    """Whether an entry of the navigation is a notebook that is not there."""
    return any(path.endswith(".ipynb") and path not in NOTEBOOKS for path in page.values())


# Before mkdocs-jupyter, which picks the notebooks out of the files.
@event_priority(100)
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the notebooks, read from where they are."""
    for path in NOTEBOOKS:
        files.append(File(path, str(ROOT), config.site_dir, config.use_directory_urls))
    return files
