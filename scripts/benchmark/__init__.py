"""Measures cryptfs beside other encrypted filesystems; ``scripts/bench --help`` says how."""
