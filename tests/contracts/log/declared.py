"""The topics on which every adapter is tested."""

from flatline.engine.wire.topics import Topic

PARTITIONS = 3
KEYED = Topic("suite.keyed.v1", None, 3600, 64 << 20)
SINGLE = Topic("suite.single.v1", 1, 3600, 64 << 20, durable=True)
COMPACTED = Topic("suite.compacted.v1", 1, None, 64 << 20, compacted=True, durable=True)
TOPICS = (KEYED, SINGLE, COMPACTED)
