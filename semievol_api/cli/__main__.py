"""`python -m semievol_api.cli`: the command line without its script. Knows nothing of the commands."""

from semievol_api.cli.app import main

main()
