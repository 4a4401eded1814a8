"""The tracer of an agent, and the way its spans take: straight to the collector, or by uplink where that has the network."""

from __future__ import annotations

import os

from compliance_agent.config import AgentConfig
from compliance_agent.otlp import Otlp
from compliance_agent.ports import Clock, Transport
from compliance_agent.traces import Tracer
from compliance_agent.transport.http import HttpTransport
from compliance_agent.uplink.link import UplinkTransport, link_of


def traced_by(config: AgentConfig, clock: Clock) -> tuple[Tracer, Otlp | None]:
    """Makes traces; what sends their spans on, where the configuration names a collector.

    Raises:
        ConfigError: the extra `otel` is missing, or uplink's user does not exist.
    """
    if config.otlp_url is None:
        return Tracer(clock.now, os.urandom), None
    way: Transport = (
        UplinkTransport(link_of(config), config.otlp_url)
        if config.privileges == "split"
        else HttpTransport(config.otlp_url)
    )
    otlp = Otlp(way, "compliance-agent", clock.sleep)
    return Tracer(clock.now, os.urandom, otlp.add), otlp
