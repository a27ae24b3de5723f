"""Flatline's own metrics, each defined once.

Base units and suffixes follow Prometheus: `_total`, `_seconds`, `_bytes`, `_ratio`. A label has few
values (nodes, topics, reasons of a fixed set), so no label names a VM.
"""

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

# The range is from a fast local call to a call that waits for a hung monitor until its time limit.
_CALL_BUCKETS_S: Final = (0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0)

FRAMES_SENT: Final = Counter(
    "flatline_collect_frames_total", "Frames appended to the log.", ["node"]
)
SAMPLES_SENT: Final = Counter(
    "flatline_collect_vm_samples_total", "VM rows appended to the log.", ["node"]
)
RECORDS_REJECTED: Final = Counter(
    "flatline_records_rejected_total",
    "Records of frames, alerts, orders or control that engine, planner or agent rejected, by "
    "reason.",
    ["topic", "reason"],
)
POISON: Final = Counter(
    "flatline_poison_records_total",
    "Records that failed twice during processing and were set aside, by role.",
    ["role"],
)
FRAMES_DROPPED: Final = Counter(
    "flatline_collect_frames_dropped_total",
    "Frames dropped before the log had them, by reason: age, bytes, oversized.",
    ["node", "reason"],
)
SLOTS_MISSED: Final = Counter(
    "flatline_collect_slots_missed_total",
    "Sampling times without a sample, because the hypervisor was slow or unavailable.",
    ["node"],
)
BUFFERED_FRAMES: Final = Gauge(
    "flatline_collect_buffered_frames", "Frames waiting for the log.", ["node"]
)
BUFFERED_BYTES: Final = Gauge(
    "flatline_collect_buffered_bytes", "Size of the frames waiting for the log.", ["node"]
)
SAMPLE_SECONDS: Final = Histogram(
    "flatline_collect_sample_seconds",
    "Duration of one bulk sample of the node.",
    ["node"],
    buckets=_CALL_BUCKETS_S,
)
LATE_SECONDS: Final = Histogram(
    "flatline_collect_late_seconds",
    "Delay between the scheduled and the actual start of a sample.",
    ["node"],
    buckets=_CALL_BUCKETS_S,
)
HYPERVISOR_REACHABLE: Final = Gauge(
    "flatline_collect_hypervisor_reachable",
    ("1 while the hypervisor answers, otherwise 0."),
    ["node"],
)
ROLE_RESTARTS: Final = Counter(
    "flatline_role_restarts_total",
    "Restarts of a role of this process after its log or hypervisor was unavailable.",
    ["role"],
)
RECORDS_UNSAID: Final = Counter(
    "flatline_outbox_unsaid_total",
    "Records still waiting for the log when their planner or agent ended.",
    ["topic"],
)
RECORDS_GIVEN_UP: Final = Counter(
    "flatline_records_given_up_total",
    "Records that the log rejected permanently, by topic and reason. Their first bytes are in "
    "rejected.",
    ["topic", "reason"],
)
SIGNS_UNREAD: Final = Counter(
    "flatline_act_signs_unread_total",
    "Signs of life that could not be read and count as unknown, by kind: probe, guest agent, "
    "console.",
    ["channel"],
)
ORDERS_GIVEN: Final = Counter(
    "flatline_plan_orders_total",
    "Orders appended by this planner.",
    ["action", "dry_run"],
)
ORDERS_HELD: Final = Counter(
    "flatline_plan_refusals_total", "Orders held, by the rule that held them.", ["rule"]
)
PAGES: Final = Counter(
    "flatline_plan_pages_total", "Events of which a person must be notified, by rule.", ["rule"]
)
ORDERS_ENDED: Final = Counter(
    "flatline_act_orders_total",
    "Orders for this node, by result.",
    ["action", "outcome", "dry_run"],
)
ORDERS_REFUSED: Final = Counter(
    "flatline_act_refusals_total", "Orders refused by this agent, by rule.", ["rule"]
)
RECORDS: Final = Counter(
    "flatline_detect_records_total",
    "Records of the frames topic, by outcome. Additional outcomes: clock_backwards, lost (records "
    "that the log dropped before they were read), foreign (rows, events and items of VMs that "
    "another node runs) and rival (frames of a second collector of a node).",
    ["outcome"],
)
FRAMES_NOT_BELIEVED: Final = Counter(
    "flatline_frames_not_believed_total",
    "Frames whose writer could not be verified (bad_mac), by the role that read them. A value "
    "above zero means a node without its key, or forged frames.",
    ["reader"],
)
WAITING_FRAMES: Final = Gauge(
    "flatline_detect_waiting_frames",
    ("Frames waiting for an earlier frame that is missing."),
    ["partition"],
)
ALERTS: Final = Counter(
    "flatline_detect_alerts_total", "Alerts published, including repetitions.", ["kind", "state"]
)
WITNESSED_VMS: Final = Gauge(
    "flatline_detect_witnessed_vms",
    "VMs that have this witness: it could confirm their death.",
    ["cell", "witness"],
)
ORDERABLE_VMS: Final = Gauge(
    "flatline_detect_orderable_vms",
    "VMs by whether a second witness could confirm their death: yes, or no (alert only).",
    ["cell", "orderable"],
)
SNAPSHOT_BYTES: Final = Gauge(
    "flatline_detect_snapshot_bytes", "Size of the last snapshot.", ["partition"]
)
SNAPSHOTS_PASSED_OVER: Final = Counter(
    "flatline_snapshots_passed_over_total",
    "Snapshots that a role skipped, by reason. bad_signature: no trusted key signed it. "
    "bad_value: it is ahead of the log.",
    ["topic", "reason"],
)
FORECASTS: Final = Counter(
    "flatline_forecast_records_total", "Forecast records appended to the log."
)
HISTORY_ROWS: Final = Counter(
    "flatline_history_rows_total", "Rows acknowledged by the store of the history."
)
HISTORY_FAILURES: Final = Counter(
    "flatline_history_failures_total",
    "Writes and queries that the store rejected or did not answer. Each is retried.",
    ["error"],
)
HISTORY_REJECTED: Final = Counter(
    "flatline_history_rejected_total", "Rows and records that no history store accepts.", ["reason"]
)
HISTORY_UNREADABLE: Final = Counter(
    "flatline_history_unreadable_total", "Records of the frames topic that are not frames."
)
HISTORY_BEYOND_INT64: Final = Counter(
    "flatline_history_beyond_int64_total",
    "Counters above 2^63 - 1, omitted from their row because no store accepts them.",
)
HISTORY_HOURS: Final = Counter(
    "flatline_history_hours_total",
    ("Hours of the VMs, nodes or pools of a cell that were rolled up."),
)
NOTICES: Final = Counter(
    "flatline_notices_total",
    "Notifications of people, by result: sent, failed (retried), refused (written to the "
    "journal), too_old.",
    ["result"],
)
