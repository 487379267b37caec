"""What every picture shares: the palette, the style of the axes, and a PNG as text."""

import base64
import bisect
import io

# Readable on light and on dark paper.
GREY, BLUE, GREEN, RED = "#7a818c", "#3f8fe0", "#2c9c5c", "#d9534f"
INK, SOFT = "#1d2129", "#f4f5f7"  # text and its background, on white


def canvas(width: float, height: float, columns: int = 1, **margins):
    """(figure, [panel, …]): a figure of `width` × `height` inches, with `columns` panels in one row.

    `margins` are fractions of the figure, as `Figure.subplots_adjust` takes them.
    """
    # Not pyplot: it takes longer to import, and keeps every figure until it is closed.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, columns, squeeze=False)
    figure.subplots_adjust(**margins)
    for panel in panels[0]:
        panel.grid(alpha=0.25, color=GREY)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        panel.spines[["left", "bottom"]].set_color(GREY)
        panel.tick_params(colors=GREY, labelsize=9)
        panel.xaxis.label.set_color(GREY)
        panel.yaxis.label.set_color(GREY)
    return figure, list(panels[0])


def sheet(width: int, dpi: int = 100):
    """(figure, panel) for text: `width` pixels wide, in pixels from the top left corner; `set_height` gives the height."""
    figure, (panel,) = canvas(width / dpi, 1, left=0, right=1, top=1, bottom=0)
    figure.set_dpi(dpi)
    panel.axis("off")
    panel.set_xlim(0, width)
    return figure, panel


def set_height(figure, panel, height: float) -> None:
    """The height of a `sheet`, in pixels."""
    figure.set_size_inches(figure.get_figwidth(), height / figure.dpi)
    panel.set_ylim(height, 0)


def wrapped(figure, text: str, width: float, most: int, **font) -> list[str]:
    """`text` in lines of at most `width` pixels as the figure draws them in `font`; "…" ends what has over `most` lines.

    A word that is wider than a line is broken. Blanks and line ends count as one blank.
    """
    from matplotlib.font_manager import FontProperties

    renderer, properties = figure.canvas.get_renderer(), FontProperties(**font)

    def fits(line: str) -> bool:
        # A character is at least a pixel wide: what cannot fit is not measured, which takes long.
        return len(line) <= width and renderer.get_text_width_height_descent(line, properties, False)[0] <= width

    lines, line = [], ""
    for word in text.split():
        if fits(f"{line} {word}".strip()):
            line = f"{line} {word}".strip()
            continue
        lines += [line] if line else []
        while len(lines) <= most and not fits(word):
            sizes = range(1, min(len(word), int(width)) + 1)
            size = max(1, bisect.bisect_left(sizes, True, key=lambda size, word=word: not fits(word[:size])))
            lines.append(word[:size])
            word = word[size:]
        line = word
        if len(lines) > most:
            break
    lines += [line] if line else []
    if len(lines) > most:
        last = lines[most - 1]
        while last and not fits(last + " …"):
            last = last[:-1].rstrip()
        lines = [*lines[: most - 1], last + " …"]
    return lines


def as_png(figure, dpi: int = 160, transparent: bool = True) -> bytes:
    """A figure as a PNG with no date or version in it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, transparent=transparent, metadata={"Software": None})
    return buffer.getvalue()


def as_small_png(figure) -> bytes:
    """A figure on white in 128 colours, about half the size of `as_png`."""
    from PIL import Image

    image = Image.open(io.BytesIO(as_png(figure, dpi=figure.dpi, transparent=False)))
    buffer = io.BytesIO()
    image.convert("RGB").quantize(128).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def as_uri(figure) -> str:
    """A figure as a PNG in a data: URI."""
    return uri_of(as_png(figure))


def uri_of(png: bytes) -> str:
    """A PNG in a data: URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode()
