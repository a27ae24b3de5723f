"""`flatline evaluate`: compares a replay with the true events.

It computes metrics, and draws a page for each miss and each false alarm.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
from rich.table import Table

from flatline.engine.cli.replay_command import ALERTS, EVALUATION, PAGES, SUMMARY, remove_pages
from flatline.engine.detection.configuration import Configuration
from flatline.engine.detection.likelihoods import limits
from flatline.engine.errors import SettingsError, StateUnwritable
from flatline.engine.evaluation.closeup import CloseupCollector, Window
from flatline.engine.evaluation.fitting import strangers
from flatline.engine.evaluation.judging import HARMFUL, Judgement, ReportedIncident, judge
from flatline.engine.evaluation.lines import AlertLine, Summary
from flatline.engine.evaluation.page import Mark, Span, moment, page
from flatline.engine.evaluation.scores import Rate, Recall, Scores, rate, score
from flatline.engine.evaluation.truth import Occurrence
from flatline.engine.plain_text import file_name
from flatline.engine.ports import Recording
from flatline.engine.roles.replay import Replayer
from flatline.engine.wiring import compile_engine, open_recording, read_truth

# Maximum number of VMs that a page draws for an incident of many VMs.
_DRAWN: Final = 6
_BEFORE_INTERVALS: Final = 30.0
_AFTER_INTERVALS: Final = 30.0
_LONGEST_INTERVALS: Final = 200.0
# The first week is for learning; a longer recording has separate metrics of the time after it.
_WARM_UP_DAYS: Final = 7
# If the replay cannot have seen at least this share of the events, they belong to another dataset.
# A smaller share is possible if only a part of the dataset was replayed.
_STRANGE_SHARE: Final = 0.9


class AfterWarmUp(msgspec.Struct, frozen=True, kw_only=True):
    """Rates of orders and alerts, without the first week of the replay."""

    false_orders: Rate
    false_alerts: Rate
    all_alerts: Rate


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """The content of `evaluation.json`.

    Attributes
    ----------
    strangers
        One sentence with the reason for each event that the replay cannot have seen. Such an event
        still counts as missed.
    """

    dataset: str
    configuration: str
    digest: str
    interval_s: float
    strangers: tuple[str, ...]
    scores: Scores
    after_warm_up: AfterWarmUp | None
    pages: int


class Mistake(NamedTuple):
    """One mistake: its kind, subject and time, and the related alert or event."""

    name: str
    title: str
    vms: tuple[str, ...]
    window: Window
    lines: tuple[AlertLine, ...]
    occurrences: tuple[Occurrence, ...]


def run_evaluation(folder: Path, *, events: Path, drawing: bool) -> Evaluation:
    """Judge the replay in a folder, write `evaluation.json` and the pages, return the metrics.

    `events` is the dataset's `PREFIX_events.csv`. `drawing` is whether pages are drawn; if not,
    those of an earlier evaluation are kept.

    Raises
    ------
    SettingsError
        The folder holds no replay, or `events` cannot be read or belongs to another dataset.
    StateUnwritable
        The folder cannot be written.
    """
    summary, lines = read_replay(folder)
    truth = read_truth(events)
    strange = tuple(strangers(truth, summary))
    if strange and len(strange) >= _STRANGE_SHARE * len(truth):
        raise SettingsError(
            f"{events} does not belong to the replay in {folder}: {len(strange)} of its "
            f"{len(truth)} events are not covered by that replay. Example: {strange[0]}. The "
            f"replay is of {summary.dataset}: name the events of that dataset."
        )
    judgement = judge(lines, truth, interval_s=summary.interval_s, aggregates_only=True)
    mistakes = list(_mistakes(judgement, truth, summary.interval_s))
    if drawing:
        _remove_pages(folder)
    if drawing and mistakes:
        _draw(folder / PAGES, mistakes, summary, lines, truth)
    evaluation = Evaluation(
        dataset=summary.dataset,
        configuration=summary.configuration,
        digest=summary.digest,
        interval_s=summary.interval_s,
        strangers=strange,
        scores=score(judgement, interval_s=summary.interval_s, vm_days=summary.vm_days),
        after_warm_up=_after_warm_up(judgement, summary),
        pages=len(mistakes) if drawing else 0,
    )
    text = msgspec.json.format(msgspec.json.encode(evaluation), indent=2)
    _write(folder / EVALUATION, text + b"\n")
    return evaluation


def read_replay(folder: Path) -> tuple[Summary, list[AlertLine]]:
    """Return the summary and the alerts that a replay wrote.

    Raises
    ------
    SettingsError
        The folder holds no replay of this release.
    """
    try:
        summary = msgspec.json.decode((folder / SUMMARY).read_bytes(), type=Summary)
        texts = (folder / ALERTS).read_bytes().splitlines()
        lines = [msgspec.json.decode(text, type=AlertLine) for text in texts]
    except OSError as error:
        raise SettingsError(
            f"{folder} holds no replay ({error}). Create one with `flatline replay`."
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{folder} holds no replay that this release can read: {error}."
        ) from error
    return summary, lines


def _after_warm_up(judgement: Judgement, summary: Summary) -> AfterWarmUp | None:
    if len(summary.vm_days_by_day) <= _WARM_UP_DAYS:
        return None
    days = sum(summary.vm_days_by_day[_WARM_UP_DAYS:])
    from_s = summary.began_s + 86_400.0 * _WARM_UP_DAYS
    return AfterWarmUp(
        false_orders=rate(sum(one.line.t >= from_s for one in judgement.false_orders), days),
        false_alerts=rate(
            sum(one.incident.first.t >= from_s for one in judgement.false_alerts), days
        ),
        all_alerts=rate(sum(one.first.t >= from_s for one in judgement.reported), days),
    )


def _mistakes(
    judgement: Judgement, truth: Sequence[Occurrence], interval_s: float
) -> Iterator[Mistake]:
    """Yield each miss and each false alarm once."""
    for finding in judgement.findings:
        occurrence = finding.occurrence
        if not (occurrence.is_fault and occurrence.detectable):
            continue
        acting = occurrence.expected in HARMFUL
        if finding.alert_s is not None and (finding.suggestion_s is not None or not acting):
            continue
        what = "was not detected" if finding.alert_s is None else f"got no {occurrence.expected}"
        vms = tuple(sorted(occurrence.vms))
        yield Mistake(
            name=f"miss-{occurrence.kind}-{vms[0]}-{occurrence.start_s:.0f}",
            title=f"Missed: {occurrence.kind} of {_some(vms)} {what}",
            vms=vms,
            window=_window(occurrence.start_s, occurrence.end_s, interval_s),
            lines=tuple(line for one in finding.reported for line in one.lines),
            occurrences=(occurrence,),
        )
    wrong = {order.incident.id: order for order in judgement.false_orders}
    reported: dict[str, ReportedIncident] = {
        one.incident.id: one.incident for one in judgement.false_alerts
    }
    reported |= {name: order.incident for name, order in wrong.items()}
    for name, incident in reported.items():
        line = wrong[name].line if name in wrong else incident.first
        what = f"a {line.suggested_action} of" if name in wrong else f"an alert {line.kind} of"
        vms = tuple(sorted(incident.befalls())) or ()
        window = _window(line.onset_t, incident.lines[-1].t, interval_s)
        kind = "order" if name in wrong else "alert"
        yield Mistake(
            name=f"false-{kind}-{line.kind}-{line.subject}-{line.t:.0f}",
            title=f"False: {what} {line.subject}",
            vms=vms,
            window=window,
            lines=incident.lines,
            occurrences=tuple(
                one
                for one in truth
                if one.start_s <= window.end_s
                and one.end_s >= window.start_s
                and (one.is_fleet or set(vms) & (one.vms | one.victims))
            ),
        )


def _window(start_s: float, end_s: float, interval_s: float) -> Window:
    begins_s = start_s - _BEFORE_INTERVALS * interval_s
    ends_s = min(end_s + _AFTER_INTERVALS * interval_s, begins_s + _LONGEST_INTERVALS * interval_s)
    return Window(begins_s, ends_s)


def _some(vms: Sequence[str]) -> str:
    return vms[0] if len(vms) == 1 else f"{len(vms)} VMs"


def _draw(
    folder: Path,
    mistakes: Sequence[Mistake],
    summary: Summary,
    lines: Sequence[AlertLine],
    truth: Sequence[Occurrence],
) -> None:
    """Replay again while recording the VMs concerned, and write the pages."""
    recording = open_recording(summary.dataset)
    drawn = [
        [vm for vm in mistake.vms if vm in summary.vm_days_by_vm][:_DRAWN] for mistake in mistakes
    ]
    wanted: dict[str, list[Window]] = {}
    for mistake, vms in zip(mistakes, drawn, strict=True):
        for vm in vms:
            wanted.setdefault(vm, []).append(mistake.window)
    watcher = _watched(recording, wanted, summary)
    scores = limits(Configuration())
    for mistake, vms in zip(mistakes, drawn, strict=True):
        first = next((line for line in mistake.lines if line.state == "firing"), None)
        sentence = first.sentence if first is not None else "The engine reported nothing."
        own = set(mistake.vms)
        marks = [
            Mark(line.t, line.state, f"{line.kind}, {line.suggested_action}: {line.sentence}")
            for line in lines
            if mistake.window.holds(line.t)
            and (line in mistake.lines or line.subject in own or own & set(line.vms))
        ]
        text = page(
            title=mistake.title,
            sentence=sentence,
            facts=_facts(mistake),
            closeups={vm: watcher.closeups[vm] for vm in vms},
            window=mistake.window,
            marks=marks,
            spans=[
                Span(one.start_s, one.end_s, f"{one.kind} ({one.note})")
                for one in truth
                if one in mistake.occurrences
            ],
            limits=scores,
        )
        _write(folder / f"{file_name(mistake.name)}.html", text.encode())


def _watched(
    recording: Recording, wanted: dict[str, list[Window]], summary: Summary
) -> CloseupCollector:
    compile_engine()
    replayer = Replayer(recording, policies={})
    watcher = CloseupCollector(wanted, names=recording.names, configuration=replayer.configuration)
    for one in recording.recorded_frames():
        for _ in replayer.fold(one):
            pass
        watcher.see(one, replayer.cells)
    if replayer.digest() != summary.digest:
        raise SettingsError(
            f"Replaying {summary.dataset} no longer gives the same final state: the dataset or "
            "this release has changed. Run `flatline replay` again."
        )
    return watcher


def _facts(mistake: Mistake) -> list[tuple[str, str]]:
    facts = [("from", moment(mistake.window.start_s)), ("to", moment(mistake.window.end_s))]
    for one in mistake.occurrences:
        what = "fault" if one.is_fault else "confounder"
        facts.append((what, f"{one.kind}, {moment(one.start_s)} to {moment(one.end_s)}"))
        facts.append(("suggests", one.expected))
        facts.append(("note", one.note))
    if not mistake.occurrences:
        facts.append(("explanation", "no known event"))
    return facts


def _remove_pages(folder: Path) -> None:
    try:
        remove_pages(folder)
    except OSError as error:
        raise StateUnwritable(
            f"{folder / PAGES} cannot be emptied: {error}. Use another --out"
        ) from error


def _write(path: Path, text: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
    except OSError as error:
        raise StateUnwritable(f"{path} cannot be written: {error}. Use another --out") from error


def tables(evaluation: Evaluation) -> Iterator[Table]:
    """Yield the metrics as tables for a terminal."""
    scores = evaluation.scores
    table = Table(
        "fault", "n", "alert", "within 2 samples", "median", "right suggestion",
        "within 3 samples", "within 6 samples", "median", "p95",
        title="Recall (95 % bound) and delay", title_justify="left",
    )  # fmt: skip
    for kind, alert in scores.alerts.items():
        right = scores.suggestions[kind]
        table.add_row(
            kind, str(alert.total), _share(alert), _part(alert, 2), _seconds(alert.median_s),
            _share(right), _part(right, 3), _part(right, 6), _seconds(right.median_s),
            _seconds(right.p95_s),
        )  # fmt: skip
    yield table
    table = Table("what", "count", "VM-days", "per 1,000 VM-days", "95 % bound", "explanation",
                  title="Unnecessary reports", title_justify="left")  # fmt: skip
    rows: list[tuple[str, Rate, dict[str, int]]] = [
        ("false orders", scores.false_orders, scores.orders_behind),
        ("false alerts", scores.false_alerts, scores.alerts_behind),
        ("all alerts", scores.all_alerts, {}),
    ]
    later = evaluation.after_warm_up
    if later is not None:
        rows += [
            ("false orders after a week", later.false_orders, {}),
            ("false alerts after a week", later.false_alerts, {}),
            ("all alerts after a week", later.all_alerts, {}),
        ]
    for name, one, behind in rows:
        table.add_row(
            name, str(one.count), f"{one.vm_days:,.0f}", _figure(one.per_1000), _figure(one.upper),
            ", ".join(f"{kind} {number}" for kind, number in islice(behind.items(), 6)),
        )  # fmt: skip
    yield table
    yield _kinds(scores)


def _kinds(scores: Scores) -> Table:
    table = Table("kind", "n", "right", "false", "F1", "reported as", title_justify="left",
                  title=f"Kinds: macro-F1 {_figure(scores.macro_f1)}")  # fmt: skip
    for kind, one in scores.kinds.items():
        taken = scores.confusion.get(kind, {})
        others = ", ".join(f"{name} {number}" for name, number in taken.items() if name != kind)
        table.add_row(kind, str(one.total), str(one.right), str(one.false), _figure(one.f1), others)
    return table


def _share(recall: Recall) -> str:
    return "–" if recall.recall is None else f"{recall.recall:.3f} (≥ {recall.lower:.3f})"


def _part(recall: Recall, samples: int) -> str:
    found = recall.within.get(str(samples))
    return "–" if found is None else f"{found:.3f}"


def _seconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds:,.0f} s"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:,.3g}"


__all__ = ["PAGES", "Evaluation", "read_replay", "run_evaluation", "tables"]
