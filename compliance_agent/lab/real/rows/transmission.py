"""transmission: a TLS service with certificates that are over, ending, for another name or weak, old versions, open keys."""

from compliance_agent.lab.real.row import Of, Row, Table, hanging, hidden, then

_OF = Of("transmission")
_CERTIFICATE, _KEY = "/etc/ssl/certs/clinic.pem", "/etc/ssl/private/clinic.key"
_RESTART = "systemctl restart clinic-tls"
_GOOD = f"lab-certificate; {_RESTART}"
# NAME DAYS KIND AUTHORITY: a certificate and its key, made anew.
_MAKER = f"""#!/bin/sh
set -e
cd /etc/ssl/lab
case ${{3-ec}} in ec) kind="ec -pkeyopt ec_paramgen_curve:P-256" ;; *) kind=$3 ;; esac
name=${{1-localhost}} by=${{4-ca}}
openssl req -newkey $kind -nodes -keyout key -out request -subj "/CN=$name" -addext "subjectAltName=DNS:$name" 2>/dev/null
openssl x509 -req -in request -CA $by.pem -CAkey $by.key -days ${{2-90}} -copy_extensions copy -out pem 2>/dev/null
chmod 640 key
cp -p pem {_CERTIFICATE}
cp -p key {_KEY}
"""
_UNIT = f"""[Service]
Environment=OPTIONS=
ExecStart=/usr/bin/openssl s_server -accept 443 -cert {_CERTIFICATE} -key {_KEY} -www -quiet $OPTIONS
ExecStartPost=/bin/sh -c 'until ss -Hltn sport = 443 | grep -q .; do sleep 0.05; done'
Restart=on-failure
RestartSec=100ms
"""
_CLOSED = f"[ $(stat -c %a {_KEY}) = 640 ] && ! setpriv --reuid=nobody --regid=nogroup --clear-groups cat {_KEY}"
_OPEN = f"[ $(stat -c %a {_KEY}) = 644 ]"


def _shows(words: str) -> tuple[str, str]:
    """The service shows another certificate."""
    return f"lab-certificate {words}; {_RESTART}", _GOOD


def _takes(options: str) -> tuple[str, str]:
    """The service takes other versions or ciphers."""
    place = "/run/systemd/system/clinic-tls.service.d"
    text = f'[Service]\\nEnvironment="OPTIONS={options}"\\n'
    return (
        f"mkdir -p {place}; printf '{text}' >{place}/z.conf; systemctl daemon-reload; {_RESTART}",
        f"rm -r {place}; systemctl daemon-reload; {_RESTART}",
    )


def _untrusted_and(scripts: tuple[str, str]) -> tuple[str, str]:
    """First that, and then the wrong authority, without which nobody would ask the program; and back the other way."""
    place = "/etc/ssl/lab/ca.pem"
    return (
        f"{scripts[0]}; cp -p {place} /root/ca.kept; cp /etc/ssl/lab/other.pem {place}",
        f"cp -p /root/ca.kept {place}; {scripts[1]}",
    )


_ROWS: tuple[Row, ...] = (
    _OF.healed("key_open", "key_open", f"chmod 644 {_KEY}", _CLOSED),
    _OF.alarm("certificate_over", "out_of_date", _shows("localhost 0")),
    _OF.alarm("certificate_ends_soon", "ends_soon", _shows("localhost 5")),
    _OF.alarm("file_ends_soon", "file_ends_soon", ("lab-certificate localhost 5", _GOOD)),
    _OF.alarm("renewed_and_not_read", "ends_soon", (f"lab-certificate localhost 5; {_RESTART}; lab-certificate", _GOOD)),
    _OF.alarm("other_name", "wrong_name", _shows("other.example 90")),
    _OF.alarm("other_authority", "untrusted", _shows("localhost 90 ec other")),
    _OF.alarm("weak_key", "untrusted", then(_takes("-cipher ALL:@SECLEVEL=0"), _shows("localhost 90 rsa:1024"))),
    _OF.alarm("old_version", "old_tls", _takes("-min_protocol TLSv1 -cipher ALL:@SECLEVEL=0")),
    _OF.alarm(
        "key_behind_a_link", "linked_key_open",
        (f"mv {_KEY} {_KEY}.real; chmod 644 {_KEY}.real; ln -s {_KEY}.real {_KEY}",
         f"rm {_KEY}; mv {_KEY}.real {_KEY}; chmod 640 {_KEY}"),
    ),
    _OF.blind("service_down", "unreached", ("systemctl stop clinic-tls", "systemctl start clinic-tls")),
    _OF.blind(
        "service_hangs", "timed_out", ("systemctl kill -s STOP clinic-tls", "systemctl kill -s CONT clinic-tls")
    ),
    _OF.blind("program_gone", "tool_missing", _untrusted_and(hidden("/usr/bin/openssl"))),
    _OF.blind("program_hangs", "timed_out", _untrusted_and(hanging("/usr/bin/openssl"))),
    _OF.blind("file_is_none", "unparsable", (f"echo none >{_CERTIFICATE}", f"cp -p /etc/ssl/lab/pem {_CERTIFICATE}")),
    _OF.blind("authorities_gone", "tool_failed", ("mv /etc/ssl/lab/ca.pem /root", "mv /root/ca.pem /etc/ssl/lab")),
    _OF.blind("key_gone", "not_found", (f"mv {_KEY} /root", f"mv /root/clinic.key {_KEY}")),
    _OF.undone(
        "directory_open", "key_open",
        (f"chmod 777 /etc/ssl/private; chmod 644 {_KEY}", f"chmod 710 /etc/ssl/private; chmod 640 {_KEY}"),
        "unsafe_directory", _OPEN,
    ),
    _OF.undone(
        "key_read_only", "key_open",
        (f"chmod 644 {_KEY}; mount --bind {_KEY} {_KEY}; mount -o remount,bind,ro {_KEY}", f"umount {_KEY}; chmod 640 {_KEY}"),
        "read_only", _OPEN,
    ),
)  # fmt: skip

TABLE = Table(
    _ROWS,
    setup=f"""
    mkdir -p /etc/ssl/lab; cd /etc/ssl/lab
    for name in ca other; do
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout $name.key -out $name.pem -days 900 \\
            -subj /CN=$name 2>/dev/null
    done
    cat >/usr/local/sbin/lab-certificate <<'E'
{_MAKER}E
    chmod 755 /usr/local/sbin/lab-certificate
    cat >/etc/systemd/system/clinic-tls.service <<'E'
{_UNIT}E
    lab-certificate
    systemctl daemon-reload
    systemctl start clinic-tls""",
    entry={
        "mode": "enforce",
        "deadline_s": 4,
        "parameters": {
            "endpoints": ["localhost:443"],
            "certificates": [_CERTIFICATE],
            "keys": [_KEY],
            "ca_file": "/etc/ssl/lab/ca.pem",
            "min_days": 14,
            "min_tls": "1.2",
        },
    },
    cost_s=80.0,
)
