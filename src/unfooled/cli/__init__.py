"""The command line: one thin function per verb, each calling what Python callers call."""

from unfooled.cli._app import main as main
