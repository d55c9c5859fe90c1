"""Where commands print: results to standard output, what they say meanwhile to standard error."""

from rich.console import Console

OUT = Console(highlight=False, emoji=False, soft_wrap=True)
ERR = Console(highlight=False, emoji=False, soft_wrap=True, stderr=True)
