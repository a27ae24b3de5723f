import random

import pytest
from aiokafka.partitioner import DefaultPartitioner
from aiokafka.partitioner import murmur2 as aiokafka_murmur2

from flatline.connectors.embedded.partitioner import murmur2, partition_of


@pytest.mark.parametrize(
    ("key", "java"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_the_hash_is_the_one_of_kafkas_own_tests(key: bytes, java: int) -> None:
    assert murmur2(key) == java & 0xFFFFFFFF


def test_keys_of_every_length_go_where_aiokafka_sends_them() -> None:
    draw = random.Random(7)
    for length in range(70):
        key = draw.randbytes(length)
        assert murmur2(key) == aiokafka_murmur2(key)
        for partitions in (1, 3, 12):
            everywhere = list(range(partitions))
            theirs = DefaultPartitioner()(key, everywhere, everywhere)
            assert partition_of(key, partitions) == theirs
