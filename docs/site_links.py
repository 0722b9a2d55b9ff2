"""What makes these pages a site, beyond ``mkdocs.yml``: links mean there what they mean in the repository (mkdocs' hooks).

Promises: a heading has the anchor that GitHub gives it; a file outside of this directory that a page links to is a file of the
site; no page loads a font, a script, a picture or a frame from elsewhere: one that would ends the build.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
OUTSIDE = re.compile(r"\]\(\.\./([^)#]+)(?:#[^)]*)?\)")  # as Markdown has it: ](../examples/quickstart.toml)
SOURCE = "source"  # where those files are in the site
LOADED = re.compile(r'<(?:script|img|iframe|link|source|video)\b[^>]*?\b(?:src|href)="?(?:https?:)?//[^>]*>')


def anchor(title: str, separator: str = "-") -> str:
    """The name of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", separator)


def linked(markdown: str) -> set[str]:
    """The files outside of docs/ that a page links to, from the root of the repository."""
    return set(OUTSIDE.findall(markdown))


def on_config(config: Any) -> Any:
    """Anchors as on GitHub."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = anchor
    return config


def on_files(files: Any, *, config: Any) -> Any:
    """The files that pages link to, among the site's."""
    from mkdocs.structure.files import File, InclusionLevel

    found = {name for page in files.documentation_pages() for name in linked(page.content_string)}
    for name in sorted(found):
        path = str(ROOT / name)
        place = _in_site(name)
        files.append(File.generated(config, place, abs_src_path=path, inclusion=InclusionLevel.INCLUDED))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to them, where they are in the site."""
    return OUTSIDE.sub(lambda found: f"]({_in_site(found[1])})", markdown)


def on_post_page(output: str, *, page: Any, **_: Any) -> str:
    """Raises PluginError: the page would load something from elsewhere."""
    if found := from_elsewhere(output):
        from mkdocs.exceptions import PluginError

        raise PluginError(f"{page.file.src_uri}: it loads something from elsewhere: {found}")
    return output


def from_elsewhere(output: str) -> str:
    """The first tag of a page that loads something from another host; empty: there is none."""
    found = LOADED.search(output)
    return found[0] if found else ""


def _in_site(name: str) -> str:
    """Markdown is a text there like any other: it would be a page outside of the contents."""
    return f"{SOURCE}/{name}{'.txt' if name.endswith('.md') else ''}"
