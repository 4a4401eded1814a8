# As much of nixpkgs as release/nix needs to be evaluated without it: what a module says comes out as it was said.
rec {
  lib = {
    mkOption = given: given;
    mkEnableOption = description: {
      inherit description;
      type = "bool";
      default = false;
    };
    mkIf = condition: content: if condition then content else { };
    types = {
      package = "package";
      path = "path";
      str = "str";
      bool = "bool";
      submodule = given: { submodule = given; };
      attrsOf = type: { attrsOf = type; };
    };
    all = builtins.all;
    elem = builtins.elem;
    attrNames = builtins.attrNames;
    attrValues = builtins.attrValues;
    concatStringsSep = builtins.concatStringsSep;
    hasPrefix = prefix: text: builtins.substring 0 (builtins.stringLength prefix) text == prefix;
    mapAttrsToList = f: set: map (name: f name set.${name}) (builtins.attrNames set);
    cleanSource = path: path;
    licenses.asl20 = "Apache-2.0";
    platforms.linux = [ "linux" ];
    genAttrs =
      names: f:
      builtins.listToAttrs (
        map (name: {
          inherit name;
          value = f name;
        }) names
      );
  };

  named = names: lib.genAttrs names (name: name);
  pythonPackages =
    named [ "hatchling" "click" "cryptography" "h11" "pynacl" "pyyaml" "rich" "structlog" ]
    // {
      buildPythonApplication = given: builtins.removeAttrs given [ "src" ];
    };

  pkgs =
    named [ "python311" "gnumake" "git" "nftables" "openssl" "strace" "chromium" "util-linux" ]
    // {
      stdenv.hostPlatform.system = "x86_64-linux";
      formats.yaml = _: {
        type = "yaml";
        generate = name: value: { inherit name value; };
      };
      mkShell = given: given;
      callPackage =
        path: _:
        import path {
          inherit lib;
          util-linux = "/util-linux";
          python3Packages = pythonPackages;
        };
    };

  nixpkgs = {
    inherit lib;
    legacyPackages = lib.genAttrs [ "x86_64-linux" "aarch64-linux" ] (_: pkgs);
  };

  flake =
    let
      self = (import ../../flake.nix).outputs { inherit self nixpkgs; };
    in
    self;

  # What the module makes of these settings.
  host =
    given:
    let
      config = {
        services.compliance-agent = {
          package = flake.packages.x86_64-linux.default.pname;
          settings = { };
          credentials = { };
          drills = false;
        }
        // given;
        environment.etc = made.config.environment.etc;
      };
      made = flake.nixosModules.default { inherit config lib pkgs; };
    in
    made.config;
}
