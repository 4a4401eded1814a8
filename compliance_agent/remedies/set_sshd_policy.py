"""Write the SSH policy as a drop-in file, test it, have the daemon read it, and prove that it still answers.

One action, because its parts are only safe together: were the file put back without the daemon reading it again, the refused policy
would stay in force. Whoever is logged in stays so.
"""

from __future__ import annotations

from typing import Any

from compliance_agent.core import sshd
from compliance_agent.errors import StepFailed
from compliance_agent.ports import ChangingHost
from compliance_agent.remedies import kept_file, sshd_daemon
from compliance_agent.remedies.spec import Action, Args
from compliance_agent.remedies.unit_codes import unit_codes


async def capture(host: ChangingHost, args: Args) -> Any:
    return {
        "file": await kept_file.capture_file(host, str(args["path"])),
        "answers": await sshd_daemon.answers(host),
    }


async def apply(host: ChangingHost, args: Args) -> None:
    await sshd_daemon.must_answer(host, "no_handshake_before")
    try:
        content = sshd.drop_in(
            passwords=bool(args["passwords"]),
            root_login=str(args["root_login"]),
            ciphers=await sshd_daemon.supported(host, "cipher", str(args["ciphers"])),
            macs=await sshd_daemon.supported(host, "mac", str(args["macs"])),
            kex=await sshd_daemon.supported(host, "kex", str(args["kex"])),
        )
    except ValueError as error:
        raise StepFailed(str(error), code="bad_arguments") from error
    await kept_file.put_file(host, str(args["path"]), content)
    await sshd_daemon.read_and_answer(host, str(args["unit"]))


async def undo(host: ChangingHost, args: Args, captured: Any) -> None:
    await kept_file.restore_file(host, str(args["path"]), captured["file"])
    if not captured["answers"]:
        return  # then nothing was written; and to have the daemon read its files now could end it
    unit = str(args["unit"])
    if unit.endswith(".socket") or (await host.units((unit,)))[unit].active == "active":
        await sshd_daemon.read_anew(host, unit)
    else:  # it ended under the policy that was taken back
        await host.unit_action("start", unit)
    await sshd_daemon.bring_back(host, unit)


ACTION = Action(
    id="set_sshd_policy",
    title="write the SSH policy to {path}, test it and have {unit} read it (root {root_login}, ciphers {ciphers})",
    arguments={
        "path": str,
        "unit": str,
        "passwords": bool,
        "root_login": str,
        "ciphers": str,
        "macs": str,
        "kex": str,
    },
    capture=capture,
    apply=apply,
    undo=undo,
    restored=sshd_daemon.back,
    codes={**unit_codes("reload", "start", "restart"), **kept_file.CODES, **sshd_daemon.CODES},
    deadline_s=180.0,
)
