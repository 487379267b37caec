"""What every picture shares: the palette, the style of the axes, and a PNG as text."""

import base64
import io

# Readable on light and on dark paper.
GREY, BLUE, GREEN, RED = "#7a818c", "#3f8fe0", "#2c9c5c", "#d9534f"


def canvas(width: float, height: float, columns: int = 1, **margins):
    """(figure, [panel, …]): a figure of `width` × `height` inches, with `columns` panels in one row.

    `margins` are fractions of the figure, as `Figure.subplots_adjust` takes them.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, columns, figsize=(width, height), squeeze=False)
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


def as_png(figure, dpi: int = 160, transparent: bool = True) -> bytes:
    """A figure as a PNG with no date or version in it; the figure is closed."""
    from matplotlib import pyplot

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, transparent=transparent, metadata={"Software": None})
    pyplot.close(figure)
    return buffer.getvalue()


def as_uri(figure) -> str:
    """A figure as a PNG in a data: URI; the figure is closed."""
    return "data:image/png;base64," + base64.b64encode(as_png(figure)).decode()
