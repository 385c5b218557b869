"""Pages of one file each: style, tables and pictures; all that comes from data is escaped."""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape

import matplotlib as mpl
from matplotlib.figure import Figure

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
td, th { padding: .2rem .8rem .2rem 0; text-align: left; border-bottom: 1px solid #ddd; }
figure { display: inline-block; margin: .5rem 1rem .5rem 0; }
.warning { border-left: .4rem solid #c33; padding-left: .8rem; }
"""


def to_page(title: str, parts: Iterable[str]) -> bytes:
    """Return a page of parts, which are HTML already."""
    head = f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{escape(title)}</title>"
    body = "\n".join(parts)
    page = f"{head}<style>{_STYLE}</style><h1>{escape(title)}</h1>\n{body}\n</html>\n"
    return page.encode("utf-8", "replace")


def to_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of texts."""
    head = "".join(f"<th>{escape(title)}" for title in titles)
    body = "".join("<tr>" + "".join(f"<td>{escape(x)}" for x in row) for row in rows)
    return f"<table><tr>{head}{body}</table>"


def to_image(content: bytes, kind: str, alt: str) -> str:
    """Return a picture of a kind such as `png` or `svg+xml`."""
    encoded = base64.b64encode(content).decode()
    return f"<img alt='{escape(alt)}' src='data:image/{kind};base64,{encoded}'>"


def to_svg(figure: Figure) -> bytes:
    """Return the same bytes for the same figure: no date, no random ids."""
    picture = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "melsearch"}):
        figure.savefig(picture, format="svg", metadata={"Date": None})
    return picture.getvalue()
