"""Where a vault's objects live: names and bytes, nothing else.

``base`` is the contract, ``folder`` a plain folder, ``location`` finds the remote for a URL.
"""
