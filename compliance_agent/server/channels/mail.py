"""Mail by SMTP, over STARTTLS unless a private relay has none; one message for each delivery, its id the Message-ID."""

from __future__ import annotations

import asyncio
import re
import smtplib
import socket
import ssl
from email.message import EmailMessage
from email.utils import format_datetime

from compliance_agent.errors import ConfigError, Unavailable
from compliance_agent.server.channels import words
from compliance_agent.server.channels.wire import address_of, tls_context
from compliance_agent.server.records.alarms import Delivery

STEP_DEADLINE_S = 5.0  # for each answer of the mail server
_ADDRESS = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]+@[A-Za-z0-9.-]+")


class _To(smtplib.SMTP):
    """SMTP to an address that was looked at, under the name that its certificate must have."""

    def __init__(self, name: str, address: str, port: int) -> None:
        self._address = address
        super().__init__(name, port, timeout=STEP_DEADLINE_S)

    def _get_socket(self, _host: str, port: int, timeout: float) -> socket.socket:
        return socket.create_connection((self._address, port), timeout)


class Mail:
    """One mail server and those it writes to (addresses separated by spaces)."""

    def __init__(
        self,
        server: str,
        private: bool,
        host: str,
        sender: str,
        to: str,
        port: int = 587,
        user: str | None = None,
        password_file: str | None = None,
        ca_file: str | None = None,
        starttls: bool = True,
    ) -> None:
        if not starttls and (user is not None or not private):
            raise ConfigError("starttls: may be false only where the channel is private and has no user")
        if (user is None) != (password_file is None):
            raise ConfigError("user and password_file: give both or neither")
        for address in (sender, *to.split()):
            if not _ADDRESS.fullmatch(address):
                raise ConfigError(f"sender, to: expected mail addresses, found {address[:60]!r}")
        self._server, self._private, self._host, self._port = server, private, host, port
        self._sender, self._to = sender, to.split()
        self._login = (user, password_file) if user is not None and password_file is not None else None
        self._tls = tls_context(ca_file) if starttls else None

    async def send(self, delivery: Delivery) -> None:
        """Hand it to the mail server."""
        address = await address_of(self._host, self._port, private=self._private)
        try:
            await asyncio.to_thread(self._sent, address, self._message(delivery))
        except smtplib.SMTPResponseException as error:
            raise Unavailable(f"{self._host}: refused", code=f"smtp_{int(error.smtp_code)}") from error
        except smtplib.SMTPRecipientsRefused as error:
            raise Unavailable(f"{self._host}: refused a recipient", code="smtp_recipient") from error
        except ssl.SSLError as error:
            raise Unavailable(f"{self._host}: TLS failed", code="tls_failed") from error
        except (OSError, smtplib.SMTPException, ValueError) as error:
            raise Unavailable(f"{self._host}: the connection was refused or cut", code="cut") from error

    def _sent(self, address: str, message: EmailMessage) -> None:
        with _To(self._host, address, self._port) as connection:
            if self._tls is not None:
                connection.starttls(context=self._tls)
            if self._login is not None:
                connection.login(*self._login)
            refused = connection.send_message(message, self._sender, self._to)
            if refused:
                raise smtplib.SMTPRecipientsRefused(refused)

    def _message(self, delivery: Delivery) -> EmailMessage:
        message = EmailMessage()
        message["From"], message["To"] = self._sender, ", ".join(self._to)
        message["Subject"] = words.summary(delivery, self._server)
        at = delivery.alert.closed_at if delivery.transition == "close" else None
        message["Date"] = format_datetime(at or delivery.alert.opened_at)
        message["Message-ID"] = f"<{delivery.id}@{self._server}>"
        message["Auto-Submitted"] = "auto-generated"
        said = words.document(delivery, self._server)
        message.set_content("\n".join(f"{key}: {value}" for key, value in said.items() if value is not None) + "\n")
        return message
