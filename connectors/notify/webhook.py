"""One webhook, in the format of Alertmanager's webhooks (version 4).

Receivers of pagers, chats and ticket systems support that format, so none of them needs an adapter
here. Each call carries one alert. Only alerts about the same incident share a group, so receivers
that group alerts keep VMs and incidents apart. No call reports that an alert has resolved.
"""

import asyncio
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import blake2b
from http import HTTPStatus
from typing import Final

from flatline.engine.errors import NotifierRefused, NotifierUnreachable
from flatline.engine.plain_text import masked_url, one_line, without_secrets
from flatline.engine.ports import Notice
from flatline.engine.refusals import is_permanent, retry_after_s

# A slower receiver counts as not answering; the notice is sent again.
TIMEOUT_S: Final = 10.0


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: a notice and its token go only to the configured URL."""

    def redirect_request(self, *_args: object, **_kwargs: object) -> None:
        """Return nothing, so that the redirect is reported as an error."""
        return


class Webhook:
    """Posts each notice to one URL, with a bearer token where there is one."""

    def __init__(self, url: str, *, token: str | None = None) -> None:
        self._url = url
        self._token = token
        self._where = f"The webhook {masked_url(url)}"
        self._headers = {"Content-Type": "application/json", "User-Agent": "flatline"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"
        self._opener = urllib.request.build_opener(_NoRedirect)

    async def send(self, notice: Notice) -> None:
        """Post a notice.

        Raises
        ------
        NotifierUnreachable
            No answer within 10 s, an error of the receiver (5xx except 501 and 505), or a temporary
            error (408, 425, 429).
        NotifierRefused
            An error of the notice: any other 4xx, 501, 505, or a redirect.
        """
        await asyncio.to_thread(self._post, json.dumps(payload(notice)).encode())

    def _post(self, body: bytes) -> None:
        asked = None
        try:
            request = urllib.request.Request(self._url, body, self._headers, method="POST")
            with self._opener.open(request, timeout=TIMEOUT_S) as answer:
                status = answer.status
        except urllib.error.HTTPError as error:
            with error:
                status, asked = error.code, error.headers.get("Retry-After")
        except (OSError, ValueError, http.client.HTTPException) as error:
            # Only network errors have a text that is safe: others contain the address or the token.
            said = str(error) if isinstance(error, OSError) else ""
            said = one_line(without_secrets(said, self._url, self._token))
            raise NotifierUnreachable(
                f"{self._where} cannot be reached: {said or type(error).__name__}. Check the "
                "address and that it is running."
            ) from None
        if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
            return
        if is_permanent(status):
            raise NotifierRefused(
                f"{self._where} answered {status}. Check the address and the token of the webhook."
            )
        raise NotifierUnreachable(
            f"{self._where} answered {status}.",
            retry_after_s=retry_after_s(asked),
            has_answered=True,
        )


def payload(notice: Notice) -> dict[str, object]:
    """Return a notice in Alertmanager's format."""
    labels = {
        **{name: one_line(value) for name, value in notice.labels.items()},
        "alertname": notice.name,
        "severity": notice.severity,
    }
    started = datetime.fromtimestamp(notice.time_ms / 1000, UTC).isoformat(timespec="milliseconds")
    annotations = {"summary": one_line(notice.sentence)}
    own = {name: labels[name] for name in sorted(labels) if name != "severity"}
    # Alerts of several rules about one incident share a group.
    group = {n: v for n, v in own.items() if n != "rule" or "incident" not in own}
    alert = {
        "status": "firing",
        "labels": labels,
        "annotations": annotations,
        "startsAt": started,
        "endsAt": "0001-01-01T00:00:00Z",
        "generatorURL": "",
        "fingerprint": blake2b(_joined(own).encode(), digest_size=8).hexdigest(),
    }
    return {
        "version": "4",
        "status": "firing",
        "receiver": "flatline",
        "groupKey": f"{{}}:{{{_joined(group)}}}",
        "truncatedAlerts": 0,
        "groupLabels": group,
        "commonLabels": labels,
        "commonAnnotations": annotations,
        "externalURL": "",
        "alerts": [alert],
    }


def _joined(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={json.dumps(value)}" for name, value in labels.items())
