"""The record of a run as a picture: a panel for each load, a bar for each peer, a whisker from the least to the most."""
from xml.sax.saxutils import escape

from .figures import number, times
from .loads import LOADS
from .table import heading, load_rows

COLOURS = {"unreplicated": "#9aa5b1", "replicated": "#d9822b", "qrbd": "#2166ac"}
LEGEND = {"unreplicated": "not replicated", "replicated": "replicated by QEMU", "qrbd": "QRBD, encrypted"}
COLUMNS = 2
PANEL_WIDTH, MARGIN, ROW, HEAD = 560, 20, 20, 34
LABEL_WIDTH, VALUE_WIDTH = 216, 116
BAR_WIDTH = PANEL_WIDTH - LABEL_WIDTH - VALUE_WIDTH
TOP = 74


def text(x, y, words, size=12, anchor="start", weight="normal", colour="#1f2933"):
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" font-weight="{weight}" '
        f'fill="{colour}">{escape(words)}</text>'
    )


def rectangle(x, y, width, height, colour):
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="{height}" fill="{colour}"/>'


def line(x1, y1, x2, y2):
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#1f2933" stroke-width="1"/>'


def panel(x, y, load, rows):
    parts = [text(x, y + 14, f"{load.title}, {load.unit}", 14, weight="bold")]
    most = max(figures.most for _, figures, *_ in rows)
    for index, (peer, figures, to_plain, _, _) in enumerate(rows):
        top = y + HEAD - 8 + index * ROW
        middle = top + 7
        left = x + LABEL_WIDTH
        scale = BAR_WIDTH / most
        parts.append(text(left - 6, middle + 4, peer["title"], 11, "end"))
        parts.append(rectangle(left, top, figures.median * scale, 14, COLOURS[peer["kind"]]))
        parts.append(line(left + figures.least * scale, middle, left + figures.most * scale, middle))
        for value in (figures.least, figures.most):
            parts.append(line(left + value * scale, middle - 3, left + value * scale, middle + 3))
        parts.append(text(left + BAR_WIDTH + 54, middle + 4, number(figures.median), 11, "end"))
        parts.append(text(left + BAR_WIDTH + 112, middle + 4, times(to_plain), 11, "end"))
    return parts


def picture(record):
    panels = [(load, load_rows(record, load)) for load in LOADS]
    panels = [(load, rows) for load, rows in panels if rows]
    parts, y = [], TOP
    for start in range(0, len(panels), COLUMNS):
        row = panels[start : start + COLUMNS]
        for column, (load, rows) in enumerate(row):
            parts += panel(MARGIN + column * (PANEL_WIDTH + MARGIN), y, load, rows)
        y += HEAD + max(len(rows) for _, rows in row) * ROW + MARGIN
    width = MARGIN + COLUMNS * (PANEL_WIDTH + MARGIN)
    head = [text(MARGIN, 28, "QRBD beside other ways to reach a disk: medians, least to most, and the ratio to plain qemu-nbd", 17, weight="bold")]
    head.append(text(MARGIN, 46, heading(record).split("\n")[0], 11, colour="#52606d"))
    x = MARGIN
    for kind, colour in COLOURS.items():
        head += [rectangle(x, 53, 10, 10, colour), text(x + 14, 62, LEGEND[kind], 11)]
        x += 150
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y}" viewBox="0 0 {width} {y}" '
            'font-family="Helvetica, Arial, sans-serif">',
            rectangle(0, 0, width, y, "#ffffff"),
            *head,
            *parts,
            "</svg>\n",
        ]
    )
