"""The schema as numbered SQL files, each opening with a note that says why."""
