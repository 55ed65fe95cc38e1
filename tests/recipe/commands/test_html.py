"""Pages load nothing from outside, and nothing that anybody wrote acts in them."""

import re
from html.parser import HTMLParser

import jinja2
import pytest
from markupsafe import Markup

from recipe.prune_opd.commands import html

EVIL = '<script>alert("x")</script>&$\\frac{1}{0}$'


class Reader(HTMLParser):
    """Elements, their attributes and all text of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(str(text))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def attributes(self, name: str) -> list[str]:
        return [given[name] or "" for _, given in self.elements if name in given]


def drawn(values=(1, 2, 3), title="title", label="label") -> Markup:
    with html.style():
        fig = html.new_figure()
        axes = fig.subplots()
        axes.plot(values, label="a line", **html.series_line(0))
        axes.set_title(title)
        axes.grid()
        axes.legend()
    return html.figure(fig, label)


def test_text_in_a_figure_is_text_and_escaped():
    svg = drawn(title=EVIL, label='a "quoted" <label>')
    assert "<script" not in svg
    found = Reader(svg)
    assert EVIL in found.text  # as it was, not typeset
    assert found.attributes("aria-label") == ['a "quoted" <label>']
    assert not found.attributes("onload")


def test_control_characters_become_visible():
    odd = "a\x00\x1b\x08b"
    svg = drawn(title=odd, label=odd)
    assert Reader(svg).attributes("aria-label") == ["a␀␛␈b"]
    assert "a␀␛␈b" in Reader(svg).text
    assert not html.CONTROL.search(svg)
    text = html.render("page.html", title=odd + "\n\ud800")
    assert "<title>a␀␛␈b\n�</title>" in text
    text.encode()


def test_a_figure_takes_the_colours_and_the_width_of_its_page():
    svg = drawn()
    assert "var(--series-0)" in svg
    assert "currentColor" in svg
    assert not any(colour in svg for colour in (html.SERIES[0], html.INK, html.PAPER))
    (root, *_) = Reader(svg).elements
    assert root[0] == "svg"
    assert "viewbox" in root[1]
    assert not {"width", "height"} & set(root[1])


def test_a_figure_brings_no_style_and_no_font():
    svg = drawn()
    assert "<style" not in svg
    assert "font-family" not in svg


def test_names_inside_two_figures_do_not_clash():
    first, second = drawn((1, 2, 3)), drawn((3, 1, 2))
    names = [set(Reader(svg).attributes("id")) for svg in (first, second)]
    assert all(names)
    assert not names[0] & names[1]
    for svg, own in zip((first, second), names, strict=True):
        used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
        assert used == own


def test_the_same_figure_is_the_same_text():
    assert drawn() == drawn()


@pytest.mark.parametrize("count", [len(html.SERIES) * 4])
def test_many_lines_can_be_told_apart(count):
    assert len({tuple(html.series_line(i).items()) for i in range(count)}) == count


def test_a_page_escapes_what_it_is_given_and_loads_nothing(tmp_path, monkeypatch):
    (tmp_path / "page.html").write_text((html.TEMPLATES / "page.html").read_text())
    (tmp_path / "parts.html").write_text((html.TEMPLATES / "parts.html").read_text())
    (tmp_path / "one.html").write_text(
        '{% extends "page.html" %}{% from "parts.html" import card, keys, switch, table %}{% block'
        ' content %}{{ table([evil], [[evil]]) }}{{ keys([evil]) }}{{ switch("s", evil, [evil])'
        " }}{{ card(evil, drawn, evil) }}{% endblock %}"
    )
    monkeypatch.setattr(html, "TEMPLATES", tmp_path)
    found = html.render("one.html", title=EVIL, evil=EVIL, drawn=drawn())
    assert "<script" not in found
    reader = Reader(found)
    assert reader.text.count(EVIL) == 8
    assert sum(tag == "svg" for tag, _ in reader.elements) == 1
    assert not reader.attributes("src")
    assert all(target.startswith("#") for target in reader.attributes("href"))
    assert "://" not in found


def test_a_value_that_is_not_given_is_an_error():
    with pytest.raises(jinja2.UndefinedError):
        html.render("page.html")
