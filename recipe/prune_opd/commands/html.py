"""Pages of HTML that load nothing: matplotlib figures as inline SVG in jinja2 templates.

Draw figures in matplotlib's own black and white: black becomes the page's ink and white its paper,
in light and dark. Lines take their colours from ``SERIES``, which the page's style replaces in the
same way. What a template gets is escaped; text in a figure is escaped too, and never read as
mathematics, so names may come from anywhere. Control characters, which neither XML nor a browser
takes, become visible.

Not with ``pyplot``, whose state is global, and not with logarithmic axes, whose labels are
mathematics.
"""

import hashlib
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jinja2
import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.text import Text

TEMPLATES = Path(__file__).parent / "templates"

SERIES = ("#2a6fdb", "#d9622b", "#1f9d6b", "#b13fa0", "#a5811a", "#4aa3c7", "#c2334d", "#6b6f7b")
"""Colours of lines in order, apart from each other for the colour-blind too. In the page:
``var(--series-0)``, ..."""
INK, PAPER = "#000000", "#ffffff"

_VARIABLES: dict[str, str] = {INK: "currentColor", PAPER: "var(--paper)"}
_VARIABLES |= {colour: f"var(--series-{i})" for i, colour in enumerate(SERIES)}
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.alpha": 0.15,
    "grid.color": INK,
    "legend.frameon": False,
}
_SAVED: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "page",
    "path.simplify_threshold": 0.5,
}


CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def printable(text: str) -> str:
    """Replace control characters by pictures of them, and what is no character by a mark."""
    return CONTROL.sub(
        lambda found: chr(0x2400 + ord(found[0])) if found[0] < " " else "\ufffd", text
    )


def new_figure(width: float = 4.4, height: float = 2.7) -> Figure:
    """Make an empty figure, with ``figure.subplots()`` to draw on.

    Args:
        width: in inches of 72 CSS pixels. The page scales a figure to its column, text included:
            keep near the default, with which text on a phone and on a laptop is about 11 pixels
            high.
        height: in the same.
    """
    return Figure((width, height), layout="constrained")


def style() -> Any:
    """Enter a context that makes axes of all figures look alike.

    Use it as ``with style(): axes = fig.subplots()``.
    """
    return mpl.rc_context(_STYLE)


def figure(fig: Figure, label: str) -> Markup:
    """Turn a figure into inline SVG that fills the width it is given.

    Args:
        fig: drawn; it is not changed apart from its text no longer being read as mathematics.
        label: what it shows, for those who cannot see it.
    """
    for text in fig.findobj(Text):
        text.set_parse_math(False)
    file = io.StringIO()
    with mpl.rc_context(_SAVED):
        fig.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(printable(file.getvalue()), printable(label))


def render(template: str, **values: Any) -> str:
    """Fill a template of ``templates/``.

    Args:
        template: its file name, ``report.html`` for instance. It extends ``page.html``.
        **values: what it shows; everything but ``Markup`` is escaped.

    Raises:
        jinja2.UndefinedError: the template uses a value that was not given.
    """
    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["series_count"] = len(SERIES)
    return printable(environment.get_template(template).render(**values))


def series_colour(index: int) -> str:
    """Colour of the index-th line; more lines than colours begin again."""
    return SERIES[index % len(SERIES)]


def series_line(index: int) -> Mapping[str, Any]:
    """Colour and dashes of the index-th line, for ``axes.plot``.

    Lines of one colour have other dashes.
    """
    dashes = ("-", "--", ":", "-.")
    return {"color": series_colour(index), "linestyle": dashes[index // len(SERIES) % len(dashes)]}


# ---------------------------------------------------------------------------------------------- SVG


def _inline(svg: str, label: str) -> Markup:
    """Turn matplotlib's document into an element without names, size and colours of its own."""
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            # A style inside would act on the whole page.
            if _bare(child.tag) in (
                "metadata",
                "style",
            ):
                parent.remove(child)
    used = set(
        re.findall(r"#([\w.-]+)", " ".join(value for e in root.iter() for value in _references(e)))
    )
    # Figures with one prefix are equal: nothing can clash.
    prefix = "f" + hashlib.sha256(svg.encode()).hexdigest()[:8]
    for element in root.iter():
        element.tag = _bare(element.tag)
        given = {_bare(name): value for name, value in element.attrib.items()}
        if given.get("id") not in used:
            given.pop("id", None)
        element.tail = None  # indentation
        if element.tag != "text":
            element.text = None
        element.attrib.clear()
        element.attrib.update(
            {name: _adapted(name, value, prefix) for name, value in given.items()}
        )
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {"class": "figure", "role": "img", "aria-label": label}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _bare(name: str) -> str:
    """Strip the namespace off a name: inside HTML, ``svg`` has its own without being told."""
    return name.rpartition("}")[2]


def _references(element: ElementTree.Element) -> list[str]:
    found = [
        value
        for name, value in element.attrib.items()
        if _bare(name) == "href" and value.startswith("#")
    ]
    return found + [
        part for value in element.attrib.values() for part in re.findall(r"url\((#[^)]+)\)", value)
    ]


def _adapted(name: str, value: str, prefix: str) -> str:
    if name == "id":
        return prefix + value
    if name == "href":
        return f"#{prefix}{value[1:]}" if value.startswith("#") else value
    value = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}\1)", value)
    if name in ("d", "x", "y", "points"):
        return re.sub(r"\d+\.\d+", lambda found: f"{float(found[0]):.2f}", value)
    if name == "style":
        value = re.sub(r"font-family: [^;]*(; )?", "", value)  # the page's font
        value = re.sub(r"#[0-9a-f]{6}\b", lambda found: _VARIABLES.get(found[0], found[0]), value)
    return value
