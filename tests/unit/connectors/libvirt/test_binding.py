"""The package can do only its declared actions, and reports missing parts."""

import ast
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flatline.connectors.libvirt import binding
from flatline.connectors.libvirt.binding import error_code, load, ping_agent
from flatline.engine.errors import SettingsError

PACKAGE = Path(binding.__file__).parent
LIBVIRT = {"libvirt", "libvirt_qemu"}
# Calls that end, remove, change, start, pause, save or copy a VM, a disk or a pool, or run
# something inside a guest.
FORBIDDEN = (
    "destroy",
    "define",
    "undefine",
    "create",
    "shutdown",
    "suspend",
    "save",
    "managedSave",
    "restore",
    "coreDump",
    "attach",
    "detach",
    "update",
    "set",
    "injectNMI",
    "sendKey",
    "sendProcessSignal",
    "pM",
    "rename",
    "revert",
    "snapshot",
    "checkpoint",
    "backup",
    "blockCommit",
    "blockCopy",
    "blockPull",
    "blockRebase",
    "blockResize",
    "blockJobAbort",
    "delete",
    "wipe",
    "upload",
    "resize",
    "qemu",
    "agent",
    "fsFreeze",
    "open",
    "migrate",
)
# Permitted matches of these words, with reasons.
ALLOWED = {
    # The target of a migration is queried for the VM.
    "openReadOnly": {"binding.py", "link.py", "migration.py"},
    # The agent's connection (the collector's is read-only), and the files of evidence.
    "open": {"binding.py", "link.py", "evidence.py", "evidence_folder.py"},
    "blockCopy": {"binding.py", "disks.py"},
    "blockJobAbort": {"binding.py", "disks.py"},
    "save": {"evidence.py"},  # the port's own name
    "update": {"evidence.py"},  # a dict's
    "create_task": {"evidence.py"},  # asyncio's
    "migrateToURI3": {"binding.py", "actuator.py"},
    "migrate": {"actuator.py"},  # the port's own name
    "setKeepAlive": {"binding.py", "link.py"},
    "set_result": {"calls.py"},  # asyncio's
    "create_future": {"calls.py"},
    # The guest agent's ping, and no other command to it.
    "qemuAgentCommand": {"binding.py"},
    # The interval of a balloon's reports, if the operator requested it; the port's own names.
    "setMemoryStatsPeriod": {"binding.py", "liveness.py"},
    "set_balloon_period": {"liveness.py"},
    "agent_connected": {"liveness.py"},
    "setdefault": {"liveness.py"},  # a dict's
}


def called_names(source: str) -> set[str]:
    """Return every attribute and method name, and every string that could become one."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(attr=name) | ast.FunctionDef(name=name):
                names.add(name)
            case ast.AsyncFunctionDef(name=name):
                names.add(name)
            case ast.Call(func=ast.Name(id="getattr"), args=[_, ast.Constant(value=str(name)), *_]):
                names.add(name)
            case ast.Call(func=ast.Name(id="getattr")):
                names.add("qemu: getattr of a computed name")
            case _:
                pass
    return names


def forbidden_in(source: str, *, file: str) -> set[str]:
    return {
        name
        for name in called_names(source)
        if name.startswith(FORBIDDEN) and file not in ALLOWED.get(name, set())
    }


def test_no_method_that_harms_a_vm_is_named_anywhere_in_the_package() -> None:
    found = {
        path.name: names
        for path in PACKAGE.glob("*.py")
        if (names := forbidden_in(path.read_text(), file=path.name))
    }
    assert found == {}


@pytest.mark.parametrize(
    "line",
    [
        "domain.destroy()",
        "connection.defineXML(xml)",
        "domain.undefineFlags(0)",
        "domain.create()",
        "connection.createXML(xml)",
        "getattr(domain, 'destroy')()",
        "getattr(domain, name)()",
        "library.open(uri)",
        "connection.setMemory(1)",
    ],
)
def test_a_harmful_method_would_be_noticed(line: str) -> None:
    assert forbidden_in(line, file="hypervisor.py")


def test_nothing_but_the_binding_imports_libvirt() -> None:
    importers = {
        path.name
        for path in PACKAGE.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import)
        and any(name.name in ("libvirt", "libvirt_qemu") for name in node.names)
    }
    assert importers == {"binding.py"}


def test_a_missing_libvirt_names_the_command_that_brings_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "libvirt", None)
    with pytest.raises(SettingsError, match=r"pip install 'flatline\[libvirt\]'"):
        load()


def test_an_error_without_a_number_has_none() -> None:
    assert error_code(ValueError("no libvirt error")) is None


def test_a_guest_agent_is_asked_to_answer_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[tuple[object, ...]] = []
    module = SimpleNamespace(qemuAgentCommand=lambda *words: calls.append(words))
    monkeypatch.setitem(sys.modules, "libvirt_qemu", module)
    domain: Any = object()
    ping_agent(domain, within_s=4)
    assert calls == [(domain, '{"execute":"guest-ping"}', 4, 0)]
    source = (PACKAGE / "binding.py").read_text()
    assert source.count("qemuAgentCommand(") == 1
