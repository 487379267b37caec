"""What all pictures share: the palette, the style of the axes, and a PNG as text."""

import base64
import io

GREY, BLUE, GREEN = "#7a818c", "#3f8fe0", "#2c9c5c"  # they read on light and on dark paper


def canvas(width: float, height: float, **margins):
    """(figure, its one panel), in inches, with margins as shares of them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(width, height))
    figure.subplots_adjust(**margins)
    panel.grid(alpha=0.25, color=GREY)
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color(GREY)
    panel.tick_params(colors=GREY, labelsize=10)
    return figure, panel


def as_uri(figure) -> str:
    """A figure as a PNG in a data: URI; the figure is closed."""
    from matplotlib import pyplot

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, transparent=True, metadata={"Software": None})
    pyplot.close(figure)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
