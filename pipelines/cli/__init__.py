"""The command line: all commands of ``tadvae`` except ``tadvae tune``."""
