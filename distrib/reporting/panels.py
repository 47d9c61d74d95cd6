"""What the report of a run is made of: its panels and the sections of its page, and nothing of it anywhere else.

A new panel is a line here, a function of its name in a module of `distrib.explaining`, and what its section's template
shows of `jobs.NAME`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Panel:
    """What one job finds out and the page shows.

    Attributes:
        name: of its job, which is a function, and what --only takes; it leaves report/data/NAME.json.
        module: of `distrib.explaining`, where that function is.
        title: how a sentence begins that tells of it.
        sections: whose templates show it.
        moves: whether the page's script needs its numbers.
        slow: whether it may take minutes; the page is made before it, without what is still to come.
    """

    name: str
    module: str
    title: str
    sections: tuple[str, ...]
    moves: bool = False
    slow: bool = False


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Attributes:
        id: its anchor and the name of its template in templates/parts.
        title: its heading.
    """

    id: str
    title: str

    @property
    def panels(self) -> tuple[str, ...]:
        """The names of what it shows."""
        return tuple(panel.name for panel in PANELS.values() if self.id in panel.sections)


OPENING = Section("opening", "")
# In the order of the page.
SECTIONS = (
    Section("learnt", "How it learnt"),
    Section("scores", "What it scores"),
    Section("decide", "Decide"),
    Section("sure", "How sure it is"),
    Section("fair", "Fair to whom"),
    Section("together", "What goes together"),
    Section("looks", "Where it looks"),
    Section("errs", "Where it errs"),
    Section("inside", "Inside"),
    Section("photograph", "One photograph"),
    Section("made", "How it was made"),
)
# Made anew for each page, because it sums up the others.
SUMMARY = "overview"
# In the order of their cost, so that the page has most of them when the slow ones begin; the summary comes last.
PANELS = {
    panel.name: panel
    for panel in (
        Panel("curves", "curves", "Learning curves", ("learnt",), moves=True),
        Panel("scores", "scores", "Scores", ("scores",), moves=True),
        Panel("operating", "scores", "Operating points", ("decide",), moves=True),
        Panel("roc", "scores", "ROC curves", ("decide",)),
        Panel("precision_recall", "scores", "Precision-recall curves", ("decide",)),
        Panel("confusion", "scores", "Confusion matrices", ("decide",)),
        Panel("calibration", "scores", "Calibration", ("sure",), moves=True),
        Panel("fairness", "scores", "Scores within groups", ("fair",), moves=True),
        Panel("correlation", "scores", "Correlations", ("together",), moves=True),
        Panel("mistakes", "galleries", "Mistakes", ("errs",)),
        Panel("labels", "galleries", "Likely wrong labels", ("errs",)),
        Panel("filters", "features", "Filters", ("inside",)),
        Panel("activations", "features", "Activation maps", ("inside",)),
        Panel("gradcam", "maps", "Grad-CAM maps", ("looks",)),
        Panel("photograph", "maps", "The photograph", ("photograph",)),
        Panel("occlusion", "maps", "Occlusion maps", ("looks",), slow=True),
        Panel("truth", "maps", "The check against the truth", ("looks",), slow=True),
        Panel("overview", "overview", "The overview", ("opening", "made")),
    )
}
