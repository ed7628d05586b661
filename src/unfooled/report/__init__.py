"""From records to files that people read: the run directory with its tables and its one self-contained page."""

from unfooled.report.files import write

__all__ = ["write"]
