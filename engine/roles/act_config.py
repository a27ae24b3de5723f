"""What an agent is told when it starts."""

from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from engine.action.catalogue import Policy
from engine.action.keys import Trust
from engine.ports import SignFrame
from engine.roles.opening import unsigned


@dataclass(frozen=True, slots=True, kw_only=True)
class ActConfig:
    """What an agent is told.

    `run` names this run of its process; `sign` authenticates its frames; `sets_balloons` has it
    give balloons a period where they have none.
    """

    site: str
    zone: str
    cell: str
    node: str
    run: str
    policy: Policy
    key: Ed25519PrivateKey
    trusted: Trust
    sign: SignFrame = unsigned
    sets_balloons: bool = False
