"""`flatline replay`: runs a recording through engine and planner, and writes the results."""

import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from flatline.engine.action.catalogue import Modes, Policy, parse_policy, read_shipped
from flatline.engine.errors import StateUnwritable
from flatline.engine.evaluation.lines import OrderLine, Summary
from flatline.engine.ports import Recording
from flatline.engine.roles.replay import Planned, Replayer
from flatline.engine.wiring import compile_engine, read_policy

ALERTS: Final = "alerts.jsonl"
ORDERS: Final = "orders.jsonl"
COMPARED: Final = "orders_compared.jsonl"
SUMMARY: Final = "summary.json"
# The outputs of `flatline evaluate`, in the same folder.
EVALUATION: Final = "evaluation.json"
PAGES: Final = "pages"
_PAGE_NAMES: Final = ("miss-*.html", "false-*.html")

_encode = msgspec.json.Encoder().encode


def replay_policy(file: Path | None, *, interval_s: float) -> Policy:
    """Return the policy of a file, or the default one with every action class `auto`.

    `interval_s` is the sampling interval of the recording, for the default policy only.

    Raises
    ------
    SettingsError
        The file cannot be read or breaks a rule.
    """
    if file is not None:
        return read_policy(file)
    shipped = parse_policy(read_shipped("default"), source="default")
    limits = msgspec.structs.replace(shipped.limits, interval_s=max(1.0, min(300.0, interval_s)))
    modes = Modes(default="auto")
    return msgspec.structs.replace(shipped, name="replay", modes=modes, limits=limits)


def run_replay(
    recording: Recording, *, source: str, out: Path, policy: Path | None, compared: Path | None
) -> Summary:
    """Replay, write the files to `out` and return the summary.

    Parameters
    ----------
    source
        Path of the recording as given, for the summary.
    policy
        Policy file; None as in `replay_policy`.
    compared
        File of another policy, whose orders are compared with those of `policy`; None for none.

    Raises
    ------
    SettingsError
        Recording or policy cannot be used.
    StateUnwritable
        `out` cannot be written.
    """
    policies = {"policy": replay_policy(policy, interval_s=recording.interval_s)}
    if compared is not None:
        policies["compared"] = read_policy(compared)
    compile_engine()  # so that the measured time excludes the compilation
    replayer = Replayer(recording, policies=policies)
    try:
        out.mkdir(parents=True, exist_ok=True)
        _remove_earlier(out)
        began_s = time.perf_counter()
        with (out / ALERTS).open("wb") as file:
            for line in replayer.run():
                _write(file, line)
        wall_s = time.perf_counter() - began_s
        _write_orders(out / ORDERS, replayer.planned["policy"].orders)
        if compared is not None:
            _write_orders(out / COMPARED, replayer.planned["compared"].orders)
        summary = _summary(replayer, recording, source=source, wall_s=wall_s)
        text = msgspec.json.format(_encode(summary), indent=2)
        (out / SUMMARY).write_bytes(text + b"\n")
    except OSError as error:
        raise StateUnwritable(f"{out} cannot be written: {error}. Use another --out") from error
    return summary


def remove_pages(folder: Path) -> None:
    """Remove the pages of an earlier evaluation, and their folder where nothing else is in it.

    `folder` is the output folder of the replay. OSError is raised if a page cannot be removed.
    """
    pages = folder / PAGES
    for names in _PAGE_NAMES:
        for page in pages.glob(names):
            page.unlink()
    if pages.is_dir() and not any(pages.iterdir()):
        pages.rmdir()


def _remove_earlier(out: Path) -> None:
    """Remove the files of an earlier replay, which would be mistaken for results of this one."""
    for name in (SUMMARY, ORDERS, COMPARED, EVALUATION):
        (out / name).unlink(missing_ok=True)
    remove_pages(out)


def _write(file: BinaryIO, line: msgspec.Struct) -> None:
    file.write(_encode(line))
    file.write(b"\n")


def _write_orders(path: Path, orders: Iterable[OrderLine]) -> None:
    with path.open("wb") as file:
        for line in orders:
            _write(file, line)


def _summary(replayer: Replayer, recording: Recording, *, source: str, wall_s: float) -> Summary:
    alerts: dict[str, dict[str, int]] = {}
    for (kind, state), number in sorted(replayer.alerts.items()):
        alerts.setdefault(kind, {})[state] = number
    ours = replayer.planned["policy"]
    other = replayer.planned.get("compared")
    wall_s = max(wall_s, 1e-9)
    by_day = replayer.observed_s_by_day
    return Summary(
        dataset=source,
        interval_s=recording.interval_s,
        began_s=replayer.began_s,
        vm_days=round(sum(by_day.values()) / 86_400, 3),
        vm_days_by_day=tuple(
            round(by_day.get(day, 0.0) / 86_400, 3) for day in range(max(by_day, default=-1) + 1)
        ),
        vm_days_by_vm={vm: round(days, 4) for vm, days in replayer.vm_days().items()},
        vm_samples=replayer.vm_samples,
        frames=replayer.frames,
        rows=dict(recording.figures()),
        fired=len(replayer.fired),
        alerts=alerts,
        orders=_by_action(ours),
        held=dict(sorted(ours.held.items())),
        policy=ours.policy.name,
        policy_hash=ours.policy.hash,
        configuration=replayer.configuration_hash,
        digest=replayer.digest(),
        wall_s=round(wall_s, 3),
        vm_samples_per_s=round(replayer.vm_samples / wall_s),
        times_real=round(replayer.spanned_s / wall_s, 1),
        compared=None if other is None else _comparison(ours, other),
    )


def _by_action(planned: Planned) -> dict[str, int]:
    return dict(sorted(Counter(order.action for order in planned.orders).items()))


def _comparison(ours: Planned, other: Planned) -> dict[str, object]:
    """Return the actions of the other policy, and the incidents in which the two differ."""
    mine = {order.incident: order for order in ours.orders}
    theirs = {order.incident: order for order in other.orders}
    return {
        "policy": other.policy.name,
        "policy_hash": other.policy.hash,
        "orders": _by_action(other),
        "held": dict(sorted(other.held.items())),
        "only_policy": sorted(mine.keys() - theirs.keys()),
        "only_compared": sorted(theirs.keys() - mine.keys()),
        "other_action": sorted(
            incident
            for incident in mine.keys() & theirs.keys()
            if mine[incident].action != theirs[incident].action
        ),
        "other_time": sorted(
            incident
            for incident in mine.keys() & theirs.keys()
            if mine[incident].t != theirs[incident].t
        ),
    }


def summary_lines(summary: Summary) -> list[str]:
    """Return the summary as sentences for a terminal."""
    lines = [
        f"{summary.vm_samples:,} samples of {summary.vm_days:,.1f} VM-days in "
        f"{summary.wall_s:.1f} s: {summary.vm_samples_per_s:,} per second, "
        f"{summary.times_real:,.0f} times real time.",
        f"{summary.fired} alerts fired; orders: {_counted(summary.orders) or 'none'}.",
    ]
    if summary.held:
        held = ", ".join(f"{rule} {number}" for rule, number in summary.held.items())
        lines.append(f"Held by the policy: {held}.")
    if summary.compared is not None:
        other = summary.compared
        orders = _counted(msgspec.convert(other["orders"], dict[str, int])) or "nothing"
        lines.append(f"Policy {other['policy']} would have ordered {orders}.")
    return lines


def _counted(orders: dict[str, int]) -> str:
    return ", ".join(f"{number} {action}" for action, number in orders.items())
