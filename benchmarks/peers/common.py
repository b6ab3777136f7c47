"""What the scripts of this folder share: versions, timing statistics, and the way results are printed."""

import importlib.metadata
import json
import platform
import resource
import statistics
import sys


def versions():
    packages = ("torch", "transformers", "peft", "safetensors", "numpy")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


def peak_rss_bytes():
    """Peak resident memory of this process; Linux counts in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def spread(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def table(header, rows):
    """Columns aligned to the right, the first to the left."""
    cells = [header] + [[f"{c:,.3f}" if isinstance(c, float) else str(c) for c in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    for row in cells:
        print("  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:]))]))


def print_json(result):
    print(json.dumps(result), flush=True)
