"""One webhook, in the form in which Alertmanager calls webhooks (version 4).

Receivers of pagers, chats and ticket systems understand that form, so that none of them needs
an adapter of its own here.
"""

import asyncio
import json
import urllib.error
import urllib.request
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Final

from engine.errors import NotifierUnreachable
from engine.ports import Notice

# A receiver that takes longer is one that does not answer; the notice is sent again.
TIMEOUT_S: Final = 10.0


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A notice goes where an operator said, with its token, and nowhere else."""

    def redirect_request(self, *_args: object, **_kwargs: object) -> None:
        """Follow nothing: the status is told as an error."""
        return


class Webhook:
    """Posts each notice to one URL, with a bearer token where there is one."""

    def __init__(self, url: str, *, token: str | None = None) -> None:
        self._url = url
        self._headers = {"Content-Type": "application/json", "User-Agent": "flatline"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"
        self._opener = urllib.request.build_opener(_NoRedirect)

    async def send(self, notice: Notice) -> None:
        """Post a notice.

        Raises
        ------
        NotifierUnreachable
            No answer within 10 s, or one that is not 2xx.
        """
        await asyncio.to_thread(self._post, json.dumps(payload(notice)).encode())

    def _post(self, body: bytes) -> None:
        request = urllib.request.Request(self._url, body, self._headers, method="POST")
        try:
            with self._opener.open(request, timeout=TIMEOUT_S) as answer:
                status = answer.status
        except urllib.error.HTTPError as error:
            with error:
                status = error.code
        except (OSError, ValueError) as error:
            raise NotifierUnreachable(f"The webhook {self._url} cannot be reached: {error}.") from (
                error
            )
        if not HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
            raise NotifierUnreachable(f"The webhook {self._url} answered {status}.")


def payload(notice: Notice) -> dict[str, object]:
    """Return a notice as Alertmanager would post it."""
    labels = {**notice.labels, "alertname": notice.name, "severity": notice.severity}
    started = datetime.fromtimestamp(notice.time_ms / 1000, UTC).isoformat(timespec="milliseconds")
    annotations = {"summary": notice.sentence}
    alert = {
        "status": "firing",
        "labels": labels,
        "annotations": annotations,
        "startsAt": started,
        "endsAt": "0001-01-01T00:00:00Z",
        "generatorURL": "",
        "fingerprint": "/".join((notice.name, *(v for _, v in sorted(notice.labels.items())))),
    }
    return {
        "version": "4",
        "status": "firing",
        "receiver": "flatline",
        "groupKey": f"{{}}:{{alertname={json.dumps(notice.name)}}}",
        "truncatedAlerts": 0,
        "groupLabels": {"alertname": notice.name},
        "commonLabels": labels,
        "commonAnnotations": annotations,
        "externalURL": "",
        "alerts": [alert],
    }
