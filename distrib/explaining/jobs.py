"""The jobs of a report by their names, and the modules of this room that do them."""

# In the order of their cost, so that the page has most of its parts when the slow ones begin. Each is imported when it
# runs, so that one that cannot be imported costs the others nothing.
JOBS = {
    "curves": "curves",
    "scores": "scores",
    "roc": "scores",
    "precision_recall": "scores",
    "confusion": "scores",
    "calibration": "scores",
    "fairness": "scores",
    "correlation": "scores",
    "mistakes": "galleries",
    "labels": "galleries",
    "filters": "features",
    "activations": "features",
    "gradcam": "maps",
    "photograph": "maps",
    "occlusion": "maps",
    "truth": "maps",
}
# Those that may take minutes: the page is made before each, without what is still to come.
SLOW = ("occlusion", "truth")
