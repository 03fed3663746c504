"""What mkdocs is told beside mkdocs.yml: the README is the first page, and links that lead out of docs/ become names.

The runbooks and the decisions are in the navigation one by one, as they lie in their folders.
"""

import re
from pathlib import Path
from typing import Any, Final

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT: Final = Path(__file__).resolve().parents[1]
_LINK: Final = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<to>[^)\s]+)\)")
_ASKED: Final = re.compile(
    r"<(?:script|img|iframe|link(?![^>]*rel=.?canonical))[^>]*(?:src|href)=[\"']?((?:https?:)?//[^\"' >]+)"
)
_CODE: Final = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.DOTALL | re.MULTILINE)


def on_config(config: Any) -> Any:
    """Puts runbooks and decisions into the navigation, and pages that it doesn't name yet among the tasks."""
    docs = Path(config["docs_dir"])
    named = set(re.findall(r"[\w-]+\.md", str(config["nav"])))
    tasks = next(section["How to"] for section in config["nav"] if "How to" in section)
    tasks += sorted(path.name for path in docs.glob("*.md") if path.name not in named)
    for title, folder in (("Runbooks", "runbooks"), ("Decisions", "adr")):
        config["nav"].append({title: [f"{folder}/{path.name}" for path in sorted((docs / folder).glob("*.md"))]})
    return config


def on_files(files: Files, *, config: Any) -> Files:
    """Adds the README as the first page."""
    text = _from_root((ROOT / "README.md").read_text())
    files.append(File.generated(config, "index.md", content=text))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Makes names of links to what is in the tree and not on the site.

    Raises:
        PluginError: there is no such thing.
    """
    here = Path(config["docs_dir"]) / page.file.src_uri

    def named(link: re.Match[str]) -> str:
        to = link["to"]
        if re.fullmatch(r"(https?://|#|mailto:).*", to) or link["image"]:
            return link[0]
        path = (here.parent / to.partition("#")[0]).resolve()
        if (
            files.get_file_from_path(str(path.relative_to(ROOT / "docs")))
            if path.is_relative_to(ROOT / "docs")
            else None
        ):
            return link[0]
        if path.is_dir() and path.is_relative_to(ROOT / "docs"):
            first = sorted(path.glob("*.md"))
            return f"[{link['text']}]({to}/{first[0].name})" if first else link["text"]
        if not path.exists():
            raise PluginError(f"{page.file.src_uri}: {to} leads nowhere")
        return f"{link['text']} (`{path.relative_to(ROOT)}`)"

    return "".join(part if _CODE.fullmatch(part) else _LINK.sub(named, part) for part in _CODE.split(markdown))


def on_post_page(output: str, *, page: Any, config: Any) -> str:
    """Sees to it that a page asks nothing of the network.

    Raises:
        PluginError: it would.
    """
    if found := _ASKED.findall(output):
        raise PluginError(f"{page.file.src_uri}: would load {', '.join(found)}")
    return output


def _from_root(text: str) -> str:
    """The README as if it lay in docs/."""

    def moved(link: re.Match[str]) -> str:
        to = link["to"]
        if re.fullmatch(r"(https?://|#|mailto:).*", to):
            return link[0]
        return f"{link['image']}[{link['text']}]({to.removeprefix('docs/') if to.startswith('docs/') else '../' + to})"

    return "".join(part if _CODE.fullmatch(part) else _LINK.sub(moved, part) for part in _CODE.split(text))
