"""Flatline's own metrics, each defined once.

Base units and suffixes follow Prometheus: `_total`, `_seconds`, `_bytes`, `_ratio`. A label has few
values: nodes, topics, reasons from a closed set; never a VM.
"""

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

# From a fast local call to a monitor that hangs until its time limit.
_CALL_BUCKETS_S: Final = (0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0)

FRAMES_SENT: Final = Counter(
    "flatline_collect_frames_total", "Frames that stand in the log.", ["node"]
)
SAMPLES_SENT: Final = Counter(
    "flatline_collect_vm_samples_total", "VM rows that stand in the log.", ["node"]
)
RECORDS_REJECTED: Final = Counter(
    "flatline_records_rejected_total",
    "Records of frames, alerts, orders or control that engine, planner or agent could not take, by"
    " reason.",
    ["topic", "reason"],
)
POISON: Final = Counter(
    "flatline_poison_records_total",
    "Records that could not be folded twice and were set aside, by role.",
    ["role"],
)
FRAMES_DROPPED: Final = Counter(
    "flatline_collect_frames_dropped_total",
    "Frames given up before the log had them, by reason: age, bytes, oversized.",
    ["node", "reason"],
)
SLOTS_MISSED: Final = Counter(
    "flatline_collect_slots_missed_total",
    "Sampling times that passed without a sample, because the hypervisor was slow or away.",
    ["node"],
)
BUFFERED_FRAMES: Final = Gauge(
    "flatline_collect_buffered_frames", "Frames that wait for the log.", ["node"]
)
BUFFERED_BYTES: Final = Gauge(
    "flatline_collect_buffered_bytes", "Size of the frames that wait for the log.", ["node"]
)
SAMPLE_SECONDS: Final = Histogram(
    "flatline_collect_sample_seconds",
    "What one bulk look at the node took.",
    ["node"],
    buckets=_CALL_BUCKETS_S,
)
LATE_SECONDS: Final = Histogram(
    "flatline_collect_late_seconds",
    "How far behind its cadence a sample began.",
    ["node"],
    buckets=_CALL_BUCKETS_S,
)
HYPERVISOR_REACHABLE: Final = Gauge(
    "flatline_collect_hypervisor_reachable", "1 while the hypervisor answers, else 0.", ["node"]
)
ROLE_RESTARTS: Final = Counter(
    "flatline_role_restarts_total",
    "How often a role of this process was started again after its log or hypervisor went away.",
    ["role"],
)
RECORDS_UNSAID: Final = Counter(
    "flatline_outbox_unsaid_total",
    "Records that still waited for the log when their planner or agent ended.",
    ["topic"],
)
RECORDS_GIVEN_UP: Final = Counter(
    "flatline_records_given_up_total",
    "Records that the log will never take, by topic and reason; their beginning is in rejected.",
    ["topic", "reason"],
)
SIGNS_UNREAD: Final = Counter(
    "flatline_act_signs_unread_total",
    "Signs of life that could not be read and count as unknown: probe, guest agent, console.",
    ["channel"],
)
ORDERS_GIVEN: Final = Counter(
    "flatline_plan_orders_total",
    "Orders that this planner appended.",
    ["action", "dry_run"],
)
ORDERS_HELD: Final = Counter(
    "flatline_plan_refusals_total", "Orders held back, by the rule that did.", ["rule"]
)
PAGES: Final = Counter(
    "flatline_plan_pages_total", "Words of which a person must hear, by rule.", ["rule"]
)
ORDERS_ENDED: Final = Counter(
    "flatline_act_orders_total",
    "Orders for this node, by how they ended.",
    ["action", "outcome", "dry_run"],
)
ORDERS_REFUSED: Final = Counter(
    "flatline_act_refusals_total", "Orders that this agent refused, by rule.", ["rule"]
)
RECORDS: Final = Counter(
    "flatline_detect_records_total",
    "Records of the frames topic, by what became of them. Beside them: clock_backwards, lost (what"
    " the log dropped unread), foreign (rows, events and items of VMs that another node runs) and"
    " rival (frames of a second collector of a node).",
    ["outcome"],
)
FRAMES_NOT_BELIEVED: Final = Counter(
    "flatline_frames_not_believed_total",
    "Frames whose writer could not be verified (bad_mac), by the role that read them. Anything"
    " above zero is a node without its key, or somebody who forges frames.",
    ["reader"],
)
WAITING_FRAMES: Final = Gauge(
    "flatline_detect_waiting_frames", "Frames that wait for a gap before them.", ["partition"]
)
ALERTS: Final = Counter(
    "flatline_detect_alerts_total", "Alerts published, repeats included.", ["kind", "state"]
)
WITNESSED_VMS: Final = Gauge(
    "flatline_detect_witnessed_vms",
    "VMs of which this witness would be heard if they died.",
    ["cell", "witness"],
)
ORDERABLE_VMS: Final = Gauge(
    "flatline_detect_orderable_vms",
    "VMs by whether a death of theirs would have a second witness: yes, or no (alerted only).",
    ["cell", "orderable"],
)
SNAPSHOT_BYTES: Final = Gauge(
    "flatline_detect_snapshot_bytes", "Size of the last snapshot.", ["partition"]
)
SNAPSHOTS_PASSED_OVER: Final = Counter(
    "flatline_snapshots_passed_over_total",
    "Snapshots that a role did not go on from, by reason. bad_signature is one that nobody trusted"
    " signed, bad_value one that is ahead of the log.",
    ["topic", "reason"],
)
FORECASTS: Final = Counter(
    "flatline_forecast_records_total", "Records of forecasts that stand in the log."
)
HISTORY_ROWS: Final = Counter(
    "flatline_history_rows_total", "Rows that the history's store has acknowledged."
)
HISTORY_FAILURES: Final = Counter(
    "flatline_history_failures_total",
    "Writes and questions that the store did not take, each tried again.",
    ["error"],
)
HISTORY_REJECTED: Final = Counter(
    "flatline_history_rejected_total", "Rows and records that no history can hold.", ["reason"]
)
HISTORY_UNREADABLE: Final = Counter(
    "flatline_history_unreadable_total", "Records of the frames topic that are no frames."
)
HISTORY_BEYOND_INT64: Final = Counter(
    "flatline_history_beyond_int64_total",
    "Counters above 2^63 - 1, left out of their row as no store can hold them.",
)
HISTORY_HOURS: Final = Counter(
    "flatline_history_hours_total", "Hours of a cell's VMs, nodes or pools that were rolled up."
)
NOTICES: Final = Counter(
    "flatline_notices_total",
    "What people were to hear, by what became of it: sent, failed (and tried again), refused (and"
    " written to the journal), too_old.",
    ["result"],
)
