"""Draw what `benchmarks/loader.py` measured; it does so itself by `--plot FILE.png`.

python benchmarks/plot_loader.py benchmarks/results/loader.json loader.png
"""

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Patch

COLOURS = {"distrib": "#1f6fb4", "peers": "#d98b2b", "bare decode": "#8a8a8a"}


def plot(result: dict[str, Any], file: Path) -> None:
    """A panel for each job and number of threads, a bar for each loader: median, and the range as a whisker."""
    settings = result["images_per_second"]
    names = list(dict.fromkeys(name for rates in settings.values() for name in rates))
    jobs = list(dict.fromkeys(setting.partition(", ")[0] for setting in settings))
    across = len(settings) // len(jobs)
    figure = Figure(figsize=(12, 1.3 + len(jobs) * (0.9 + 0.27 * len(names))), layout="constrained")
    axes = figure.subplots(len(jobs), across, sharex="row", sharey=True, squeeze=False)
    for panel, (setting, rates) in zip(axes.flat, settings.items(), strict=True):
        for place, name in enumerate(names):
            if name not in rates:
                continue
            rate = rates[name]
            whisker = [[rate["median"] - rate["min"]], [rate["max"] - rate["median"]]]
            panel.barh(place, rate["median"], 0.72, xerr=whisker, color=COLOURS[kind(name)], error_kw={"capsize": 2.5})
            panel.text(rate["max"], place, f"  {rate['median']:,.0f}", va="center", fontsize=9)
        panel.set_title(setting, fontsize=11, loc="left")
        panel.set_xlabel("images/s")
        panel.xaxis.set_major_formatter("{x:,.0f}")
        panel.margins(x=0.16)
        panel.set_yticks(range(len(names)), names)
        panel.tick_params(axis="y", length=0)
        panel.spines[["top", "right"]].set_visible(False)
    axes[0, 0].invert_yaxis()  # the panels share it
    figure.suptitle(title(result), fontsize=10)
    handles = [Patch(color=colour, label=of) for of, colour in COLOURS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=100)


def kind(name: str) -> str:
    if name.startswith("bare"):
        return "bare decode"
    return "distrib" if name.startswith("distrib") else "peers"


def title(result: dict[str, Any]) -> str:
    """What was measured on what: the processor, and a line or two of versions."""
    machine, setting = dict(result["machine"]), result["setting"]
    date, cpu, cores, gpu = (machine.pop(key) for key in ("date", "cpu", "cores", "gpu"))
    versions = [f"{package} {version}" for package, version in machine.items()]
    half = (len(versions) + 1) // 2
    return "\n".join(
        [
            f"{setting['images']:,} images in batches of {setting['batch_size']}: "
            f"median and range of {setting['rounds']} rounds",
            f"{cpu}, {cores} cores{f', {gpu}' if gpu else ''}, {date}",
            ", ".join(versions[:half]),
            ", ".join(versions[half:]),
        ]
    )


if __name__ == "__main__":
    plot(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
