"""openscap: Debian's SCAP content, evaluated by the real oscap; rules that turn, content that changes or does not apply.

Debian 12 carries content for Debian 11, which says of itself that it does not apply here. A dictionary of the lab's own, given as
`cpe`, says that it does: it asks /etc/debian_version.
"""

from compliance_agent.lab.real.row import Of, Row, Table, hanging, hidden, kept, refusing

_OF = Of("openscap")
_CONTENT = "/usr/share/xml/scap/ssg/content/ssg-debian11-ds.xml"
_CPE = "/etc/msp/cpe"
_PIN = "0" * 64  # the setup puts the digest of the installed content in its place
_DICTIONARY = """<?xml version="1.0"?>
<cpe-list xmlns="http://cpe.mitre.org/dictionary/2.0"><cpe-item name="cpe:/o:debian:debian_linux:11"><title>Debian</title>
<check system="http://oval.mitre.org/XMLSchema/oval-definitions-5" href="oval.xml">oval:lab-debian:def:1</check>
</cpe-item></cpe-list>
"""
_OVAL = """<?xml version="1.0"?>
<oval_definitions xmlns="http://oval.mitre.org/XMLSchema/oval-definitions-5"
 xmlns:ind="http://oval.mitre.org/XMLSchema/oval-definitions-5#independent"
 xmlns:oval="http://oval.mitre.org/XMLSchema/oval-common-5">
<generator><oval:schema_version>5.11</oval:schema_version><oval:timestamp>2026-01-01T00:00:00</oval:timestamp></generator>
<definitions><definition class="inventory" id="oval:lab-debian:def:1" version="1">
<metadata><title>Debian</title><description>Debian</description></metadata>
<criteria><criterion test_ref="oval:lab-debian:tst:1"/></criteria></definition></definitions>
<tests><ind:textfilecontent54_test id="oval:lab-debian:tst:1" version="1" check="all" comment="any">
<ind:object object_ref="oval:lab-debian:obj:1"/></ind:textfilecontent54_test></tests>
<objects><ind:textfilecontent54_object id="oval:lab-debian:obj:1" version="1"><ind:filepath>/etc/debian_version</ind:filepath>
<ind:pattern operation="pattern match">^[0-9]+</ind:pattern><ind:instance datatype="int">1</ind:instance>
</ind:textfilecontent54_object></objects></oval_definitions>
"""

_ROWS: tuple[Row, ...] = (
    _OF.alarm("a_mode_is_wrong", "rule_failed", ("chmod 646 /etc/gshadow", "chmod 640 /etc/gshadow")),
    _OF.alarm("an_owner_is_wrong", "rule_failed", ("chown nobody /etc/passwd", "chown root /etc/passwd")),
    _OF.alarm("content_changed", "content_changed", kept(_CONTENT, f"echo '<!-- -->' >>{_CONTENT}")),
    _OF.blind("nothing_applies", "nothing_applies", kept("/etc/debian_version", "echo trixie/sid >/etc/debian_version")),
    _OF.blind("content_gone", "not_found", (f"mv {_CONTENT} /root", f"mv /root/ssg-debian11-ds.xml {_CONTENT}")),
    _OF.blind("dictionary_gone", "tool_failed", (f"mv {_CPE}/cpe.xml /root", f"mv /root/cpe.xml {_CPE}")),
    _OF.blind("no_oscap", "tool_missing", hidden("/usr/bin/oscap")),
    _OF.blind("oscap_hangs", "timed_out", hanging("/usr/bin/oscap")),
    _OF.blind("oscap_is_ended", "tool_failed", refusing("/usr/bin/oscap", "kill -KILL $$")),
)  # fmt: skip

TABLE = Table(
    _ROWS,
    setup=f"""
    mkdir -p {_CPE}
    cat >{_CPE}/cpe.xml <<'E'
{_DICTIONARY}E
    cat >{_CPE}/oval.xml <<'E'
{_OVAL}E
    sed -i "s/{_PIN}/$(sha256sum {_CONTENT} | cut -c1-64)/" /etc/msp/baseline.yaml""",
    entry={
        "mode": "audit",
        "deadline_s": 10,
        "parameters": {
            "content": _CONTENT,
            "content_sha256": _PIN,
            "profile": "xccdf_org.ssgproject.content_profile_standard",
            "rules": ["file_permissions_etc_gshadow", "file_owner_etc_passwd", "file_permissions_etc_shadow"],
            "cpe": f"{_CPE}/cpe.xml",
        },
    },
    interval_s=4,
    cost_s=80.0,
)
