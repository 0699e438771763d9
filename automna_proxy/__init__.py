"""The front door: settings, composition root, command line, demo. Imports everything, holds no logic."""
