"""Guards of sent, read and displayed data: nothing stops a role, and a name is only text."""

from typing import Final

from tests.mutant import Mutant

_TOPICS: Final = ("tests/unit/connectors/kafka/test_topics.py",)
_UNPACKING: Final = ("tests/unit/connectors/kafka/test_unpacking.py",)
_TEXT: Final = ("tests/unit/engine/test_plain_text.py",)
_SHOWN: Final = ("tests/unit/engine/cli/test_hostile_names.py",)
_INFLUX: Final = ("tests/unit/connectors/influxdb/test_answers.py",)
_PARQUET: Final = ("tests/unit/connectors/parquet/test_damage.py",)
_TABLES: Final = ("tests/unit/connectors/traces/test_table.py",)
_RECORDINGS: Final = ("tests/unit/connectors/traces/test_recording.py",)
_LARGE: Final = ("tests/unit/engine/roles/test_too_large.py",)
_HOOK: Final = ("tests/unit/connectors/notify/test_webhook.py",)
_PAGES: Final = ("tests/unit/engine/roles/test_notify.py",)
_PROBES: Final = ("tests/unit/connectors/http/test_probes.py",)
_QUANTILES: Final = ("tests/unit/models/kernels/test_forecast.py",)

RECEIVER_MUTANTS: Final = (
    Mutant(
        "small topics are compressed by whoever writes them", "connectors/kafka/topics.py",
        '"producer" if topic.compressed else "uncompressed"', '"producer"', _TOPICS,
    ),
    Mutant(
        "a topic's settings below what is declared are well", "connectors/kafka/topics.py",
        "        if expected == -1 or int(text) < expected:\n", "        if False:\n", _TOPICS,
    ),
    Mutant(
        "aiokafka unpacks batches whole", "connectors/kafka/unpacking.py",
        "    cast(Any, fetcher).MemoryRecords = Batches\n", "    pass\n", _UNPACKING,
    ),
    Mutant(
        "gzip is unpacked without a bound", "connectors/kafka/unpacking.py",
        "unpacker.decompress(packed, MAX_UNPACKED_BYTES)", "unpacker.decompress(packed)",
        _UNPACKING,
    ),
    Mutant(
        "blocks of snappy are bounded one by one", "connectors/kafka/unpacking.py",
        "        left -= len(block)\n", "", _UNPACKING,
    ),
    Mutant(
        "a header's name that is no text ends the batch", "connectors/kafka/unpacking.py",
        "            except UnicodeDecodeError:\n", "            except KeyError:\n", _UNPACKING,
    ),
    Mutant(
        "an offset far ahead is believed", "connectors/kafka/unpacking.py",
        "                if not next_offset <= record.offset < self.next_offset:\n",
        "                if False:\n", _UNPACKING,
    ),
    Mutant(
        "a batch with a wrong checksum stops its readers", "connectors/kafka/unpacking.py",
        "        if seen not in _doubted:\n", "        if True:\n", _UNPACKING,
    ),
    Mutant(
        "a batch is given up for one bad transfer", "connectors/kafka/unpacking.py",
        "        if seen not in _doubted:\n", "        if False:\n", _UNPACKING,
    ),
    Mutant(
        "the console reads markup", "engine/cli/options.py",
        '{**options, "markup": False, "emoji": False}', "options", _SHOWN,
    ),
    Mutant(
        "the console takes control characters", "engine/cli/options.py",
        "super().render_str(one_line(text),", "super().render_str(text,", _SHOWN,
    ),
    Mutant(
        "a field of CSV may be a formula", "engine/plain_text.py",
        "    return f\"'{plain}\" if _FORMULA.match(plain) else plain\n", "    return plain\n",
        _TEXT,
    ),
    Mutant(
        "a file name may leave its folder", "engine/plain_text.py",
        '_NO_FILE.sub("_", text)', "text", _TEXT,
    ),
    Mutant(
        "a page shows elements of a name", "engine/plain_text.py",
        "    return html.escape(one_line(text))\n", "    return one_line(text)\n", _TEXT,
    ),
    Mutant(
        "the path of a URL is shown", "engine/plain_text.py",
        "    rest = f\"/{MASK}\" if found[\"rest\"].strip(\"/\") else \"\"\n",
        "    rest = found[\"rest\"]\n", _TEXT,
    ),
    Mutant(
        "lines that InfluxDB 3 names are not left out", "connectors/influxdb/failures.py",
        "    faults = _faults(answer.data)\n", "    faults: tuple[LineFault, ...] = ()\n", _INFLUX,
    ),
    Mutant(
        "what InfluxDB 2.0 says of lines is its own trouble", "connectors/influxdb/failures.py",
        "    if may_blame and blames_lines and", "    if False and", _INFLUX,
    ),
    Mutant(
        "a proxy's page says that rows are stored", "connectors/influxdb/history.py",
        "            if answer.data:\n", "            if False:\n", _INFLUX,
    ),
    Mutant(
        "rows are given up while the server is away", "connectors/influxdb/history.py",
        "if doubted_lines and (not taken or self._post(bucket, taken, doubting=True) is not None):",
        "if doubted_lines and not taken:", _INFLUX,
    ),
    Mutant(
        "a damaged file of the history is read again", "connectors/parquet/history.py",
        "            if why := _damage(measurement, path):\n",
        "            if False and (why := _damage(measurement, path)):\n", _PARQUET,
    ),
    Mutant(
        "a file without a time is rows of no time", "connectors/parquet/history.py",
        "        timeless = set(new) - dated\n", "        timeless: set[Path] = set()\n", _PARQUET,
    ),
    Mutant(
        "rows that came too late are a silence", "connectors/traces/recording.py",
        "            is_hidden = window.follows_late\n", "            is_hidden = False\n",
        _RECORDINGS,
    ),
    Mutant(
        "one straggler hides a silence", "connectors/traces/windows.py",
        " and hidden[index] >= _HIDDEN_SHARE * missed\n", " and hidden[index] > 0\n", _RECORDINGS,
    ),
    Mutant(
        "times in other units are taken for seconds", "engine/seconds.py",
        "    if isfinite(value) and 0 <= value < _LATEST_S:\n",
        "    if isfinite(value) and 0 <= value:\n", _TABLES,
    ),
    Mutant(
        "rows without a slot are in no count", "connectors/traces/windows.py",
        "    counts.late += len(rest.vm)\n", "", _TABLES,
    ),
    Mutant(
        "a record that is too large is sent again for ever", "engine/roles/outbox.py",
        "            except RecordTooLarge as error:\n",
        "            except ZeroDivisionError as error:\n", _LARGE,
    ),
    Mutant(
        "pieces of a frame have one number", "engine/roles/framing.py",
        "            self._sequence += 1\n            return [(frame, value)]\n",
        "            return [(frame, value)]\n", _LARGE,
    ),
    Mutant(
        "a webhook's no is taken for a pause", "connectors/notify/webhook.py",
        "        if is_permanent(status):\n", "        if False:\n", _HOOK,
    ),
    Mutant(
        "all incidents are one group of a webhook", "connectors/notify/webhook.py",
        '"groupKey": f"{{}}:{{{_joined(group)}}}"', '"groupKey": "{}"', _HOOK,
    ),
    Mutant(
        "a page that fails holds up those behind it", "engine/roles/notify.py",
        "                failures += 1\n", "                break\n", _PAGES,
    ),
    Mutant(
        "a page that was not told is committed", "engine/roles/notify.py",
        "            first[page.partition] = min(first[page.partition], page.offset)\n",
        "            pass\n", _PAGES,
    ),
    Mutant(
        "a client of the probes may ask for ever", "connectors/http/probes.py",
        "        cutting.start()\n", "", _PROBES,
    ),
    Mutant(
        "a request may have any length", "connectors/http/probes.py",
        "        self.rfile = _Bounded(self.rfile)\n", "        pass\n", _PROBES,
    ),
    Mutant(
        "quantiles may cross", "models/kernels/forecast.py",
        "    out[at_out + 3] = min(out[at_out], min(one, other))\n", "", _QUANTILES,
    ),
    Mutant(
        "a new series claims to err by nothing", "models/kernels/forecast.py",
        "        scale = max(scale, np.float64(row[EW_LONG]))\n", "", _QUANTILES,
    ),
)  # fmt: skip
