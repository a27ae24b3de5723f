"""Replay and evaluation from the command line, on two hours of four synthetic VMs."""

import gzip
import json
import re
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from flatline.engine.action.catalogue import read_shipped
from flatline.engine.cli.evaluate import Evaluation, tables
from tests.unit.engine.cli.conftest import Flatline

SLOTS = 720
PANIC_FROM, PANIC_TO = 500, 560
LOST = (600, 607)
KEYS = {"t", "onset_t", "id", "scope", "subject", "vms", "kind", "state", "confidence",
        "suggested_action", "vetoes", "sentence"}  # fmt: skip


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("pack")
    rng = np.random.default_rng(7)
    counters = np.zeros((4, 5))
    rows = []
    for slot in range(SLOTS):
        load = rng.uniform(0.2, 0.6, 4)
        io = rng.uniform(2_000, 90_000, (4, 4))
        memory = rng.integers(300_000, 400_000, 4)
        if PANIC_FROM <= slot < PANIC_TO:
            load[1], io[1], memory[1] = 1.01, 0.0, 350_000
        counters += np.column_stack([load * 1e10, io])
        for vm in range(4):
            if vm == 2 and LOST[0] <= slot < LOST[1]:
                continue
            t = 1_700_000_000 + 10 * slot
            values = ",".join(str(int(value)) for value in counters[vm])
            rows.append(f"{t + 0.1 * vm},{t},v{vm},{values},{memory[vm]}")
    columns = "recv_t,t,vm,cpu_time_ns,disk_rd_bytes,disk_wr_bytes,net_rx_bytes,net_tx_bytes,mem_kb"
    with gzip.open(folder / "two_hours_stream.csv.gz", "wt") as file:
        file.write("\n".join([columns, *rows]) + "\n")
    (folder / "two_hours_vms.csv").write_text(
        "vm,host,ncpu,mem_capacity_mb\nv0,h0,2,1024\nv1,h0,4,1024\nv2,h1,2,1024\nv3,h1,2,1024\n"
    )
    start = 1_700_000_000 + 10 * PANIC_FROM
    (folder / "two_hours_events.csv").write_text(
        "vm,host,t_start,t_end,kind,class,expected_action,note\n"
        f"v1,h0,{start},{start + 600},panic_spin,fault,reboot,busy_cores=1;pre_active_min=1.00\n"
        f"v3,h1,{start + 900},{start + 1500},mem_leak,fault,alert,never put in;pre_active_min=1\n"
    )
    return str(folder / "two_hours")


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_replay_writes_alerts_orders_and_a_summary(
    flatline: Flatline, prefix: str, tmp_path: Path
) -> None:
    said = flatline("replay", prefix, "--out", str(tmp_path / "out"))
    assert said.code == 0, said.err
    alerts = lines_of(tmp_path / "out" / "alerts.jsonl")
    assert all(set(line) == KEYS for line in alerts)
    [panic] = {line["id"] for line in alerts if line["kind"] == "panic_spin"}
    assert {line["subject"] for line in alerts if line["id"] == panic} == {"v1"}
    assert [line["t"] for line in alerts] == sorted(line["t"] for line in alerts)
    assert any(line["kind"] == "vm_silence" and line["subject"] == "v2" for line in alerts)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["rows"]["rows_read"] == summary["rows"]["rows_used"] == 4 * SLOTS - 7
    assert summary["vm_days"] == pytest.approx((4 * SLOTS - 7) * 10 / 86_400, abs=1e-3)
    assert sum(summary["vm_days_by_vm"].values()) == pytest.approx(summary["vm_days"], abs=1e-3)
    fired = {line["id"] for line in alerts if line["state"] == "firing"}
    assert summary["fired"] == len(fired)
    assert f"{len(fired)} alerts fired;" in said.out
    # Two hours are less than a day: the default policy permits no action yet.
    assert lines_of(tmp_path / "out" / "orders.jsonl") == []


def test_the_same_dataset_gives_the_same_bytes(
    flatline: Flatline, prefix: str, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        assert flatline("replay", prefix, "--out", str(tmp_path / name)).code == 0
    for name in ("alerts.jsonl", "orders.jsonl"):
        one, two = ((tmp_path / folder / name).read_bytes() for folder in ("one", "two"))
        assert one == two
    one, two = (json.loads((tmp_path / f / "summary.json").read_text()) for f in ("one", "two"))
    for name in ("wall_s", "vm_samples_per_s", "times_real"):
        del one[name], two[name]
    assert one == two


def test_two_policies_are_compared(flatline: Flatline, prefix: str, tmp_path: Path) -> None:
    lab = tmp_path / "lab.toml"
    # Totals alone never give a second witness, so only evidence is ordered.
    saving = 'panic_spin = [{ action = "save_evidence" }, '
    lab.write_text(read_shipped("lab").replace("panic_spin = [", saving))
    out = tmp_path / "out"
    said = flatline("replay", prefix, "--out", str(out), "--compare", str(lab))
    assert said.code == 0, said.err
    [order] = lines_of(out / "orders_compared.jsonl")
    assert set(order) == {"t", "vm", "action", "incident", "step", "sentence"}
    assert (order["vm"], order["action"], order["step"]) == ("v1", "save_evidence", 0)
    compared = json.loads((out / "summary.json").read_text())["compared"]
    assert compared["only_compared"] == [order["incident"]]
    assert "Policy lab would have ordered 1 save_evidence." in said.out


def test_an_evaluation_gives_figures_and_a_page_for_each_mistake(
    flatline: Flatline, prefix: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert flatline("replay", prefix, "--out", str(out)).code == 0
    said = flatline("evaluate", str(out), "--events", f"{prefix}_events.csv")
    assert said.code == 0, said.err
    scores = json.loads((out / "evaluation.json").read_text())["scores"]
    assert scores["alerts"]["panic: one core"]["found"] == 1
    assert scores["suggestions"]["panic"]["worst_s"] <= 70.0
    assert scores["false_orders"]["count"] == 0
    assert scores["false_orders"]["upper"] > 0
    assert scores["alerts"]["mem_leak"]["found"] == 0
    [miss] = (out / "pages").glob("miss-mem_leak-v3-*.html")
    assert "The engine reported nothing." in miss.read_text()
    [false] = (out / "pages").glob("false-alert-vm_silence-v2-*.html")
    assert "v2 on h1" in false.read_text()
    evaluation = msgspec.json.decode((out / "evaluation.json").read_bytes(), type=Evaluation)
    heads = [str(column.header) for column in next(tables(evaluation)).columns]
    within = [head for head in heads if head.startswith("within")]
    assert within == ["within 2 samples", "within 3 samples", "within 6 samples"]


def test_a_replay_removes_what_came_of_the_earlier_one_and_nothing_else(
    flatline: Flatline, prefix: str, tmp_path: Path
) -> None:
    out, lab = tmp_path / "out", tmp_path / "lab.toml"
    lab.write_text(read_shipped("lab"))
    assert flatline("replay", prefix, "--out", str(out), "--compare", str(lab)).code == 0
    assert flatline("evaluate", str(out), "--events", f"{prefix}_events.csv").code == 0
    assert any((out / "pages").iterdir())
    (out / "notes.txt").write_text("my own")
    assert flatline("replay", prefix, "--out", str(out)).code == 0
    assert {path.name for path in out.iterdir()} == {
        "alerts.jsonl", "orders.jsonl", "summary.json", "notes.txt"
    }  # fmt: skip


def test_an_evaluation_removes_its_own_earlier_pages_and_no_others(
    flatline: Flatline, prefix: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert flatline("replay", prefix, "--out", str(out)).code == 0
    pages = out / "pages"
    pages.mkdir()
    (pages / "miss-disk_hang-v0-1.html").write_text("of an earlier evaluation")
    (pages / "index.html").write_text("my own")
    assert flatline("evaluate", str(out), "--events", f"{prefix}_events.csv").code == 0
    names = {page.name for page in pages.iterdir()}
    assert "miss-disk_hang-v0-1.html" not in names
    assert "index.html" in names
    assert len(names) == 3


@pytest.mark.parametrize(
    ("words", "code", "reported"),
    [
        (("replay", "nowhere/pack", "--out", "o"), 2, "is not a dataset"),
        (("evaluate", "nowhere", "--events", "e.csv"), 2, "holds no replay"),
    ],
)
def test_what_cannot_be_used_is_reported(flatline: Flatline, words, code, reported) -> None:
    said = flatline(*words)
    assert said.code == code
    assert reported in said.err


def test_a_dataset_that_changed_since_is_reported(
    flatline: Flatline, prefix: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert flatline("replay", prefix, "--out", str(out)).code == 0
    summary = json.loads((out / "summary.json").read_text())
    (out / "summary.json").write_text(json.dumps({**summary, "digest": "0" * 64}))
    said = flatline("evaluate", str(out), "--events", f"{prefix}_events.csv")
    assert said.code == 2
    assert "Run `flatline replay` again" in said.err


@pytest.mark.parametrize(
    ("written", "read", "reported"),
    [
        (r"^v[13],", "x9,", "VM x9 of its panic_spin does not occur in the replay"),
        (r",1700", ",1710", "of v1 on 2024-03-09 is outside 2023-11-14 to 2023-11-15"),
    ],
    ids=["VMs", "time"],
)
def test_the_truth_of_another_dataset_is_refused(
    flatline: Flatline, prefix: str, tmp_path: Path, written: str, read: str, reported: str
) -> None:
    out = tmp_path / "out"
    assert flatline("replay", prefix, "--out", str(out)).code == 0
    events = tmp_path / "other_events.csv"
    text = Path(f"{prefix}_events.csv").read_text()
    events.write_text(re.sub(written, read, text, flags=re.MULTILINE))
    said = flatline("evaluate", str(out), "--events", str(events), "--no-pages")
    assert said.code == 2
    refused = " ".join(said.err.split())
    assert "2 of its 2 events are not covered by that replay" in refused
    assert reported in refused
    assert f"replay is of {prefix}: name the events of that dataset." in refused
    assert not (out / "evaluation.json").exists()


def test_events_that_a_replay_cannot_have_seen_are_shown_beside_the_figures(
    flatline: Flatline, prefix: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert flatline("replay", prefix, "--out", str(out)).code == 0
    events = tmp_path / "more_events.csv"
    events.write_text(Path(f"{prefix}_events.csv").read_text().replace("v3", "x9"))
    said = flatline("evaluate", str(out), "--events", str(events))
    assert said.code == 0
    reported = "1 events are not covered by this replay and count as missed if they are faults"
    assert reported in " ".join(said.err.split())
    evaluation = json.loads((out / "evaluation.json").read_text())
    assert evaluation["strangers"] == ["VM x9 of its mem_leak does not occur in the replay"]
    [miss] = (out / "pages").glob("miss-mem_leak-x9-*.html")
    assert "The engine reported nothing." in miss.read_text()


def test_a_replay_that_fails_leaves_no_summary_of_an_earlier_one(
    flatline: Flatline, prefix: str, tmp_path: Path
) -> None:
    out, source = tmp_path / "out", Path(prefix)
    shutil.copytree(source.parent, tmp_path / "pack")
    prefix = str(tmp_path / "pack" / source.name)
    assert flatline("replay", prefix, "--out", str(out)).code == 0
    samples = Path(f"{prefix}_stream.csv.gz")
    samples.write_bytes(samples.read_bytes()[:-3])
    said = flatline("replay", prefix, "--out", str(out))
    assert said.code == 2
    # The message is wrapped where the path is long.
    assert "cannot be read" in " ".join(said.err.split())
    assert flatline("evaluate", str(out), "--events", f"{prefix}_events.csv").code == 2
