"""Alerts and dashboard ask for what the bridge has, and each alert says what it means and where to read on."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bridge.core.model.sessions import CloseReason
from bridge.devservers.machine import Machine, ensure
from tests.support.series import known, mistakes

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "deploy"
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
TESTS = DEPLOY / "prometheus" / "alerts_test.yml"
DASHBOARD = DEPLOY / "grafana" / "bridge.json"
OPERATING = ROOT / "docs" / "operating.md"


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
            yield target["expr"].replace("$__rate_interval", "5m").replace("$job", "bridge")


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
            assert 'job=~"$job"' in target["expr"], "one Prometheus may have several installations"
