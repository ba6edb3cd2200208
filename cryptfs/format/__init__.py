"""From bytes to objects and back: pure functions. docs/FORMAT.md is normative."""
