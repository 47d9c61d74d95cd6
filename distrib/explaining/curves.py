"""How the scores went from epoch to epoch, and which epoch was kept."""

from matplotlib.figure import Figure

from distrib.explaining import figures
from distrib.explaining.finished_run import Finding, FinishedRun
from distrib.runs.metrics import RAW_LOSS, read_metrics

# The panels of the figure, each with the columns of metrics.csv that it shows where they are there.
PANELS = {
    "Loss": {"train_loss": "training", "val_loss": "validation", RAW_LOSS: "validation, unaveraged"},
    "Validation scores": {
        "val_accuracy": "accuracy",
        "val_precision": "precision",
        "val_f1": "F1",
        "val_roc_auc": "ROC AUC",
    },
}


def curves(run: FinishedRun) -> Finding:
    """Training and validation loss, and the report's scores, against the epoch.

    Raises:
        UserError: if the run has no metrics.csv.
    """
    columns, rows = read_metrics(run.folder)
    best, chosen = run.model.description.epoch, run.config.checkpoint.best_score
    data = {"columns": columns, "rows": rows, "best_epoch": best, "best_score": chosen}
    return Finding(data, {"curves": _figure(columns, rows, best)}, {"epochs": (columns, [list(row) for row in rows])})


def _figure(columns: list[str], rows: list[list[float]], best: int) -> Figure:
    figure = figures.new(width=10, height=4)
    epochs = [row[columns.index("epoch")] for row in rows]
    for axes, (title, lines) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        for column, label in ((column, label) for column, label in lines.items() if column in columns):
            axes.plot(epochs, [row[columns.index(column)] for row in rows], marker="o", markersize=3, label=label)
        axes.axvline(best, color="0.6", linestyle="--", linewidth=1, label=f"best epoch ({best}), the robust fit")
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
    return figure
