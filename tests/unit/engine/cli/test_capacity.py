"""`flatline capacity` from the command line, on a small dataset."""

import csv
import gzip
import io
import json

import pytest

from tests.unit.engine.cli.conftest import Flatline

GAUGES = "t,vm,cpu_pct,mem_active_mb,disk_read_kbs,disk_write_kbs,net_rx_kbs,net_tx_kbs"


@pytest.fixture
def prefix(tmp_path) -> str:
    rows = [GAUGES]
    for step in range(60):
        for vm, cpu in (("a", 40.0), ("b", 0.1)):
            rows.append(f"{1_376_314_800 + 300 * step},{vm},{cpu},500,0,0,0,0")
    with gzip.open(tmp_path / "pack_traces.csv.gz", "wt") as file:
        file.write("\n".join(rows) + "\n")
    (tmp_path / "pack_vms.csv").write_text(
        "vm,host,ncpu,mem_capacity_mb\na,h0,2,1024\nb,h0,4,8192\n"
    )
    return str(tmp_path / "pack")


def test_report_is_a_table_json_or_csv_of_the_same(flatline: Flatline, prefix: str) -> None:
    table = flatline("capacity", "report", prefix)
    assert "node h0" in table.out
    assert "idle" in table.out
    assert "a dataset does not contain the capacity of its nodes" in " ".join(table.out.split())
    assert "0.2 days of data are less than a week" in " ".join(table.out.split())
    found = json.loads(flatline("capacity", "report", prefix, "--format", "json").out)
    idle = next(vm for vm in found["vms"] if vm["name"] == "b")
    assert (idle["finding"], idle["proposed_vcpus"]) == ("idle", 1)
    lines = list(
        csv.DictReader(io.StringIO(flatline("capacity", "report", prefix, "--format", "csv").out))
    )
    assert [line["subject"] for line in lines] == [row["subject"] for row in found["scopes"]]
    # An unknown value is an empty field: a dataset has no size of its hosts.
    assert lines[0]["usable"] == ""


def test_lost_node_is_answered(flatline: Flatline, prefix: str) -> None:
    said = flatline("capacity", "whatif", prefix, "--lost", "h0", "--format", "json")
    answer = json.loads(said.out)
    assert (answer["asked"], answer["placed"]) == (2, 0)
    assert answer["unplaced"] == ["a", "b"]
    assert "0 of 2 VMs can be placed" in flatline("capacity", "whatif", prefix, "--lost", "h0").out


@pytest.mark.parametrize(
    ("words", "reported"),
    [
        ((), "Use exactly one of"),
        (("--lost", "h0", "--drained", "c"), "Use exactly one of"),
        (("--vms", "3"), "--vms and --flavor must be used together"),
        (("--lost", "h0", "--in", "cell:x"), "--in names the place"),
        (("--lost", "h9"), "nodes: h0"),
    ],
)
def test_half_a_query_is_refused(flatline: Flatline, prefix: str, words, reported) -> None:
    said = flatline("capacity", "whatif", prefix, *words)
    assert said.code == 2
    assert reported in " ".join(said.err.split())


def test_nothing_to_report_on_is_reported(flatline: Flatline, tmp_path) -> None:
    assert flatline("capacity", "report", str(tmp_path / "nowhere")).code == 2
    assert flatline("capacity", "report").code == 3
