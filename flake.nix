{
  description = "Compliance evidence for clinic hosts: the agent, a shell to work on it, and a NixOS module";

  inputs.nixpkgs.url = "nixpkgs";

  outputs =
    { self, nixpkgs }:
    let
      each = nixpkgs.lib.genAttrs [
        "x86_64-linux"
        "aarch64-linux"
      ];
      of = system: nixpkgs.legacyPackages.${system};
    in
    {
      packages = each (system: rec {
        compliance-agent = (of system).callPackage ./release/nix/package.nix { };
        default = compliance-agent;
      });

      # `./run` brings the locked Python packages by itself.
      devShells = each (system: {
        default = (of system).mkShell {
          packages = with (of system); [
            python311
            gnumake
            git
            nftables
            openssl
            strace
            chromium
          ];
        };
      });

      nixosModules.default = import ./release/nix/module.nix self;
    };
}
