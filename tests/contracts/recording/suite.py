"""The promises of every `engine.ports.Recording`; each adapter subclasses `RecordingContract`."""

from itertools import pairwise

import pytest

from engine.ports import Recording


class RecordingContract:
    @pytest.fixture
    def recording(self) -> Recording:
        raise NotImplementedError

    def test_append_times_never_go_back(self, recording) -> None:
        times = [moment.time_ms for moment in recording.moments()]
        assert times
        assert all(a <= b for a, b in pairwise(times))

    def test_it_can_be_read_again_and_is_the_same(self, recording) -> None:
        first = list(recording.moments())
        counted = dict(recording.figures())
        assert list(recording.moments()) == first
        assert dict(recording.figures()) == counted

    def test_each_source_counts_its_frames_from_zero_without_gaps(self, recording) -> None:
        following: dict[tuple[str, ...], int] = {}
        for moment in recording.moments():
            if moment.frame is None:
                continue
            header = moment.frame.header
            source = (header.cell, header.node, header.role, header.run)
            assert header.sequence == following.get(source, 0)
            following[source] = header.sequence + 1

    def test_rosters_tell_the_vms_that_the_names_know(self, recording) -> None:
        seen = {
            moment.frame.rows.vm(lane)
            for moment in recording.moments()
            if moment.frame is not None
            for lane in range(len(moment.frame.rows))
        }
        assert seen
        if recording.names:
            from uuid import UUID

            assert {str(UUID(bytes=vm)) for vm in seen} <= recording.names.keys()

    def test_the_interval_is_that_of_its_collectors(self, recording) -> None:
        intervals = {
            moment.frame.header.interval_ms
            for moment in recording.moments()
            if moment.frame is not None and moment.frame.header.role == "collector"
        }
        assert intervals == {round(recording.interval_s * 1000)}
