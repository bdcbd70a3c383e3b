"""Hooks of the docs site: pages that lie outside docs/, and links that work on the site and in the repository alike.

Pages link to each other, and to files of the repository, by relative paths as a Git host resolves them. Here a link
to a page becomes a link on the site. A link to another file becomes a link to `repo_url`, or plain text if there is
none.
"""

import logging
import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
OUTSIDE = {  # page of the site: file of the repository
    "index.md": "README.md",
    "launch.md": "launch/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\[\]]*)\]\((?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)")
log = logging.getLogger("mkdocs.plugins.vlvm_jax")


def on_files(files, config):
    """Adds the pages that lie outside docs/."""
    for page, source in OUTSIDE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown, page, config, files):
    """Rewrites the relative links of a page.

    A link to a file that does not exist is a warning, which fails a strict build.
    """
    here = page.file.src_uri
    source = OUTSIDE.get(here, f"docs/{here}")
    pages = {file: page for page, file in OUTSIDE.items()}

    def rewritten(match: re.Match) -> str:
        target, anchor, text = match["target"], match["anchor"] or "", match["text"]
        if re.match(r"[a-z][a-z0-9+.-]*:|/", target):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        on_site = pages.get(path) or path.removeprefix("docs/")
        if (path in pages or path.startswith("docs/")) and files.get_file_from_path(on_site):
            link = posixpath.relpath(on_site, posixpath.dirname(here) or ".")
            return f"{match['image']}[{text}]({link}{anchor})"
        if not (ROOT / path).exists():
            log.warning("%s: link to %s, which is not in the repository", source, path)
        return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{path})" if config.repo_url else text

    parts = re.split(r"(^ *```.*?^ *```$)", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if i % 2 else LINK.sub(rewritten, part) for i, part in enumerate(parts))
