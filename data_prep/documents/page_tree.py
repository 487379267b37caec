"""HTML as a tree and as Markdown: what html.parser, which knows no optional end tags, would nest or lose."""

from collections import Counter

from bs4 import BeautifulSoup
from bs4.element import CData, PreformattedString
from markitdown.converters import HtmlConverter

# As text for a model: no addresses, no images, no backslashes before the characters that Markdown uses.
PLAIN = {"strip": ["a", "img"], "escape_asterisks": False, "escape_underscores": False, "escape_misc": False}
NOT_TEXT = ("script", "style", "template", "noscript", "svg", "iframe", "object")
HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
# On lines of their own, as <div>; markdownify would write them within the line.
BLOCKS = ("address", "center", "details", "dialog", "fieldset", "figure", "form", "header", "hgroup", "legend", "main", "option",
          "search", "summary")  # fmt: skip
CELLS, GROUPS, LISTS = ("td", "th"), ("thead", "tbody", "tfoot"), ("ul", "ol", "menu", "dir")
PARTS = ("table", *CELLS, "caption", "blockquote", "section", "article", "aside", "nav", "main", "details", "button")
# {tag: (those that its start ends, those within which they stay open)} (HTML Standard, "Optional tags")
ENDS = {
    "li": (("li",), (*LISTS, *PARTS)),
    **dict.fromkeys(("dt", "dd"), (("dt", "dd"), ("dl", *PARTS))),
    **dict.fromkeys(CELLS, (CELLS, ("tr", "table"))),
    "tr": (("tr",), ("table",)),
    **dict.fromkeys(GROUPS, ((*GROUPS, "caption", "colgroup", "tr"), ("table",))),
    **dict.fromkeys(("option", "optgroup"), (("option",), ("select", "datalist"))),
    **dict.fromkeys(("rt", "rp"), (("rt", "rp"), ("ruby",))),
    **dict.fromkeys(
        ("article", "aside", "blockquote", "dl", "div", "figcaption", "footer", "hr", "nav", "p", "pre", "section", "table",
         *BLOCKS, *HEADINGS, *LISTS),
        (("p",), ("table", *CELLS, "caption", "button")),
    ),
}  # fmt: skip


class Page(BeautifulSoup):
    """A page in which the start of a tag ends those whose end tags may be left out."""

    def handle_starttag(self, name, *rest, **options):
        ends, within = ENDS.get(name, ((), ()))
        if name in HEADINGS and self.currentTag.name in HEADINGS:
            self.handle_endtag(self.currentTag.name)
        for _ in range(1 + (name in GROUPS)):  # a row, and the group that it is in
            if any(self.open_tag_counter.get(each) for each in ends):
                self._end_nearest(ends, within)
        return super().handle_starttag(name, *rest, **options)

    def _end_nearest(self, ends: tuple[str, ...], within: tuple[str, ...]) -> None:
        for tag in reversed(self.tagStack):
            if tag.name in within or tag.name in NOT_TEXT:
                return
            if tag.name in ends:
                self.handle_endtag(tag.name)
                return


def page_tree(text: str) -> tuple[BeautifulSoup, str]:
    """(the page without what shows no text, its title)."""
    soup = Page(text, "html.parser")
    for element in soup(NOT_TEXT):
        element.decompose()
    title = " ".join(soup.title.get_text().split()) if soup.title else ""
    for element in soup("title"):
        element.decompose()
    for string in soup(string=lambda string: isinstance(string, PreformattedString) and not isinstance(string, CData)):
        string.extract()  # comments, <!DOCTYPE>, <?xml … ?>
    for element in soup(("html", "head", "body")):
        element.unwrap()  # text before <body> or after it is text too
    return soup, title


def as_markdown(body, left_out: Counter) -> str:
    """An element of a `page_tree` as Markdown; `left_out` counts its images."""
    left_out["images"] += len(body("img"))
    for image in body("img"):
        image.decompose()
    for heading in body(HEADINGS):
        if not heading.get_text(strip=True):
            heading.unwrap()  # a logo, say: it would end the section above it
    for element in body(BLOCKS):
        element.name = "div"
    for string in body(string=lambda text: "|" in text):
        if string.find_parent(CELLS):  # as it is, it would begin another cell
            string.replace_with(string.replace("|", "\\|"))
    return HtmlConverter().convert_string(str(body), **PLAIN).markdown
