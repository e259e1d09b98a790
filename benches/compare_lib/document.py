"""Puts the results of a run into docs/performance.md, between two marker comments, and its picture beside it."""
import os

from .picture import picture
from .processes import StepFailed
from .system import ROOT
from .table import table

BEGIN = "<!-- results of benches/compare begin -->"
END = "<!-- results of benches/compare end -->"
DOCUMENT = "docs/performance.md"
PICTURE = "docs/performance.svg"


def between_markers(document, results):
    """The document with `results` between its markers."""
    begin, end = document.find(BEGIN), document.find(END)
    if begin < 0 or end < begin or document.count(BEGIN) != 1 or document.count(END) != 1:
        raise StepFailed(f"the document needs the lines '{BEGIN}' and '{END}', once each and in this order")
    return document[: begin + len(BEGIN)] + "\n" + results + document[end:]


def results_of(record):
    return f"![Each load at each peer: medians, spread, ratio to plain]({os.path.basename(PICTURE)})\n\n```text\n{table(record).rstrip()}\n```\n"


def write_document(record):
    path = os.path.join(ROOT, DOCUMENT)
    with open(path, encoding="utf-8") as file:
        changed = between_markers(file.read(), results_of(record))
    with open(os.path.join(ROOT, PICTURE), "w", encoding="utf-8") as file:
        file.write(picture(record))
    with open(path, "w", encoding="utf-8") as file:
        file.write(changed)
