"""Who may say what: the guards of keys, signatures and MACs, and how each is removed."""

from typing import Final

from tests.mutant import Mutant

_WORDS: Final = "engine/action/words.py"
_HEARD: Final = ("tests/unit/engine/action/test_words.py",)
_LIFTED: Final = ("tests/unit/engine/cli/test_lifting.py",)
_SIGNED: Final = ("tests/unit/engine/action/test_keys.py",)
_MAC: Final = "engine/wire/frame_mac.py"
_FRAMES: Final = ("tests/unit/engine/wire/test_frame_mac.py",)
_KEYRINGS: Final = (
    "tests/unit/engine/test_frame_keyring.py",
    "tests/unit/engine/test_key_files.py",
)

KEY_MUTANTS: Final = (
    Mutant(
        "the first of two keys in the headers says who signed",
        "engine/wire/order.py",
        "    if len(names) > 1 or len(signatures) > 1:\n",
        "    if False:\n",
        _SIGNED,
    ),
    Mutant(
        "an approval needs no operator",
        _WORDS,
        "    if control.kind not in _RESTRICTIONS or not control.active:\n",
        "    if not control.active:\n",
        _HEARD,
    ),
    Mutant(
        "anybody ends a pause",
        _WORDS,
        "    if control.kind not in _RESTRICTIONS or not control.active:\n",
        "    if control.kind not in _RESTRICTIONS:\n",
        _HEARD,
    ),
    Mutant(
        "anybody shortens a pause",
        _WORDS,
        "    return held.until_ms is None or control.until_ms < held.until_ms\n",
        "    return False\n",
        _HEARD,
    ),
    Mutant(
        "a word under another key displaces a pause",
        _WORDS,
        "    if loosens(control, held) or not own:\n",
        "    if loosens(control, held):\n",
        _HEARD,
    ),
    Mutant(
        "the copy of an old word ends a pause",
        _WORDS,
        "    if old_ms > _FRESH_MS:\n",
        "    if False:\n",
        _HEARD,
    ),
    Mutant(
        "a word ends a pause that is newer",
        _WORDS,
        "    elif any(one and _ends(one) and control.time_ms < one.time_ms for one in held):\n",
        "    elif False:\n",
        _HEARD,
    ),
    Mutant(
        "a word is held against the clock of whoever said it",
        _WORDS,
        "    control = msgspec.structs.replace(control, time_ms=time_ms)\n",
        "    control = msgspec.structs.replace(control, time_ms=min(control.time_ms, time_ms))\n",
        _HEARD,
    ),
    Mutant(
        "a word that is dated ahead ends what is said until then",
        _WORDS,
        "    elif old_ms < -_AHEAD_MS:\n",
        "    elif False:\n",
        _HEARD,
    ),
    Mutant(
        "a word under another key leaves the pause there out of the log",
        _WORDS,
        "    displaces = not own and _stands(controls.get(key))\n",
        "    displaces = False\n",
        _HEARD,
    ),
    Mutant(
        "a copied word ends a hold that is newer",
        _WORDS,
        "    stale = _stale(control, (held, controls.get(hold_key(key))), time_ms)\n",
        "    stale = _stale(control, (held,), time_ms)\n",
        _HEARD,
    ),
    Mutant(
        "a refused record leaves nothing in the place of a pause",
        _WORDS,
        "    return Heard(_hold(key, error, time_ms=time_ms), rejected=error)\n",
        "    return Heard(None, rejected=error)\n",
        _HEARD,
    ),
    Mutant(
        "anybody's word ends a hold",
        "engine/wire/control.py",
        "    if by_operator:\n",
        "    if True:\n",
        _HEARD,
    ),
    Mutant(
        "a hold is said by anybody",
        _WORDS,
        '    source = "" if control.source in HOLDS else control.source\n',
        "    source = control.source\n",
        _HEARD,
    ),
    Mutant(
        "a displaced pause is not written back",
        "engine/roles/plan.py",
        "            self._displaced.add(record.key)\n",
        "            pass\n",
        ("tests/unit/engine/roles/test_plan.py",),
    ),
    Mutant(
        "a word that is refused is said to hold",
        "engine/cli/words.py",
        "    if fault is not None:\n",
        "    if False:\n",
        _LIFTED,
    ),
    Mutant(
        "a word under an ended key displaces what it was to end",
        "engine/cli/words.py",
        "            _require_believed(here, operator)\n",
        "            pass\n",
        _LIFTED,
    ),
    Mutant(
        "the copied file of a revoked key is believed again",
        "engine/keyring.py",
        "    if revoked is not None:\n",
        "    if False:\n",
        ("tests/unit/engine/test_key_files.py",),
    ),
    Mutant(
        "an alert needs no engine",
        "engine/action/keys.py",
        "    name = check_signature(value, headers, trusted=trusted.engines)\n",
        '    name = ""\n',
        _SIGNED,
    ),
    Mutant(
        "a planner's key signs alerts",
        "engine/action/keys.py",
        "    name = check_signature(value, headers, trusted=trusted.engines)\n",
        "    both = {**trusted.engines, **trusted.planners}\n"
        "    name = check_signature(value, headers, trusted=both)\n",
        _SIGNED,
    ),
    Mutant(
        "a key lasts for ever",
        "engine/action/keys.py",
        "    if until_ms is not None and time_ms >= until_ms:\n",
        "    if False:\n",
        _SIGNED,
    ),
    Mutant(
        "a frame needs no MAC",
        _MAC,
        "            if self._accepting_unsigned:\n",
        "            if True:\n",
        _FRAMES,
    ),
    Mutant(
        "a frame's MAC is not checked",
        _MAC,
        "            cipher.decrypt(code[:_NONCE_BYTES], code[_NONCE_BYTES:], value)\n",
        "            pass\n",
        _FRAMES,
    ),
    Mutant(
        "a frame may be moved to another cell",
        _MAC,
        "blake2b(record_key, key=key,",
        'blake2b(b"", key=key,',
        _FRAMES,
    ),
    Mutant(
        "a node signs for a cell that is not its frame's",
        _MAC,
        '    if frame.header.role != "shell" and record_key != frame.header.cell.encode():\n',
        "    if False:\n",
        _FRAMES,
    ),
    Mutant(
        "a node speaks for another",
        _MAC,
        "    if header.node != name.name:\n",
        "    if False:\n",
        _FRAMES,
    ),
    Mutant(
        "an owner's key writes a collector's frames",
        _MAC,
        "    if header.role not in ROLES_OF[name.kind]:\n",
        "    if False:\n",
        _FRAMES,
    ),
    Mutant(
        "a revoked frame key counts",
        _MAC,
        "        if self._revoked.covers(name):\n",
        "        if False:\n",
        _FRAMES,
    ),
    Mutant(
        "a site key lasts for ever",
        _MAC,
        "        if until_ms is not None and time_ms >= until_ms:\n",
        "        if False:\n",
        _FRAMES,
    ),
    Mutant(
        "a node's key lasts for ever",
        _MAC,
        "        if name.until_s and time_ms >= name.until_s * 1000:\n",
        "        if False:\n",
        _FRAMES,
    ),
    Mutant(
        "the engine folds frames whoever wrote them",
        "engine/roles/detect.py",
        "            state.open_frame = self._open_frame\n",
        "",
        ("tests/simulation/test_forged_frames.py",),
    ),
    Mutant(
        "writers are ahead of readers when site keys are rotated",
        "engine/frame_keyring.py",
        "_SETTLED_MS: Final = 10_000\n",
        "_SETTLED_MS: Final = 0\n",
        _KEYRINGS,
    ),
    Mutant(
        "a folder of trusted keys that others may write is believed",
        "engine/key_files.py",
        "    if found.st_mode & _OTHERS_WRITE:\n",
        "    if False:\n",
        _KEYRINGS,
    ),
    Mutant(
        "a folder of trusted keys may be anybody's",
        "engine/key_files.py",
        "    if found.st_uid not in (0, os.geteuid()):\n",
        "    if False:\n",
        _KEYRINGS,
    ),
    Mutant(
        "trusted keys are read at the start alone",
        "engine/key_files.py",
        "            if seen != self._seen:\n",
        "            if False:\n",
        _KEYRINGS,
    ),
)
