"""The desks of one running server, for whoever asks them: handlers, pages, commands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compliance_agent.adapters.durable import read_file
from compliance_agent.log.policy import Policy
from compliance_agent.server.cosigning import Cosigning
from compliance_agent.server.log_files import LogFiles
from compliance_agent.server.log_heads import LogHeads
from compliance_agent.server.log_keys import LogKeys
from compliance_agent.server.records import Clock, SiteReader, Store
from compliance_agent.server.sequencer import Sequencer
from compliance_agent.server.services.access import HostAccess
from compliance_agent.server.services.alarms import Alarms
from compliance_agent.server.services.api_keys import ApiKeys
from compliance_agent.server.services.board import Board
from compliance_agent.server.services.certificates import Certificates
from compliance_agent.server.services.checkin import Checkin
from compliance_agent.server.services.controls import Controls
from compliance_agent.server.services.duties import Duties
from compliance_agent.server.services.enrol import Enrolment
from compliance_agent.server.services.exceptions import Exceptions
from compliance_agent.server.services.fleet import Fleet, Silence
from compliance_agent.server.services.ingest import Ingest
from compliance_agent.server.services.leases import Leases
from compliance_agent.server.services.limits import Quotas
from compliance_agent.server.services.logbook import Logbook
from compliance_agent.server.services.moments import Stamped
from compliance_agent.server.services.oidc import Oidc
from compliance_agent.server.services.order_trust import OrderTrustDesk
from compliance_agent.server.services.orders import OrderDesk
from compliance_agent.server.services.packets import Packets
from compliance_agent.server.services.planning import Planner
from compliance_agent.server.services.promoting import Promoting
from compliance_agent.server.services.proving import Prover
from compliance_agent.server.services.pruning import Pruning
from compliance_agent.server.services.receipts import Receipts
from compliance_agent.server.services.retention import Holds
from compliance_agent.server.services.rotation import Rotations
from compliance_agent.server.services.sampling import Sampling
from compliance_agent.server.services.tracing import Tracing
from compliance_agent.server.services.users import Users
from compliance_agent.server.services.verification import Verifier
from compliance_agent.server.settings import ServerSettings

if TYPE_CHECKING:
    from compliance_agent.server.services.advising import Adviser, Model


@dataclass(frozen=True)
class Services:
    """The desks of one running server. `app.state.services` holds it.

    Attributes:
        ack_public_key: raw 32-byte key that acknowledgements verify under; hosts pin it at enrolment.
        sign: with that key.
        alarms: what people are told, and whether they were.
        duties: what this process does of the work that one replica does at a time.
        limits: what one host and one site may ask for.
        log_keys, log_files: what signs the transparency logs, and where they are served from.
        log_heads: the largest checkpoint ever signed of each.
        board: what of them is published, and why one stands still.
        tracing: its part of the traces of drifts, where there is a collector.
        sequencer: runs in the server; in a command beside it, it is never started.
        oidc: the OpenID provider where people may sign in, when there is one.
        cosigning: asks witnesses and the time-stamping authority, where there are any.
        ca_pem: certificate of the server's own authority, when it serves TLS.
        policy: the witnesses of its logs, when there are any.
    """

    settings: ServerSettings
    store: Store
    clock: Clock
    verifier: Verifier
    silence: Silence
    limits: Quotas
    alarms: Alarms
    access: HostAccess
    api_keys: ApiKeys
    ingest: Ingest
    duties: Duties
    leases: Leases
    checkin: Checkin
    certificates: Certificates
    enrolment: Enrolment
    rotations: Rotations
    users: Users
    orders: OrderDesk
    order_trust: OrderTrustDesk
    holds: Holds
    packets: Packets
    pruning: Pruning
    ack_public_key: bytes
    sign: Callable[[bytes], bytes]
    log_keys: LogKeys
    log_files: LogFiles
    log_heads: LogHeads
    board: Board
    sequencer: Sequencer
    receipts: Receipts
    tracing: Tracing
    cosigning: Cosigning | None = None
    oidc: Oidc | None = None
    ca_pem: bytes | None = None
    policy: Policy | None = None

    def fleet(self, reader: SiteReader) -> Fleet:
        """The read model over the rows that `reader` sees."""
        return Fleet(reader, self.clock, self.silence, self.verifier)

    def planner(self) -> Planner:
        """What could be done about findings, and drafts of it."""
        return Planner(self.clock, self.orders, self.fleet)

    def exceptions(self) -> Exceptions:
        """What people accept as it is, for a while."""
        return Exceptions(self.store, self.clock)

    def promoting(self) -> Promoting:
        """What of it became a rule."""
        return Promoting(self.store, self.clock, self.planner())

    def adviser(self) -> Adviser:
        """A model's advice, for who asks for it."""
        from compliance_agent.server.services.advising import Adviser

        return Adviser(self.store, self.clock, self.planner(), self._model())

    def _model(self) -> Model | None:
        if self.settings.planner_model_url is None:
            return None
        from compliance_agent.server.model_calls import ModelCalls  # an HTTP client, which most servers never need

        path, key = self.settings.planner_model_key_file, None
        if path is not None:
            key = read_file(path, limit_bytes=1_024, secret=True).decode("ascii", "replace").strip()
        return ModelCalls(self.settings.planner_model_url, self.settings.planner_model, key)

    def prover(self, reader: SiteReader) -> Prover:
        """Proofs of the records that `reader` sees."""
        return Prover(reader, self.log_files, self.log_keys, self.policy, self.stamped)

    @property
    def stamped(self) -> Stamped | None:
        """What verifies time stamps, where an authority is configured."""
        stamps = self.cosigning.stamps if self.cosigning is not None else None
        return stamps.said if stamps is not None else None

    def sampling(self, reader: SiteReader) -> Sampling:
        """Samples of the sites that `reader` sees."""
        return Sampling(reader, self.log_files, self.log_keys)

    def controls(self, reader: SiteReader) -> Controls:
        """What the hosts that `reader` sees showed, day by day."""
        return Controls(reader, self.clock)

    def logbook(self, reader: SiteReader) -> Logbook:
        """The logs of the sites that `reader` sees."""
        return Logbook(reader, self.log_files, self.log_keys, self.board, self.policy, self.stamped)
