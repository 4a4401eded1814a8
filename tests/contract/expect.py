"""What the tests of the Host port share."""

from __future__ import annotations

from collections.abc import Awaitable

import pytest

from compliance_agent.errors import CannotTell, StepFailed


async def reason_of(call: Awaitable[object]) -> str:
    with pytest.raises(CannotTell) as caught:
        await call
    return caught.value.reason


async def code_of(call: Awaitable[object]) -> str:
    with pytest.raises(StepFailed) as caught:
        await call
    return caught.value.code
