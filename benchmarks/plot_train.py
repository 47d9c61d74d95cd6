"""Draw what `benchmarks/train.py` measured; it does so itself by `--plot FILE.png`.

python benchmarks/plot_train.py benchmarks/results/train.json train.png
"""

import json
import sys
import textwrap
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

OURS, BY_HAND, AS_IT_COMES = "#1f6fb4", "#d98b2b", "#eac694"
LINES = ("#d98b2b", "#7a9e48", "#a05a9c", "#8a8a8a")


def plot(result: dict[str, Any], file: Path) -> None:
    """A panel of bars for each image size, and one of scores over time for the recipes."""
    sizes = result["engine"]["sizes"] if "engine" in result else {}
    panels = len(sizes) + ("recipe" in result)
    figure = Figure(figsize=(2.6 + 4.8 * panels, 4.6), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for panel, (size, found) in zip(axes, sizes.items(), strict=False):
        draw_engines(panel, size, found, names=panel is axes[0])
    if "recipe" in result:
        draw_recipes(axes[-1], result["recipe"])
    machine = dict(result["machine"])
    date, cpu, cores, gpu = (machine.pop(key) for key in ("date", "cpu", "cores", "gpu"))
    versions = ", ".join(f"{package} {version}" for package, version in machine.items())
    versions = textwrap.fill(versions, 40 + 30 * panels)
    figure.suptitle(f"{cpu}, {cores} cores{f', {gpu}' if gpu else ''}, {date}\n{versions}", fontsize=10)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=100)


def draw_engines(panel: Axes, size: str, found: dict[str, Any], names: bool) -> None:
    """A bar for each trainer: the median, and the range as a whisker."""
    rates = found["images_per_second"]
    for place, (name, rate) in enumerate(rates.items()):
        whisker = [[rate["median"] - rate["min"]], [rate["max"] - rate["median"]]]
        colour = BY_HAND if name.endswith("by hand") else AS_IT_COMES if "," in name else OURS
        panel.barh(place, rate["median"], 0.72, xerr=whisker, color=colour, error_kw={"capsize": 2.5})
        digits = 1 if rate["median"] < 100 else 0
        panel.text(rate["max"], place, f"  {rate['median']:,.{digits}f}", va="center", fontsize=9)
    panel.set_yticks(range(len(rates)), list(rates) if names else [""] * len(rates))
    panel.invert_yaxis()
    panel.tick_params(axis="y", length=0)
    panel.margins(x=0.16)
    panel.spines[["top", "right"]].set_visible(False)
    panel.set_title(f"{size}, the same recipe", fontsize=11, loc="left")
    panel.set_xlabel("images/s")


def draw_recipes(panel: Axes, found: dict[str, Any]) -> None:
    """A line for each training: its score after each epoch, over the seconds by then."""
    colours = dict(zip((name for name in found["trainings"] if name != "distrib"), LINES, strict=False))
    for recipe, trainings in found["trainings"].items():
        for number, each in enumerate(trainings):
            colour = colours.get(recipe, OURS)
            label = recipe if number == 0 else None
            panel.plot(each["seconds"], each["roc_auc"], ".-", color=colour, lw=1.3, ms=4, label=label)
    best = found["ends"][found["best_recipe"]]
    panel.axvline(best["seconds"]["median"] / 3, color="#b0b0b0", ls=":", lw=1)
    panel.text(best["seconds"]["median"] / 3, 0.02, " a third", transform=panel.get_xaxis_transform(), fontsize=8)
    scores = [each["roc_auc"][-1] for of in found["trainings"].values() for each in of]
    panel.set_ylim(max(0.5, min(scores) - 0.03), max(scores) + 0.01)
    panel.spines[["top", "right"]].set_visible(False)
    panel.set_title("all 40 attributes, by recipe and seed", fontsize=11, loc="left")
    panel.set_xlabel("seconds of training")
    panel.set_ylabel("mean ROC AUC on the validation split")
    panel.legend(frameon=False, fontsize=9, loc="lower right")


if __name__ == "__main__":
    plot(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
