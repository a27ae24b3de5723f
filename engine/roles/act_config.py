"""The configuration of an agent."""

from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from flatline.engine.action.catalogue import Policy
from flatline.engine.action.keys import Trust
from flatline.engine.ports import SignFrame
from flatline.engine.roles.opening import unsigned


@dataclass(frozen=True, slots=True, kw_only=True)
class ActConfig:
    """The configuration of an agent.

    `run` names this run of the process. `sign` authenticates the agent's frames. With
    `sets_balloons` the agent sets a reporting period for balloons that have none.
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
