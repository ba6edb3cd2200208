"""Remotes for tests (``memory``, ``faulty``), and the promises that every remote keeps."""
