"""Each role's principal on a broker that denies by default: it has exactly the rights it needs."""

import asyncio
from collections.abc import Awaitable, Iterator
from dataclasses import replace

import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.admin import CreateAclsRequest

from deploy.kafka.acls import Acl, acls
from deploy.lab.kafka_broker import Cluster
from deploy.lab.kafka_settings import BROKER_USER
from flatline.connectors.kafka.config import KafkaConfig, KafkaSecurity
from flatline.connectors.kafka.log import KafkaLog
from flatline.connectors.kafka.rights import OPERATIONS, own_rights
from flatline.connectors.kafka.security import client_settings
from flatline.connectors.kafka.topics import create_topics, describe_problems
from flatline.engine.errors import LogError
from flatline.engine.wire.rights import (
    RIGHTS,
    ROLES,
    Role,
    operations,
    problems_of,
    suited,
    topics_of,
)
from flatline.engine.wire.topics import TOPICS

pytestmark = pytest.mark.kafka

NAMES = [topic.name for topic in TOPICS]
STRANGER = "stranger"
_CODES = {operation: code for code, operation in OPERATIONS.items()}
_RESOURCES = {"topic": 2, "group": 3}
_LITERAL, _PREFIXED, _ALLOW = 3, 4, 3
DENYING = {
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    # The lab's controller listener has no login.
    "super.users": f"User:{BROKER_USER};User:ANONYMOUS",
    "allow.everyone.if.no.acl.found": "false",
}


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(
        tmp_path_factory.mktemp("kafka") / "acls",
        security="sasl",
        users=(*ROLES, STRANGER),
        properties=DENYING,
    )
    with cluster:
        asyncio.run(set_up(cluster))
        yield cluster
    cluster.remove()


def config_of(cluster: Cluster, user: str) -> KafkaConfig:
    security = KafkaSecurity(
        protocol="sasl_plaintext",
        mechanism="SCRAM-SHA-256",
        username=user,
        password=cluster.credentials[user],
    )
    return KafkaConfig(
        bootstrap=cluster.bootstrap,
        security=security,
        client_id=user,
        partitions=1,
        connect_timeout_s=10.0,
        session_timeout_s=3.0,
    )


async def set_up(cluster: Cluster) -> None:
    """Create the topics and the documented ACLs, as an administrator."""
    config = config_of(cluster, BROKER_USER)
    await create_topics(config)
    client = AIOKafkaClient(**client_settings(config))
    await client.bootstrap()
    try:
        for acl in acls({role: [role] for role in ROLES}):
            await allow(client, acl)
    finally:
        await client.close()
    # Brokers learn of an ACL with a delay. With one broker, all ACLs are known once the last one
    # created is visible.
    found = await own_rights(config_of(cluster, ROLES[-1]), NAMES)
    assert found is not None
    assert ROLES[-1] in suited(found)


async def allow(client: AIOKafkaClient, acl: Acl) -> None:
    request = CreateAclsRequest(
        _RESOURCES[acl.resource],
        acl.name,
        _PREFIXED if acl.prefixed else _LITERAL,
        f"User:{acl.principal}",
        "*",
        _CODES[acl.operation],
        _ALLOW,
    )
    answer = await client.send(client.get_random_node(), request)
    assert [code for code, _ in answer.creation_responses] == [0]


async def refused(work: Awaitable[object]) -> bool:
    try:
        await work
    except LogError:
        return True
    return False


@pytest.mark.asyncio
@pytest.mark.parametrize("role", [*ROLES, STRANGER])
async def test_every_operation_on_every_topic_is_allowed_exactly_where_the_table_says(
    broker: Cluster, role: str
) -> None:
    found = await own_rights(config_of(broker, role), NAMES)
    assert found is not None
    known = [one for one in ROLES if one == role]
    assert found == {
        topic: frozenset[str]().union(*(operations(one, topic) for one in known)) for topic in NAMES
    }


@pytest.mark.asyncio
@pytest.mark.parametrize("role", ROLES)
async def test_each_role_reads_and_writes_what_it_needs_and_is_refused_the_rest(
    broker: Cluster, role: Role
) -> None:
    """Tests the actual behaviour, not the rights that the broker reports."""
    rights = RIGHTS[role]
    async with KafkaLog(config_of(broker, role)) as log:
        for topic in NAMES:
            writes = log.append(topic, key=b"k", value=b"v")
            assert await refused(writes) == (topic not in rights.writes), f"write {topic}"
        for topic in NAMES:
            async with asyncio.timeout(10.0):
                reads = log.read_to_end(topic, 0, offset=0)
                assert await refused(reads) == (topic not in rights.reads), f"read {topic}"


@pytest.mark.asyncio
@pytest.mark.parametrize("role", [role for role in ROLES if RIGHTS[role].group])
async def test_each_role_reads_for_its_own_group_and_for_no_other(
    broker: Cluster, role: Role
) -> None:
    rights = RIGHTS[role]
    own = rights.group + ("mine" if rights.group_prefix else "")
    async with KafkaLog(config_of(broker, role)) as log:
        await polled(log, rights.reads[0], own)
        for other in ("flatline-other", *(RIGHTS[o].group for o in ROLES if o != role)):
            if other and not (rights.group_prefix and other.startswith(rights.group)):
                assert await refused(polled(log, rights.reads[0], other)), other


async def polled(log: KafkaLog, topic: str, group: str) -> None:
    async with log.subscribe(topic, group=group) as subscription:
        async with asyncio.timeout(20.0):
            while not (await subscription.poll(max_records=1, wait_s=0.5)).assigned:
                pass


@pytest.mark.asyncio
async def test_nobody_but_an_administrator_makes_or_drops_a_topic(broker: Cluster) -> None:
    for role in ROLES:
        found = await own_rights(config_of(broker, role), NAMES)
        assert found is not None
        assert not frozenset[str]().union(*found.values()) & {
            "Create", "Delete", "Alter", "AlterConfigs",
        }  # fmt: skip
    admin = await own_rights(config_of(broker, BROKER_USER), NAMES)
    assert admin is not None
    assert {"Delete", "Alter"} <= admin["flatline.frames.v1"]


@pytest.mark.asyncio
@pytest.mark.parametrize("role", ROLES)
async def test_the_topics_of_a_role_are_all_that_it_is_held_to(broker: Cluster, role: Role) -> None:
    config = config_of(broker, role)
    topics = tuple(topic for topic in TOPICS if topic.name in topics_of([role]))
    assert await describe_problems(replace(config, topics=topics)) == ()
    missing = [problem for problem in await describe_problems(config) if "is missing" in problem]
    assert len(missing) == len(TOPICS) - len(topics)


@pytest.mark.asyncio
async def test_what_is_missing_and_what_is_too_much_is_named(broker: Cluster) -> None:
    found = await own_rights(config_of(broker, "planner"), NAMES)
    assert found is not None
    missing, excess = problems_of(found, ["engine"])
    assert "Read on flatline.frames.v1" in missing
    assert "Write on flatline.orders.v1" in excess
    assert problems_of(found, ["planner"]) == ([], [])
    assert "planner" in suited(found)
