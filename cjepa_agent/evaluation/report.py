"""One HTML page that shows a result and needs no other file."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from envs.files import atomic

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 960px; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; } th, td { padding: .3rem .8rem; border-bottom: 1px solid #ddd; text-align: left; }
video, img { max-width: 100%; } figure { margin: 1.5rem 0; } figcaption { color: #666; white-space: pre-line; }
pre { background: #f6f6f6; padding: 1rem; overflow: auto; }
"""
MEDIA = {".mp4": ("video", "video/mp4"), ".png": ("img", "image/png"), ".gif": ("img", "image/gif")}


def write_page(
    path: Path,
    title: str,
    header: Sequence[str],
    cells: Sequence[Sequence[str]],
    media: Sequence[tuple[Path, str]],
    details: Mapping[str, Any],
) -> Path:
    """Write the page.

    Args:
        path: HTML file.
        title: of the page.
        header: of its table.
        cells: of its table, row by row.
        media: MP4, PNG or GIF files to embed, each with a caption.
        details: named sections for JSON, shown folded.
    """
    rows = "\n".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>" for line in cells)
    figures = "\n".join(_figure(file, caption) for file, caption in media)
    sections = "\n".join(
        f"<details><summary>{escape(name)}</summary><pre>{escape(json.dumps(value, indent=2))}</pre></details>"
        for name, value in details.items()
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    page = f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style></head>
<body>
<h1>{escape(title)}</h1>
<table>
<thead><tr>{"".join(f"<th>{escape(name)}</th>" for name in header)}</tr></thead>
<tbody>
{rows}
</tbody>
</table>
{figures}
{sections}
</body>
</html>
"""
    with atomic(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _figure(file: Path, caption: str) -> str:
    tag, kind = MEDIA[file.suffix]
    source = f"data:{kind};base64,{b64encode(file.read_bytes()).decode('ascii')}"
    element = (
        f'<video controls loop muted src="{source}"></video>'
        if tag == "video"
        else f'<img alt="{escape(caption)}" src="{source}">'
    )
    return f"<figure>{element}<figcaption>{escape(caption)}</figcaption></figure>"
