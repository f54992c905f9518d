"""Draws key panels of dashboards/sessiond.json: see `render`."""

import io
import json
import math
import re
import sys
import time
import urllib.parse
import urllib.request
from datetime import datetime
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.dates as dates
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter
from PIL import Image

FOLDER = Path(__file__).resolve().parent
# Rows of the picture: titles of panels, each with its relative width.
ROWS = [
    [("Availability", 1), ("Error budget left: availability", 1), ("Within 25 ms", 1), ("Error budget left: latency", 1)],
    [("Burn rate: availability", 1), ("Latency heatmap", 1), ("Latency: p50, p95, p99", 1)],
    [("Rate by route", 1), ("Errors by route", 1), ("Rate by status", 1)],
    [("Created, resumed, deleted", 1), ("Ended, by reason", 1), ("Hint hit ratio", 1)],
    [("Operation duration: p99", 1), ("Errors, by kind", 1), ("Reconnects and retries", 1)],
    [("Event-loop lag", 1), ("Requests in flight", 1), ("Memory", 1)],
]
STEP_SECONDS = 2
# The demo's Prometheus scrapes every two seconds; Grafana uses at least four intervals.
RATE_WINDOW = "20s"
# The most entries of a legend, and the most characters of an entry if two are to fit in a line.
LEGEND_ENTRIES_MAX, SHORT_ENTRY_MAX = 6, 34
PALETTE_COLORS = 128
BACKGROUND, PANEL, TEXT, GRID = "#111217", "#181b1f", "#ccccdc", "#2c3235"
COLORS = ["#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#b877d9", "#f2495c", "#8ab8ff", "#ffee52", "#37872d", "#c4162a"]


def number(value, unit):
    """A value, formatted roughly as in Grafana."""
    if unit == "percentunit":
        return f"{100 * value:.4g} %"
    if unit == "bytes":
        return f"{value / 2**20:.3g} MiB"
    if unit == "s":
        return f"{1e6 * value:.3g} µs" if value < 1e-3 else f"{1e3 * value:.3g} ms" if value < 1 else f"{value:.3g} s"
    return f"{value:.4g}" + {"reqps": " req/s", "ops": " ops/s"}.get(unit, "")


class Source:
    def __init__(self, url, minutes):
        self.url, self.minutes, self.end = url, minutes, time.time()

    def ask(self, path, **parameters):
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=30) as answer:
            return json.loads(answer.read())["data"]["result"]

    def expression(self, target):
        text = target["expr"].replace("$__rate_interval", RATE_WINDOW).replace("$__range", f"{self.minutes}m")
        return text.replace("$job", ".*").replace("$instance", ".*")

    def now(self, target):
        result = self.ask("query", query=self.expression(target), time=self.end)
        return float(result[0]["value"][1]) if result else math.nan

    def series(self, panel):
        """Yields each series of a panel: its legend, its times, its values."""
        for target in panel["targets"]:
            start = self.end - 60 * self.minutes
            result = self.ask("query_range", query=self.expression(target), start=start, end=self.end, step=STEP_SECONDS)
            for one in result:
                legend = re.sub(r"{{(\w+)}}", lambda name: one["metric"].get(name[1], ""), target["legendFormat"])
                times = [datetime.fromtimestamp(moment) for moment, _ in one["values"]]
                yield legend, times, [float(value) for _, value in one["values"]]


def draw_stat(axes, panel, source):
    value = source.now(panel["targets"][0])
    color = TEXT
    for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]:
        if step["value"] is None or value >= step["value"]:
            color = {"red": "#f2495c", "orange": "#ff9830", "green": "#73bf69"}.get(step["color"], TEXT)
    axes.set_axis_off()
    text = number(value, panel["fieldConfig"]["defaults"]["unit"])
    axes.text(0.5, 0.4, text, ha="center", va="center", fontsize=20, color=color, transform=axes.transAxes)


def draw_heatmap(axes, panel, source):
    rows = sorted(((float(le), times, values) for le, times, values in source.series(panel)), key=lambda row: row[0])
    names = [number(le, "s") if math.isfinite(le) else "more" for le, _, _ in rows]
    times = rows[0][1]
    counts = [[after - before for after, before in zip(row[2], below)] for row, below in
              zip(rows, [[0] * len(times)] + [row[2] for row in rows[:-1]])]
    shown = [[math.sqrt(max(0, count)) if count else math.nan for count in row] for row in counts]
    axes.pcolormesh(times, range(len(rows)), shown, cmap="turbo", shading="nearest")
    axes.set_yticks(range(0, len(rows), 2), names[::2])


def draw_lines(axes, panel, source):
    defaults = panel["fieldConfig"]["defaults"]
    series = sorted(source.series(panel), key=lambda one: -max((v for v in one[2] if v == v), default=0))
    is_short = all(len(legend) <= SHORT_ENTRY_MAX for legend, _, _ in series)
    entries = LEGEND_ENTRIES_MAX if is_short else LEGEND_ENTRIES_MAX // 2
    stacked = defaults["custom"]["stacking"]["mode"] == "normal"
    below = {}
    for place, (legend, times, values) in enumerate(series):
        color = COLORS[place % len(COLORS)]
        label = legend if place < entries else None
        if stacked:
            floor = [below.get(moment, 0) for moment in times]
            top = [low + value for low, value in zip(floor, values)]
            axes.fill_between(times, floor, top, color=color, alpha=0.35, linewidth=0)
            axes.plot(times, top, color=color, linewidth=0.9, label=label)
            below.update(zip(times, top))
        else:
            axes.plot(times, values, color=color, linewidth=1.1, label=label)
    high = axes.get_ylim()[1]
    for step in defaults.get("thresholds", {}).get("steps", []):
        if step["value"] is not None and step["value"] < high:
            color = {"red": "#f2495c", "orange": "#ff9830", "yellow": "#f2cc0c"}.get(step["color"], GRID)
            axes.axhline(step["value"], color=color, linewidth=0.8, linestyle="--")
    axes.set_ylim(0, high * 1.05)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value, defaults["unit"])))
    axes.grid(color=GRID, linewidth=0.5)
    if series:
        axes.legend(fontsize=6.2, ncols=3 if is_short else 1, loc="upper center", bbox_to_anchor=(0.5, -0.1), frameon=False,
                    labelcolor=TEXT)


def main():
    source = Source(sys.argv[1].rstrip("/"), int(sys.argv[2]))
    output = sys.argv[3] if len(sys.argv) > 3 else FOLDER / "dashboard.png"
    dashboard = json.loads((FOLDER / "dashboards/sessiond.json").read_text(encoding="utf-8"))
    panels = {panel["title"]: panel for panel in dashboard["panels"]}
    plt.rcParams.update({"font.size": 7, "text.color": TEXT, "axes.labelcolor": TEXT, "xtick.color": TEXT, "ytick.color": TEXT})
    figure = plt.figure(figsize=(13, 13.5), facecolor=BACKGROUND)
    rows = figure.add_gridspec(len(ROWS), 1, height_ratios=[0.22] + [1] * (len(ROWS) - 1), hspace=0.68,
                               left=0.05, right=0.985, top=0.965, bottom=0.055)
    for place, row in enumerate(ROWS):
        columns = rows[place].subgridspec(1, len(row), width_ratios=[width for _, width in row], wspace=0.2)
        for column, (title, _) in enumerate(row):
            panel = panels[title]
            axes = figure.add_subplot(columns[column], facecolor=PANEL)
            axes.set_title(title, fontsize=8.5, loc="left", color=TEXT)
            {"stat": draw_stat, "heatmap": draw_heatmap}.get(panel["type"], draw_lines)(axes, panel, source)
            for spine in axes.spines.values():
                spine.set_color(GRID)
            if panel["type"] != "stat":
                axes.set_xlim(datetime.fromtimestamp(source.end - 60 * source.minutes), datetime.fromtimestamp(source.end))
                axes.xaxis.set_major_formatter(dates.DateFormatter("%H:%M"))
                axes.xaxis.set_major_locator(dates.AutoDateLocator(minticks=3, maxticks=8))
    picture = io.BytesIO()
    figure.savefig(picture, dpi=100, facecolor=BACKGROUND)
    Image.open(picture).convert("RGB").quantize(PALETTE_COLORS).save(output, optimize=True)


if __name__ == "__main__":
    main()
