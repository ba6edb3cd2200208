"""A vault in a folder of iCloud Drive, through pyicloud.

=============  =============================================================================
``account``    who is logged in, and where the login is kept (does not load pyicloud)
``password``   the proof that a password is known, as arithmetic
``sign_in``    the requests of a sign-in, with that proof
``session``    pyicloud's client with what it lacks: timeouts, safe files, no password
``answers``    what Apple's answers and pyicloud's exceptions mean in the contract's words
``drive``      the requests of iCloud Drive, each with its answer checked
``client``     one client for one remote: connects, renews, and knows when trust has ended
``remote``     the contract, on top of these
``login``      signing in, second factor, trust, terms; signing out
=============  =============================================================================
"""
