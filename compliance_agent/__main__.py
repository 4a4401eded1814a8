"""`python -m compliance_agent` is the `compliance-agent` command."""

from compliance_agent.cli import main

main()
