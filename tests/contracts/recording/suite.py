"""The promises of every `engine.ports.Recording`; each adapter subclasses `RecordingContract`."""

from itertools import pairwise

import pytest

from flatline.engine.ports import Recording


class RecordingContract:
    @pytest.fixture
    def recording(self) -> Recording:
        raise NotImplementedError

    def test_append_times_never_go_back(self, recording) -> None:
        times = [recorded.time_ms for recorded in recording.recorded_frames()]
        assert times
        assert all(a <= b for a, b in pairwise(times))

    def test_it_can_be_read_again_and_is_the_same(self, recording) -> None:
        first = list(recording.recorded_frames())
        counted = dict(recording.figures())
        assert list(recording.recorded_frames()) == first
        assert dict(recording.figures()) == counted

    def test_each_source_counts_its_frames_from_zero_without_gaps(self, recording) -> None:
        following: dict[tuple[str, ...], int] = {}
        for recorded in recording.recorded_frames():
            if recorded.frame is None:
                continue
            header = recorded.frame.header
            source = (header.cell, header.node, header.role, header.run)
            assert header.sequence == following.get(source, 0)
            following[source] = header.sequence + 1

    def test_rosters_tell_the_vms_that_the_names_know(self, recording) -> None:
        seen = {
            recorded.frame.rows.vm(index)
            for recorded in recording.recorded_frames()
            if recorded.frame is not None
            for index in range(len(recorded.frame.rows))
        }
        assert seen
        if recording.names:
            from uuid import UUID

            assert {str(UUID(bytes=vm)) for vm in seen} <= recording.names.keys()

    def test_the_interval_is_that_of_its_collectors(self, recording) -> None:
        intervals = {
            recorded.frame.header.interval_ms
            for recorded in recording.recorded_frames()
            if recorded.frame is not None and recorded.frame.header.role == "collector"
        }
        assert intervals == {round(recording.interval_s * 1000)}
