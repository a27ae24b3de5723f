"""Set up InfluxDB for the history: buckets, retention, names for InfluxQL, two tokens."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import urllib3
from influxdb_client import (
    Authorization,
    Bucket,
    BucketRetentionRules,
    DBRPCreate,
    InfluxDBClient,
    Permission,
    PermissionResource,
)
from influxdb_client.rest import ApiException
from influxdb_client.service.dbr_ps_service import DBRPsService

from flatline.connectors.influxdb.config import InfluxConfig
from flatline.connectors.influxdb.failures import meaning
from flatline.connectors.influxdb.history import connect
from flatline.engine.errors import HistoryRefused
from flatline.engine.plain_text import masked_url
from flatline.engine.wire.measurement import RETENTION_S
from flatline.engine.wire.measurement import Bucket as BucketName

# InfluxDB deletes whole shard groups, so a group must be a small part of the retention.
_SHARD_GROUP_S: Final[dict[BucketName, int]] = {"raw": 86_400, "minute": 86_400, "long": 7 * 86_400}
HISTORIAN: Final = "Flatline historian {database}: reads and writes"
PLANNER: Final = "Flatline planners {database}: read"


@dataclass(frozen=True, slots=True)
class Made:
    """The result of a set-up.

    Attributes
    ----------
    done
        One sentence for each object that was made or changed; empty if nothing was missing.
    historian, planner
        Tokens: one may read and write the three buckets, the other may read them.
    """

    done: tuple[str, ...]
    historian: str
    planner: str


def set_up(config: InfluxConfig) -> Made:
    """Make what is missing and correct what differs; a second call changes nothing.

    Parameters
    ----------
    config
        Settings whose token is that of an administrator of the organisation.

    Raises
    ------
    HistoryRefused, HistoryUnreachable
        The token lacks rights, the organisation is unknown, or the server does not answer.
    """
    client = connect(config)
    try:
        return _set_up(client, config)
    except (ApiException, urllib3.exceptions.HTTPError, OSError, UnicodeDecodeError) as error:
        if isinstance(error, ApiException) and error.status in (404, 405):
            raise HistoryRefused(
                f"{masked_url(config.url)} does not have the bucket API of InfluxDB 2.x. InfluxDB "
                "3 requires no set-up: it creates each database with the first write. Put one of "
                "its tokens into the file of history.influxdb.token_file, and configure the "
                "retention there."
            ) from error
        raise meaning(error, url=config.url, bucket=config.database) from error
    finally:
        client.close()


def _set_up(client: InfluxDBClient, config: InfluxConfig) -> Made:
    organisations = client.organizations_api().find_organizations(org=config.org)
    if not organisations:
        where = masked_url(config.url)
        raise HistoryRefused(
            f"InfluxDB at {where} has no organisation {config.org!r}. Set history.influxdb.org "
            "to one that exists."
        )
    org_id = str(organisations[0].id)
    done: list[str] = []
    ids: dict[BucketName, str] = {}
    for bucket in RETENTION_S:
        ids[bucket] = _make_bucket(client, config, bucket, org_id, done)
        _make_mapping(client, config, bucket, ids[bucket], org_id, done)
    tokens = [
        _make_token(client, text.format(database=config.database), actions, ids, org_id, done)
        for text, actions in ((HISTORIAN, ("read", "write")), (PLANNER, ("read",)))
    ]
    return Made(tuple(done), *tokens)


def _make_bucket(
    client: InfluxDBClient, config: InfluxConfig, bucket: BucketName, org_id: str, done: list[str]
) -> str:
    name, keep_s = config.bucket(bucket), config.retention_s[bucket]
    rules = BucketRetentionRules(
        type="expire",
        every_seconds=keep_s,
        shard_group_duration_seconds=min(_SHARD_GROUP_S[bucket], keep_s),
    )
    api = client.buckets_api()
    found: Bucket | None = api.find_bucket_by_name(name)
    if found is None:
        found = api.create_bucket(bucket_name=name, org=org_id, retention_rules=rules)
        done.append(f"Bucket {name} was created with a retention of {keep_s / 86_400:g} days.")
    elif [rule.every_seconds for rule in found.retention_rules] != [keep_s]:
        found.retention_rules = [rules]
        api.update_bucket(found)
        done.append(f"The retention of bucket {name} is now {keep_s / 86_400:g} days.")
    return str(found.id)


def _make_mapping(
    client: InfluxDBClient,
    config: InfluxConfig,
    bucket: BucketName,
    bucket_id: str,
    org_id: str,
    done: list[str],
) -> None:
    """Let InfluxQL find a bucket as the retention policy `bucket` of the database."""
    api = DBRPsService(client.api_client)
    is_default = bucket == "raw"
    content = api.get_dbr_ps(org_id=org_id, db=config.database).content or []
    for mapping in content:
        if mapping.retention_policy != bucket or getattr(mapping, "virtual", False):
            continue
        if mapping.bucket_id == bucket_id:
            return
        api.delete_dbrpid(mapping.id, org_id=org_id)
    api.post_dbrp(
        dbrp_create=DBRPCreate(
            bucket_id=bucket_id,
            database=config.database,
            retention_policy=bucket,
            default=is_default,
            org_id=org_id,
        )
    )
    done.append(f"InfluxQL can query bucket {config.bucket(bucket)} as {config.database}.{bucket}.")


def _make_token(
    client: InfluxDBClient,
    description: str,
    actions: tuple[str, ...],
    bucket_ids: dict[BucketName, str],
    org_id: str,
    done: list[str],
) -> str:
    """Return the token of this description with exactly these rights; replace one with others."""
    wanted = [
        Permission(
            action=action,
            resource=PermissionResource(type="buckets", id=bucket_id, org_id=org_id),
        )
        for bucket_id in bucket_ids.values()
        for action in actions
    ]
    api = client.authorizations_api()
    for found in _described(api.find_authorizations(org_id=org_id), description):
        if _rights(found.permissions) == _rights(wanted) and found.status == "active":
            return str(found.token)
        api.delete_authorization(found)
        done.append(f"The token {description!r} had other permissions and was deleted.")
    made = api.create_authorization(
        authorization=Authorization(
            org_id=org_id, permissions=wanted, description=description, status="active"
        )
    )
    done.append(f"Token {description} was created.")
    return str(made.token)


def _described(found: list[Authorization], description: str) -> Iterator[Authorization]:
    return (one for one in found if one.description == description)


def _rights(permissions: list[Any]) -> set[tuple[str, str]]:
    return {(one.action, one.resource.id) for one in permissions}
