# services.compliance-agent: the agent of a NixOS host, in one process, by the same unit as on Debian.
#
# Settings are those of docs/settings.md. Secrets never stand in them, since the store is everybody's to read: `credentials` names files on
# the host, which the service manager hands over (LoadCredential=).
self:
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.compliance-agent;
  yaml = pkgs.formats.yaml { };
  # The settings that name a file which the service manager may bring instead, without `_file`.
  credentials = [
    "mcp_api_key"
    "mcp_server_key"
    "mcp_log_key"
    "mcp_ca"
    "witness_token"
  ];
in
{
  options.services.compliance-agent = {
    enable = lib.mkEnableOption "the compliance agent";

    package = lib.mkOption {
      type = lib.types.package;
      default = self.packages.${pkgs.stdenv.hostPlatform.system}.default;
      description = "The agent.";
    };

    settings = lib.mkOption {
      type = lib.types.submodule { freeformType = yaml.type; };
      default = { };
      description = "Settings of the agent, as `compliance-agent enrol` prints them. No secret.";
      example = {
        client_id = "northside";
        site_id = "riverside-clinic";
        host_id = "front-desk";
        mcp_url = "https://mcp.example.com:8443";
      };
    };

    baseline = lib.mkOption {
      type = lib.types.path;
      description = "The baseline of this host, in YAML.";
    };

    credentials = lib.mkOption {
      type = lib.types.attrsOf lib.types.str;
      default = { };
      description = "Files on this host that the service manager hands over: any of ${lib.concatStringsSep ", " credentials}.";
      example = {
        mcp_api_key = "/var/lib/compliance-agent/keys/api-key";
      };
    };

    drills = lib.mkOption {
      type = lib.types.bool;
      default = false;
      description = "Make each alarm of this host ring once a week, and keep the proof.";
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = lib.all (name: lib.elem name credentials) (lib.attrNames cfg.credentials);
        message = "services.compliance-agent.credentials: expected only ${lib.concatStringsSep ", " credentials}";
      }
      {
        # A string, so that it is a place on the host and not a copy in the store.
        assertion = lib.all (path: !lib.hasPrefix builtins.storeDir path) (lib.attrValues cfg.credentials);
        message = "services.compliance-agent.credentials: a file of the store is everybody's to read";
      }
    ];

    environment.systemPackages = [ cfg.package ];
    environment.etc."msp/agent.yaml".source = yaml.generate "agent.yaml" cfg.settings;
    environment.etc."msp/baseline.yaml".source = cfg.baseline;

    systemd.packages = [ cfg.package ];
    systemd.services.compliance-agent = {
      wantedBy = [ "multi-user.target" ];
      # New settings are read again; what cannot be used is refused, and the old stays.
      reloadTriggers = [
        config.environment.etc."msp/agent.yaml".source
        cfg.baseline
      ];
      serviceConfig.LoadCredential = lib.mapAttrsToList (name: path: "${name}:${path}") cfg.credentials;
    };
    systemd.timers.compliance-agent-drill = lib.mkIf cfg.drills { wantedBy = [ "timers.target" ]; };
  };
}
