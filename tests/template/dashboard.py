"""The dashboard's body as CloudWatch gets it: what it names, and its layout as text for the README."""

import json
import re
import textwrap

import stack

COLUMNS = 24
"""Of a dashboard's grid. Source: "Dashboard Body Structure and Syntax" of the CloudWatch API reference."""

MODES = {
    "an analyser of one's own": {},
    "nodes behind an ALB": {"AnalyzerUrl": "", "WallarmAmiId": "ami-0123456789abcdef0", "AnalyzerBalancer": "alb"},
    "nodes behind an NLB": {"AnalyzerUrl": "", "WallarmAmiId": "ami-0123456789abcdef0", "AnalyzerBalancer": "nlb"},
    "a spoke": {"AnalyzerUrl": "", "ExistingTargetId": "tmt-0123456789abcdef0"},
}


def body(evaluated):
    return json.loads(evaluated.properties("Dashboard")["DashboardBody"])


def rows(widget):
    """The metrics of a widget: (namespace, name, dimensions, options), and (None, None, None, options) for an expression."""
    for row in widget["properties"].get("metrics", []):
        options = row[-1] if isinstance(row[-1], dict) else {}
        words = [cell for cell in row if not isinstance(cell, dict)]
        if words:
            namespace, name, *pairs = words
            assert len(pairs) % 2 == 0, row
            yield namespace, name, dict(zip(pairs[::2], pairs[1::2], strict=True)), options
        else:
            yield None, None, None, options


SEARCH = re.compile(r"SEARCH\('\{([^}]*)\} ([^']*)', '(\w+)', (\d+)\)")


def named(evaluated):
    """(where, namespace, metric, names of its dimensions) of everything that the dashboard shows."""
    for widget in body(evaluated)["widgets"]:
        where = f"Dashboard: {widget['properties']['title']}"
        for namespace, name, dimensions, options in rows(widget):
            if namespace:
                yield where, namespace, name, frozenset(dimensions)
            for schema, terms, _, _ in SEARCH.findall(options.get("expression", "")):
                namespace, *dimensions = schema.split(",")
                yield where, namespace, re.search(r'MetricName="(\w+)"', terms)[1], frozenset(dimensions)


def picture(evaluated):
    """The layout in characters: four to a column, a line for one and a half units of height."""
    widgets = body(evaluated)["widgets"]
    across, down = 4, 1.5
    height = round(max(w["y"] + w["height"] for w in widgets) / down)
    lines = [[" "] * (COLUMNS * across + 1) for _ in range(height + 1)]
    for w in widgets:
        left, right = w["x"] * across, (w["x"] + w["width"]) * across
        top, bottom = round(w["y"] / down), round((w["y"] + w["height"]) / down)
        for x in range(left, right + 1):
            for y in (top, bottom):
                lines[y][x] = "+" if x in (left, right) or lines[y][x] == "+" else "-"
        for y in range(top + 1, bottom):
            lines[y][left] = lines[y][right] = "|"
        for y, line in zip(range(top + 1, bottom), textwrap.wrap(w["properties"]["title"], right - left - 3), strict=False):
            lines[y][left + 2 : left + 2 + len(line)] = line
    return "\n".join("".join(line).rstrip() for line in lines)
