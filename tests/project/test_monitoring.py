"""Alerts and dashboard ask for what the bridge has, and each alert says what it means and where to read on."""

from __future__ import annotations

import ast
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from websockets.frames import CloseCode

from bridge.core.model.sessions import CloseReason
from bridge.devservers.machine import Machine, ensure
from tests.support.reference_metrics import PAGE
from tests.support.series import known, mistakes

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "deploy"
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
TESTS = DEPLOY / "prometheus" / "alerts_test.yml"
DASHBOARD = DEPLOY / "grafana" / "bridge.json"
OPERATING = ROOT / "docs" / "operating.md"
ABNORMAL = 1006
"""What a peer sees where no close frame is sent (RFC 6455 7.4.1)."""
NO_METRICS = frozenset(
    ("bridge_token", "bridge_worker_", "bridge_owner", "bridge_app", "bridge_reader", "bridge_analyst")
)
"""Other names that begin as those of metrics do: a cookie, a prefix, and roles of Postgres."""


@pytest.fixture(scope="module")
def promtool(say: Callable[[str], None], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """The checker of Prometheus, which a machine without it installs; what it says, and it must find nothing wrong."""
    ensure(Machine(), ["promtool"], tmp_path_factory.mktemp("promtool") / "install.log", say)

    def run(*arguments: object) -> str:
        done = subprocess.run(
            [str(Machine().promtool()), *map(str, arguments)], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def alerts() -> list[dict[str, Any]]:
    """The rules."""
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def panels() -> list[dict[str, Any]]:
    """Those of the dashboard that show something."""
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def queries() -> Iterator[str]:
    """The expressions of the dashboard, as Prometheus gets them."""
    for panel in panels():
        for target in panel["targets"]:
            query = target["expr"].replace("$__rate_interval", "5m")
            yield re.sub(r"\$(job|node|canary)\b", "bridge", query)


def series_of_rows() -> dict[str, set[str]]:
    """The series that each row of the dashboard asks for, without the suffixes of histograms."""
    rows: dict[str, set[str]] = {}
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        if panel["type"] == "row":
            row = rows.setdefault(panel["title"], set())
            continue
        for target in panel["targets"]:
            names = re.findall(r"\b(?:bridge|process)_\w+", target["expr"])
            row |= {re.sub("_(bucket|sum|count)$", "", name) for name in names}
    return rows


def anchors(page: Path) -> set[str]:
    """The headings of a document, as links name them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_the_alerts_are_rules_of_prometheus_and_each_fires_when_it_should(
    promtool: Callable[..., str],
) -> None:
    assert f"{len(alerts())} rules found" in promtool("check", "rules", ALERTS)
    assert "SUCCESS" in promtool("test", "rules", TESTS)


def test_each_alert_is_tested_for_firing_and_for_silence() -> None:
    well, *others = yaml.safe_load(TESTS.read_text())["tests"]
    names = [alert["alert"] for alert in alerts()]
    assert [case["alertname"] for case in well["alert_rule_test"] if "exp_alerts" not in case] == names
    firing = [
        case["alertname"] for test in others for case in test["alert_rule_test"] if "exp_alerts" in case
    ]
    assert firing == names


def test_each_alert_asks_for_series_and_labels_that_there_are() -> None:
    assert {alert["alert"]: found for alert in alerts() if (found := [*mistakes(alert["expr"])])} == {}
    for test in yaml.safe_load(TESTS.read_text())["tests"]:
        for series in test["input_series"]:
            assert [*mistakes(series["series"])] == []


def test_each_alert_says_what_it_means_and_links_to_a_heading_that_there_is() -> None:
    headings = anchors(OPERATING)
    for alert in alerts():
        told = alert["annotations"]
        assert set(told) == {"summary", "description", "runbook"}, alert["alert"]
        assert alert["labels"]["severity"] in ("critical", "warning")
        page, _, anchor = told["runbook"].partition("#")
        assert (page, anchor in headings) == ("docs/operating.md", True), told["runbook"]


def test_the_page_about_operating_lists_each_alert_with_its_rule() -> None:
    table = OPERATING.read_text().partition("## What to alert on")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`Bridge[^|]+) \|[^|]+\|[^|]+\|$", table, re.MULTILINE)
    assert re.findall(r"`(\w+)`", " ".join(rows)) == [alert["alert"] for alert in alerts()]


def test_the_page_about_operating_says_what_to_do_about_each_way_to_close_a_session() -> None:
    table = OPERATING.read_text().partition("## When sessions are closed")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", table, re.MULTILINE)
    assert sorted((int(code), word) for code, word in rows) == sorted(
        (reason.code, reason.word) for reason in CloseReason
    )


def test_a_wrong_name_or_label_would_be_found() -> None:
    assert [*mistakes('sum by (nothing) (rate(bridge_no_such_total{result="x"}[5m]))')] == [
        "there is no series bridge_no_such_total",
        "nothing there has the label nothing",
    ]
    assert [*mistakes('bridge_ready{queue="a"}')] == ["bridge_ready has no label queue"]
    assert "bridge_push_seconds_bucket" in known()


def test_the_dashboard_asks_for_series_and_labels_that_there_are(
    promtool: Callable[..., str], tmp_path: Path
) -> None:
    expressions = list(queries())
    assert {expression: found for expression in expressions if (found := [*mistakes(expression)])} == {}
    rules = [{"record": f"panel_{n}", "expr": expression} for n, expression in enumerate(expressions)]
    file = tmp_path / "panels.yml"
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    assert f"{len(expressions)} rules found" in promtool("check", "rules", file)


def test_each_panel_has_a_title_a_description_a_unit_and_a_query_and_a_place_of_its_own() -> None:
    board = json.loads(DASHBOARD.read_text())
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    places: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & places, panel["title"]
        places |= cells
    for panel in panels():
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["targets"]
        for target in panel["targets"]:
            assert target["expr"]
            for selector in re.findall(r"(?:bridge|process)_\w+(\{[^}]*\}|)", target["expr"]):
                ours = 'job=~"$job", instance=~"$node"' in selector or 'job=~"$canary"' in selector
                assert ours, "one Prometheus may have several installations"


def test_the_dashboard_shows_every_metric() -> None:
    shown = set().union(*series_of_rows().values())
    listed = set(re.findall(r"^\| `(bridge_\w+)` \|", PAGE.read_text(), re.MULTILINE))
    assert listed - shown == set()


def test_the_page_about_operating_has_a_line_for_each_row_of_the_dashboard_with_its_series() -> None:
    table = OPERATING.read_text().partition("## The dashboard")[2].partition("\n## ")[0]
    lines = re.findall(r"^\| ([^`|]+) \| (`[^|]+) \| ([^|]+) \|$", table, re.MULTILINE)
    assert {row: set(re.findall(r"`(\w+)`", named)) for row, named, _ in lines} == series_of_rows()


def test_the_page_of_metrics_has_every_name_that_the_program_gives_one() -> None:
    listed = set(re.findall(r"^\| `(bridge_\w+)` \|", PAGE.read_text(), re.MULTILINE))
    named = {
        node.value
        for file in (ROOT / "bridge").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if re.fullmatch(r"bridge_[a-z_]+", node.value)
    } - NO_METRICS
    assert len(named) > 40
    assert {name for name in named if not {name, f"{name}_total"} & listed} == set()


def test_the_documents_name_no_metric_that_there_is_not() -> None:
    wrong = {}
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        named = set(re.findall(r"`(bridge_[a-z_]+)(?:[`{])", page.read_text())) - NO_METRICS
        histograms = {name.removesuffix("_bucket") for name in known() if name.endswith("_bucket")}
        if unknown := named - set(known()) - histograms:
            wrong[page.name] = unknown
    assert wrong == {}


def test_the_pages_for_people_and_for_clients_know_each_close_code() -> None:
    told = (ROOT / "docs" / "reference" / "outcomes.md").read_text()
    table = told.partition("## How a session is closed")[2]
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", table, re.MULTILINE)
    closing = {(reason.code, reason.word) for reason in CloseReason if reason.code != ABNORMAL}
    assert {(int(code), word) for code, word in rows} == closing
    page = (
        (ROOT / "docs" / "clients.md").read_text().partition("## When it reconnects")[2].partition("\n## ")[0]
    )
    for code in {code for code, _ in closing}:
        assert re.search(rf"\b{code}\b", page), code


def test_each_code_that_the_websocket_library_is_told_to_close_with_is_documented() -> None:
    named = {
        getattr(CloseCode, node.attr).value
        for file in (ROOT / "bridge" / "adapters" / "websocket").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "CloseCode"
    }
    # 1009 is the library's own answer to a message that is too large.
    for page in (OPERATING, ROOT / "docs" / "reference" / "outcomes.md"):
        for code in named | {CloseCode.MESSAGE_TOO_BIG.value}:
            assert str(code) in page.read_text(), (page.name, code)
