"""The operator's commands, one file per noun. They hold no logic: they ask the rooms and show the answer."""
