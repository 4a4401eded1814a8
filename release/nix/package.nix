# The agent from this tree, with its units. The program's place is the only thing that differs from the units of the Debian package.
{
  lib,
  python3Packages,
  util-linux,
}:
python3Packages.buildPythonApplication {
  pname = "compliance-agent";
  version = builtins.head (builtins.match ".*__version__ = \"([^\"]+)\".*" (builtins.readFile ../../compliance_agent/__init__.py));
  pyproject = true;
  src = lib.cleanSource ../..;

  build-system = [ python3Packages.hatchling ];
  dependencies = with python3Packages; [
    click
    cryptography
    h11
    pynacl
    pyyaml
    rich
    structlog
  ];

  # Its suite needs a Debian host, a browser and a database; `make test` runs it.
  doCheck = false;
  pythonImportsCheck = [ "compliance_agent.agent" ];

  postInstall = ''
    for unit in compliance-agent.service compliance-agent-drill.service compliance-agent-drill.timer; do
      install -D -m 0644 "compliance_agent/units/$unit" "$out/lib/systemd/system/$unit"
    done
    substituteInPlace $out/lib/systemd/system/compliance-agent*.service \
      --replace-quiet /usr/bin/compliance-agent $out/bin/compliance-agent \
      --replace-quiet /bin/kill ${util-linux}/bin/kill
  '';

  meta = {
    description = "Watches clinic hosts for drift from their baseline, heals what may be healed, and keeps evidence anyone can verify";
    license = lib.licenses.asl20;
    platforms = lib.platforms.linux;
    mainProgram = "compliance-agent";
  };
}
