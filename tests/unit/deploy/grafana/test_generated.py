"""The committed generated files equal the current output of the code."""

import json

import pytest

from deploy.grafana import dashboards, planners_page
from flatline.engine.wire.measurement import MEASUREMENTS, TAGS


def test_the_planners_page_is_as_generated():
    assert planners_page.PAGE.read_text() == planners_page.page(), (
        "run python -m deploy.grafana.planners_page"
    )


@pytest.mark.parametrize("name", sorted(dashboards.files()))
def test_a_file_of_grafana_is_as_generated(name):
    committed = (dashboards.FOLDER / name).read_text()
    assert committed == dashboards.files()[name], "run python -m deploy.grafana.dashboards"


@pytest.mark.parametrize("name", ["fleet.json", "vm.json"])
def test_every_panel_asks_the_provisioned_data_source(name):
    board = json.loads((dashboards.FOLDER / name).read_text())
    assert board["panels"]
    for panel in board["panels"]:
        assert panel["targets"], panel["title"]
        assert all(target["datasource"]["uid"] == "flatline" for target in panel["targets"])


def test_no_field_has_a_name_that_influxdb_drops():
    assert not [m.name for m in MEASUREMENTS.values() for f in m.fields if f.name == "time"]


def test_no_tag_has_the_name_of_a_field():
    assert not [m.name for m in MEASUREMENTS.values() if set(m.tags) & {f.name for f in m.fields}]


def test_every_tag_is_explained():
    assert {tag for m in MEASUREMENTS.values() for tag in m.tags} == set(TAGS)
