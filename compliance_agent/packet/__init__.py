"""The auditor's packet: one zip file with the evidence of one site and period, the whole log over it, and every key and command
needed to check it with `openssl` and `sha256sum`, offline.

    await build.build(data_dir, "riverside-clinic", date(2026, 11, 1), date(2026, 11, 30), Path("packet.zip"))
    report = verify.verify_file(Path("packet.zip"))

`build` reads the server's data directory; everything else is made from the files in the packet alone, so that an auditor needs no
server. Built twice from the same data it is the same bytes: sorted names, one time stamp, no compression, no clock.
"""
