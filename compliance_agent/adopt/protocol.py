"""What may be said to the root side of orders: give a nonce, take a baseline, note an approval, follow this host's key; and how it
answers.
"""

from __future__ import annotations

from compliance_agent.frames import Kind, Side, Table, Text
from compliance_agent.heal.protocol import CODE, SHA256

MOST_BROUGHT = 4_194_304  # of an order, what leads to its signers' keys, and a baseline
ANSWER_S = 120.0  # the longest that a question takes
ANSWERS = ("refused", "failed", "unclear")

TABLE = Table(
    "adopt",
    1,
    # A new nonce, which an order must name. The one before stays good.
    Kind("nonce", 1, Side.ASKS, answers=("given", *ANSWERS)),
    # Take the baseline of an order; what follows is the object of forms.BROUGHT.
    Kind("take", 2, Side.ASKS, most_blob_bytes=MOST_BROUGHT, answers=("taken", *ANSWERS)),
    # Note what people approved; what follows is an object of the same kind without a baseline.
    Kind("approve", 3, Side.ASKS, most_blob_bytes=MOST_BROUGHT, answers=("noted", *ANSWERS)),
    # This host's key gave way to another; what follows is the object of rotation.BROUGHT, or nothing: which one does root know?
    Kind("follow", 4, Side.ASKS, most_blob_bytes=16_384, answers=("follows", *ANSWERS)),
    Kind("given", 101, Side.ANSWERS, {"nonce": Text(32, r"[0-9a-f]{32}")}),
    # The files are this baseline's, and so is what heal may do.
    Kind("taken", 102, Side.ANSWERS, {"baseline": SHA256}),
    # Root's file has it, for one cure.
    Kind("noted", 106, Side.ANSWERS),
    # The key that root knows this host by.
    Kind("follows", 107, Side.ANSWERS, {"host": SHA256}),
    # It is not to be taken; nothing was changed and nothing was used up.
    Kind("refused", 103, Side.ANSWERS, {"code": CODE}),
    # It could not be made durable or brought to its files; what was begun is finished with the next question.
    Kind("failed", 104, Side.ANSWERS, {"code": CODE}),
    # The machine gave no answer in time.
    Kind("unclear", 105, Side.ANSWERS, {"reason": CODE}),
)
